//! Whether what a target holds is what we put there.
//!
//! One writer at a time: two of them would continue each other's histories, and a restore would mix
//! two databases. A replica has no place for a lease, so each L0 file is one: it is created, never
//! replaced, and whoever finds another's file under the TXID it wants to write has lost the target.
//! It stops there for good and says so. A start may take a target over: it continues above everything
//! that is there, with a full image if the newest file is not its own. Of two that are at it at the
//! same time one gets the next TXID, and the other stops.
//!
//! Two files of one TXID are the same if their headers are: salts, offsets and time come together
//! only once.

use tracing::warn;

use super::database::Database;
use super::target::Target;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::Header;
use crate::replica::{FileInfo, Replica, Stamps};
use crate::sys::{OpenMode, blocking, read_full_at};
use crate::types::{Level, Txid, TxidRange};

/// The error of a target that somebody else writes to.
pub(super) fn taken(replica: &Replica, txid: Txid) -> Error {
    let text = format!("another writer has put a different transaction {txid} on this replica");
    Error::new(ErrorKind::InUse, text).at(replica.client().location()).hint(
        "each database needs a replica path of its own; stop the other writer, then restart this one: \
         it will continue with a full image",
    )
}

/// The object of an L0 file of ours, if that is what the target has under its name.
pub(super) async fn ours(database: &Database, target: &Target, txids: TxidRange) -> Result<Option<FileInfo>> {
    let Some(local) = local_header(database, txids).await? else { return Ok(None) };
    let remote = match target.replica().header(Level::L0, txids).await {
        Err(err) if err.kind() == ErrorKind::Corrupt => return Ok(None),
        other => other?,
    };
    if remote != local {
        return Ok(None);
    }
    let listed = target.replica().list(Level::L0, Some(txids.min()), Stamps::Cheap).await?;
    Ok(listed.into_iter().find(|file| file.txids == txids))
}

/// The newest TXID of the target, if a local file of it exists and is another one.
pub(super) async fn diverged(database: &Database, target: &Target) -> Result<Option<Txid>> {
    let newest = |m: &crate::compaction::Manifest| {
        let chain = m.iter().filter(|file| file.level != Level::SNAPSHOT);
        chain.max_by_key(|file| (file.txids.max(), std::cmp::Reverse(file.level))).copied()
    };
    let Some(newest) = target.manifest().read(target.replica(), newest).await? else { return Ok(None) };
    let txid = newest.txids.max();
    let Some(local) = local_header(database, TxidRange::single(txid)).await? else { return Ok(None) };
    let remote = match target.replica().header(newest.level, newest.txids).await {
        // That it is damaged does not make it another writer's; restores will say so.
        Err(err) if err.kind() == ErrorKind::Corrupt => return Ok(None),
        other => other?,
    };
    Ok((!same_end(&local, newest.level, &remote)).then_some(txid))
}

/// Whether a file of the target ends with the transaction of a local L0 file. Compaction keeps of it
/// only size and time.
fn same_end(local: &Header, level: Level, remote: &Header) -> bool {
    if level == Level::L0 {
        return local == remote;
    }
    let facts = |h: &Header| (h.page_size, h.commit, h.timestamp, h.txids.max());
    facts(local) == facts(remote)
}

/// Before the first upload after a start: if the target's newest transaction is not the local one of
/// that TXID, local state is of another history and is given up. Returns whether it was.
pub(super) async fn give_up_other_history(database: &Database, target: &Target) -> Result<bool> {
    let Some(txid) = diverged(database, target).await? else { return Ok(false) };
    warn!(system = "store", db = %database.name(), replica = target.replica().kind(), txid = %txid,
        location = target.replica().client().location(),
        "replica holds another history than the local ltx files, continuing above it with a full image");
    database.with_db(|db| db.forget_local()).await?;
    Ok(true)
}

/// The header of a local L0 file; `None` if the file is not there.
pub(super) async fn local_header(database: &Database, txids: TxidRange) -> Result<Option<Header>> {
    let (fs, path) = (database.world.fs.clone(), database.local().path(Level::L0, txids));
    blocking(move || {
        let file = match fs.open(&path, OpenMode::Read) {
            Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut head = [0; Header::SIZE];
        read_full_at(file.as_ref(), &mut head, 0).map_err(|e| e.context("read ltx header").at(path.display()))?;
        Header::decode(&head).map(Some)
    })
    .await
}
