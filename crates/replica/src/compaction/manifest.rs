//! What a target holds, kept in memory so that it need not be listed again.
//!
//! Guarantees:
//! 1. [`Manifest`] is the result of one listing with our own writes and deletions applied.
//! 2. [`SharedManifest`] never misses what was written or deleted while the listing ran.
//! 3. After [`SharedManifest::forget`] the next reader lists. A listing that found nothing at all is
//!    not kept: another look is cheap and may find more.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::replica::{FileInfo, Replica, Stamps};
use crate::sys::mutant;
use crate::types::{Level, Txid};

const LEVELS: usize = 10;
/// Listings that are tried in a row when errors elsewhere void them.
const MAX_LISTINGS: u32 = 3;

/// Files of all levels of one target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Each sorted by TXIDs. Contiguous: a busy target has thousands of entries.
    levels: [Vec<FileInfo>; LEVELS],
}

impl Manifest {
    /// From a listing in any order.
    #[must_use]
    pub fn new(files: impl IntoIterator<Item = FileInfo>) -> Self {
        let mut manifest = Self::default();
        for file in files {
            manifest.levels[usize::from(file.level.get())].push(file);
        }
        for level in &mut manifest.levels {
            level.sort_unstable();
            level.dedup_by_key(|file| file.txids);
            level.shrink_to_fit();
        }
        manifest
    }

    /// Adds a file or replaces the one of its name.
    pub fn insert(&mut self, file: FileInfo) {
        let level = &mut self.levels[usize::from(file.level.get())];
        match level.binary_search_by_key(&file.txids, |f| f.txids) {
            Ok(i) => level[i] = file,
            Err(i) => level.insert(i, file),
        }
    }

    /// Takes files out. Absent ones are fine.
    pub fn remove(&mut self, files: &[FileInfo]) {
        let gone: BTreeSet<_> = files.iter().map(|f| (f.level, f.txids)).collect();
        let touched: BTreeSet<_> = files.iter().map(|f| usize::from(f.level.get())).collect();
        for level in touched {
            self.levels[level].retain(|f| !gone.contains(&(f.level, f.txids)));
        }
    }

    /// Whether there is no file at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.levels.iter().all(Vec::is_empty)
    }

    /// Files of a level by (min, max) TXID.
    #[must_use]
    pub fn level(&self, level: Level) -> &[FileInfo] {
        &self.levels[usize::from(level.get())]
    }

    /// Files of all levels, in order of level and TXIDs.
    pub fn iter(&self) -> impl Iterator<Item = &FileInfo> {
        self.levels.iter().flatten()
    }

    /// Files of a level that hold `seek` or later transactions, by (min, max) TXID. A file that
    /// begins before `seek` and reaches it is among them (C3).
    pub fn reaching(&self, level: Level, seek: Txid) -> impl Iterator<Item = &FileInfo> {
        self.level(level).iter().filter(move |file| file.txids.max() >= seek)
    }

    /// The file of a level that reaches furthest.
    #[must_use]
    pub fn newest(&self, level: Level) -> Option<&FileInfo> {
        self.level(level).iter().max_by_key(|file| (file.txids.max(), file.txids.min()))
    }

    /// Highest TXID in a level.
    #[must_use]
    pub fn max(&self, level: Level) -> Option<Txid> {
        self.newest(level).map(|file| file.txids.max())
    }

    /// Highest TXID in any level (D6).
    #[must_use]
    pub fn max_txid(&self) -> Option<Txid> {
        self.iter().map(|file| file.txids.max()).max()
    }
}

/// A target's manifest, shared by everybody who writes to it.
#[derive(Debug, Default)]
pub struct SharedManifest {
    state: Mutex<State>,
    /// One listing at a time.
    listing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    known: Option<Manifest>,
    /// What happens while a listing runs.
    meanwhile: Option<Vec<Change>>,
    /// Counts the times everything was forgotten.
    epoch: u64,
}

