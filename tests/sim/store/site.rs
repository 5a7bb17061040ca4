//! Where files go to, seen from outside: a store of the simulation, or a directory on its disk.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use litestream::ltx::parse_file_name;
use litestream::replica::file::FileClient;
use litestream::replica::{FileInfo, Layout, Replica, ReplicaClient};
use litestream::types::{Level, Timestamp};

use super::bucket::Bucket;
use super::manners::Lie;
use crate::disk::{Disk, Entry, Proc, Who};
use crate::fs::world;

/// What kind of place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bucket,
    Directory,
}

/// One target.
pub(super) enum Site {
    Bucket(Arc<Bucket>),
    Directory(PathBuf),
}

/// One object that is there.
pub(super) struct Stored {
    pub(super) key: String,
    pub(super) version: u64,
    pub(super) file: FileInfo,
    pub(super) bytes: Bytes,
}

/// What a key says.
pub(super) fn parse(key: &str) -> Option<(Level, litestream::types::TxidRange)> {
    let (level, name) = key.strip_prefix("ltx/")?.split_once('/')?;
    Some((Level::new(level.parse().ok()?)?, parse_file_name(name)?))
}

impl Site {
    /// The place as this life of a process sees it.
    pub(super) fn replica(&self, disk: &Arc<Disk>, who: Who, seed: u64) -> Replica {
        let client: Arc<dyn ReplicaClient> = match self {
            Self::Bucket(bucket) => bucket.client(who),
            Self::Directory(root) => Arc::new(FileClient::new(world(disk, who, seed), root.clone())),
        };
        Replica::new(client, Layout::Decimal)
    }

    /// Whether something that was deleted has come back.
    pub(super) fn is_haunted(&self) -> bool {
        matches!(self, Self::Bucket(bucket) if bucket.lies().1.of(Lie::Reappears) > 0)
    }

    /// The place without faults.
    pub(super) fn honest_replica(&self, disk: &Arc<Disk>) -> Replica {
        match self {
            Self::Bucket(bucket) => Replica::new(bucket.honest_client(), Layout::Decimal),
            Self::Directory(_) => self.replica(disk, Who { proc: Proc::Harness, life: 0 }, 1),
        }
    }

    /// Objects that were stored since the last call, in that order. Directories do not tell.
    pub(super) fn take_stored(&self) -> Vec<(String, Bytes, Timestamp)> {
        match self {
            Self::Bucket(bucket) => bucket
                .take_stored()
                .into_iter()
                .map(|(key, bytes, stamp)| (key.as_str().to_owned(), bytes, stamp))
                .collect(),
            Self::Directory(_) => Vec::new(),
        }
    }

    /// LTX files that are there, by level and TXIDs.
    pub(super) fn contents(&self, disk: &Disk) -> Vec<Stored> {
        let stored = |key: String, version, bytes: Bytes, created| {
            let (level, txids) = parse(&key)?;
            let file = FileInfo { level, txids, size: bytes.len() as u64, created };
            Some(Stored { key, version, file, bytes })
        };
        let mut all: Vec<Stored> = match self {
            Self::Bucket(bucket) => bucket
                .objects()
                .into_iter()
                .filter_map(|(key, object)| stored(key.as_str().to_owned(), object.version, object.bytes, object.stamp))
                .collect(),
            Self::Directory(root) => {
                let inner = disk.lock();
                let mut found = Vec::new();
                for level in Level::all() {
                    for (name, entry) in inner.names(&root.join(format!("ltx/{level}"))).unwrap_or_default() {
                        let Entry::File(ino) = entry else { continue };
                        let file = &inner.files[ino];
                        let version = file.version << 32 | ino as u64;
                        let created = Timestamp::from_millis(file.modified_ms);
                        let bytes = Bytes::copy_from_slice(&file.data);
                        found.extend(stored(format!("ltx/{level}/{name}"), version, bytes, created));
                    }
                }
                found
            }
        };
        all.sort_by_key(|stored| stored.file);
        all
    }
}
