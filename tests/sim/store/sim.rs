//! The whole program: commits → local files → stores → restores, in a world that fails.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use litestream::error::Result as DbResult;
use litestream::types::{Timestamp, Txid};

use super::book::{Book, Broken};
use super::bucket::Bucket;
use super::daemon::{Daemon, Place};
use super::follower::Follower;
use super::manners::Lies;
use super::site::{Kind, Site};
use super::steps;
use super::swarm::{Act, Rival, StoreSwarm};
use crate::app::{App, DB};
use crate::disk::{Counts, Disk, Mount, OTHER_DB, Op, Proc, set_current, set_hook};
use crate::local::{Violation, draw_fault, panic_text};
use crate::rng::{Rng, mix};
use crate::tell::Teller;
use crate::vfs;

const META: &str = "/data/.db-litestream";
/// Where the first database of the program lies.
pub(super) const PLACE: Place = Place { db: DB, meta: META };
/// Where the second database of the program lies, or a rival's.
pub(super) const NEIGHBOUR: Place = Place { db: OTHER_DB, meta: "/data/.db2-litestream" };

/// What a run did.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoreOutcome {
    pub(crate) violation: Option<Violation>,
    pub(crate) trace: u64,
    pub(crate) counts: Counts,
    pub(crate) lies: Lies,
    pub(crate) requests: u64,
    pub(crate) states: u64,
    pub(crate) txids: u64,
    pub(crate) syncs: u64,
    pub(crate) failed_syncs: u64,
    pub(crate) restores: u64,
    pub(crate) failed_restores: u64,
    pub(crate) points: u64,
    pub(crate) looks: u64,
    pub(crate) unchecked: u64,
    pub(crate) simulated_seconds: u64,
}

pub(super) struct Sim {
    pub(super) disk: Arc<Disk>,
    pub(super) swarm: StoreSwarm,
    pub(super) app: RefCell<App>,
    pub(super) foreign: RefCell<App>,
    daemon: RefCell<Option<Daemon>>,
    pub(super) rival: RefCell<Option<Daemon>>,
    /// Of the other database: a rival's, or our neighbour.
    pub(super) other_app: RefCell<Option<App>>,
    pub(super) follower: RefCell<Option<Follower>>,
    /// The newest state that a reader of the follower's database has seen.
    pub(super) followed: Cell<usize>,
    /// Targets, those of the first database first.
    pub(super) sites: Vec<Site>,
    /// How many are of the first database.
    pub(super) ours: usize,
    /// Of the first database, and of the neighbour.
    pub(super) books: [RefCell<Book>; 2],
    /// For each site the newest state that was acknowledged.
    pub(super) acked: Vec<Cell<usize>>,
    schedule: RefCell<Rng>,
    pub(super) outcome: RefCell<StoreOutcome>,
    stopped: Cell<bool>,
    /// The clock was set: times say nothing about order any more.
    pub(super) clock_was_set: Cell<bool>,
    /// For each site whether it has lost what it acknowledged, and nobody looked since.
    pub(super) lossy: Vec<Cell<bool>>,
    /// For each site when its first snapshot was made.
    pub(super) first_snapshot: Vec<Cell<Option<Timestamp>>>,
    interruptions: Cell<u32>,
    verbose: bool,
}