#[derive(Debug)]
enum Change {
    Written(FileInfo),
    Deleted(Vec<FileInfo>),
}

impl Change {
    fn apply(&self, manifest: &mut Manifest) {
        match self {
            Self::Written(file) => manifest.insert(*file),
            Self::Deleted(files) => manifest.remove(files),
        }
    }
}

impl SharedManifest {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A file was written.
    pub fn written(&self, file: FileInfo) {
        self.change(Change::Written(file));
    }

    /// Files were deleted.
    pub fn deleted(&self, files: &[FileInfo]) {
        self.change(Change::Deleted(files.to_vec()));
    }

    /// Something failed: it is not certain any more what the target holds.
    pub fn forget(&self) {
        if mutant("store-never-forgets") {
            return;
        }
        let mut state = self.state();
        state.epoch += 1;
        state.known = None;
    }

    /// Looks at what is known, if anything is.
    pub fn peek<T>(&self, look: impl FnOnce(&Manifest) -> T) -> Option<T> {
        self.state().known.as_ref().map(look)
    }

    /// Looks at what the target holds, listing it if that is not known.
    ///
    /// # Errors
    /// The store's; `Changed` when errors elsewhere void one listing after the other.
    pub async fn read<T>(&self, replica: &Replica, look: impl FnOnce(&Manifest) -> T) -> Result<T> {
        if let Some(known) = &self.state().known {
            return Ok(look(known));
        }
        let _turn = self.listing.lock().await;
        if let Some(known) = &self.state().known {
            return Ok(look(known));
        }
        for _ in 0..MAX_LISTINGS {
            let epoch = self.start_recording();
            // Also when this is dropped half-way: nobody would collect the changes.
            let _recording = Recording(self);
            let mut found = Manifest::new(replica.list_all(Stamps::Cheap).await?);
            let mut state = self.state();
            if state.epoch != epoch {
                continue;
            }
            for change in state.meanwhile.iter().flatten().filter(|_| !mutant("store-listing-misses-changes")) {
                change.apply(&mut found);
            }
            let seen = look(&found);
            state.known = Some(found).filter(|found| !found.is_empty());
            return Ok(seen);
        }
        Err(Error::new(ErrorKind::Changed, "replica changed while it was listed"))
    }

    fn start_recording(&self) -> u64 {
        let mut state = self.state();
        state.meanwhile = Some(Vec::new());
        state.epoch
    }

