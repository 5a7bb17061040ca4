//! The engine alone: log → local L0 files, on a disk that fails, beside applications that do as
//! they please.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use litestream::db::{Db, DbConfig};
use litestream::error::Result as DbResult;
use litestream::ltx::parse_file_name;
use litestream::sqlite::SystemSqlite;

use crate::app::{App, DB};
use crate::disk::{
    Class, Counts, Disk, EIO, EMFILE, ENOSPC, Entry, Fault, Inner, Mount, Op, Proc, Who, acting, set_current, set_hook,
};
use crate::fs::world;
use crate::replay::{self, Cache, Layers};
use crate::rng::{Rng, mix};
use crate::squeeze::Squeeze;
use crate::swarm::{Action, Swarm};
use crate::tell::Teller;
use crate::vfs;

const META: &str = "/data/.db-litestream";

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) text: String,
}

/// What a run did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) violation: Option<Violation>,
    pub(crate) trace: u64,
    pub(crate) counts: Counts,
    pub(crate) states: u64,
    pub(crate) files: u64,
    pub(crate) syncs: u64,
    pub(crate) failed_syncs: u64,
    pub(crate) full_images: u64,
    pub(crate) checkpoints: u64,
    /// Runs that ended early: a sync that failed had lost what was to be written, and a power cut brought it out.
    pub(crate) ruined: u64,
    pub(crate) log: Vec<String>,
}

/// Digest after the last local file, and each TXID with the digest after it.
type Replayed = (Option<u64>, Vec<(u64, u64)>);

struct Engine {
    db: Option<Db>,
    who: Who,
}

pub(crate) struct Sim {
    pub(crate) disk: Arc<Disk>,
    swarm: Swarm,
    pub(crate) app: RefCell<App>,
    foreign: RefCell<App>,
    engine: RefCell<Engine>,
    schedule: RefCell<Rng>,
    outcome: RefCell<Outcome>,
    acked: Cell<usize>,
    known: RefCell<BTreeMap<u64, u64>>,
    cache: RefCell<Cache>,
    /// Neither hooks nor checks any more.
    stopped: Cell<bool>,
    verbose: bool,
    interruptions: Cell<u32>,
    /// What others do at the engine's next locks.
    squeeze: RefCell<Squeeze>,
    /// The engine has been up since a sync that went well, and nothing was done to it.
    steady: Cell<bool>,
    /// Only SQLite and the disk, to see whether these two agree.
    without_engine: bool,
}

/// Runs one seed's actions.
pub(crate) fn run(seed: u64, swarm: &Swarm, actions: &[Action], verbose: bool) -> Outcome {
    run_with(seed, swarm, verbose, |sim| {
        for &action in actions {
            if sim.stopped.get() {
                break;
            }
            sim.act(action);
        }
    })
}

