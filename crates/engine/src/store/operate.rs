//! What can be asked of a store while it runs: databases by path, added, removed, started, stopped,
//! synced; and how they stand.
//!
//! Whoever asks may stop waiting at any time; what was begun goes on (`registry`, guarantee 3).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Store;
use super::config::DatabaseConfig;
use super::database::Database;
use super::health::{Health, LocalStatus, TargetStatus};
use super::metered::Metered;
use super::registry::{Entry, Refused, RunState, Running};
use super::shutdown::{Limits, close_database};
use crate::compaction::Manifest;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::LocalDir;
use crate::replica::FileInfo;
use crate::sys::fs::with_suffix;
use crate::sys::{TaskGroup, blocking, to_the_end};
use crate::telemetry::ReplicaGauges;
use crate::types::{Level, Timestamp, Txid};

/// A database of a store.
#[derive(Debug, Clone)]
pub struct Managed {
    store: Store,
    entry: Arc<Entry>,
}

/// How one database stands.
#[derive(Debug, Clone)]
pub struct DatabaseStatus {
    /// The database file.
    pub path: PathBuf,
    /// Its log.
    pub wal_path: PathBuf,
    /// Whether it is open.
    pub state: RunState,
    /// Its log and its local files.
    pub local: LocalStatus,
    /// Where its files go.
    pub targets: Vec<TargetStatus>,
}

impl DatabaseStatus {
    /// When all targets were last known to have every commit.
    #[must_use]
    pub fn last_sync_at(&self) -> Option<Timestamp> {
        let all: Option<Vec<Timestamp>> = self.targets.iter().map(|target| target.last_success).collect();
        all?.into_iter().min()
    }

    /// Age of the oldest commit that some target lacks.
    #[must_use]
    pub fn lag(&self) -> Duration {
        self.targets.iter().map(|target| target.lag).max().unwrap_or_default()
    }

    /// What keeps it from being replicated, worst first.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        let remote = self.targets.iter().find_map(|target| target.trouble.as_ref());
        self.local.trouble.as_ref().or(remote).map(|trouble| trouble.error.as_str())
    }
}

/// What is known of one level of a target.
#[derive(Debug, Clone)]
pub struct RemoteLevel {
    /// Which one.
    pub level: Level,
    /// Files.
    pub count: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// When the oldest was made.
    pub oldest: Timestamp,
    /// When the newest ones were made.
    pub newest: Vec<Timestamp>,
}

/// What starting or stopping did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// `false`: it was so already.
    pub now: bool,
    /// Newest local TXID.
    pub txid: Option<Txid>,
}

/// What a sync did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Synced {
    /// Newest local TXID before.
    pub before: Option<Txid>,
    /// Newest local TXID.
    pub txid: Option<Txid>,
    /// Newest TXID known to be in every target.
    pub replicated: Option<Txid>,
}

impl Store {
    /// Adds a database and starts it. `false`: there is one of that path already.
    ///
    /// # Errors
    /// A target that cannot be used at all; two databases with one place for local state.
    pub async fn register(&self, config: DatabaseConfig) -> Result<bool> {
        if self.find(&config.db.path).is_some() {
            return Ok(false);
        }
        let store = self.clone();
        to_the_end(self.shared.work.track_future(async move {
            store.init_targets(&config).await?;
            let entry = match store.add(config) {
                Err(Refused::Known) => return Ok(false),
                other => other.map_err(refusal)?,
            };
            let started = store.managed(Arc::clone(&entry)).start_now(&CancellationToken::new()).await;
            // Whoever took it out again meanwhile came after us: it was registered.
            if store.shared.registry.holds(&entry) { started.map(|_| true) } else { Ok(true) }
        }))
        .await
    }

    /// Takes a database out, with a final sync of at most `limit`. `None`: there is no such database.
    ///
    /// # Errors
    /// The final sync failed. The database is out nevertheless.
    pub async fn unregister(&self, path: &Path, limit: Duration) -> Result<Option<Changed>> {
        self.take_out(path, limit).await
    }

