//! What to replicate, where to and how often.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::compaction::{Levels, RetentionPolicy};
use crate::db::DbConfig;
use crate::replica::Replica;

/// Everything a store needs to know.
#[derive(Debug)]
pub struct StoreConfig {
    /// The databases.
    pub databases: Vec<DatabaseConfig>,
    /// The final sync.
    pub shutdown: ShutdownPolicy,
    /// Compaction, snapshots and retention.
    pub upkeep: UpkeepConfig,
}

/// How targets are kept small and whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpkeepConfig {
    /// The compacted levels.
    pub levels: Levels,
    /// Time between snapshots.
    pub snapshot_interval: Duration,
    /// What is deleted when.
    pub retention: RetentionPolicy,
    /// How often it is looked at whether L0 files may go.
    pub l0_check_interval: Duration,
    /// List a level after each compaction and look for gaps.
    pub verify_compaction: bool,
    /// Time between checks of all levels; `None` = never.
    pub validation_interval: Option<Duration>,
}

impl UpkeepConfig {
    /// How long after a look at a target it may be relied on that no other writer's transactions have come and
    /// gone: half of what they stay in level 0 where settings are the same; the rest is for the upload itself. Not
    /// so short that a slow store could never be used.
    pub(super) fn trust(&self) -> Duration {
        let (least, most) = (Duration::from_secs(10), Duration::from_secs(150));
        self.retention.l0.map_or(most, |retention| (retention / 2).clamp(least, most))
    }
}

/// One database.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// Of the engine.
    pub db: DbConfig,
    /// How often the log is looked at; `None` = never.
    pub monitor_interval: Option<Duration>,
    /// Where its files go.
    pub targets: Vec<TargetConfig>,
}

/// One place that files go to.
#[derive(Debug, Clone)]
pub struct TargetConfig {
    /// The store.
    pub replica: Replica,
    /// Shortest time between uploads.
    pub sync_interval: Duration,
    /// Files per background pass.
    pub max_files: Option<NonZeroUsize>,
}

/// How long the final upload is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownPolicy {
    /// All attempts together; zero = one attempt.
    pub timeout: Duration,
    /// Pause between attempts.
    pub interval: Duration,
}
