//! All replicated databases of one process: the only place that knows both the local and the
//! remote side.
//!
//! Guarantees:
//! 1. The read transaction of a database is taken before anything slow, so that the log keeps
//!    every frame while a target is asked for its position or is out of reach.
//! 2. TXIDs go on above everything any level of any target holds.
//! 3. L0 files are uploaded strictly in order, each one only after the one before is there.
//! 4. A database that fails or a target that is slow holds up no other.
//! 5. Of each database at most one compaction or snapshot runs at a time, and of all databases a
//!    bounded number.
//! 6. Closing syncs and uploads what is left, for as long as the settings say.

mod agenda;
mod config;
mod database;
mod keeper;
mod lineage;
mod monitor;
mod recover;
mod shutdown;
mod target;
mod upkeep;

use std::path::Path;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use config::{DatabaseConfig, ShutdownPolicy, StoreConfig, TargetConfig, UpkeepConfig};
use database::Database;
use upkeep::Upkeep;

use crate::error::Result;
use crate::sqlite::Sqlite;
use crate::sys::{TaskGroup, World};

/// Databases and their tasks.
#[derive(Debug)]
pub struct Store {
    world: World,
    databases: Vec<Arc<Database>>,
    shutdown: ShutdownPolicy,
    upkeep: Arc<Upkeep>,
    tasks: TaskGroup,
}

impl Store {
    /// Connects to all targets. Databases need not exist yet.
    ///
    /// # Errors
    /// A target that cannot be used at all.
    pub async fn open(world: World, sqlite: Arc<dyn Sqlite>, config: StoreConfig) -> Result<Self> {
        // Work that keeps a core busy: more of it at a time helps nobody.
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let pool = Arc::new(Semaphore::new(cores.max(2)));
        config.check_targets()?;
        let mut databases = Vec::new();
        for config in config.databases {
            for target in &config.targets {
                target.replica.client().init().await.map_err(|e| {
                    e.context(format!("initialize replica client for {:?}", config.db.path.display().to_string()))
                })?;
            }
            databases.push(Arc::new(Database::new(world.clone(), Arc::clone(&sqlite), config, Arc::clone(&pool))));
        }
        let upkeep = Arc::new(Upkeep::new(config.upkeep));
        Ok(Self { world, databases, shutdown: config.shutdown, upkeep, tasks: TaskGroup::default() })
    }

    /// Starts following all databases.
    pub fn start(&mut self) {
        self.upkeep.announce();
        for database in &self.databases {
            let monitored = Arc::clone(database);
            self.tasks.spawn("database monitor", |stop| monitor::run(monitored, stop));
            for n in 0..database.targets().len() {
                let uploaded = Arc::clone(database);
                self.tasks.spawn("replica monitor", move |stop| target::run(uploaded, n, stop));
            }
            let (kept, upkeep) = (Arc::clone(database), Arc::clone(&self.upkeep));
            self.tasks.spawn("keeper", move |stop| keeper::run(kept, upkeep, stop));
        }
    }

    /// Syncs every database once, in order.
    ///
    /// # Errors
    /// The first failure, with what was being done.
    pub async fn run_once(&self, force_snapshot: bool, enforce_retention: bool) -> Result<()> {
        for database in &self.databases {
            let path = database.path().display();
            tracing::info!(path = %path, "syncing database");
            database.sync_local().await.map_err(|e| e.context(format!("sync database {path}")))?;
            for target in database.targets() {
                let uploaded = target.sync(database, None).await;
                uploaded.map_err(|e| e.context(format!("sync replica for {path}")))?;
                if force_snapshot {
                    tracing::info!(path = %path, "taking snapshot");
                    target.force_snapshot(database).await.map_err(|e| e.context(format!("snapshot {path}")))?;
                }
                if enforce_retention {
                    tracing::info!(path = %path, "enforcing retention");
                    let now = self.world.clock.now();
                    let done = self.upkeep.retain_snapshots(target, now).await;
                    done.map_err(|e| e.context(format!("enforce retention for {path}")))?;
                }
            }
        }
        Ok(())
    }

    /// Stops all tasks, syncs and uploads what is left, and closes the databases. `interrupt`
    /// cuts the final uploads short.
    pub async fn close(mut self, interrupt: CancellationToken) {
        self.tasks.stop().await;
        shutdown::close_all(&self.world, &self.databases, self.shutdown, &interrupt).await;
    }

    /// Paths of the databases, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.databases.iter().map(|d| d.path())
    }
}
