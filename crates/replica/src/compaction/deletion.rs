//! Deleting files of a target in steps that may end anywhere.
//!
//! A store may carry out what one call deletes in any order, and a program that is killed, a connection that breaks or
//! a server that fails leaves any part of it undone (`ReplicaClient::delete`). Where the order matters, the order is
//! that of the calls: a file goes only after the call that deleted the one before it has succeeded.

use tracing::debug;

use super::manifest::SharedManifest;
use super::retention::RetentionPolicy;
use crate::error::Result;
use crate::replica::{FileInfo, Replica};

/// Files deleted in one call.
const BATCH: usize = 1000;

/// Files to be deleted: those of one chain one after the other, chains side by side.
///
/// One step takes the next file of each chain, so there are as many steps as the longest chain has files: level-0 files
/// of one level-1 file, thirty with the usual intervals.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Deletion {
    chains: Vec<Vec<FileInfo>>,
}

impl Deletion {
    /// Adds files each of which may go only after the one before it.
    pub fn in_turn(&mut self, files: Vec<FileInfo>) {
        if !files.is_empty() {
            self.chains.push(files);
        }
    }

    /// Adds files that may go in any order.
    pub fn in_any_order(&mut self, files: impl IntoIterator<Item = FileInfo>) {
        self.chains.extend(files.into_iter().map(|file| vec![file]));
    }

    /// Whether there is nothing to delete.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// How many files there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chains.iter().map(Vec::len).sum()
    }

    /// All of them.
    pub fn files(&self) -> impl Iterator<Item = &FileInfo> {
        self.chains.iter().flatten()
    }

    /// What may go together; a step begins when the one before it is done.
    pub fn steps(&self) -> impl Iterator<Item = Vec<FileInfo>> + '_ {
        let longest = self.chains.iter().map(Vec::len).max().unwrap_or(0);
        (0..longest).map(|n| self.chains.iter().filter_map(|chain| chain.get(n)).copied().collect())
    }

    /// Deletes them from the target; returns how many. Where deleting is switched off they are only taken out of the
    /// manifest, which would grow without end: no decision needs them.
    ///
    /// # Errors
    /// The store's; the manifest is forgotten then, for it is not certain which files are gone.
    pub async fn run(&self, replica: &Replica, manifest: &SharedManifest, policy: RetentionPolicy) -> Result<usize> {
        if self.is_empty() {
            return Ok(0);
        }
        if !policy.enabled {
            debug!(count = self.len(), "skipping remote deletion (retention disabled)");
            self.steps().for_each(|step| manifest.deleted(&step));
            return Ok(0);
        }
        for step in self.steps() {
            for batch in step.chunks(BATCH) {
                let names: Vec<_> = batch.iter().map(|file| (file.level, file.txids)).collect();
                if let Err(err) = replica.delete(&names).await {
                    manifest.forget();
                    return Err(err.context("delete expired ltx files"));
                }
                manifest.deleted(batch);
            }
        }
        Ok(self.len())
    }
}

impl FromIterator<FileInfo> for Deletion {
    /// In any order.
    fn from_iter<I: IntoIterator<Item = FileInfo>>(files: I) -> Self {
        let mut deletion = Self::default();
        deletion.in_any_order(files);
        deletion
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::testing::file;
    use super::*;
    use crate::error::ErrorKind;
    use crate::replica::faulty::{Fault, Faulty, Op};
    use crate::replica::memory::MemoryClient;
    use crate::replica::{Layout, Stamps, once};
    use crate::types::{Level, Timestamp};

    const POLICY: RetentionPolicy = RetentionPolicy { enabled: true, snapshots: Duration::ZERO, l0: None };

    async fn scene() -> (Arc<Faulty>, Replica, SharedManifest, Vec<FileInfo>) {
        let client = Arc::new(Faulty::new(Arc::new(MemoryClient::new())));
        let replica = Replica::new(client.clone(), Layout::Decimal);
        for n in 1..6 {
            let stamp = Timestamp::from_millis(0);
            replica.put(Level::L0, file(0, n, n, 0).txids, stamp, None, None, once("x")).await.unwrap();
        }
        let manifest = SharedManifest::new();
        let files = manifest.read(&replica, |m| m.iter().copied().collect::<Vec<_>>()).await.unwrap();
        (client, replica, manifest, files)
    }

    fn any_order(files: &[FileInfo]) -> Deletion {
        files.iter().copied().collect()
    }

    #[tokio::test]
    async fn deleting_is_remembered_and_a_failure_makes_all_uncertain() {
        let (client, replica, manifest, files) = scene().await;
        assert_eq!(any_order(&files[..1]).run(&replica, &manifest, POLICY).await.unwrap(), 1);
        assert_eq!(manifest.peek(|m| m.iter().count()), Some(4));
        client.push(Op::Delete, Fault::LoseAnswer(ErrorKind::Unavailable));
        assert!(any_order(&files[1..2]).run(&replica, &manifest, POLICY).await.is_err());
        assert_eq!(manifest.peek(|m| m.iter().count()), None);
        assert_eq!(manifest.read(&replica, |m| m.iter().count()).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn where_deleting_is_switched_off_nothing_is_deleted_and_the_manifest_does_not_grow() {
        let (client, replica, manifest, files) = scene().await;
        let off = RetentionPolicy { enabled: false, ..POLICY };
        assert_eq!(any_order(&files[..2]).run(&replica, &manifest, off).await.unwrap(), 0);
        assert_eq!(client.calls(Op::Delete), 0);
        assert_eq!(manifest.peek(|m| m.iter().count()), Some(3));
        assert_eq!(replica.list_all(Stamps::Cheap).await.unwrap(), files);
    }

    #[tokio::test]
    async fn no_file_of_a_chain_goes_before_the_step_of_the_one_before_it_is_done() {
        let (client, replica, manifest, files) = scene().await;
        let mut deletion = any_order(&files[..1]);
        deletion.in_turn(vec![files[4], files[3], files[2]]);
        deletion.in_turn(Vec::new());
        assert_eq!(deletion.steps().map(|step| step.len()).collect::<Vec<_>>(), [2, 1, 1]);
        // The first step fails with its effect unknown: the second is not tried.
        client.push(Op::Delete, Fault::LoseAnswer(ErrorKind::Unavailable));
        assert!(deletion.run(&replica, &manifest, POLICY).await.is_err());
        assert_eq!(client.calls(Op::Delete), 1);
        assert_eq!(replica.list_all(Stamps::Cheap).await.unwrap(), files[1..4]);
        assert_eq!(deletion.run(&replica, &manifest, POLICY).await.unwrap(), 4);
        assert_eq!(replica.list_all(Stamps::Cheap).await.unwrap(), files[1..2]);
    }
}