/// Sets a world up, lets `happen` happen, and checks that everything comes right afterwards.
pub(crate) fn run_with(seed: u64, swarm: &Swarm, verbose: bool, happen: impl FnOnce(&Rc<Sim>)) -> Outcome {
    let _telling = verbose.then(|| tracing::subscriber::set_default(Teller));
    let disk = Disk::new(seed);
    set_current(Some(Arc::clone(&disk)));
    vfs::reset_randomness();
    {
        let mut inner = disk.lock();
        inner.short_reads = swarm.short_reads;
        inner.powersafe = swarm.powersafe;
        inner.tell = verbose && std::env::var_os("OPERATIONS").is_some();
        if verbose {
            inner.oracle.images = Some(Vec::new());
        }
    }
    let mut app = App::new(&disk, Proc::App);
    app.create(swarm);
    app.end(false);
    disk.lock().sync_all();
    let sim = Rc::new(Sim {
        foreign: RefCell::new(App::new(&disk, Proc::Foreign)),
        app: RefCell::new(app),
        engine: RefCell::new(Engine { db: None, who: disk.who(Proc::Engine) }),
        swarm: swarm.clone(),
        schedule: RefCell::new(Rng::new(mix(seed))),
        outcome: RefCell::default(),
        acked: Cell::new(0),
        known: RefCell::default(),
        cache: RefCell::default(),
        stopped: Cell::new(false),
        verbose,
        interruptions: Cell::new(0),
        squeeze: RefCell::default(),
        steady: Cell::new(false),
        without_engine: std::env::var_os("WITHOUT_ENGINE").is_some(),
        disk: Arc::clone(&disk),
    });
    if swarm.interleave > 0 || swarm.sequences > 0 {
        let weak = Rc::downgrade(&sim);
        set_hook(Some(Rc::new(move |proc, op, class| {
            if let Some(sim) = weak.upgrade() {
                sim.interrupt(proc, op, class);
            }
        })));
    }
    let ended = catch_unwind(AssertUnwindSafe(|| {
        happen(&sim);
        set_hook(None);
        if !sim.stopped.get() {
            sim.settle();
        }
    }));
    set_hook(None);
    if let Err(panic) = ended {
        sim.violate("I13 no panic", panic_text(panic.as_ref()));
    }
    sim.drop_engine();
    for app in [&sim.app, &sim.foreign] {
        if let Ok(mut app) = app.try_borrow_mut() {
            app.bury();
        }
    }
    let mut outcome = sim.outcome.borrow().clone();
    let inner = disk.lock();
    if let (Some(images), Some(dir)) = (&inner.oracle.images, std::env::var_os("IMAGES")) {
        for (n, image) in images.iter().enumerate() {
            let path = Path::new(&dir).join(format!("{n}.db"));
            std::fs::write(path, image.pages.concat()).expect("write an image");
        }
    }
    outcome.trace = inner.trace;
    outcome.counts = inner.counts;
    outcome.states = inner.oracle.now() as u64;
    drop(inner);
    set_current(None);
    outcome
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

impl Sim {
    fn violate(&self, invariant: &'static str, text: impl Into<String>) {
        if self.disk.lock().oracle.ruined {
            return self.give_up();
        }
        let text = text.into();
        self.say(|| format!("VIOLATION {invariant}: {text}"));
        self.stopped.set(true);
        let mut outcome = self.outcome.borrow_mut();
        outcome.violation.get_or_insert(Violation { invariant, text });
    }

    /// A disk that lied about a sync ruined the database: nothing can be expected of anybody.
    fn give_up(&self) {
        self.say(|| "the disk ruined the database".to_owned());
        self.stopped.set(true);
        self.outcome.borrow_mut().ruined = 1;
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            let text = text();
            let now = self.disk.lock().oracle.now();
            eprintln!("[state {now:3}] {text}");
            self.outcome.borrow_mut().log.push(text);
        }
    }

    /// Somebody else's turn in the middle of an operation.
    fn interrupt(&self, proc: Proc, op: Op, class: Class) {
        if self.stopped.get() {
            return;
        }
        if let Some(turn) = self.squeeze.borrow_mut().next(proc, op, class) {
            return self.meanwhile(|app, rng| app.take(turn, &self.swarm, rng));
        }
        let eager = match (proc, op, class) {
            (Proc::Engine, Op::Open, Class::Record) => self.swarm.eager,
            (Proc::Engine, Op::Lock | Op::Unlock, Class::Db) => self.swarm.eager / 4,
            _ => 0,
        };
        if eager > 0 && self.schedule.borrow_mut().permille(eager) {
            return self.nudge();
        }
        let odds = if op == Op::Pause { self.swarm.interleave * 10 } else { self.swarm.interleave };
        let (strike, who, seed) = {
            let mut rng = self.schedule.borrow_mut();
            (rng.permille(odds), rng.below(8), rng.next())
        };
        // An application that commits at every opportunity would keep one sync busy for ever.
        if !strike || self.interruptions.get() >= 25 {
            return;
        }
        self.interruptions.set(self.interruptions.get() + 1);
        let done = catch_unwind(AssertUnwindSafe(|| {
            if proc != Proc::Engine && who < 3 {
                self.say(|| "  meanwhile the engine syncs".to_owned());
                self.sync();
            } else if who < 6 || !self.swarm.foreign {
                self.app_steps(&self.app, seed, 2);
            } else {
                self.app_steps(&self.foreign, seed, 2);
            }
        }));
        if let Err(panic) = done {
            self.violate("I13 no panic", panic_text(panic.as_ref()));
        }
    }

    /// The application commits a little, or copies what it can out of the log.
    fn nudge(&self) {
        if self.interruptions.get() >= 25 {
            return;
        }
        self.interruptions.set(self.interruptions.get() + 1);
        self.meanwhile(|app, rng| app.nudge(&self.swarm, rng));
    }

    /// The application's turn in the middle of an operation.
    fn meanwhile(&self, turn: impl FnOnce(&mut App, &mut Rng)) {
        let seed = self.schedule.borrow_mut().next();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.app_turn(turn, seed))) {
            self.violate("I13 no panic", panic_text(panic.as_ref()));
        }
    }

    fn act(&self, action: Action) {
        self.say(|| format!("{action:?}"));
        let seed = match action {
            Action::App(s)
            | Action::Write(s)
            | Action::Round(s)
            | Action::Cut(s)
            | Action::Foreign(s)
            | Action::Sync(s)
            | Action::Snapshot(s)
            | Action::Stop(s)
            | Action::KillEngine(s)
            | Action::KillApp(s)
            | Action::PowerCut(s)
            | Action::Fault(s)
            | Action::Full(s)
            | Action::Pause(s)
            | Action::Squeeze(s) => s,
        };
        *self.schedule.borrow_mut() = Rng::new(mix(seed ^ 77));
        self.interruptions.set(0);
        self.disk.lock().reseed(seed);
        let mut rng = Rng::new(seed);
        match action {
            Action::App(_) => self.app_steps(&self.app, rng.next(), 1 + rng.below(8)),
            Action::Write(_) => {
                let commits = 1 + rng.below(2);
                self.app_turn(|app, rng| app.commit_a_little(&self.swarm, rng, commits), rng.next());
            }
            Action::Round(_) => self.app_turn(|app, rng| app.round(&self.swarm, rng), rng.next()),
            Action::Cut(_) => self.cut(),
            Action::Foreign(_) => self.app_steps(&self.foreign, rng.next(), 1 + rng.below(5)),
            Action::Sync(_) => self.sync(),
            Action::Snapshot(_) => self.snapshot(),
            Action::Stop(_) => self.stop(),
            Action::KillEngine(_) => {
                self.disk.lock().kill_after(Proc::Engine, skewed(&mut rng));
                self.sync();
                if rng.permille(500) {
                    self.app_steps(&self.app, rng.next(), 1 + rng.below(4));
                    self.sync();
                }
                self.disk.lock().disarm();
                self.drop_engine_if(true);
            }
            Action::KillApp(_) => {
                self.disk.lock().kill_after(Proc::App, rng.below(25));
                self.app_steps(&self.app, rng.next(), 12);
                self.disk.lock().disarm();
                if let Ok(mut app) = self.app.try_borrow_mut() {
                    app.end(true);
                }
            }
            Action::PowerCut(_) => self.power_cut(&mut rng),
            Action::Fault(_) => {
                let fault = draw_fault(&mut rng);
                self.say(|| format!("  {fault:?}"));
                self.disk.lock().faults.push(fault);
                self.steady.set(false);
                self.sync();
                match rng.below(4) {
                    0 => self.app_steps(&self.app, rng.next(), 1 + rng.below(4)),
                    1 => self.app_turn(|app, rng| app.round(&self.swarm, rng), rng.next()),
                    _ => {}
                }
                if rng.permille(500) {
                    self.sync();
                }
                self.steady.set(false);
                self.disk.lock().faults.clear();
            }
            Action::Full(_) => {
                let mount = rng.pick(&[Mount::Meta, Mount::Meta, Mount::Data]);
                let room = rng.below(u64::from(self.swarm.page_size) * 6);
                self.disk.lock().set_budget(mount, Some(room));
                self.steady.set(false);
                self.app_steps(&self.app, rng.next(), 1 + rng.below(4));
                self.sync();
                self.disk.lock().set_budget(mount, None);
                self.steady.set(false);
            }
            Action::Squeeze(_) => self.squeeze(&mut rng),
            Action::Pause(_) => {
                let seconds = rng.pick(&[1, 5, 70, 4000]);
                let mut inner = self.disk.lock();
                inner.advance_us(seconds * 1_000_000);
                if rng.permille(300) {
                    inner.wall_ms += i64::try_from(rng.below(200_000_000)).unwrap_or(0) - 100_000_000;
                }
            }
        }
        self.check_world();
    }

    /// Others act at the engine's locks, one after the other, and perhaps something fails then.
    fn squeeze(&self, rng: &mut Rng) {
        // Enough that a checkpoint is due.
        let commits = rng.pick(&[2, 8, 30]);
        self.app_turn(|app, rng| app.commit_a_little(&self.swarm, rng, commits), rng.next());
        let squeeze = Squeeze::draw(rng);
        if self.swarm.faults && rng.permille(400) {
            let mut fault = draw_fault(rng);
            (fault.op, fault.class, fault.locked, fault.flip, fault.errno) = (Op::Lock, Class::Db, true, false, EIO);
            self.disk.lock().faults.push(fault);
        }
        self.sync_squeezed(squeeze);
        self.disk.lock().faults.clear();
    }

    pub(crate) fn sync_squeezed(&self, squeeze: Squeeze) {
        self.say(|| format!("  {squeeze:?}"));
        *self.squeeze.borrow_mut() = squeeze;
        self.steady.set(false);
        self.sync();
        *self.squeeze.borrow_mut() = Squeeze::default();
        self.steady.set(false);
    }

    fn power_cut(&self, rng: &mut Rng) {
        self.disk.lock().power_after(skewed(rng) * 2);
        match rng.below(3) {
            0 => self.sync(),
            1 => self.app_steps(&self.app, rng.next(), 6),
            _ => {
                self.app_steps(&self.app, rng.next(), 3);
                self.sync();
            }
        }
        self.cut();
        if rng.permille(500) {
            self.app_steps(&self.app, rng.next(), 1 + rng.below(3));
        }
    }

    /// The power fails now, if it did not yet, and comes back.
    fn cut(&self) {
        self.cut_and(Inner::reboot);
    }

    /// The power fails now, if it did not yet; what comes back is up to `reboot`.
    pub(crate) fn cut_and(&self, reboot: impl FnOnce(&mut Inner)) {
        {
            let mut inner = self.disk.lock();
            inner.disarm();
            if !inner.off {
                inner.power_off();
            }
        }
        self.drop_engine();
        for app in [&self.app, &self.foreign] {
            if let Ok(mut app) = app.try_borrow_mut() {
                app.bury();
            }
        }
        reboot(&mut self.disk.lock());
        for app in [&self.app, &self.foreign] {
            if let Ok(mut app) = app.try_borrow_mut() {
                app.bury();
            }
        }
        self.verify("after a power cut");
    }

    /// Something the application does, if it is not in the middle of something.
    fn app_turn(&self, turn: impl FnOnce(&mut App, &mut Rng), seed: u64) {
        let Ok(mut app) = self.app.try_borrow_mut() else { return };
        if self.stopped.get() || self.disk.lock().off {
            return;
        }
        turn(&mut app, &mut Rng::new(seed));
        self.disk.observe();
        if let Some(complaint) = app.complaint.take() {
            self.violate("I6 harmless", complaint);
        }
    }

    fn app_steps(&self, app: &RefCell<App>, seed: u64, steps: u64) {
        let Ok(mut app) = app.try_borrow_mut() else { return };
        let mut rng = Rng::new(seed);
        for _ in 0..steps {
            if self.stopped.get() || self.disk.lock().off {
                break;
            }
            app.step(&self.swarm, &mut rng);
            self.disk.observe();
        }
        if let Some(complaint) = app.complaint.take() {
            self.violate("I6 harmless", complaint);
        }
    }

    /// Runs a step of the engine. `None` if its process died, or somebody is in the middle of one.
    fn engine<T>(&self, step: impl FnOnce(&mut Db) -> DbResult<T>) -> Option<DbResult<T>> {
        if self.without_engine {
            return None;
        }
        let mut engine = self.engine.try_borrow_mut().ok()?;
        if self.disk.lock().off {
            return None;
        }
        let who = match &engine.db {
            Some(_) => engine.who,
            None => self.disk.who(Proc::Engine),
        };
        engine.who = who;
        let result = acting(who, || {
            if engine.db.is_none() {
                let seed = self.disk.lock().oracle.now() as u64;
                let db = Db::new(world(&self.disk, who, seed), Arc::new(SystemSqlite), self.config());
                engine.db = Some(db);
            }
            engine.db.as_mut().map(step)
        });
        if self.disk.is_dead(who) {
            acting(who, || engine.db = None);
            return None;
        }
        result
    }

    fn config(&self) -> DbConfig {
        DbConfig {
            busy_timeout: Duration::from_millis(3),
            checkpoint_interval: Some(Duration::from_secs(60)),
            min_checkpoint_pages: self.swarm.min_checkpoint_pages,
            truncate_pages: self.swarm.truncate_pages,
            max_sync_wal_bytes: self.swarm.max_sync_wal_bytes,
            bounds: self.swarm.bounds,
            ..DbConfig::new(DB.into(), META.into())
        }
    }

    fn drop_engine(&self) {
        self.drop_engine_if(false);
    }

    fn drop_engine_if(&self, kill: bool) {
        let Ok(mut engine) = self.engine.try_borrow_mut() else { return };
        self.steady.set(false);
        if kill && engine.db.is_some() {
            self.disk.lock().kill(Proc::Engine);
        }
        let who = engine.who;
        acting(who, || engine.db = None);
    }

    pub(crate) fn stop(&self) {
        let Ok(mut engine) = self.engine.try_borrow_mut() else { return };
        self.steady.set(false);
        let who = engine.who;
        acting(who, || engine.db = None);
        self.disk.lock().end(Proc::Engine);
    }

    /// One sync, and what it promised.
    pub(crate) fn sync(&self) {
        if self.engine.try_borrow_mut().is_err() {
            return;
        }
        let before = self.disk.lock().oracle.now();
        let steady = self.steady.replace(false) && self.swarm.interleave == 0 && self.disk.lock().faults.is_empty();
        let result = self.engine(Db::sync);
        if self.stopped.get() {
            return;
        }
        let mut outcome = self.outcome.borrow_mut();
        outcome.syncs += 1;
        match result {
            Some(Ok(report)) if !report.no_database => {
                outcome.files += u64::from(report.files);
                outcome.full_images += u64::from(report.full_images);
                outcome.checkpoints += u64::from(report.checkpointed);
                drop(outcome);
                self.say(|| format!("  sync: {report:?}"));
                self.steady.set(true);
                if steady && report.full_images > 0 {
                    self.violate("I17 frugal", "a full image although nothing had gone wrong since the last sync");
                }
                let bound = before.max(self.disk.lock().oracle.recovered_at());
                self.acked.set(self.acked.get().max(bound));
                self.verify("after a sync");
            }
            Some(Ok(_)) => {}
            Some(Err(err)) => {
                outcome.failed_syncs += 1;
                drop(outcome);
                self.say(|| format!("  sync failed: {err}"));
                self.verify("after a failed sync");
            }
            None => {
                drop(outcome);
                self.say(|| "  the engine is dead".to_owned());
                if !self.disk.lock().off {
                    self.verify("after a kill");
                }
            }
        }
    }

    fn snapshot(&self) {
        let mut bytes = Vec::new();
        let before = self.disk.lock().oracle.now();
        let Some(Ok(info)) = self.engine(|db| db.snapshot(&mut bytes)) else { return };
        if self.stopped.get() {
            return;
        }
        let content = match replay::decode(&bytes) {
            Ok(content) => content,
            Err(err) => {
                return self.violate("I5 loud", format!("a snapshot that reported success cannot be read: {err}"));
            }
        };
        let mut layers = Layers::default();
        if let Err(err) = layers.add(&content) {
            return self.violate("I1 prefix", format!("snapshot: {err}"));
        }
        let digest = layers.digest();
        let found = self.disk.lock().oracle.find(digest);
        match found {
            None => self.violate("I1 prefix", format!("the snapshot of {} is a state that never was", info.txids)),
            Some(state) if state < before => {
                self.violate(
                    "I2 ack",
                    format!("the snapshot is state {state}, but {before} was committed before it began"),
                );
            }
            Some(_) => self.verify("after a snapshot"),
        }
        if let Some(&known) = self.known.borrow().get(&info.txids.max().get())
            && known != digest
        {
            self.violate("I4 exact", format!("the snapshot of {} differs from its files", info.txids));
        }
    }

    /// The local files must give one state, not older than the last acknowledged.
    fn verify(&self, when: &str) {
        if self.stopped.get() || self.disk.lock().off {
            return;
        }
        let replayed = self.replay();
        let (last, digests) = match replayed {
            Ok(replayed) => replayed,
            Err(text) => return self.violate("I1 prefix", format!("{when}: {text}")),
        };
        let acked = self.acked.get();
        let Some(digest) = last else {
            if acked > 0 {
                self.violate("I2 ack", format!("{when}: no local file, but state {acked} was acknowledged"));
            }
            return;
        };
        let found = self.disk.lock().oracle.find(digest);
        match found {
            None => self.violate("I1 prefix", format!("{when}: the files give a state that never was")),
            Some(state) if state < acked => {
                self.violate("I2 ack", format!("{when}: the files give state {state}, but {acked} was acknowledged"));
            }
            Some(_) => {}
        }
        // What was acknowledged under a TXID stays what it is. A file that was not may be written anew.
        let mut known = self.known.borrow_mut();
        let changed = digests.iter().find(|(txid, digest)| known.get(txid).is_some_and(|before| before != digest));
        if let Some((txid, _)) = changed {
            let text = format!("{when}: TXID {txid} is another state than before");
            drop(known);
            return self.violate("I3 monotone", text);
        }
        if when == "after a sync" {
            known.extend(digests);
        }
    }

    /// Digest after the last local file, and after each.
    fn replay(&self) -> Result<Replayed, String> {
        let inner = self.disk.lock();
        let dir = Path::new(META).join("ltx/0");
        let mut files: Vec<_> = inner
            .names(&dir)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, entry)| match entry {
                Entry::File(ino) => Some((parse_file_name(&name)?, ino)),
                Entry::Dir => None,
            })
            .collect();
        files.sort_unstable();
        let mut layers = Layers::default();
        let mut digests = Vec::new();
        let mut reached = None;
        for (txids, ino) in files {
            let file = &inner.files[ino];
            let content = self.cache.borrow_mut().get(ino, file.version, &file.data);
            let content = content.map_err(|e| format!("local file {txids} cannot be read: {e}"))?;
            if content.txids != txids {
                return Err(format!("local file {txids} says it is {}", content.txids));
            }
            if reached.is_some_and(|reached| txids.min().get() != reached + 1) {
                return Err(format!("local file {txids} follows {reached:?}"));
            }
            reached = Some(txids.max().get());
            layers.add(&content)?;
            digests.push((txids.max().get(), layers.digest()));
        }
        Ok((digests.last().map(|(_, digest)| *digest), digests))
    }

    fn check_world(&self) {
        let (broken, ruined) = {
            let oracle = &mut self.disk.lock().oracle;
            (oracle.broken.take(), oracle.ruined)
        };
        if let Some(broken) = broken {
            self.violate("I6 harmless", broken);
        } else if ruined {
            self.give_up();
        }
    }

    /// Faults are over: everything must come right by itself.
    fn settle(&self) {
        self.say(|| "faults are over".to_owned());
        {
            let mut inner = self.disk.lock();
            inner.faults.clear();
            inner.disarm();
            for mount in [Mount::Data, Mount::Meta, Mount::Rest] {
                inner.set_budget(mount, None);
            }
        }
        self.app.borrow_mut().end(false);
        self.foreign.borrow_mut().end(false);
        if self.without_engine {
            if let Err(text) = self.app.borrow_mut().check() {
                self.violate("I6 harmless", format!("integrity check of the source: {text}"));
            }
            return self.check_world();
        }
        let mut last = String::new();
        let caught_up = (0..4).any(|_| {
            self.disk.lock().advance_us(61_000_000);
            match self.engine(Db::sync) {
                Some(Ok(report)) if !report.no_database => true,
                Some(Err(err)) => {
                    last = err.to_string();
                    false
                }
                other => {
                    last = format!("{other:?}");
                    false
                }
            }
        });
        if !caught_up {
            return self.violate("I7 live", format!("with all faults gone a sync still fails: {last}"));
        }
        self.exactly_now("after the faults");
        let mut rng = Rng::new(5);
        if let Err(text) = self.app.borrow_mut().last_words(&mut rng) {
            return self.violate("I6 harmless", format!("the application cannot write any more: {text}"));
        }
        self.sync();
        self.exactly_now("after one more commit");
        self.stop();
        if let Err(text) = self.app.borrow_mut().check() {
            return self.violate("I6 harmless", format!("integrity check of the source: {text}"));
        }
        self.sync();
        self.exactly_now("after a restart");
        let inner = self.disk.lock();
        let left = inner.walk().into_iter().find(|path| path.starts_with(META) && Class::of(path) == Class::Temp);
        drop(inner);
        if let Some(left) = left {
            self.violate("I8 tidy", format!("{} is left over", left.display()));
        }
        self.check_world();
    }

    fn exactly_now(&self, when: &str) {
        if self.stopped.get() {
            return;
        }
        self.verify(when);
        let Ok((Some(digest), _)) = self.replay() else {
            return self.violate("I7 live", format!("{when}: nothing was replicated"));
        };
        let inner = self.disk.lock();
        let now = inner.oracle.digest_at(inner.oracle.now());
        drop(inner);
        if digest != now {
            self.violate("I7 live", format!("{when}: the files do not give the present state"));
        }
    }
}

