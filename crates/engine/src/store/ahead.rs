//! Snapshots that are ahead of the uploads of what they hold, because files between are missing.
//!
//! The L0 file of the last transaction they hold is the lease of its TXID ([`super::lineage`]), and it follows the
//! snapshot. In the moment between the look at the target and that upload somebody else may take the place, and a
//! restore would put its next transactions on a state of ours. So the snapshot is remembered until then, and taken
//! back if the target is lost. Only an end of the program within that moment leaves it where it is.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use super::database::Database;
use super::targets::Target;
use crate::compaction::Manifest;
use crate::error::{ErrorKind, Result};
use crate::ltx::Header;
use crate::sys::mutant;
use crate::types::{Level, Txid, TxidRange};

/// The one that may have to be taken back.
#[derive(Debug, Default)]
pub(super) struct Ahead(Mutex<Option<Header>>);

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, Option<Header>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is about to be put.
    pub(super) fn put(&self, snapshot: Header) {
        *self.lock() = Some(snapshot);
    }

    /// The target has our file of this TXID: nobody else can follow a snapshot up to there.
    pub(super) fn reached(&self, txid: Txid) {
        let mut snapshot = self.lock();
        if snapshot.is_some_and(|snapshot| snapshot.txids.max() <= txid) {
            *snapshot = None;
        }
    }

    /// Takes it back from a target that was lost, of which files up to `shared` are ours. Failing, it is tried with
    /// the next pass.
    pub(super) async fn take_back(&self, database: &Database, target: &Target, shared: Option<Txid>) {
        let Some(snapshot) = *self.lock() else { return };
        if mutant("store-snapshot-left-behind") {
            return;
        }
        let txid = snapshot.txids.max();
        match take_back(target, &snapshot, shared).await {
            Ok(Outcome::NotYet) => {}
            Ok(outcome) => {
                *self.lock() = None;
                if outcome == Outcome::Deleted {
                    info!(system = "store", db = %database.name(), replica = target.replica().kind(), txid = %txid,
                        "another writer was faster, snapshot taken back");
                }
            }
            Err(err) => warn!(system = "store", db = %database.name(), replica = target.replica().kind(), txid = %txid,
                error = %err, "another writer was faster, and our snapshot cannot be taken back yet: restores may fail or mix"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It is gone.
    Deleted,
    /// It does no harm, or another one is in its place.
    Left,
    /// Who has the target is not seen there.
    NotYet,
}

async fn take_back(target: &Target, snapshot: &Header, shared: Option<Txid>) -> Result<Outcome> {
    target.manifest().forget();
    let first_of_others = |manifest: &Manifest| {
        let theirs = manifest.iter().filter(|f| f.level != Level::SNAPSHOT && Some(f.txids.max()) > shared);
        theirs.map(|file| file.txids.min()).min()
    };
    match target.manifest().read(target.replica(), first_of_others).await? {
        None => return Ok(Outcome::NotYet),
        // Whoever began above it knew of it, and began with a full image.
        Some(first) if first > snapshot.txids.max() => return Ok(Outcome::Left),
        Some(_) => {}
    }
    let file: (Level, TxidRange) = (Level::SNAPSHOT, snapshot.txids);
    match target.replica().header(file.0, file.1).await {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(Outcome::Left),
        Err(err) => return Err(err),
        Ok(found) if found != *snapshot => return Ok(Outcome::Left),
        Ok(_) => {}
    }
    target.replica().delete(&[file]).await?;
    target.manifest().forget();
    Ok(Outcome::Deleted)
}