/// Runs one seed's actions.
pub(crate) fn run(seed: u64, swarm: &StoreSwarm, acts: &[Act], verbose: bool) -> StoreOutcome {
    let _telling = verbose.then(|| tracing::subscriber::set_default(Teller));
    let disk = Disk::new(seed);
    set_current(Some(Arc::clone(&disk)));
    vfs::reset_randomness();
    {
        let mut inner = disk.lock();
        inner.short_reads = swarm.base.short_reads;
        inner.powersafe = swarm.base.powersafe;
        inner.tell = verbose && std::env::var_os("OPERATIONS").is_some();
    }
    let mut app = App::new(&disk, Proc::App);
    app.create(&swarm.base);
    app.end(false);
    let other_app = (swarm.rival == Some(Rival::OtherDatabase) || swarm.neighbour.is_some()).then(|| {
        let mut app = App::of(&disk, Proc::Foreign, OTHER_DB);
        app.create(&swarm.base);
        app.end(false);
        app
    });
    disk.lock().mkdir_all(Path::new("/restore"));
    disk.lock().mkdir_all(Path::new("/follow"));
    disk.lock().sync_all();
    let names = ["first", "second", "third"];
    let kinds = swarm.sites.iter().chain(&swarm.neighbour);
    let sites: Vec<Site> = kinds
        .zip(names)
        .map(|(kind, name)| match kind {
            Kind::Bucket => {
                Site::Bucket(Bucket::new(name, &disk, mix(seed ^ name.len() as u64), swarm.manners.clone()))
            }
            Kind::Directory => Site::Directory(format!("/backup/{name}").into()),
        })
        .collect();
    let sim = Rc::new(Sim {
        foreign: RefCell::new(App::new(&disk, Proc::Foreign)),
        app: RefCell::new(app),
        daemon: RefCell::default(),
        rival: RefCell::default(),
        other_app: RefCell::new(other_app),
        follower: RefCell::default(),
        followed: Cell::new(0),
        acked: sites.iter().map(|_| Cell::new(0)).collect(),
        lossy: sites.iter().map(|_| Cell::new(false)).collect(),
        first_snapshot: sites.iter().map(|_| Cell::new(None)).collect(),
        sites,
        ours: swarm.sites.len(),
        books: match swarm.neighbour {
            Some(_) => [Book::of(DB), Book::of(OTHER_DB)].map(RefCell::new),
            None => <[RefCell<Book>; 2]>::default(),
        },
        swarm: swarm.clone(),
        schedule: RefCell::new(Rng::new(mix(seed))),
        outcome: RefCell::default(),
        stopped: Cell::new(false),
        clock_was_set: Cell::new(false),
        interruptions: Cell::new(0),
        verbose,
        disk: Arc::clone(&disk),
    });
    if swarm.base.interleave > 0 || swarm.followed {
        let weak = Rc::downgrade(&sim);
        set_hook(Some(Rc::new(move |proc, op, _| {
            if let Some(sim) = weak.upgrade() {
                steps::held(|| sim.interrupt(proc, op));
            }
        })));
    }
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    steps::install(mix(seed ^ 9), swarm.preemption);
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(sim.run_all(acts))));
    disk.follow_runtime(None);
    set_hook(None);
    if let Err(panic) = ended {
        sim.violate("I13 no panic", panic_text(panic.as_ref()));
    }
    // Nothing may happen any more while everything is taken down.
    for proc in Proc::ALL {
        disk.lock().end(proc);
    }
    drop((sim.daemon.take(), sim.rival.take(), sim.follower.take()));
    drop(runtime);
    steps::uninstall();
    for app in [&sim.app, &sim.foreign] {
        if let Ok(mut app) = app.try_borrow_mut() {
            app.bury();
        }
    }
    if let Some(mut app) = sim.other_app.take() {
        app.bury();
    }
    let outcome = sim.finish();
    set_current(None);
    outcome
}

impl Sim {
    fn finish(&self) -> StoreOutcome {
        let mut outcome = self.outcome.borrow().clone();
        let inner = self.disk.lock();
        outcome.trace = inner.trace;
        outcome.counts = inner.counts;
        outcome.states = inner.oracle.now() as u64;
        outcome.simulated_seconds = inner.elapsed_us / 1_000_000;
        drop(inner);
        outcome.unchecked = self.books.iter().map(|book| book.borrow().unchecked).sum();
        outcome.txids = self.books.iter().map(|book| book.borrow().txids().len() as u64).sum();
        for bucket in self.buckets() {
            let (requests, lies) = bucket.lies();
            outcome.requests += requests;
            outcome.lies.add(&lies);
        }
        outcome
    }

    pub(super) fn buckets(&self) -> impl Iterator<Item = &Arc<Bucket>> {
        self.sites.iter().filter_map(|site| match site {
            Site::Bucket(bucket) => Some(bucket),
            Site::Directory(_) => None,
        })
    }

    pub(super) fn violate(&self, invariant: &'static str, text: impl Into<String>) {
        let text = text.into();
        self.say(|| format!("VIOLATION {invariant}: {text}"));
        self.stopped.set(true);
        let mut outcome = self.outcome.borrow_mut();
        outcome.violation.get_or_insert(Violation { invariant, text });
    }

    pub(super) fn broken(&self, broken: Broken) {
        self.violate(broken.0, broken.1);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    pub(super) fn say(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            let inner = self.disk.lock();
            let (now, seconds) = (inner.oracle.now(), inner.elapsed_us as f64 / 1e6);
            drop(inner);
            eprintln!("[{seconds:9.3} s, state {now:3}] {}", text());
        }
    }

