//! One managed database: the engine, the targets, and the way from tasks to both.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};

use super::config::DatabaseConfig;
use super::health::Health;
use super::recover;
use super::repeated::{Failing, Repeated};
use super::targets::Target;
use super::turns::{Seat, Turn, Turns};
use crate::db::{Counters, Db, SyncReport};
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::LocalDir;
use crate::sqlite::Sqlite;
use crate::sys::{Follower, Modes, News, Standing, World, blocking, mutant};
use crate::telemetry::SyncFigures;
use crate::types::Txid;

/// An engine with its targets.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) world: World,
    pub(super) config: Settings,
    /// The executor: one step at a time, first come first served.
    db: Arc<Mutex<Db>>,
    /// Bounds the steps that run at once in this process.
    pool: Arc<Pool>,
    /// Whether it may be open.
    turns: Arc<Turns>,
    seat: Arc<Seat>,
    targets: Vec<Target>,
    /// Whether local state was compared with the targets since start. Held while that is done: two at it at
    /// once would fetch the same file into one place.
    recovered: Mutex<bool>,
    local: LocalDir,
    seen: News<Seen>,
    health: Arc<Health>,
    /// Set once it was closed for good: another engine may work on its path from then on.
    closed: Arc<AtomicBool>,
    /// Whether the engine ever had it open.
    opened: AtomicBool,
    /// The target, counted from 1, that the last failed pass failed at; 0 = none.
    blamed: AtomicUsize,
    repeated: Arc<Repeated>,
}

/// Bounds the steps that keep a core busy.
#[derive(Debug)]
pub(super) struct Pool {
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Pool {
    /// So many at once.
    pub(super) fn new(size: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(size)), waiting: AtomicUsize::new(0) }
    }

    /// How many steps wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// What the last sync left behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// TXID of the newest local file.
    pub(super) position: Option<Txid>,
    /// For what is created on behalf of the database.
    pub(super) modes: Option<Modes>,
}

/// What tasks need to know without waiting for the engine.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) db: crate::db::DbConfig,
    pub(super) monitor_interval: Option<Duration>,
}

