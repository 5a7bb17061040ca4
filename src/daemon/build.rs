//! Validated settings → what a store works on.

use std::num::NonZeroUsize;

use crate::compaction::{Levels, RetentionPolicy};
use crate::config::{Config, DbSettings, ReplicaSettings};
use crate::db::DbConfig;
use crate::error::{Error, Result};
use crate::replica;
use crate::store::{DatabaseConfig, ShutdownPolicy, TargetConfig, UpkeepConfig};
use crate::sys::World;

/// Compaction, snapshots and retention.
///
/// # Errors
/// More levels than there are.
pub fn upkeep(config: &Config) -> Result<UpkeepConfig> {
    Ok(UpkeepConfig {
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

/// The final sync.
#[must_use]
pub fn shutdown(config: &Config) -> ShutdownPolicy {
    ShutdownPolicy { timeout: config.shutdown.timeout, interval: config.shutdown.interval }
}

/// One database.
///
/// # Errors
/// A replica that cannot be built, a threshold of zero.
pub fn database(settings: &DbSettings, world: &World) -> Result<DatabaseConfig> {
    let pages = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    if settings.min_checkpoint_page_count == 0 {
        return Err(Error::invalid("minimum checkpoint page count required"));
    }
    Ok(DatabaseConfig {
        db: DbConfig {
            busy_timeout: settings.busy_timeout,
            checkpoint_interval: settings.checkpoint_interval,
            min_checkpoint_pages: pages(settings.min_checkpoint_page_count),
            truncate_pages: settings.truncate_page_n.map(pages),
            max_sync_wal_bytes: settings.max_sync_wal_bytes,
            ..DbConfig::new(settings.path.clone(), settings.meta_path.clone())
        },
        monitor_interval: settings.monitor_interval,
        targets: vec![target(&settings.replica, world)?],
    })
}

fn target(settings: &ReplicaSettings, world: &World) -> Result<TargetConfig> {
    Ok(TargetConfig {
        replica: replica::build(settings, world)?,
        sync_interval: settings.sync_interval,
        max_files: settings.max_sync_ltx_files.and_then(NonZeroUsize::new),
    })
}
