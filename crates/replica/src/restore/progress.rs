//! How far a restore is, for whoever wants to show it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that a restore moves and others may read at any time.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU64,
    done: AtomicU64,
    resumed: AtomicU64,
}

impl Progress {
    /// Bytes of all objects the plan names; 0 while there is no plan yet.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Bytes of them that an interrupted restore had read before.
    #[must_use]
    pub fn resumed(&self) -> u64 {
        self.resumed.load(Ordering::Relaxed)
    }

    /// Bytes of them that were read, those included.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(super) fn begin(&self, total: u64, resumed: u64) {
        self.done.store(resumed, Ordering::Relaxed);
        self.resumed.store(resumed, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub(super) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}
