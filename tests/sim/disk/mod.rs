//! A disk that remembers what was made durable, and forgets the rest when the power fails.
//!
//! * Every file has a *volatile* content, which reads see, and a *durable* one, which a sync brings
//!   up to date. A power cut chooses for each 512-byte sector written since whether it is kept, and
//!   for the length whether it is the old one, the new one or one in between.
//! * Entries of directories become durable by syncing the directory. A power cut keeps a prefix of
//!   the operations since, or any subset of them.
//! * A killed process can do nothing more; its locks are gone. What it wrote to files stays.
//! * Faults are armed by kind of operation and kind of file, for one process or all.

mod contents;
mod crash;
mod doing;
mod names;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use litestream::types::Timestamp;
use tokio::time::Instant;

pub(crate) use crash::Keep;
pub(crate) use doing::{Class, Fate, Fault, Mount, Op, Proc, Struck, Who};
use names::Dir;

use crate::app::DB;
use crate::oracle::Oracle;
use crate::rng::{Rng, mix};

pub(crate) const EIO: i32 = 5;
pub(crate) const ENOENT: i32 = 2;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const ENOSPC: i32 = 28;
pub(crate) const EMFILE: i32 = 24;

const SECTOR: usize = 512;

/// A second database.
pub(crate) const OTHER_DB: &str = "/data/db2";

#[derive(Debug, Default)]
pub(crate) struct Inode {
    pub(crate) data: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
    len_changed: bool,
    /// Shortest length since the last sync. File systems truncate in one step: afterwards the old
    /// content either is all there, or what was cut off never comes back.
    shortest: Option<usize>,
    pub(crate) modified_ms: i64,
    pub(crate) mode: u32,
    /// Counts changes, so that readers can keep what they decoded.
    pub(crate) version: u64,
    pub(crate) locks: Vec<FileLock>,
    pub(crate) shm: Shm,
    mount: u8,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct FileLock {
    pub(crate) handle: u64,
    pub(crate) who: Who,
    /// 1 shared, 2 reserved, 3 pending, 4 exclusive.
    pub(crate) level: i32,
}

/// 32 KiB of shared memory. SQLite reads and writes it through pointers.
pub(crate) type Region = Box<[AtomicU64; 4096]>;

/// The wal-index: shared memory of all who have the database open.
#[derive(Debug, Default)]
pub(crate) struct Shm {
    pub(crate) regions: Vec<Region>,
    pub(crate) users: Vec<ShmUser>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ShmUser {
    pub(crate) handle: u64,
    pub(crate) who: Who,
    pub(crate) shared: u8,
    pub(crate) exclusive: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    File(usize),
    Dir,
}

/// How often what happened.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) ops: u64,
    pub(crate) faults: Struck,
    pub(crate) full: u64,
    pub(crate) kills: u64,
    pub(crate) power_cuts: u64,
    pub(crate) torn: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.ops += other.ops;
        self.faults.add(&other.faults);
        self.full += other.full;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.torn += other.torn;
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) files: Vec<Inode>,
    /// By their paths as text, for comparing paths by components took a fifth of all time.
    dirs: BTreeMap<String, Dir>,
    /// Removed ones, which a power cut may bring back.
    removed: BTreeMap<String, Dir>,
    rng: Rng,
    pub(crate) sqlite_rng: Rng,
    pub(crate) faults: Vec<Fault>,
    budgets: [Option<u64>; 3],
    lives: [u32; 5],
    kill_after: [Option<u64>; 5],
    power_after: Option<u64>,
    pub(crate) off: bool,
    next_handle: u64,
    pub(crate) trace: u64,
    pub(crate) counts: Counts,
    pub(crate) elapsed_us: u64,
    pub(crate) wall_ms: i64,
    graveyard: Vec<Region>,
    pub(crate) oracle: Oracle,
    /// Of another database, which exists in few runs.
    pub(crate) other: Oracle,
    pub(crate) short_reads: bool,
    pub(crate) powersafe: bool,
    /// Print every operation.
    pub(crate) tell: bool,
    /// Locks on whole files, and who holds them.
    locked: BTreeMap<PathBuf, (Who, u64)>,
    /// A runtime whose time is ours too: since when, and how much of it was added already.
    follows: Option<(Instant, u64)>,
}

