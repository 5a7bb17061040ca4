//! One life of the program: a store with its tasks, as `litestream replicate` runs it.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use litestream::compaction::{Levels, RetentionPolicy};
use litestream::db::DbConfig;
use litestream::error::Result;
use litestream::store::{DatabaseConfig, Managed, ShutdownPolicy, Store, StoreConfig, TargetConfig, UpkeepConfig};
use tokio_util::sync::CancellationToken;

use super::site::Site;
use super::sqlite::ProcessSqlite;
use super::swarm::StoreSwarm;
use crate::disk::{Disk, Proc, Who};
use crate::fs::world;

/// A running program.
#[derive(Clone)]
pub(super) struct Daemon {
    pub(super) who: Who,
    pub(super) store: Store,
    pub(super) managed: Managed,
}

/// A database and the directory of its local state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) db: &'static str,
    pub(super) meta: &'static str,
}

/// A database, and where its files go.
pub(super) type Tenant<'a> = (Place, &'a [Site]);

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn database((place, sites): Tenant<'_>, swarm: &StoreSwarm, disk: &Arc<Disk>, who: Who, seed: u64) -> DatabaseConfig {
    let base = &swarm.base;
    let db = DbConfig {
        busy_timeout: Duration::from_millis(3),
        checkpoint_interval: Some(seconds(60)),
        min_checkpoint_pages: base.min_checkpoint_pages,
        truncate_pages: base.truncate_pages,
        max_sync_wal_bytes: base.max_sync_wal_bytes,
        ..DbConfig::new(place.db.into(), place.meta.into())
    };
    let target = |site: &Site| TargetConfig {
        replica: site.replica(disk, who, seed),
        sync_interval: Duration::from_millis(swarm.sync_interval_ms),
        max_files: swarm.max_files.and_then(NonZeroUsize::new),
    };
    DatabaseConfig {
        db,
        monitor_interval: Some(Duration::from_millis(swarm.monitor_ms)),
        targets: sites.iter().map(target).collect(),
    }
}

fn config(swarm: &StoreSwarm, databases: Vec<DatabaseConfig>) -> Result<StoreConfig> {
    let upkeep = UpkeepConfig {
        levels: Levels::new(swarm.levels.iter().copied().map(seconds).collect())?,
        snapshot_interval: seconds(swarm.snapshot_interval),
        retention: RetentionPolicy {
            enabled: true,
            snapshots: seconds(swarm.snapshot_retention),
            l0: swarm.l0_retention.map(seconds),
        },
        l0_check_interval: seconds(swarm.l0_check),
        verify_compaction: swarm.verify_compaction,
        validation_interval: swarm.validation.map(seconds),
    };
    let shutdown = ShutdownPolicy { timeout: seconds(30), interval: Duration::from_millis(500) };
    Ok(StoreConfig { databases, shutdown, upkeep })
}

impl Daemon {
    /// Starts the program with these databases, without its tasks. The first one is what it is mostly asked about.
    pub(super) async fn open(swarm: &StoreSwarm, tenants: &[Tenant<'_>], disk: &Arc<Disk>, proc: Proc) -> Result<Self> {
        let who = disk.who(proc);
        let seed = disk.lock().seed_of_life(who);
        let databases = tenants.iter().map(|&tenant| database(tenant, swarm, disk, who, seed)).collect();
        let config = config(swarm, databases)?;
        let store = Store::open(world(disk, who, seed), Arc::new(ProcessSqlite(who)), config).await?;
        let managed = store.find(Path::new(tenants[0].0.db)).expect("the database that was configured");
        Ok(Self { who, store, managed })
    }

    /// Ends in good order.
    pub(super) async fn close(self) {
        self.store.close(CancellationToken::new()).await;
    }
}