    fn change(&self, change: Change) {
        let mut state = self.state();
        if let Some(known) = &mut state.known {
            change.apply(known);
        } else if let Some(meanwhile) = &mut state.meanwhile {
            meanwhile.push(change);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Recording<'a>(&'a SharedManifest);

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        self.0.state().meanwhile = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::testing::file;
    use super::*;
    use crate::replica::faulty::{Fault, Faulty, Op};
    use crate::replica::memory::MemoryClient;
    use crate::replica::{Layout, once};
    use crate::types::TxidRange;

    fn txid(n: u64) -> Txid {
        Txid::new(n).unwrap()
    }

    async fn put(replica: &Replica, file: FileInfo) -> FileInfo {
        replica.put(file.level, file.txids, file.created, None, None, once("x")).await.unwrap()
    }

    fn store() -> (Arc<Faulty>, Replica) {
        let client = Arc::new(Faulty::new(Arc::new(MemoryClient::new())));
        (client.clone(), Replica::new(client, Layout::Decimal))
    }

    #[test]
    fn files_are_kept_in_order_whatever_order_they_come_in() {
        let (a, b, c) = (file(1, 1, 4, 0), file(1, 5, 9, 0), file(0, 9, 9, 0));
        let mut manifest = Manifest::new([b, c]);
        manifest.insert(a);
        manifest.insert(FileInfo { size: 7, ..b });
        assert_eq!(manifest.level(a.level), [a, FileInfo { size: 7, ..b }]);
        assert_eq!(manifest.iter().count(), 3);
        manifest.remove(&[c, a, file(2, 1, 1, 0)]);
        assert_eq!(manifest.level(a.level).len(), 1);
        assert!(!manifest.is_empty());
        assert_eq!((manifest.max(Level::L0), manifest.max_txid()), (None, Some(txid(9))));
    }

    #[test]
    fn c3_a_file_that_spans_the_seek_point_is_found() {
        let manifest = Manifest::new([file(1, 1, 4, 0), file(1, 5, 9, 0), file(1, 10, 12, 0)]);
        let found: Vec<_> = manifest.reaching(Level::new(1).unwrap(), txid(7)).map(|f| f.txids.min().get()).collect();
        assert_eq!(found, [5, 10]);
    }

    #[tokio::test]
    async fn a_target_is_listed_once_and_then_remembered() {
        let (client, replica) = store();
        put(&replica, file(0, 1, 1, 5)).await;
        let shared = SharedManifest::new();
        assert_eq!(shared.peek(Manifest::is_empty), None);
        assert_eq!(shared.read(&replica, Manifest::max_txid).await.unwrap(), Some(txid(1)));
        let listings = client.calls(Op::List);
        shared.written(put(&replica, file(0, 2, 2, 6)).await);
        shared.deleted(&[file(0, 1, 1, 5)]);
        let files = shared.read(&replica, |m| m.iter().map(|f| f.txids).collect::<Vec<_>>()).await.unwrap();
        assert_eq!(files, [TxidRange::single(txid(2))]);
        assert_eq!(client.calls(Op::List), listings);
        shared.forget();
        assert_eq!(shared.read(&replica, |m| m.iter().count()).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn c7_a_target_without_files_is_asked_again() {
        let (_, replica) = store();
        let shared = SharedManifest::new();
        assert!(shared.read(&replica, Manifest::is_empty).await.unwrap());
        // Somebody else writes it: nothing tells us.
        put(&replica, file(0, 1, 1, 5)).await;
        assert!(!shared.read(&replica, Manifest::is_empty).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_while_a_listing_runs_is_not_missed() {
        let (client, replica) = store();
        put(&replica, file(0, 1, 1, 5)).await;
        client.set_latency(Duration::from_secs(1));
        let shared = SharedManifest::new();
        let changes = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            shared.written(file(0, 2, 2, 6));
            shared.deleted(&[file(0, 1, 1, 5)]);
        };
        let (found, ()) = tokio::join!(shared.read(&replica, |m| m.iter().copied().collect::<Vec<_>>()), changes);
        assert_eq!(found.unwrap(), [file(0, 2, 2, 6)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_that_an_error_made_void_is_done_again_but_not_for_ever() {
        let (client, replica) = store();
        put(&replica, file(0, 1, 1, 5)).await;
        client.set_latency(Duration::from_secs(1));
        let shared = SharedManifest::new();
        let trouble = async |times: u32| {
            for _ in 0..times {
                tokio::time::sleep(Duration::from_millis(700)).await;
                shared.forget();
            }
        };
        let (found, ()) = tokio::join!(shared.read(&replica, Manifest::max_txid), trouble(1));
        assert_eq!(found.unwrap(), Some(txid(1)));
        shared.forget();
        let (found, ()) = tokio::join!(shared.read(&replica, Manifest::max_txid), trouble(9));
        assert_eq!(found.unwrap_err().kind(), ErrorKind::Changed);
    }

    #[tokio::test]
    async fn a_failed_listing_leaves_nothing_known() {
        let (client, replica) = store();
        put(&replica, file(0, 1, 1, 5)).await;
        client.push(Op::List, Fault::Refuse(ErrorKind::Unavailable));
        let shared = SharedManifest::new();
        assert!(shared.read(&replica, Manifest::max_txid).await.is_err());
        assert_eq!(shared.peek(Manifest::is_empty), None);
        assert!(shared.read(&replica, |m| m.newest(Level::L0).map(|f| f.created)).await.unwrap().is_some());
        assert_eq!(shared.peek(Manifest::max_txid).flatten(), Some(txid(1)));
    }
}