    /// Somebody else's turn in the middle of an operation of the program.
    fn interrupt(&self, proc: Proc, op: Op) {
        if self.stopped.get() {
            return;
        }
        if proc == Proc::Rival && self.swarm.followed && self.schedule.borrow_mut().permille(40) {
            return self.look_at_followed();
        }
        if proc != Proc::Engine {
            return;
        }
        let odds = self.swarm.base.interleave * if op == Op::Pause { 10 } else { 1 };
        let (strike, who, seed) = {
            let mut rng = self.schedule.borrow_mut();
            (rng.permille(odds), rng.below(8), rng.next())
        };
        if !strike || self.interruptions.get() >= 25 {
            return;
        }
        self.interruptions.set(self.interruptions.get() + 1);
        let app = if who < 6 || !self.swarm.base.foreign { &self.app } else { &self.foreign };
        let done = catch_unwind(AssertUnwindSafe(|| self.app_steps(app, seed, 2)));
        if let Err(panic) = done {
            self.violate("I13 no panic", panic_text(panic.as_ref()));
        }
    }

    pub(super) fn app_steps(&self, app: &RefCell<App>, seed: u64, count: u64) {
        let Ok(mut app) = app.try_borrow_mut() else { return };
        self.steps_of(&mut app, &mut Rng::new(seed), count);
    }

    /// Fewer than `bound` steps of the other database's application.
    pub(super) fn other_app_steps(&self, rng: &mut Rng, bound: u64) {
        if let Some(app) = self.other_app.borrow_mut().as_mut() {
            let count = rng.below(bound);
            self.steps_of(app, rng, count);
        }
    }

    fn steps_of(&self, app: &mut App, rng: &mut Rng, count: u64) {
        for _ in 0..count {
            if self.stopped.get() || self.disk.lock().off {
                break;
            }
            app.step(&self.swarm.base, rng);
            self.disk.observe();
        }
        if let Some(complaint) = app.complaint.take() {
            self.violate("I6 harmless", complaint);
        }
    }

    async fn run_all(&self, acts: &[Act]) {
        self.disk.follow_runtime(Some(tokio::time::Instant::now()));
        for &act in acts {
            if self.stopped.get() {
                return;
            }
            self.act(act).await;
            self.check();
            self.moments_of_level_0().await;
        }
        if !self.stopped.get() {
            set_hook(None);
            self.settle().await;
        }
    }

    async fn act(&self, act: Act) {
        self.say(|| format!("{act:?}"));
        let seed = act.seed();
        *self.schedule.borrow_mut() = Rng::new(mix(seed ^ 77));
        self.interruptions.set(0);
        self.disk.lock().reseed(seed);
        for bucket in self.buckets() {
            bucket.reseed(seed);
        }
        let mut rng = Rng::new(seed);
        match act {
            Act::App(_) => self.app_steps(&self.app, rng.next(), 1 + rng.below(8)),
            Act::Foreign(_) => self.app_steps(&self.foreign, rng.next(), 1 + rng.below(5)),
            Act::Live(_) => {
                self.ensure_daemon().await;
                let rounds = 1 + rng.below(12);
                self.live(&mut rng, rounds, 400).await;
            }
            Act::Idle(_) => {
                self.ensure_daemon().await;
                let seconds = rng.pick(&[3, 20, 60, 200]);
                self.live(&mut rng, 3, seconds * 1000).await;
            }
            Act::Sync(_) => {
                self.ensure_daemon().await;
                self.app_steps(&self.app, rng.next(), rng.clone().below(4));
                self.sync(Duration::from_secs(rng.pick(&[1, 30, 600]))).await;
            }
            Act::Restore(_) => self.restore_somewhere(&mut rng).await,
            Act::Once(_) => self.once(&mut rng).await,
            Act::Stop(_) => {
                self.stop().await;
                self.app_steps(&self.app, rng.next(), rng.clone().below(6));
            }
            Act::Kill(_) => self.kill(&mut rng).await,
            Act::KillApp(_) => {
                self.disk.lock().kill_after(Proc::App, rng.below(25));
                self.app_steps(&self.app, rng.next(), 12);
                self.disk.lock().disarm();
                if let Ok(mut app) = self.app.try_borrow_mut() {
                    app.end(true);
                }
            }
            Act::PowerCut(_) => self.power_cut(&mut rng).await,
            Act::Fault(_) => {
                self.ensure_daemon().await;
                let fault = draw_fault(&mut rng);
                self.say(|| format!("  {fault:?}"));
                self.disk.lock().faults.push(fault);
                self.live_and_sync(&mut rng).await;
                self.disk.lock().faults.clear();
            }
            Act::Full(_) => {
                self.ensure_daemon().await;
                let mount = rng.pick(&[Mount::Meta, Mount::Meta, Mount::Data, Mount::Rest]);
                let room = rng.below(u64::from(self.swarm.base.page_size) * 6);
                self.disk.lock().set_budget(mount, Some(room));
                self.live_and_sync(&mut rng).await;
                self.disk.lock().set_budget(mount, None);
            }
            Act::BadDay(_) => {
                self.ensure_daemon().await;
                self.buckets().for_each(|bucket| bucket.set_manners(self.swarm.manners.worse()));
                self.live_and_sync(&mut rng).await;
                self.buckets().for_each(|bucket| bucket.set_manners(self.swarm.manners.clone()));
            }
            Act::Outage(_) => {
                self.ensure_daemon().await;
                let seconds = rng.pick(&[1, 10, 100, 300]);
                let denied = rng.pick(&[None, None, Some("list"), Some("get"), Some("put"), Some("delete")]);
                if let Some(bucket) = self.buckets().nth(rng.index(self.sites.len())) {
                    bucket.outage(Duration::from_secs(rng.below(seconds)), denied);
                }
                self.live_and_sync(&mut rng).await;
            }
            Act::Clock(_) => {
                self.clock_was_set.set(true);
                let step = i64::try_from(rng.below(200_000_000)).unwrap_or(0) - 100_000_000;
                self.disk.lock().wall_ms += step / rng.pick(&[1, 1000]);
            }
            Act::Rival(_) => self.rival_acts(&mut rng).await,
            Act::LoseObjects(_) if rng.permille(500) => self.purge(&mut rng).await,
            Act::LoseObjects(_) => self.lose_objects(&mut rng),
            Act::Follow(_) => self.follow_for_a_while(&mut rng).await,
            Act::Neighbour(_) => self.neighbour_acts(&mut rng).await,
            Act::LoseState(_) => {
                self.stop().await;
                let whose = if rng.permille(700) { PLACE } else { NEIGHBOUR };
                let mut inner = self.disk.lock();
                inner.remove_tree(Path::new(whose.meta));
                inner.sync_all();
            }
        }
    }