/// Mostly few, sometimes many.
pub(crate) fn skewed(rng: &mut Rng) -> u64 {
    let bound = rng.pick(&[10, 40, 120, 400]);
    rng.below(bound)
}

pub(crate) fn draw_fault(rng: &mut Rng) -> Fault {
    // Under the write lock more is at stake than elsewhere, and less happens.
    let locked = rng.permille(250);
    let class = match locked {
        true => rng.pick(&[Class::Wal, Class::Db, Class::Db]),
        false => rng.pick(&[
            Class::Wal,
            Class::Wal,
            Class::Wal,
            Class::Db,
            Class::Db,
            Class::Temp,
            Class::Ltx,
            Class::Record,
            Class::Other,
        ]),
    };
    let op = match class {
        Class::Temp => rng.pick(&[Op::Create, Op::Write, Op::Sync, Op::Sync, Op::Rename, Op::Remove]),
        Class::Other => rng.pick(&[Op::SyncDir, Op::Mkdir, Op::List]),
        Class::Ltx => rng.pick(&[Op::Open, Op::Peek, Op::Stat]),
        Class::Record => rng.pick(&[Op::Open, Op::Peek, Op::Write, Op::Create]),
        Class::Wal => rng.pick(&[Op::Open, Op::Read, Op::Peek, Op::Peek, Op::Peek, Op::Stat, Op::Sync, Op::Write]),
        Class::Db => {
            rng.pick(&[Op::Open, Op::Read, Op::Peek, Op::Stat, Op::Sync, Op::Write, Op::Lock, Op::Lock, Op::Shm])
        }
    };
    let bound = match op {
        _ if locked => rng.pick(&[1, 6]),
        Op::Lock | Op::Shm => rng.pick(&[4, 20, 80]),
        // Where reads are short there are many of them.
        Op::Peek => rng.pick(&[1, 8, 30]),
        _ => rng.pick(&[1, 4, 20]),
    };
    Fault {
        proc: Proc::Engine,
        op,
        class,
        skip: u32::try_from(rng.below(bound)).unwrap_or(0),
        times: rng.pick(&[1, 1, 3, u32::MAX]),
        errno: if op == Op::Open { rng.pick(&[EIO, EMFILE]) } else { rng.pick(&[EIO, EIO, ENOSPC]) },
        forget: rng.permille(500),
        locked,
        // Pages of the database carry no checksum.
        flip: op == Op::Peek && class != Class::Db && rng.permille(500),
    }
}