impl Database {
    pub(super) fn new(
        world: World,
        sqlite: Arc<dyn Sqlite>,
        config: DatabaseConfig,
        trust: Duration,
        (pool, turns): (Arc<Pool>, Arc<Turns>),
        health: Arc<Health>,
        repeated: Arc<Repeated>,
    ) -> Self {
        let settings =
            Settings { name: config.db.name(), db: config.db.clone(), monitor_interval: config.monitor_interval };
        let meta_path = config.db.meta_path.clone();
        let db = Arc::new(Mutex::new(Db::new(world.clone(), sqlite, config.db)));
        Self {
            local: LocalDir::new(&world, meta_path),
            world,
            config: settings,
            seat: Seat::new(&db),
            db,
            pool,
            turns,
            targets: config.targets.into_iter().enumerate().map(|(n, target)| Target::new(n, target, trust)).collect(),
            recovered: Mutex::default(),
            seen: News::default(),
            health,
            closed: Arc::default(),
            opened: AtomicBool::new(false),
            blamed: AtomicUsize::new(0),
            repeated,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.config.db.path
    }

    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    pub(super) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// What others are told about it.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// The engine has it open.
    pub(super) fn note_opened(&self) {
        self.opened.store(true, Ordering::Release);
    }

    /// Whether the engine ever had it open.
    pub(super) fn was_opened(&self) -> bool {
        self.opened.load(Ordering::Acquire)
    }

    /// What a pass asked of this target failed.
    pub(super) fn blame(&self, target: usize) {
        self.blamed.store(target + 1, Ordering::Release);
    }

    /// The target that the last pass failed at, if it failed at one.
    pub(super) fn blamed(&self) -> Option<usize> {
        self.blamed.load(Ordering::Acquire).checked_sub(1)
    }

    /// Counts a failure; `target` is the one that failed, if one did. How it stands, if that is to be told.
    pub(super) fn failed(&self, failing: Failing, target: Option<usize>, err: &Error) -> Option<Standing> {
        self.repeated.failed(self.world.clock.elapsed(), failing, self, target, err.kind())
    }

    /// It got through with `concerned`, or nobody tries any more. How the outage stood that is over with that.
    pub(super) fn succeeded(&self, concerned: impl Fn(Failing) -> bool) -> Option<Standing> {
        self.repeated.succeeded(self.world.clock.elapsed(), self, concerned)
    }

    /// The local LTX directory.
    pub(super) fn local(&self) -> &LocalDir {
        &self.local
    }

    /// What the last sync left behind.
    pub(super) fn seen(&self) -> Seen {
        self.seen.get()
    }

    /// Follows [`Database::seen`].
    pub(super) fn watch(&self) -> Follower<Seen> {
        self.seen.follow()
    }

    /// The engine if nobody is using it, for a look that does not block.
    pub(super) fn try_db(&self) -> Option<OwnedMutexGuard<Db>> {
        Arc::clone(&self.db).try_lock_owned().ok()
    }

    /// Runs a step of the engine on a thread that may block.
    pub(super) async fn with_db<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Db) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut db = Arc::clone(&self.db).lock_owned().await;
        let permit = {
            let _waiting = Waiting::begin(&self.pool.waiting);
            Arc::clone(&self.pool.permits).acquire_owned().await
        };
        let permit = permit.map_err(|_| Error::new(ErrorKind::Cancelled, "the program is shutting down"))?;
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Cancelled, "database was stopped"));
        }
        blocking(move || {
            let result = step(&mut db);
            drop(permit);
            result
        })
        .await
    }

    /// Waits until it may be open, and keeps it so for as long as the result lives.
    pub(super) async fn turn(&self) -> Turn {
        if let Some(turn) = self.turns.take_now(&self.seat, self.world.clock.as_ref()) {
            return turn;
        }
        let _waiting = self.health.waits();
        self.turns.take(&self.seat, &self.world).await
    }

    /// Whether it was closed to let others in, with nothing left to read, and nothing was written since.
    pub(super) fn is_at_rest(&self) -> bool {
        !Turns::has(&self.seat) && self.seat.is_untouched(self.world.fs.as_ref(), self.path())
    }

    /// Brings the local files up to the last commit.
    pub(super) async fn sync_local(&self) -> Result<SyncReport> {
        let _turn = self.turn().await;
        self.health.sync_begins(&self.world);
        let outcome = self.sync_steps().await;
        let told = outcome.as_ref().map(|(report, figures)| figures.map(|figures| (report.position, figures)));
        self.health.sync_ended(&self.world, told);
        outcome.map(|(report, _)| report)
    }

    async fn sync_steps(&self) -> Result<(SyncReport, Option<SyncFigures>)> {
        self.blamed.store(0, Ordering::Release);
        {
            let mut recovered = self.recovered.lock().await;
            if mutant("store-recovered-by-everybody") && !*recovered {
                drop(recovered);
                recover::run(self).await?;
                recovered = self.recovered.lock().await;
            } else if !*recovered && !recover::run(self).await? {
                return Ok((SyncReport { no_database: true, ..SyncReport::default() }, None));
            }
            *recovered = true;
        }
        let fs = Arc::clone(&self.world.fs);
        let (report, modes, figures) = self
            .with_db(move |db| {
                let before = db.counters();
                let report = db.sync()?;
                let db_bytes = fs.stat_opt(&db.config().path).ok().flatten().map_or(0, |stat| stat.len);
                Ok((report, db.modes(), figures(db, &before, db_bytes)))
            })
            .await?;
        let now = Seen { position: report.position, modes };
        self.seen.change(|seen| std::mem::replace(seen, now) != now);
        Ok((report, (!report.no_database).then_some(figures)))
    }

    /// New files were made by something else than a sync.
    pub(super) fn note_position(&self, position: Option<Txid>) {
        self.seen.change(|seen| std::mem::replace(&mut seen.position, position) != position);
    }

    /// Ends the read transaction and closes all files. Every later step is refused.
    pub(super) async fn close(&self) -> Result<()> {
        let closed = Arc::clone(&self.closed);
        let done = self.with_db(move |db| {
            db.close();
            closed.store(true, Ordering::Release);
            Ok(())
        });
        let done = done.await;
        self.turns.leave(&self.seat);
        done
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.turns.leave(&self.seat);
    }
}

/// Counts somebody who waits, until dropped.
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    pub(super) fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a pass measured, for metrics.
fn figures(db: &Db, before: &Counters, db_bytes: u64) -> SyncFigures {
    let now = db.counters();
    let (unread, wal_bytes) = db.log_bytes().unwrap_or_default();
    SyncFigures {
        db_bytes,
        wal_synced: wal_bytes.saturating_sub(unread),
        wal_bytes,
        txid: db.position().map_or(0, Txid::get),
        new_wal_bytes: now.wal_bytes.saturating_sub(before.wal_bytes),
        checkpoints: now.checkpoints.saturating_sub(before.checkpoints),
        checkpoint_errors: now.checkpoint_errors.saturating_sub(before.checkpoint_errors),
        checkpoint_time: now.checkpoint_time.saturating_sub(before.checkpoint_time),
        alarm: now.alarm,
    }
}
