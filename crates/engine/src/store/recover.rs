//! Before the first sync: local state against the targets (`spec: replication` §9).
//!
//! The next TXID lies above everything that is known anywhere. If a target is ahead (metadata
//! lost, database restored or moved), its newest L0 file becomes the local one: it says where in
//! the log the history ended, and the engine finds out whether it can go on from there.

use futures::TryStreamExt;
use tracing::{info, warn};

use super::database::Database;
use super::lineage;
use crate::compaction::Manifest;
use crate::db::LocalState;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx;
use crate::replica::{FileInfo, Stamps};
use crate::sys::{Publisher, blocking, mutant, wait};
use crate::types::{Level, Txid, TxidRange};

/// Files with a broken newest one that are looked at before giving up.
const MAX_BROKEN: u32 = 16;

/// Prepares the engine. `false` while there is no database.
pub(super) async fn run(database: &Database) -> Result<bool> {
    match attempt(database).await {
        // An object that was listed is gone: what was listed says nothing any more.
        Err(err) if err.kind() == ErrorKind::NotFound && !mutant("store-stale-listing-kept") => {
            database.targets().iter().for_each(|target| target.manifest().forget());
            attempt(database).await
        }
        other => other,
    }
}

async fn attempt(database: &Database) -> Result<bool> {
    // First of all the read transaction: from here on nothing can disappear.
    if !database.with_db(|db| db.open()).await? {
        return Ok(false);
    }
    database.note_opened();
    let mut floor = None;
    for (n, target) in database.targets().iter().enumerate() {
        let max = target.manifest().read(target.replica(), Manifest::max_txid).await.map_err(|e| {
            database.blame(n);
            e.context("check database behind replica")
        })?;
        floor = if mutant("store-floor-ignored") { None } else { floor.max(max) };
    }
    replace_broken(database).await?;
    for target in database.targets() {
        if lineage::give_up_other_history(database, target).await? {
            break;
        }
    }
    let (position, empty) = database
        .with_db(move |db| {
            db.set_floor(floor)?;
            Ok((db.position(), db.opened_empty()))
        })
        .await?;
    if empty && let Some(floor) = floor {
        warn!(
            system = "store",
            db = %database.name(),
            replica_txid = %floor,
            hint = "if that was not meant: stop, remove the database with its -wal and -shm, and restore up to this TXID \
                    with -txid; -restore-if-db-not-exists restores in place of an empty file",
            "the database is an empty file, but its replica holds a history; what comes is replicated above that history"
        );
    }
    if position.is_none()
        && let Some(floor) = floor
    {
        fetch(database, floor).await?;
    }
    Ok(true)
}

/// A newest local file that cannot be read is fetched again, or else taken out of the way.
async fn replace_broken(database: &Database) -> Result<()> {
    for _ in 0..MAX_BROKEN {
        let state = database.with_db(|db| db.local_state()).await?;
        let LocalState::Corrupt { txids, error } = state else { return Ok(()) };
        warn!(system = "store", db = %database.name(), error = %error, "newest local ltx file is unusable");
        if !fetch(database, txids.max()).await? {
            database.with_db(move |db| db.discard_local(txids)).await?;
        }
    }
    Err(Error::corrupt("too many unusable local ltx files")
        .hint("remove the ltx directory of the database's metadata directory to start over locally"))
}

/// Puts the L0 file of `txid` from the first target that has it into the local directory.
async fn fetch(database: &Database, txid: Txid) -> Result<bool> {
    for target in database.targets() {
        let listed = target.replica().list(Level::L0, Some(txid), Stamps::Cheap).await?;
        let Some(file) = listed.into_iter().find(|f| f.txids == TxidRange::single(txid)) else { continue };
        match fetch_from(database, target.replica(), &file).await {
            Ok(()) => {
                info!(system = "store", db = %database.name(), min_txid = %txid, max_txid = %txid,
                    "fetched latest L0 file from replica");
                return Ok(true);
            }
            Err(err) if err.kind() == ErrorKind::Corrupt => {
                warn!(system = "store", db = %database.name(), error = %err, "ltx file on the replica is unusable");
            }
            Err(err) => return Err(err),
        }
    }
    Ok(false)
}

async fn fetch_from(database: &Database, replica: &crate::replica::Replica, file: &FileInfo) -> Result<()> {
    let txids = file.txids;
    let mut body = replica.get_resumable(file)?;
    // One L0 file is bounded by the sync limit, and a full image by the database; it is staged on
    // disk chunk by chunk, then read back and checked before it takes its name.
    let (publisher_path, target_path, modes) = database
        .with_db(move |db| {
            let path = db.local().path(Level::L0, txids);
            Ok((crate::sys::fs::with_suffix(&path, ".tmp"), path, db.modes().unwrap_or_default()))
        })
        .await?;
    let fs = database.world.fs.clone();
    let (chunks, mut received) = tokio::sync::mpsc::channel::<bytes::Bytes>(4);
    let written = blocking(move || {
        fs.create_dir_all(target_path.parent().unwrap_or(&target_path), modes.dir)?;
        let publisher = Publisher::create_as(fs.as_ref(), publisher_path, &target_path, modes.file)?;
        let mut offset = 0;
        while let Some(chunk) = wait(received.recv()) {
            publisher.file().write_all_at(&chunk, offset)?;
            offset += chunk.len() as u64;
        }
        let (header, ..) = ltx::verify(ltx::FileReader::new(publisher.file()))?;
        header.check_name(txids)?;
        publisher.publish(None)
    });
    let sent = async move {
        while let Some(chunk) = body.try_next().await? {
            if chunks.send(chunk).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let (written, sent) = futures::join!(written, sent);
    // A body that broke off shows as a file that does not verify; its own error says more.
    let sent: Result<()> = sent;
    sent.and(written)?;
    database
        .with_db(|db| {
            db.reload_local();
            db.local_state().map(|_| ())
        })
        .await
}
