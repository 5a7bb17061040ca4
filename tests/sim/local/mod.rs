//! The engine alone: log → local L0 files, on a disk that fails, beside applications that do as
//! they please.

mod checks;
mod engine;
mod faults;
mod strangers;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use litestream::db::Db;

pub(crate) use faults::{draw_fault, skewed};

use crate::app::App;
use crate::disk::{Class, Counts, Disk, EIO, Inner, Mount, Op, Proc, Who, set_current, set_hook};
use crate::replay::Cache;
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
    /// A commit that a dead application left half-way is taken in; its next restart of the log may cost an image.
    app_was_killed: Cell<bool>,
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
    if swarm.unindexed {
        disk.lock().oracle.watch_files();
    }
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
        app_was_killed: Cell::new(false),
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
        if swarm.unindexed || swarm.keeps_wal_mode {
            sim.meet_stranger();
        }
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
                self.app_was_killed.set(true);
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
        if self.swarm.rewrites {
            return self.rewrite(&mut Rng::new(seed));
        }
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
        if self.swarm.rewrites {
            return self.rewrite(&mut Rng::new(seed));
        }
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
}
