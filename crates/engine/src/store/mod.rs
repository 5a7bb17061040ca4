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
//! 6. Databases may be added, removed, started and stopped while others run (`registry`).
//! 7. Where too few files may be open for all databases at once, those that fit are, and the others take turns (`turns`).
//! 8. Closing syncs and uploads what is left, for as long as the settings say.

mod agenda;
mod ahead;
mod config;
mod database;
mod health;
mod keeper;
mod lineage;
mod metered;
mod monitor;
mod operate;
mod recover;
mod registry;
mod repeated;
mod retry;
mod shutdown;
mod staged;
mod targets;
mod turns;
mod unguarded;
mod upkeep;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{DatabaseConfig, ShutdownPolicy, StoreConfig, TargetConfig, UpkeepConfig};
use database::Pool;
pub use health::{LocalStatus, TargetStatus, Trouble};
use operate::refusal;
pub use operate::{Changed, DatabaseStatus, Managed, RemoteLevel, Synced};
pub use registry::RunState;
use registry::{Entry, Refused, Registry};
use repeated::Repeated;
use retry::Outages;
use shutdown::Limits;
use turns::Turns;
pub use turns::{DESCRIPTORS_BESIDES, DESCRIPTORS_PER_DATABASE};
pub use unguarded::unguarded;
use upkeep::Upkeep;

use crate::error::Result;
use crate::sqlite::Sqlite;
use crate::sys::World;
use crate::telemetry::Metrics;

/// How long requests under way are waited for once the databases are closed.
const LAST_REQUESTS: Duration = Duration::from_millis(250);

/// Databases and their tasks. Clones are handles to the same store.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    world: World,
    sqlite: Arc<dyn Sqlite>,
    registry: Registry,
    shutdown: Mutex<ShutdownPolicy>,
    upkeep: Arc<Upkeep>,
    metrics: Arc<Metrics>,
    pool: Arc<Pool>,
    outages: Arc<Outages>,
    repeated: Arc<Repeated>,
    turns: Arc<Turns>,
    /// Whether final syncs are tried once only.
    hurried: AtomicBool,
    /// Whether databases that are opened are followed.
    started: AtomicBool,
    /// Requests that must be ended before the program may.
    work: TaskTracker,
    /// Cuts final syncs short.
    interrupt: CancellationToken,
}

