//! What to replicate, where to and how often.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::compaction::{Levels, RetentionPolicy};
use crate::config::{Config, DbSettings, ReplicaSettings};
use crate::db::DbConfig;
use crate::error::{Error, Result};
use crate::replica::{self, Replica};
use crate::sys::World;

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

    /// From validated settings.
    ///
    /// # Errors
    /// More levels than there are.
    pub fn from_settings(config: &Config) -> Result<Self> {
        Ok(Self {
            levels: Levels::new(config.levels.clone())?,
            snapshot_interval: config.snapshot.interval,
            retention: RetentionPolicy {
                enabled: config.retention_enabled,
                snapshots: config.snapshot.retention,
                l0: config.l0_retention,
            },
            l0_check_interval: config.l0_retention_check_interval,
            verify_compaction: config.verify_compaction,
            validation_interval: config.validation_interval,
        })
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

impl ShutdownPolicy {
    /// From validated settings.
    #[must_use]
    pub fn from_settings(config: &Config) -> Self {
        Self { timeout: config.shutdown.timeout, interval: config.shutdown.interval }
    }
}

impl DatabaseConfig {
    /// From validated settings.
    ///
    /// # Errors
    /// A replica that cannot be built, a threshold of zero.
    pub fn from_settings(settings: &DbSettings, world: &World) -> Result<Self> {
        let pages = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        if settings.min_checkpoint_page_count == 0 {
            return Err(Error::invalid("minimum checkpoint page count required"));
        }
        Ok(Self {
            db: DbConfig {
                busy_timeout: settings.busy_timeout,
                checkpoint_interval: settings.checkpoint_interval,
                min_checkpoint_pages: pages(settings.min_checkpoint_page_count),
                truncate_pages: settings.truncate_page_n.map(pages),
                max_sync_wal_bytes: settings.max_sync_wal_bytes,
                ..DbConfig::new(settings.path.clone(), settings.meta_path.clone())
            },
            monitor_interval: settings.monitor_interval,
            targets: vec![TargetConfig::from_settings(&settings.replica, world)?],
        })
    }
}

impl TargetConfig {
    fn from_settings(settings: &ReplicaSettings, world: &World) -> Result<Self> {
        Ok(Self {
            replica: replica::build(settings, world)?,
            sync_interval: settings.sync_interval,
            max_files: settings.max_sync_ltx_files.and_then(NonZeroUsize::new),
        })
    }
}