    /// The daemon's name is only dropped; what of it still runs belongs to a life that is over.
    pub(super) async fn bury(&self) {
        let daemon = self.daemon.take();
        drop(daemon);
        let rival = self.rival.borrow().clone();
        if rival.is_some_and(|rival| self.disk.is_dead(rival.who)) {
            drop(self.rival.take());
        }
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    }

    pub(super) async fn ensure_daemon(&self) -> Option<Daemon> {
        if self.stopped.get() {
            return None;
        }
        let running = self.daemon.borrow().clone();
        if let Some(daemon) = running {
            if !self.disk.is_dead(daemon.who) {
                return Some(daemon);
            }
            drop(daemon);
            self.bury().await;
        }
        match self.open_daemon().await {
            Ok(daemon) => {
                self.say(|| "  the daemon starts".to_owned());
                daemon.store.start();
                self.daemon.replace(Some(daemon.clone()));
                Some(daemon)
            }
            Err(err) => {
                self.violate("I7 live", format!("the program does not start: {err}"));
                None
            }
        }
    }

    /// The program with what it is configured for.
    async fn open_daemon(&self) -> DbResult<Daemon> {
        let (ours, neighbours) = self.sites.split_at(self.ours);
        let mut tenants = vec![(PLACE, ours)];
        if self.swarm.neighbour.is_some() {
            tenants.push((NEIGHBOUR, neighbours));
        }
        Daemon::open(&self.swarm, &tenants, &self.disk, Proc::Engine).await
    }

    pub(super) fn is_dead(&self) -> bool {
        self.daemon.borrow().as_ref().is_none_or(|daemon| self.disk.is_dead(daemon.who))
    }

    /// Time passes in `rounds`, and the application works. Ends early when the daemon dies.
    pub(super) async fn live(&self, rng: &mut Rng, rounds: u64, max_ms: u64) {
        for _ in 0..rounds {
            if self.is_dead() || self.stopped.get() {
                return;
            }
            self.app_steps(&self.app, rng.next(), rng.clone().below(4));
            tokio::time::sleep(Duration::from_millis(1 + rng.below(max_ms))).await;
        }
    }

    pub(super) async fn live_and_sync(&self, rng: &mut Rng) {
        let rounds = 1 + rng.below(8);
        self.live(rng, rounds, 3000).await;
        if rng.permille(500) {
            self.sync(Duration::from_secs(rng.pick(&[1, 30, 600]))).await;
        }
    }