impl Shared {
    fn shutdown(&self) -> ShutdownPolicy {
        *self.shutdown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Connects to all targets. Databases need not exist yet.
    ///
    /// # Errors
    /// A target that cannot be used at all; two databases with one path or one place for local state.
    pub async fn open(world: World, sqlite: Arc<dyn Sqlite>, config: StoreConfig) -> Result<Self> {
        // Work that keeps a core busy: more of it at a time helps nobody.
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let metrics = Arc::new(Metrics::new());
        let shared = Shared {
            world,
            sqlite,
            registry: Registry::default(),
            shutdown: Mutex::new(config.shutdown),
            upkeep: Arc::new(Upkeep::new(config.upkeep, Arc::clone(&metrics))),
            metrics,
            pool: Arc::new(Pool::new(cores.max(2))),
            outages: Arc::default(),
            repeated: Arc::default(),
            turns: Arc::default(),
            hurried: AtomicBool::new(false),
            started: AtomicBool::new(false),
            work: TaskTracker::new(),
            interrupt: CancellationToken::new(),
        };
        let store = Self { shared: Arc::new(shared) };
        for config in config.databases {
            store.init_targets(&config).await?;
            let path = config.db.path.clone();
            let entry = store.add(config).map_err(|refused| match refused {
                Refused::MetaPath(_) | Refused::Replica(..) => refusal(refused),
                other => refusal(other).at(path.display()),
            })?;
            store.open_entry(&entry);
        }
        Ok(store)
    }

    /// Starts following all databases, and those that come later.
    pub fn start(&self) {
        self.shared.upkeep.announce();
        self.shared.started.store(true, Ordering::Release);
        for entry in self.shared.registry.all() {
            self.follow_if_started(&entry);
        }
    }

    fn follow_if_started(&self, entry: &Entry) {
        if !self.shared.started.load(Ordering::Acquire) {
            return;
        }
        entry.follow(|database, tasks| {
            let monitored = Arc::clone(database);
            tasks.spawn("database monitor", |stop| monitor::run(monitored, stop));
            for n in 0..database.targets().len() {
                let (uploaded, outages) = (Arc::clone(database), Arc::clone(&self.shared.outages));
                tasks.spawn("replica monitor", move |stop| targets::run(uploaded, n, outages, stop));
            }
            let (kept, upkeep) = (Arc::clone(database), Arc::clone(&self.shared.upkeep));
            tasks.spawn("keeper", move |stop| keeper::run(kept, upkeep, stop));
        });
    }

    /// Syncs every database once, in order. After a failure [`Store::close`] tries the final syncs once only:
    /// nobody waits for what just failed to pass.
    ///
    /// # Errors
    /// The first failure, with what was being done.
    pub async fn run_once(&self, force_snapshot: bool, enforce_retention: bool) -> Result<()> {
        let done = self.sync_each(force_snapshot, enforce_retention).await;
        if done.is_err() {
            self.shared.hurried.store(true, Ordering::Release);
        }
        done
    }

    async fn sync_each(&self, force_snapshot: bool, enforce_retention: bool) -> Result<()> {
        for entry in self.shared.registry.all() {
            let Some(database) = entry.database() else { continue };
            let path = database.path().display();
            tracing::info!(path = %path, "syncing database");
            database.sync_local().await.map_err(|e| e.context(format!("sync database {path}")))?;
            for target in database.targets() {
                let uploaded = target.sync(&database, None).await;
                uploaded.map_err(|e| e.context(format!("sync replica for {path}")))?;
                if force_snapshot {
                    tracing::info!(path = %path, "taking snapshot");
                    target.force_snapshot(&database).await.map_err(|e| e.context(format!("snapshot {path}")))?;
                }
                if enforce_retention {
                    tracing::info!(path = %path, "enforcing retention");
                    let now = self.shared.world.clock.now();
                    let done = self.shared.upkeep.retain_snapshots(target, now).await;
                    done.map_err(|e| e.context(format!("enforce retention for {path}")))?;
                }
            }
        }
        Ok(())
    }

    /// Stops all tasks, ends what was asked for, syncs and uploads what is left, and closes the databases, all within
    /// the shutdown timeout. `interrupt` cuts it short. Databases whose replicas may lack commits come back.
    pub async fn close(&self, interrupt: CancellationToken) -> Vec<PathBuf> {
        self.close_since(Instant::now(), interrupt).await
    }

    /// As [`Store::close`]; the shutdown timeout runs from `began` on.
    pub async fn close_since(&self, began: Instant, interrupt: CancellationToken) -> Vec<PathBuf> {
        let shared = &self.shared;
        let entries = shared.registry.close();
        shared.work.close();
        let closing = async {
            let mut policy = shared.shutdown();
            if shared.hurried.load(Ordering::Acquire) {
                policy.timeout = Duration::ZERO;
            }
            let behind = shutdown::close_all(&entries, Limits::since(began, policy), &interrupt).await;
            // What was asked for may wait for a store, too.
            let left = policy.timeout.saturating_sub(began.elapsed());
            let ended = tokio::time::timeout(left.max(LAST_REQUESTS), shared.work.wait());
            let _ = interrupt.run_until_cancelled(ended).await;
            behind
        };
        let cut = async {
            interrupt.cancelled().await;
            shared.interrupt.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            behind = closing => behind,
            () = cut => Vec::new(),
        }
    }

    /// Changes how long final syncs are tried, from the next one on.
    pub fn set_shutdown(&self, policy: ShutdownPolicy) {
        *self.shared.shutdown.lock().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// Changes compaction, snapshots and retention. What is being done is ended by the old settings.
    pub fn set_upkeep(&self, config: UpkeepConfig) {
        self.shared.upkeep.set_config(config);
    }

    /// Paths of the databases, in order.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.shared.registry.all().iter().map(|entry| entry.path().to_owned()).collect()
    }

    /// Clock and files.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.shared.world
    }

    /// What is counted and measured.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }
}