#[derive(Debug)]
pub(crate) struct Disk {
    inner: Mutex<Inner>,
}

type Hook = Rc<dyn Fn(Proc, Op, Class)>;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Disk>>> = const { RefCell::new(None) };
    static WHO: Cell<Who> = const { Cell::new(Who { proc: Proc::Harness, life: 0 }) };
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    static HOOKED: Cell<bool> = const { Cell::new(false) };
}

/// The disk that SQLite's files are on.
pub(crate) fn current() -> Option<Arc<Disk>> {
    CURRENT.with(|c| c.borrow().clone())
}

pub(crate) fn set_current(disk: Option<Arc<Disk>>) {
    CURRENT.with(|c| *c.borrow_mut() = disk);
}

pub(crate) fn set_hook(hook: Option<Hook>) {
    HOOK.with(|h| *h.borrow_mut() = hook);
}

pub(crate) fn who() -> Who {
    WHO.with(Cell::get)
}

/// Runs `work` as this process.
pub(crate) fn acting<T>(who: Who, work: impl FnOnce() -> T) -> T {
    let before = WHO.with(|w| w.replace(who));
    let result = work();
    WHO.with(|w| w.set(before));
    result
}

/// Lets others do something before an operation.
fn run_hook(who: Who, op: Op, class: Class) {
    if who.proc == Proc::Harness || HOOKED.with(Cell::get) {
        return;
    }
    let Some(hook) = HOOK.with(|h| h.borrow().clone()) else { return };
    HOOKED.with(|h| h.set(true));
    hook(who.proc, op, class);
    HOOKED.with(|h| h.set(false));
}

impl Disk {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let mut dirs = BTreeMap::new();
        dirs.insert("/".to_owned(), Dir::default());
        let inner = Inner {
            files: Vec::new(),
            dirs,
            removed: BTreeMap::new(),
            rng: Rng::new(mix(seed ^ 1)),
            sqlite_rng: Rng::new(mix(seed ^ 2)),
            faults: Vec::new(),
            budgets: [None; 3],
            lives: [0; 5],
            kill_after: [None; 5],
            power_after: None,
            off: false,
            next_handle: 0,
            trace: 0,
            counts: Counts::default(),
            elapsed_us: 0,
            wall_ms: 1_700_000_000_000,
            graveyard: Vec::new(),
            oracle: Oracle::new(DB),
            other: Oracle::new(OTHER_DB),
            short_reads: false,
            powersafe: true,
            tell: false,
            locked: BTreeMap::new(),
            follows: None,
        };
        let disk = Arc::new(Self { inner: Mutex::new(inner) });
        disk.lock().mkdir_all(Path::new("/data"));
        disk
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present life of a process.
    pub(crate) fn who(&self, proc: Proc) -> Who {
        Who { proc, life: self.lock().lives[proc as usize] }
    }

    pub(crate) fn is_dead(&self, who: Who) -> bool {
        self.lock().is_dead(who)
    }

    /// Everything that precedes an operation: others act, the process may die, a fault may strike.
    pub(crate) fn enter(&self, who: Who, op: Op, class: Class) -> Result<Fate, i32> {
        if who.proc == Proc::Harness {
            return Ok(Fate::Go);
        }
        if !self.is_dead(who) {
            run_hook(who, op, class);
        }
        let mut inner = self.lock();
        inner.catch_up();
        inner.observe();
        if inner.is_dead(who) {
            return Err(EIO);
        }
        inner.counts.ops += 1;
        if inner.tell {
            eprintln!("    {:?}{} {op:?} {class:?}", who.proc, who.life);
        }
        inner.trace = mix(inner.trace ^ ((who.proc as u64) << 16 | (op as u64) << 8 | class as u64));
        if op == Op::Pause {
            return Ok(Fate::Go);
        }
        match inner.strike(who, op, class) {
            Fate::Fail(errno) => Err(errno),
            fate => Ok(fate),
        }
    }

