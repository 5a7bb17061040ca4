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

use std::time::Duration;

use tracing::warn;

use super::database::Database;
use super::targets::Target;
use crate::compaction::Manifest;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::{self, Header};
use crate::replica::{FileInfo, Replica};
use crate::sys::{OpenMode, blocking, mutant, read_full_at};
use crate::types::{Level, Txid, TxidRange};

/// Waits before a header that looks damaged is read again.
const READ_AGAIN: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(1600)];

/// The error of a target that somebody else writes to.
pub(super) fn taken(replica: &Replica, txid: Txid) -> Error {
    let text = format!("another writer has put a different transaction {txid} on this replica");
    Error::new(ErrorKind::InUse, text).at(replica.client().location()).hint(
        "each database needs a replica path of its own; stop the other writer, then restart this one: \
         it will continue with a full image",
    )
}

/// The object of an L0 file of ours, if that is what the target has under its name.
///
/// # Errors
/// Those of reading both. A header that cannot be read is no proof of another writer: the answer may have
/// been cut short, and the next one is whole.
pub(super) async fn ours(database: &Database, target: &Target, txids: TxidRange) -> Result<Option<FileInfo>> {
    let Some(local) = local_header(database, txids).await? else { return Ok(None) };
    let remote = target.replica().header(Level::L0, txids).await?;
    let same = remote == local || verified_header(database, txids).await? == Some(remote);
    if !same && !mutant("store-rival-not-noticed") {
        return Ok(None);
    }
    let (fs, path) = (database.world.fs.clone(), database.local().path(Level::L0, txids));
    let size = blocking(move || fs.stat(&path)).await?.len;
    Ok(Some(FileInfo { level: Level::L0, txids, size, created: local.timestamp }))
}

/// How what a target holds stands to the local files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kinship {
    /// The target's newest transaction is the local one of that TXID, so everything local up to it is there.
    Same(Txid),
    /// It is another one.
    Other(Txid),
    /// Its file is there and cannot be read.
    Unreadable(Txid),
    /// There is nothing on one side to compare with.
    Unknown(Option<Txid>),
}

impl Kinship {
    /// The target's newest transaction.
    pub(super) fn txid(self) -> Option<Txid> {
        match self {
            Self::Same(txid) | Self::Other(txid) | Self::Unreadable(txid) => Some(txid),
            Self::Unknown(txid) => txid,
        }
    }
}

/// Compares the target's newest transaction with the local file of its TXID. Files of level 9 do not count:
/// they follow the uploads of what they hold.
pub(super) async fn kinship(database: &Database, target: &Target) -> Result<Kinship> {
    let newest = |m: &Manifest| {
        let chain = m.iter().filter(|file| file.level != Level::SNAPSHOT);
        chain.max_by_key(|file| (file.txids.max(), std::cmp::Reverse(file.level))).copied()
    };
    let Some(newest) = target.manifest().read(target.replica(), newest).await? else {
        return Ok(Kinship::Unknown(None));
    };
    let txid = newest.txids.max();
    if mutant("store-other-history-ignored") {
        return Ok(Kinship::Unknown(Some(txid)));
    }
    let own = TxidRange::single(txid);
    let Some(local) = healed(database, own, local_header(database, own).await).await? else {
        return Ok(Kinship::Unknown(Some(txid)));
    };
    let Some(remote) = remote_header(target.replica(), &newest).await? else { return Ok(Kinship::Unreadable(txid)) };
    if same_end(&local, newest.level, &remote) {
        return Ok(Kinship::Same(txid));
    }
    // Before somebody else is accused, the whole local file is looked at: headers alone carry no checksum.
    let again = healed(database, own, verified_header(database, own).await).await?;
    let same = again.is_some_and(|local| same_end(&local, newest.level, &remote));
    Ok(if same { Kinship::Same(txid) } else { Kinship::Other(txid) })
}

