//! Settings of one database.

use std::path::PathBuf;
use std::time::Duration;

use crate::sys::fs::with_suffix;
use crate::types::PageSize;
use crate::wal::{PageMap, WalHeader};

/// Settings of one database; defaults as in `spec: replication` §15.
#[derive(Debug, Clone)]
pub struct DbConfig {
    /// The database file, absolute. What SQLite keeps beside a database is beside this one, so the engine
    /// resolves it when it opens the database: see `configured`.
    pub path: PathBuf,
    /// The path as it was given, which may be a link to the database file.
    pub configured: PathBuf,
    /// Directory of local state.
    pub meta_path: PathBuf,
    /// How long to wait for locks.
    pub busy_timeout: Duration,
    /// Checkpoint a changed database that has not been checkpointed for so long; `None` = never.
    pub checkpoint_interval: Option<Duration>,
    /// Checkpoint when the log has so many pages.
    pub min_checkpoint_pages: u32,
    /// A log of so many pages is a reason to worry; `None` = never worry.
    pub truncate_pages: Option<u32>,
    /// Bytes of log per L0 file, rounded up to the next commit; `None` = no limit.
    pub max_sync_wal_bytes: Option<u64>,
    /// How much is held in memory.
    pub bounds: Bounds,
}

/// How much of a log is held in memory, or put up with under the write lock, in bytes. No setting of the
/// user's: a test makes them small, so that what happens beyond them happens at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Frames kept between reading and writing them, so that a small sync reads the log once.
    pub cached: usize,
    /// Frames between the last file and the write lock of a checkpoint.
    pub tail: usize,
    /// Stale frames that are recovered at most; more of them become a full image.
    pub stale: usize,
    /// Frames that may be left to read, or to copy, under the write lock.
    pub locked: u64,
    /// A log with more than this not yet durable is flushed ahead of a checkpoint.
    pub flushed: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            cached: PageMap::CACHE_BYTES,
            tail: 8 * MIB,
            stale: 32 * MIB,
            locked: 2 * MIB as u64,
            flushed: 16 * MIB as u64,
        }
    }
}

impl DbConfig {
    /// Defaults for a database and its directory of local state.
    #[must_use]
    pub fn new(path: PathBuf, meta_path: PathBuf) -> Self {
        Self {
            meta_path,
            configured: path.clone(),
            path,
            busy_timeout: Duration::from_secs(1),
            checkpoint_interval: Some(Duration::from_secs(60)),
            min_checkpoint_pages: 1000,
            truncate_pages: Some(121_359),
            max_sync_wal_bytes: Some(64 * 1024 * 1024),
            bounds: Bounds::default(),
        }
    }

    /// The write-ahead log.
    #[must_use]
    pub fn wal_path(&self) -> PathBuf {
        with_suffix(&self.path, "-wal")
    }

    /// File name of the database, for logs.
    #[must_use]
    pub fn name(&self) -> String {
        self.configured.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// Length of a log of `pages` frames.
pub(super) fn wal_bytes(pages: u32, page_size: PageSize) -> u64 {
    WalHeader::SIZE + u64::from(pages) * page_size.frame_size()
}
