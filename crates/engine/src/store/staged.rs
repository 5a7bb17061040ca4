//! Snapshots on their way from the database to a target.

use std::io::BufWriter;
use std::path::PathBuf;
use std::sync::Arc;

use super::database::Database;
use crate::db::SnapshotInfo;
use crate::error::Result;
use crate::ltx::{FileWriter, Header};
use crate::sys::{Fs, Modes, OpenMode, Publisher, blocking, mutant, read_full_at, unique_temp_path};
use crate::types::{Timestamp, Txid};

/// A snapshot in a local file, so that a slow store holds up nothing but itself. The file goes with
/// this.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) snapshot: SnapshotInfo,
    pub(super) path: PathBuf,
    pub(super) modes: Modes,
    fs: Arc<dyn Fs>,
}

impl Staged {
    /// One of the same transaction as `before` keeps its time: it will replace it, and what could be restored from
    /// that moment on still can be.
    pub(super) async fn write(database: &Database, before: Option<(Txid, Timestamp)>) -> Result<Self> {
        let _turn = database.turn().await;
        let (mut reader, position, modes, meta) = database
            .with_db(move |db| {
                let mut reader = db.begin_snapshot()?;
                if let Some((_, time)) = before.filter(|(txid, _)| *txid == reader.txid())
                    && !mutant("store-snapshot-dated-anew")
                {
                    reader.date_from(time);
                }
                Ok((reader, db.position(), db.modes().unwrap_or_default(), db.config().meta_path.clone()))
            })
            .await?;
        // It synced first, which may have brought new files.
        database.note_position(position);
        let world = database.world.clone();
        blocking(move || {
            // Several targets may be at it at the same time.
            let path = unique_temp_path(world.random.as_ref(), &meta.join("snapshot.ltx"));
            world.fs.create_dir_all(&meta, modes.dir)?;
            let publisher = Publisher::create_as(world.fs.as_ref(), path.clone(), &path, modes.file)?;
            let snapshot = reader.write(BufWriter::with_capacity(1 << 20, FileWriter::new(publisher.file())))?;
            drop(reader);
            let path = publisher.seal()?;
            Ok(Self { snapshot, path, modes, fs: world.fs.clone() })
        })
        .await
    }

    /// What it begins with.
    pub(super) async fn header(&self) -> Result<Header> {
        let (fs, path) = (self.fs.clone(), self.path.clone());
        blocking(move || {
            let mut head = [0; Header::SIZE];
            read_full_at(fs.open(&path, OpenMode::Read)?.as_ref(), &mut head, 0).map_err(|e| e.at(path.display()))?;
            Header::decode(&head)
        })
        .await
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = self.fs.remove_file(&self.path);
    }
}