/// The header of a file of the target; `None` if it is damaged. An answer that is cut short looks like damage,
/// but not again and again.
pub(super) async fn remote_header(replica: &Replica, file: &FileInfo) -> Result<Option<Header>> {
    for wait in READ_AGAIN.map(Some).into_iter().chain([None]) {
        match (replica.header(file.level, file.txids).await, wait) {
            (Err(err), Some(wait)) if err.kind() == ErrorKind::Corrupt => tokio::time::sleep(wait).await,
            (Err(err), None) if err.kind() == ErrorKind::Corrupt => break,
            (header, _) => return header.map(Some),
        }
    }
    Ok(None)
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
/// that TXID, or nobody can tell, local state is taken for another history and given up. Returns whether it was.
pub(super) async fn give_up_other_history(database: &Database, target: &Target) -> Result<bool> {
    let found = match kinship(database, target).await {
        // Local files that were damaged are given up by now.
        Err(err) if err.kind() == ErrorKind::Changed => kinship(database, target).await,
        other => other,
    };
    let txid = match found? {
        Kinship::Same(_) | Kinship::Unknown(_) => return Ok(false),
        Kinship::Unreadable(_) if mutant("store-unreadable-continued") => return Ok(false),
        Kinship::Other(txid) | Kinship::Unreadable(txid) => txid,
    };
    warn!(system = "store", db = %database.name(), replica = target.replica().kind(),
        txid = %txid, location = target.replica().client().location(),
        "replica holds another history than the local ltx files, continuing above it with a full image");
    database.with_db(|db| db.forget_local()).await?;
    Ok(true)
}

/// The header of a local L0 file of which every byte was checked; `None` if the file is not there.
///
/// # Errors
/// `Corrupt` if the file is damaged; I/O errors.
async fn verified_header(database: &Database, txids: TxidRange) -> Result<Option<Header>> {
    let (fs, path) = (database.world.fs.clone(), database.local().path(Level::L0, txids));
    blocking(move || {
        let Some(file) = fs.open_opt(&path, OpenMode::Read)? else { return Ok(None) };
        let checked = ltx::verify(ltx::FileReader::new(file)).and_then(|(header, ..)| {
            header.check_name(txids)?;
            Ok(header)
        });
        checked.map(Some).map_err(|e| e.at(path.display()))
    })
    .await
}

/// Passes on what was read of a local L0 file, unless that is damaged: see [`give_up_if_damaged`].
pub(super) async fn healed<T>(database: &Database, txids: TxidRange, read: Result<T>) -> Result<T> {
    match read {
        Err(err) if err.kind() == ErrorKind::Corrupt && !mutant("store-damage-stays") => {
            Err(give_up_if_damaged(database, txids, err).await)
        }
        other => other,
    }
}

/// What is to be done about a local L0 file that could not be used because of `err`: if it is damaged, all local
/// files are given up, and the next one is a full image. Returns what to say.
async fn give_up_if_damaged(database: &Database, txids: TxidRange, err: Error) -> Error {
    match verified_header(database, txids).await {
        Err(damage) if damage.kind() == ErrorKind::Corrupt => {
            warn!(system = "store", db = %database.name(), txid = %txids.max(), error = %damage,
                "local ltx file is damaged, continuing with a full image");
            match database.with_db(|db| db.forget_local()).await {
                Ok(()) => Error::new(ErrorKind::Changed, "local ltx file was damaged").caused_by(damage),
                Err(other) => other,
            }
        }
        _ => err,
    }
}

/// The header of a local L0 file; `None` if the file is not there.
pub(super) async fn local_header(database: &Database, txids: TxidRange) -> Result<Option<Header>> {
    let (fs, path) = (database.world.fs.clone(), database.local().path(Level::L0, txids));
    blocking(move || {
        let Some(file) = fs.open_opt(&path, OpenMode::Read)? else { return Ok(None) };
        let mut head = [0; Header::SIZE];
        read_full_at(file.as_ref(), &mut head, 0).map_err(|e| e.context("read ltx header").at(path.display()))?;
        Header::decode(&head).map(Some)
    })
    .await
}