    /// What `work` comes to; `None` if the daemon dies first.
    pub(super) async fn unless_dead<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return (!self.is_dead()).then_some(done),
                () = tokio::time::sleep(Duration::from_millis(200)) => if self.is_dead() { return None },
            }
        }
    }

    /// `sync -wait`, and what it promised.
    pub(super) async fn sync(&self, limit: Duration) -> Option<DbResult<()>> {
        let daemon = self.daemon.borrow().clone()?;
        let newest = self.newest();
        let before = self.disk.lock().oracle.now();
        let synced = self.unless_dead(daemon.managed.sync(true, Some(limit))).await;
        self.outcome.borrow_mut().syncs += 1;
        match synced {
            None => {
                self.say(|| "  the daemon died".to_owned());
                None
            }
            Some(Ok(synced)) => {
                self.say(|| format!("  sync: {synced:?}"));
                if let Some(txid) = synced.and_then(|synced| synced.txid) {
                    self.acknowledged(DB, before);
                    self.must_be_ours(txid, newest, false);
                }
                self.check();
                Some(Ok(()))
            }
            Some(Err(err)) => {
                self.say(|| format!("  sync failed: {err}"));
                self.outcome.borrow_mut().failed_syncs += 1;
                Some(Err(err))
            }
        }
    }

    /// Everything up to this state was said to be in every target.
    pub(super) fn acknowledged(&self, db: &str, before: usize) {
        let bound = before.max(self.disk.lock().oracle_of(db).recovered_at());
        for (n, acked) in self.acked.iter().enumerate().filter(|(n, _)| self.db_of(*n) == db) {
            self.say(|| format!("  state {bound} is said to be at site {n}"));
            acked.set(acked.get().max(bound));
        }
    }

    /// Whose files a target holds.
    pub(super) fn db_of(&self, n: usize) -> &'static str {
        if n < self.ours { DB } else { OTHER_DB }
    }

    /// What is known of the TXIDs of a target.
    pub(super) fn book_of(&self, n: usize) -> &RefCell<Book> {
        &self.books[usize::from(n >= self.ours)]
    }

    /// Whether nobody else writes to the replica.
    pub(super) fn is_alone(&self) -> bool {
        self.swarm.rival.is_none()
    }

    /// Newest TXID of the first target.
    pub(super) fn newest(&self) -> Option<Txid> {
        self.sites[0].contents(&self.disk).iter().map(|stored| stored.file.txids.max()).max()
    }

    pub(super) async fn stop(&self) {
        let Some(daemon) = self.daemon.take() else { return };
        if self.disk.is_dead(daemon.who) {
            return;
        }
        let who = daemon.who;
        daemon.close().await;
        self.say(|| "  the daemon has ended".to_owned());
        if !self.disk.is_dead(who) {
            self.disk.lock().end(Proc::Engine);
        }
    }

    /// `replicate -once`, perhaps with a snapshot and retention.
    async fn once(&self, rng: &mut Rng) {
        self.stop().await;
        self.bury().await;
        let opened = self.open_daemon().await;
        let daemon = match opened {
            Ok(daemon) => daemon,
            Err(err) => return self.violate("I7 live", format!("the program does not start: {err}")),
        };
        self.daemon.replace(Some(daemon.clone()));
        let before = [DB, OTHER_DB].map(|db| (db, self.disk.lock().oracle_of(db).now()));
        let (snapshot, retention) = (rng.permille(500), rng.permille(500));
        let done = self.unless_dead(daemon.store.run_once(snapshot, retention)).await;
        self.say(|| format!("  once: {done:?}"));
        if matches!(done, Some(Ok(()))) {
            before.into_iter().for_each(|(db, before)| self.acknowledged(db, before));
            self.check();
        }
        drop(daemon);
        self.stop().await;
    }

    pub(super) fn positions(&self) -> Vec<Option<u64>> {
        let daemon = self.daemon.borrow().clone();
        let Some(daemon) = daemon.filter(|daemon| !self.disk.is_dead(daemon.who)) else {
            return vec![None; self.sites.len()];
        };
        let neighbour = daemon.store.find(Path::new(OTHER_DB));
        let known = [Some(daemon.managed), neighbour].into_iter().flatten();
        let targets = known.flat_map(|managed| managed.status().targets);
        let mut positions: Vec<_> = targets.map(|target| target.position.map(Txid::get)).collect();
        positions.resize(self.sites.len(), None);
        positions
    }
}