    /// Time goes on as that of the runtime does which is entered here, beginning with `since`.
    pub(crate) fn follow_runtime(&self, since: Option<Instant>) {
        self.lock().follows = since.map(|since| (since, 0));
    }

    pub(crate) fn elapsed_us(&self) -> u64 {
        let mut inner = self.lock();
        inner.catch_up();
        inner.elapsed_us
    }

    pub(crate) fn wall(&self) -> Timestamp {
        let mut inner = self.lock();
        inner.catch_up();
        Timestamp::from_millis(inner.wall_ms)
    }

    /// Something that belongs to the trace.
    pub(crate) fn note(&self, word: u64) {
        let mut inner = self.lock();
        inner.trace = mix(inner.trace ^ word);
    }

    /// Looks whether a commit became visible.
    pub(crate) fn observe(&self) {
        self.lock().observe();
    }
}

impl Inner {
    /// Whatever time has passed in the runtime passes here.
    pub(crate) fn catch_up(&mut self) {
        let Some((since, added)) = self.follows else { return };
        let passed = u64::try_from(since.elapsed().as_micros()).unwrap_or(0);
        if passed > added {
            self.follows = Some((since, passed));
            self.advance_us(passed - added);
        }
    }

    /// Chance of one life of a process.
    pub(crate) fn seed_of_life(&mut self, who: Who) -> u64 {
        mix(self.rng.next() ^ (u64::from(who.life) << 8 | who.proc as u64))
    }

    /// Takes the lock a file stands for. `None` if somebody alive has it.
    pub(crate) fn lock_file(&mut self, path: &Path, who: Who) -> Option<u64> {
        if let Some((holder, _)) = self.locked.get(path)
            && !self.is_dead(*holder)
        {
            return None;
        }
        let handle = self.handle();
        self.locked.insert(path.to_owned(), (who, handle));
        Some(handle)
    }

    pub(crate) fn unlock_file(&mut self, path: &Path, handle: u64) {
        if self.locked.get(path).is_some_and(|(_, held)| *held == handle) {
            self.locked.remove(path);
        }
    }

    pub(crate) fn is_dead(&self, who: Who) -> bool {
        who.proc != Proc::Harness && (self.off || self.lives[who.proc as usize] != who.life)
    }

    pub(crate) fn observe(&mut self) {
        if self.off {
            return;
        }
        let mut oracle = std::mem::take(&mut self.oracle);
        oracle.observe(self);
        self.oracle = oracle;
        if self.file_at(Path::new(OTHER_DB)).is_some() {
            let mut other = std::mem::take(&mut self.other);
            other.observe(self);
            self.other = other;
        }
    }

    /// The oracle of a database.
    pub(crate) fn oracle_of(&mut self, db: &str) -> &mut Oracle {
        if db == OTHER_DB { &mut self.other } else { &mut self.oracle }
    }

    /// Whether any database was ever in this state.
    pub(crate) fn was_ever(&self, digest: u64) -> bool {
        self.oracle.find(digest).is_some() || self.other.find(digest).is_some()
    }

    pub(crate) fn reseed(&mut self, seed: u64) {
        self.rng = Rng::new(mix(seed ^ 0x5eed));
    }