    /// As [`Store::unregister`], but it is out already when this returns; what is returned waits for
    /// the final sync.
    pub fn take_out(
        &self,
        path: &Path,
        limit: Duration,
    ) -> impl Future<Output = Result<Option<Changed>>> + Send + use<> {
        let leaving = self.shared.registry.remove(path).map(|entry| {
            let managed = self.managed(Arc::clone(&entry));
            entry.leave(async move {
                // Large: it holds a whole upload.
                let stopped = Box::pin(managed.stop_now(limit)).await;
                managed.forget_series();
                stopped.map(Some)
            })
        });
        let tracker = self.shared.work.clone();
        async move {
            let Some(leaving) = leaving else { return Ok(None) };
            to_the_end(tracker.track_future(leaving)).await
        }
    }

    /// A database by its path.
    #[must_use]
    pub fn find(&self, path: &Path) -> Option<Managed> {
        self.shared.registry.find(path).map(|entry| self.managed(entry))
    }

    /// All databases, in the order they came.
    #[must_use]
    pub fn databases(&self) -> Vec<Managed> {
        self.shared.registry.all().into_iter().map(|entry| self.managed(entry)).collect()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.registry.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Brings those metrics up to date that are only known when asked for.
    pub fn refresh_metrics(&self) {
        let mut states = [RunState::Replicating, RunState::Open, RunState::Stopped].map(|state| (state.name(), 0));
        for managed in self.databases() {
            let status = managed.status();
            if let Some((_, count)) = states.iter_mut().find(|(name, _)| *name == status.state.name()) {
                *count += 1;
            }
            let path = status.path.to_string_lossy();
            for target in &status.targets {
                let errors = [&status.local.trouble, &target.trouble].into_iter().flatten().map(|t| t.failures).max();
                let gauges = ReplicaGauges {
                    lag: target.lag,
                    last_success_seconds: target.last_success.map(|at| at.millis() as f64 / 1000.0),
                    txid: target.position.map_or(0, Txid::get),
                    pending: target.pending,
                    errors: errors.unwrap_or(0),
                };
                self.shared.metrics.set_replica(&path, &target.name, &gauges);
            }
        }
        self.shared.metrics.set_databases(&states);
        for (pool, waiting) in [("engine", self.shared.pool.waiting()), ("upkeep", self.shared.upkeep.waiting())] {
            self.shared.metrics.set_waiting(pool, waiting);
        }
    }

    fn managed(&self, entry: Arc<Entry>) -> Managed {
        Managed { store: self.clone(), entry }
    }

    pub(super) fn add(&self, mut config: DatabaseConfig) -> Result<Arc<Entry>, Refused> {
        let shared = &self.shared;
        for target in &mut config.targets {
            let (metrics, clock) = (Arc::clone(&shared.metrics), Arc::clone(&shared.world.clock));
            target.replica = target.replica.wrapped(|client| Arc::new(Metered::new(client, metrics, clock)));
        }
        let id_of = |path: &Path| shared.world.fs.stat_opt(path).ok().flatten().map(|stat| stat.id);
        shared.registry.add(config, id_of, |config| {
            let path = config.db.path.to_string_lossy();
            let metrics = shared.metrics.database(&path, &config.db.name());
            Health::new(&shared.world, config.targets.iter().map(|target| target.replica.kind()), metrics)
        })
    }

    /// Opens a database, for whoever holds its turn.
    pub(super) fn open_entry(&self, entry: &Entry) {
        let shared = &self.shared;
        entry.health.started(&shared.world);
        let database = Arc::new(Database::new(
            shared.world.clone(),
            Arc::clone(&shared.sqlite),
            entry.config.clone(),
            shared.upkeep.trust(),
            (Arc::clone(&shared.pool), Arc::clone(&shared.turns)),
            Arc::clone(&entry.health),
            Arc::clone(&shared.repeated),
        ));
        entry.put(Running { database, tasks: TaskGroup::default(), followed: false });
    }

    pub(super) async fn init_targets(&self, config: &DatabaseConfig) -> Result<()> {
        for target in &config.targets {
            target.replica.client().init().await.map_err(|e| {
                e.context(format!("initialize replica client for {:?}", config.db.path.display().to_string()))
            })?;
        }
        Ok(())
    }
}

/// In words.
pub(super) fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::Known => Error::new(ErrorKind::Exists, "database is managed already"),
        Refused::MetaPath(other) => Error::invalid(format!(
            "meta-path collision: {} keeps its local state in the same directory, causing replication state corruption",
            other.display()
        )),
        Refused::SameFile(other) => {
            Error::invalid(format!("this is the same database file as {}, under another name", other.display()))
                .hint("name each database once; several replicas of one database are not possible")
        }
        Refused::Replica(location, other) => {
            Error::invalid(format!("replica {location} is used by another database: {}", other.display()))
                .hint("give each database a replica path of its own")
        }
        Refused::Closing => Error::new(ErrorKind::Cancelled, "the program is shutting down"),
    }
}

