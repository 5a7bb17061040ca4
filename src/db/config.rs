//! Settings of one database.

use std::path::PathBuf;
use std::time::Duration;

use crate::sys::fs::with_suffix;
use crate::types::PageSize;
use crate::wal::WalHeader;

/// Settings of one database; defaults as in `spec: replication` §15.
#[derive(Debug, Clone)]
pub struct DbConfig {
    /// The database file, absolute.
    pub path: PathBuf,
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
}

impl DbConfig {
    /// Defaults for a database and its directory of local state.
    #[must_use]
    pub fn new(path: PathBuf, meta_path: PathBuf) -> Self {
        Self {
            meta_path,
            path,
            busy_timeout: Duration::from_secs(1),
            checkpoint_interval: Some(Duration::from_secs(60)),
            min_checkpoint_pages: 1000,
            truncate_pages: Some(121_359),
            max_sync_wal_bytes: Some(64 * 1024 * 1024),
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
        self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// Length of a log of `pages` frames.
pub(super) fn wal_bytes(pages: u32, page_size: PageSize) -> u64 {
    WalHeader::SIZE + u64::from(pages) * page_size.frame_size()
}
