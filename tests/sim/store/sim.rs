//! The whole program: commits → local files → stores → restores, in a world that fails.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use litestream::error::{ErrorKind, Result as DbResult};
use litestream::types::{Timestamp, Txid};

use super::book::{Book, Broken};
use super::bucket::Bucket;
use super::daemon::{Daemon, Place};
use super::follower::Follower;
use super::manners::{Lies, Manners};
use super::site::{Kind, Site};
use super::steps;
use super::swarm::{Act, Rival, StoreSwarm};
use crate::app::{App, DB};
use crate::disk::{Counts, Disk, Mount, OTHER_DB, Op, Proc, set_current, set_hook};
use crate::local::{Violation, draw_fault, panic_text, skewed};
use crate::rng::{Rng, mix};
use crate::tell::Teller;
use crate::vfs;

const META: &str = "/data/.db-litestream";
const PLACE: Place = Place { db: DB, meta: META };
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
    foreign: RefCell<App>,
    daemon: RefCell<Option<Daemon>>,
    rival: RefCell<Option<Daemon>>,
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

    fn app_steps(&self, app: &RefCell<App>, seed: u64, count: u64) {
        let Ok(mut app) = app.try_borrow_mut() else { return };
        let mut rng = Rng::new(seed);
        for _ in 0..count {
            if self.stopped.get() || self.disk.lock().off {
                break;
            }
            app.step(&self.swarm.base, &mut rng);
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
    async fn bury(&self) {
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

    async fn live_and_sync(&self, rng: &mut Rng) {
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
    fn newest(&self) -> Option<Txid> {
        self.sites[0].contents(&self.disk).iter().map(|stored| stored.file.txids.max()).max()
    }

    /// If what was acknowledged just now is the newest of the replica, or that was `before` already what it is now,
    /// it is not the other database's.
    fn must_be_ours(&self, txid: Txid, before: Option<Txid>, others: bool) {
        self.check();
        if self.is_stopped() || self.swarm.rival != Some(Rival::OtherDatabase) {
            return;
        }
        let newest = self.newest();
        // A list that does not show what is there may show nobody else either.
        let misled = self.buckets().any(|bucket| bucket.lies().1.misleading() > 0);
        if newest != Some(txid) && (newest != before || misled) {
            return;
        }
        let Some(digest) = newest.and_then(|newest| self.books[0].borrow().digest(newest.get())) else { return };
        let inner = self.disk.lock();
        let oracle = if others { &inner.other } else { &inner.oracle };
        let found = oracle.find(digest).is_some();
        drop(inner);
        if !found {
            self.violate("I10 exclusive", format!("TXID {txid} was acknowledged, and is another database's"));
        }
    }

    /// Another program on the same replica, or on the same database.
    async fn rival_acts(&self, rng: &mut Rng) {
        let Some(kind) = self.swarm.rival else { return };
        let others = kind == Rival::OtherDatabase;
        let place = match kind {
            Rival::Twin => PLACE,
            Rival::OtherState => Place { db: DB, meta: "/data/.twin-litestream" },
            Rival::OtherDatabase => NEIGHBOUR,
        };
        if let Some(app) = self.other_app.borrow_mut().as_mut() {
            for _ in 0..rng.below(4) {
                app.step(&self.swarm.base, rng);
                self.disk.observe();
            }
        }
        let running = self.rival.borrow().clone().filter(|rival| !self.disk.is_dead(rival.who));
        let rival = match running {
            Some(rival) => rival,
            None => match Daemon::open(&self.swarm, &[(place, &self.sites)], &self.disk, Proc::Rival).await {
                Ok(rival) => {
                    self.say(|| "  the other program starts".to_owned());
                    rival.store.start();
                    self.rival.replace(Some(rival.clone()));
                    rival
                }
                Err(err) => return self.violate("I7 live", format!("the other program does not start: {err}")),
            },
        };
        if rng.permille(600) {
            let newest = self.newest();
            let before = self.disk.lock().oracle_of(place.db).now();
            let synced = rival.managed.sync(true, Some(Duration::from_secs(30))).await;
            self.say(|| format!("  the other's sync: {synced:?}"));
            let txid = synced.ok().flatten().and_then(|synced| synced.txid);
            if let Some(txid) = txid.filter(|_| !self.disk.is_dead(rival.who)) {
                match others {
                    true => self.must_be_ours(txid, newest, true),
                    false => self.acknowledged(DB, before),
                }
            }
        }
        match rng.below(4) {
            0 => {
                drop(self.rival.take());
                rival.close().await;
                self.disk.lock().end(Proc::Rival);
            }
            1 => {
                self.disk.lock().kill(Proc::Rival);
                drop((rival, self.rival.take()));
            }
            _ => self.live(rng, 3, 2000).await,
        }
    }

    async fn stop(&self) {
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

    /// A store loses objects for good. Nothing is asked of that target until a start has looked at it.
    fn lose_objects(&self, rng: &mut Rng) {
        for (n, site) in self.sites.iter().enumerate() {
            let Site::Bucket(bucket) = site else { continue };
            let lost = bucket.lose(rng, 3);
            self.say(|| format!("  site {n} has lost {lost:?}"));
            self.lossy[n].set(self.lossy[n].get() || !lost.is_empty());
        }
    }

    /// Whatever stores have lost: a start finds out, or the validation of a program that runs, and leads to the
    /// present again. What was there before may be gone for good, and moments before this one with it.
    async fn find_losses(&self) {
        let lossy: Vec<bool> = self.lossy.iter().map(Cell::get).collect();
        if !lossy.contains(&true) {
            return;
        }
        match self.swarm.validation.filter(|_| !self.is_dead() && self.disk.lock().order(2) == 0) {
            Some(interval) => {
                self.say(|| "  the validation finds out".to_owned());
                tokio::time::sleep(Duration::from_secs(2 * interval + 30)).await;
                self.lossy.iter().for_each(|lossy| lossy.set(false));
                self.check();
            }
            None => {
                self.stop().await;
                self.ensure_daemon().await;
            }
        }
        if let Err(text) = self.catch_up().await {
            return self.violate("I7 live", format!("after a store has lost objects a sync fails: {text}"));
        }
        self.neighbour_catches_up().await;
        let now = self.disk.wall();
        self.lossy.iter().for_each(|lossy| lossy.set(false));
        for (lossy, first) in lossy.into_iter().zip(&self.first_snapshot) {
            if lossy {
                first.set(Some(now));
            }
        }
    }

    async fn kill(&self, rng: &mut Rng) {
        self.ensure_daemon().await;
        let bucket = self.buckets().nth(rng.index(self.sites.len()));
        match bucket.filter(|_| rng.permille(600)) {
            Some(bucket) => bucket.kill_after(Proc::Engine, rng.below(12), rng.permille(500)),
            None => self.disk.lock().kill_after(Proc::Engine, skewed(rng)),
        }
        for _ in 0..3 {
            if !self.is_dead() {
                self.live_and_sync(rng).await;
            }
        }
        self.buckets().for_each(|bucket| bucket.disarm());
        self.disk.lock().disarm();
        if !self.is_dead() {
            self.disk.lock().kill(Proc::Engine);
        }
        self.bury().await;
        self.app_steps(&self.app, rng.next(), rng.clone().below(5));
    }

    async fn power_cut(&self, rng: &mut Rng) {
        if rng.permille(800) {
            self.ensure_daemon().await;
        }
        self.disk.lock().power_after(skewed(rng) * 3);
        match rng.below(3) {
            0 => self.app_steps(&self.app, rng.next(), 6),
            1 => drop(self.sync(Duration::from_secs(30)).await),
            _ => self.live_and_sync(rng).await,
        }
        {
            let mut inner = self.disk.lock();
            inner.disarm();
            if !inner.off {
                inner.power_off();
            }
        }
        self.kill_follower();
        // A journal that was removed may come back, and the state before with it, as with SQLite's own.
        self.followed.set(0);
        self.bury().await;
        let apps = [&self.app, &self.foreign];
        let bury = || {
            apps.iter().filter_map(|app| app.try_borrow_mut().ok()).for_each(|mut app| app.bury());
            if let Some(app) = self.other_app.borrow_mut().as_mut() {
                app.bury();
            }
        };
        bury();
        self.disk.lock().reboot();
        bury();
        self.check();
        self.app_steps(&self.app, rng.next(), rng.clone().below(4));
    }

    /// Faults are over: everything must come right by itself.
    async fn settle(&self) {
        self.say(|| "faults are over".to_owned());
        {
            let mut inner = self.disk.lock();
            inner.faults.clear();
            inner.disarm();
            for mount in [Mount::Data, Mount::Meta, Mount::Rest] {
                inner.set_budget(mount, None);
            }
        }
        for bucket in self.buckets() {
            bucket.disarm();
            bucket.set_manners(Manners::PERFECT);
            bucket.outage(Duration::ZERO, None);
        }
        self.app.borrow_mut().end(false);
        self.foreign.borrow_mut().end(false);
        if let Some(app) = self.other_app.borrow_mut().as_mut() {
            app.end(false);
        }
        if let Some(rival) = self.rival.take()
            && !self.disk.is_dead(rival.who)
        {
            rival.close().await;
            self.disk.lock().end(Proc::Rival);
        }
        if self.swarm.rival == Some(Rival::OtherDatabase) {
            // Whoever starts takes the replica over; one that has lost it would only say so.
            self.stop().await;
        }
        self.ensure_daemon().await;
        self.find_losses().await;
        if let Err(text) = self.catch_up().await {
            return self.violate("I7 live", format!("with all faults gone a sync still fails: {text}"));
        }
        self.neighbour_catches_up().await;
        self.exactly_now("after the faults").await;
        let mut last_words = self.app.borrow_mut().last_words(&mut Rng::new(5));
        if let Some(app) = self.other_app.borrow_mut().as_mut().filter(|_| self.swarm.neighbour.is_some()) {
            last_words = last_words.and_then(|()| app.last_words(&mut Rng::new(6)));
        }
        if let Err(text) = last_words {
            return self.violate("I6 harmless", format!("the application cannot write any more: {text}"));
        }
        // Nobody asks for this one. What failed before may have led to a wait of five minutes.
        for _ in 0..(330 + 2 * (self.swarm.sync_interval_ms + self.swarm.monitor_ms) / 1000) {
            if self.is_stopped() || self.is_caught_up() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.exactly_now("after one more commit, by itself").await;
        self.follower_catches_up().await;
        self.stop().await;
        if let Err(text) = self.app.borrow_mut().check() {
            return self.violate("I6 harmless", format!("integrity check of the source: {text}"));
        }
        self.ensure_daemon().await;
        if let Err(text) = self.catch_up().await {
            return self.violate("I7 live", format!("after a restart a sync fails: {text}"));
        }
        self.neighbour_catches_up().await;
        let longest = self.swarm.levels.iter().copied().chain([self.swarm.snapshot_retention]).max().unwrap_or(0);
        tokio::time::sleep(Duration::from_secs((2 * longest + 30).min(200))).await;
        self.exactly_now("after a restart").await;
        self.stop().await;
        self.tidy();
        self.check();
    }

    /// A sync must succeed at once; only whoever was led to believe in another writer may want to be restarted.
    async fn catch_up(&self) -> Result<(), String> {
        // What was asked for before the faults ended may still be failing.
        let first = self.sync(Duration::from_secs(600)).await;
        let err = match first {
            Some(Ok(())) => return Ok(()),
            Some(Err(err)) => err,
            None => return Err("the daemon is dead".to_owned()),
        };
        if err.kind() != ErrorKind::InUse {
            let again = self.sync(Duration::from_secs(600)).await;
            return match again {
                Some(Ok(())) => Ok(()),
                Some(Err(err)) => Err(err.to_string()),
                None => Err("the daemon is dead".to_owned()),
            };
        }
        let misled = |bucket: &Arc<Bucket>| bucket.lies().1.misleading() > 0;
        if self.is_alone() && !self.buckets().any(misled) {
            return Err(err.to_string());
        }
        self.stop().await;
        self.ensure_daemon().await;
        match self.sync(Duration::from_secs(600)).await {
            Some(Ok(())) => Ok(()),
            Some(Err(err)) => Err(err.to_string()),
            None => Err("the daemon is dead".to_owned()),
        }
    }

    /// Whether every target is said to hold the present state.
    fn is_caught_up(&self) -> bool {
        self.check();
        let positions = self.positions();
        positions.iter().enumerate().all(|(n, txid)| {
            let mut inner = self.disk.lock();
            let oracle = inner.oracle_of(self.db_of(n));
            let digest = txid.and_then(|txid| self.book_of(n).borrow().digest(txid));
            digest == Some(oracle.digest_at(oracle.now()))
        })
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