    fn strike(&mut self, who: Who, op: Op, class: Class) -> Fate {
        let slot = who.proc as usize;
        if let Some(left) = &mut self.kill_after[slot] {
            if *left == 0 {
                self.kill_after[slot] = None;
                let half = op == Op::Write;
                if !half {
                    self.kill(who.proc);
                    return Fate::Fail(EIO);
                }
                return Fate::Half;
            }
            *left -= 1;
        }
        if let Some(left) = &mut self.power_after {
            if *left == 0 {
                self.power_after = None;
                self.off = true;
                self.counts.power_cuts += 1;
                return Fate::Fail(EIO);
            }
            *left -= 1;
        }
        let fits = |f: &Fault| f.proc == who.proc && f.op == op && f.class == class;
        let hit = self.faults.iter().position(|f| fits(f) && (!f.locked || self.holds_write_lock(who)));
        if let Some(at) = hit {
            let fault = &mut self.faults[at];
            if fault.skip > 0 {
                fault.skip -= 1;
                return Fate::Go;
            }
            let struck = *fault;
            fault.times -= 1;
            if fault.times == 0 {
                self.faults.remove(at);
            }
            self.counts.faults.count(op, class, &struck);
            if op == Op::Sync {
                return Fate::FailSync { forget: struck.forget };
            }
            if struck.flip {
                return Fate::Flip;
            }
            return Fate::Fail(struck.errno);
        }
        Fate::Go
    }

    /// Lock 0 of the wal-index.
    fn holds_write_lock(&self, who: Who) -> bool {
        self.files.iter().any(|file| file.shm.users.iter().any(|user| user.who == who && user.exclusive & 1 != 0))
    }

    /// Some bit of what was read is wrong.
    pub(crate) fn flip(&mut self, bytes: &mut [u8]) {
        if !bytes.is_empty() {
            let at = self.rng.index(bytes.len());
            bytes[at] ^= 1 << self.rng.below(8);
        }
    }

    /// Lets a process die before its `n`-th operation from now.
    pub(crate) fn kill_after(&mut self, proc: Proc, n: u64) {
        self.kill_after[proc as usize] = Some(n);
    }

    /// Cuts the power before the `n`-th operation of anybody from now.
    pub(crate) fn power_after(&mut self, n: u64) {
        self.power_after = Some(n);
    }

    pub(crate) fn disarm(&mut self) {
        self.kill_after = [None; 5];
        self.power_after = None;
    }

    pub(crate) fn power_off(&mut self) {
        self.off = true;
        self.counts.power_cuts += 1;
    }

    /// Ends a process. Its locks go, its files stay as they are.
    pub(crate) fn kill(&mut self, proc: Proc) {
        self.observe();
        self.counts.kills += 1;
        self.end(proc);
    }

    /// A new life of a process, without a death that counts.
    pub(crate) fn end(&mut self, proc: Proc) {
        self.lives[proc as usize] += 1;
        self.kill_after[proc as usize] = None;
        let mut freed = Vec::new();
        for file in &mut self.files {
            file.locks.retain(|l| l.who.proc != proc);
            file.shm.users.retain(|u| u.who.proc != proc);
            if file.shm.users.is_empty() {
                freed.append(&mut file.shm.regions);
            }
        }
        // The dead may still hold pointers.
        self.graveyard.append(&mut freed);
    }

    pub(crate) fn retire(&mut self, ino: usize) {
        let regions = std::mem::take(&mut self.files[ino].shm.regions);
        self.graveyard.extend(regions);
    }

    pub(crate) fn set_budget(&mut self, mount: Mount, bytes: Option<u64>) {
        self.budgets[mount as usize] = bytes;
    }

    /// From now on nothing fails, nobody dies and nothing is full.
    pub(crate) fn forgive(&mut self) {
        self.faults.clear();
        self.disarm();
        self.budgets = [None; 3];
    }

    /// Some number below `n`, for orders that nobody promises.
    pub(crate) fn order(&mut self, n: usize) -> usize {
        self.rng.index(n)
    }

    pub(crate) fn handle(&mut self) -> u64 {
        self.next_handle += 1;
        self.next_handle
    }
}

/// All paths here are text.
fn text_of(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// Directory and name of an absolute path.
fn split(path: &str) -> (&str, &str) {
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some(parts) => parts,
        None => ("/", path),
    }
}
