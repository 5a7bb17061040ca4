//! When a full snapshot is written, and who writes it.

use std::time::Duration;

use async_trait::async_trait;

use super::levels::too_early;
use crate::error::Result;
use crate::replica::FileInfo;
use crate::types::{Timestamp, Txid};

/// A database as seen from here.
#[async_trait]
pub trait SnapshotSource: Send + Sync {
    /// TXID of the newest local file; `None` before anything was synced.
    fn position(&self) -> Option<Txid>;

    /// Writes the present state to the snapshot level of the target: one file `1…n`, whole or not
    /// at all.
    ///
    /// # Errors
    /// Those of reading the database and of the store.
    async fn snapshot(&self) -> Result<FileInfo>;
}

/// Whether a snapshot is written now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Write one.
    Now,
    /// This interval has its snapshot.
    TooEarly,
    /// The newest one holds everything.
    NothingNew,
    /// There is no state to write yet.
    NotReady,
}

/// Decides from the newest snapshot of the target and the database's position. Pure.
#[must_use]
pub fn snapshot_due(newest: Option<&FileInfo>, position: Option<Txid>, now: Timestamp, interval: Duration) -> Due {
    match (newest, position) {
        (_, None) => Due::NotReady,
        (Some(newest), _) if too_early(Some(newest.created), now, interval) => Due::TooEarly,
        (Some(newest), Some(position)) if newest.txids.max() >= position => Due::NothingNew,
        _ => Due::Now,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::file;
    use super::*;

    #[test]
    fn one_snapshot_per_interval_and_none_of_an_idle_database() {
        let due = |created: Option<i64>, position, now| {
            let newest = created.map(|created| file(9, 1, 8, created));
            let interval = Duration::from_secs(10);
            snapshot_due(newest.as_ref(), Txid::new(position), Timestamp::from_millis(now), interval)
        };
        assert_eq!(due(None, 0, 15_000), Due::NotReady);
        assert_eq!(due(None, 1, 15_000), Due::Now);
        assert_eq!(due(Some(9_000), 9, 15_000), Due::Now);
        assert_eq!(due(Some(10_000), 9, 15_000), Due::Now);
        assert_eq!(due(Some(10_001), 9, 15_000), Due::TooEarly);
        assert_eq!(due(Some(9_000), 8, 15_000), Due::NothingNew);
        assert_eq!(due(Some(9_000), 7, 15_000), Due::NothingNew);
        assert_eq!(due(Some(99_000), 9, 15_000), Due::Now);
    }
}