/// What Litestream says when time is up.
fn time_is_up() -> Error {
    Error::new(ErrorKind::Unavailable, "context deadline exceeded")
}

impl Managed {
    /// The database file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.entry.path()
    }

    /// The settings it runs with.
    #[must_use]
    pub fn config(&self) -> &DatabaseConfig {
        &self.entry.config
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> DatabaseStatus {
        let world = &self.store.shared.world;
        let state = self.entry.state();
        let mut targets = self.entry.health.targets(world);
        if state == RunState::Stopped {
            // Nobody watches it, so nothing is known to be missing.
            targets.iter_mut().for_each(|target| target.lag = Duration::ZERO);
        }
        DatabaseStatus {
            path: self.path().to_owned(),
            wal_path: with_suffix(&world.fs.resolve(self.path()), "-wal"),
            state,
            local: self.entry.health.local(world),
            targets,
        }
    }

    /// What is remembered of the levels of each target that have files, with at most `points` times
    /// each. No target is asked.
    #[must_use]
    pub fn remote_levels(&self, points: usize) -> Vec<Vec<RemoteLevel>> {
        let Some(database) = self.entry.database() else { return Vec::new() };
        let look = |manifest: &Manifest| {
            Level::all().filter_map(|level| remote_level(level, manifest.level(level), points)).collect()
        };
        database.targets().iter().map(|target| target.manifest().peek(look).unwrap_or_default()).collect()
    }

    /// The newest local TXID.
    ///
    /// # Errors
    /// The local directory cannot be read.
    pub async fn position(&self) -> Result<Option<Txid>> {
        if let Some(seen) = self.entry.database().and_then(|database| database.seen().position) {
            return Ok(Some(seen));
        }
        let local = LocalDir::new(&self.store.shared.world, self.entry.config.db.meta_path.clone());
        Ok(blocking(move || local.newest(Level::L0)).await?.map(|txids| txids.max()))
    }

    /// Opens and follows it again. `limit` bounds only the wait for a stop that is going on.
    ///
    /// # Errors
    /// The wait took too long; the program is shutting down.
    pub async fn start(&self, limit: Option<Duration>) -> Result<Changed> {
        let (managed, give_up) = (self.clone(), CancellationToken::new());
        let _dropped = give_up.clone().drop_guard();
        let token = give_up.clone();
        let work = to_the_end(self.store.shared.work.track_future(async move { managed.start_now(&token).await }));
        let Some(limit) = limit else { return work.await };
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(time_is_up()))
    }

    async fn start_now(&self, give_up: &CancellationToken) -> Result<Changed> {
        let Some(_turn) = self.entry.turn(give_up).await else { return Err(time_is_up()) };
        if self.store.shared.registry.is_closing() {
            return Err(refusal(Refused::Closing));
        }
        if !self.store.shared.registry.holds(&self.entry) {
            return Err(Error::new(ErrorKind::NotFound, format!("database not found: {}", self.path().display())));
        }
        let now = self.entry.state() == RunState::Stopped;
        if now {
            self.store.open_entry(&self.entry);
            self.store.follow_if_started(&self.entry);
        }
        Ok(Changed { now, txid: self.position().await? })
    }

    /// Stops following it, syncs what is left within `limit`, and closes it.
    ///
    /// # Errors
    /// The final sync failed. The database is closed nevertheless.
    pub async fn stop(&self, limit: Duration) -> Result<Changed> {
        let managed = self.clone();
        to_the_end(self.store.shared.work.track_future(async move { managed.stop_now(limit).await })).await
    }

    async fn stop_now(&self, limit: Duration) -> Result<Changed> {
        let shared = &self.store.shared;
        let _turn = self.entry.turn.lock().await;
        let Some(running) = self.entry.take() else {
            return Ok(Changed { now: false, txid: self.position().await? });
        };
        let limits = Limits::within(shared.shutdown(), limit);
        let (closed, database) = Box::pin(close_database(running, limits, &shared.interrupt)).await;
        let txid = database.seen().position;
        closed.map(|()| Changed { now: true, txid })
    }

    /// Brings the local files up to date, and with `wait` the targets too. `None`: it is not open.
    ///
    /// # Errors
    /// The sync failed, or did not end within `limit`; it goes on then.
    pub async fn sync(&self, wait: bool, limit: Option<Duration>) -> Result<Option<Synced>> {
        let Some(database) = self.entry.database() else { return Ok(None) };
        let clock = &self.store.shared.world.clock;
        let deadline = limit.map(|limit| clock.elapsed().saturating_add(limit));
        let left = || deadline.map(|deadline| deadline.saturating_sub(clock.elapsed()));
        let before = database.seen().position;
        let synced = Arc::clone(&database);
        within(
            left(),
            "db sync",
            "wait for db sync executor",
            self.tracked(Box::pin(async move { synced.sync_local().await })),
        )
        .await?;
        if wait {
            let synced = Arc::clone(&database);
            let upload = async move {
                for target in synced.targets() {
                    target.sync_surely(&synced).await?;
                }
                Ok(())
            };
            within(left(), "replica sync", "wait for replica sync", self.tracked(Box::pin(upload))).await?;
        }
        let replicated = self.entry.health.targets(&self.store.shared.world).into_iter().map(|target| target.position);
        Ok(Some(Synced { before, txid: database.seen().position, replicated: replicated.min().flatten() }))
    }

    async fn tracked<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        to_the_end(self.store.shared.work.track_future(work)).await
    }

    /// Drops its series, unless another database of its path has come meanwhile.
    fn forget_series(&self) {
        let shared = &self.store.shared;
        if shared.registry.find(self.path()).is_some() {
            return;
        }
        let (path, name) = (self.path().to_string_lossy(), self.entry.config.db.name());
        shared.metrics.forget_database(&path, &name, !shared.registry.has_file_name(&name));
        for target in self.entry.health.target_names() {
            shared.metrics.forget_replica(&path, target);
        }
    }
}

fn remote_level(level: Level, files: &[FileInfo], points: usize) -> Option<RemoteLevel> {
    Some(RemoteLevel {
        level,
        count: files.len(),
        bytes: files.iter().map(|file| file.size).sum(),
        oldest: files.iter().map(|file| file.created).min()?,
        newest: files.iter().rev().take(points).map(|file| file.created).collect(),
    })
}

/// Waits for a step of a sync, and says which one it was.
async fn within<T>(
    limit: Option<Duration>,
    step: &'static str,
    waiting: &'static str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let Some(limit) = limit else { return work.await.map_err(|err| err.context(step)) };
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(|err| err.context(step)),
        Err(_) => Err(time_is_up().context(waiting)),
    }
}
