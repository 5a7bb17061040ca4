//! Snapshots that a target gets.

use tracing::info;

use super::Target;
use super::moment::Moment;
use crate::compaction::{Compactor, Limits, Manifest};
use crate::db::SnapshotInfo;
use crate::error::{ErrorKind, Result};
use crate::replica::FileInfo;
use crate::store::database::Database;
use crate::store::lineage;
use crate::store::staged::Staged;
use crate::sys::mutant;
use crate::types::{Level, Timestamp, Txid, TxidRange};

impl Target {
    /// Publishes a full image of level 0 as a snapshot too.
    pub(in crate::store) async fn promote(&self, database: &Database, image: &FileInfo) -> Result<FileInfo> {
        let compactor = Compactor {
            replica: self.replica(),
            manifest: &self.manifest,
            local: Some(database.local()),
            local_until: self.shared_until(),
            modes: database.seen().modes,
            limits: Limits::default(),
        };
        let info = compactor.promote(image).await?;
        log_snapshot(database, &info);
        Ok(info)
    }

    /// Writes a snapshot of the present state to level 9, after everything it holds was uploaded: so a
    /// target that somebody else has taken over never gets one of ours.
    ///
    /// # Errors
    /// Those of reading the database and of the store.
    pub(in crate::store) async fn snapshot_uploaded(&self, database: &Database) -> Result<FileInfo> {
        self.sync(database, None).await?;
        // The first file of a history is its first snapshot (C6).
        if database.seen().position == Some(Txid::FIRST) {
            let first = TxidRange::single(Txid::FIRST);
            let known = self.manifest.read(self.replica(), |m| m.level(Level::L0).first().copied()).await?;
            if let Some(image) = known.filter(|file| file.txids == first) {
                return self.promote(database, &image).await;
            }
        }
        let info = self.force_snapshot(database).await?;
        log_snapshot(database, &info);
        Ok(info)
    }

    /// Writes a snapshot of the present state to level 9, whatever is there. Says nothing: who forces one
    /// knows.
    ///
    /// # Errors
    /// Those of reading the database and of the store.
    pub(in crate::store) async fn force_snapshot(&self, database: &Database) -> Result<FileInfo> {
        let staged = Staged::write(database, self.snapshot_of_now(database).await?).await?;
        if !mutant("store-snapshot-before-uploads") {
            self.sync(database, None).await?;
        }
        self.put_snapshot(database, staged).await
    }

    /// Writes a snapshot of the present state to level 9.
    ///
    /// It may hold what was not uploaded yet, so it is made sure before that nobody else has come, and it is taken
    /// back if somebody comes before that is uploaded.
    pub(super) async fn snapshot(&self, database: &Database) -> Result<(SnapshotInfo, Moment)> {
        let staged = Staged::write(database, self.snapshot_of_now(database).await?).await?;
        let snapshot = staged.snapshot;
        self.manifest.forget();
        let (_, proven) = self.check_alone(database, snapshot.txids.max()).await?;
        if self.known_ours() < Some(snapshot.txids.max()) {
            self.ahead.put(staged.header().await?);
        }
        log_snapshot(database, &self.put_snapshot(database, staged).await?);
        Ok((snapshot, proven))
    }

    /// Transaction and time of the snapshot that a new one may replace: one that no local transaction is beyond.
    async fn snapshot_of_now(&self, database: &Database) -> Result<Option<(Txid, Timestamp)>> {
        let newest = |manifest: &Manifest| manifest.level(Level::SNAPSHOT).last().copied();
        let newest = self.manifest.read(self.replica(), newest).await?;
        let local = database.seen().position;
        let Some(newest) = newest.filter(|file| Some(file.txids.max()) >= local) else { return Ok(None) };
        match lineage::remote_header(self.replica(), &newest).await {
            Err(err) if err.kind() != ErrorKind::NotFound => Err(err),
            header => Ok(header.ok().flatten().map(|header| (newest.txids.max(), header.timestamp))),
        }
    }

    async fn put_snapshot(&self, database: &Database, staged: Staged) -> Result<FileInfo> {
        let (txids, modes) = (staged.snapshot.txids, Some(staged.modes));
        let info = self.replica().put_local(Level::SNAPSHOT, txids, &database.world, &staged.path, modes).await?;
        self.manifest.written(info);
        Ok(info)
    }
}

fn log_snapshot(database: &Database, info: &FileInfo) {
    info!(system = "store", db = %database.name(), txid = %info.txids.max(), size = info.size, "snapshot complete");
}
