//! A disk that remembers what was made durable, and forgets the rest when the power fails.
//!
//! * Every file has a *volatile* content, which reads see, and a *durable* one, which a sync brings
//!   up to date. A power cut chooses for each 512-byte sector written since whether it is kept, and
//!   for the length whether it is the old one, the new one or one in between.
//! * Entries of directories become durable by syncing the directory. A power cut keeps a prefix of
//!   the operations since, or any subset of them.
//! * A killed process can do nothing more; its locks are gone. What it wrote to files stays.
//! * Faults are armed by kind of operation and kind of file, for one process or all.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use litestream::types::Timestamp;
use tokio::time::Instant;

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

/// Who does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Proc {
    App,
    Foreign,
    Engine,
    /// Another program like ours.
    Rival,
    /// The harness: nothing ever happens to it.
    Harness,
}

impl Proc {
    pub(crate) const ALL: [Self; 4] = [Self::App, Self::Foreign, Self::Engine, Self::Rival];
}

/// One life of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) proc: Proc,
    pub(crate) life: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Open,
    Create,
    /// SQLite reads.
    Read,
    /// The engine reads, without SQLite.
    Peek,
    Write,
    Truncate,
    Sync,
    Stat,
    List,
    Rename,
    Remove,
    Mkdir,
    SyncDir,
    Lock,
    Unlock,
    Shm,
    Pause,
}

/// What a path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    Db,
    Wal,
    Ltx,
    Temp,
    Record,
    Other,
}

impl Class {
    pub(crate) fn of(path: &Path) -> Self {
        let (_, name) = split(text_of(path));
        if name.ends_with("-wal") {
            Self::Wal
        } else if name.ends_with(".tmp") {
            Self::Temp
        } else if name.ends_with(".ltx") {
            Self::Ltx
        } else if name == "continuity" {
            Self::Record
        } else if name.starts_with("db") && !name.ends_with("-journal") {
            Self::Db
        } else {
            Self::Other
        }
    }
}

/// Separately limited parts of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mount {
    Data,
    Meta,
    Rest,
}

impl Mount {
    fn of(path: &Path) -> Self {
        let text = text_of(path);
        if text.contains("-litestream") {
            Self::Meta
        } else if text.starts_with("/data") {
            Self::Data
        } else {
            Self::Rest
        }
    }
}

/// An error that was ordered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) proc: Proc,
    pub(crate) op: Op,
    pub(crate) class: Class,
    /// Passages that go well first.
    pub(crate) skip: u32,
    /// Failures, then it is over.
    pub(crate) times: u32,
    pub(crate) errno: i32,
    /// A failing sync forgets what was to be written, as some kernels do.
    pub(crate) forget: bool,
    /// Strikes only while the process holds the write lock of the log.
    pub(crate) locked: bool,
    /// No error: what is read has one bit turned over. Only for what is checked by whoever reads it.
    pub(crate) flip: bool,
}

/// What outlives a power cut, where that is said rather than drawn: of everything else, all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    /// Whether a sector of the log that was not synced is kept.
    pub(crate) log: fn(usize) -> bool,
    pub(crate) record: bool,
    /// Names that no sync of their directory made durable.
    pub(crate) names: bool,
}

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Go,
    Fail(i32),
    /// The process dies in the middle of it.
    Half,
    /// One bit comes back wrong.
    Flip,
    FailSync {
        forget: bool,
    },
}

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

impl Inode {
    /// Whether sectors differ from what is durable and nobody is going to write them back.
    fn lacks_sectors(&self) -> bool {
        let len = self.data.len();
        (0..len.div_ceil(SECTOR)).filter(|sector| !self.dirty.contains(sector)).any(|sector| {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(len);
            self.durable.get(range.clone()) != Some(&self.data[range])
        })
    }
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

#[derive(Debug, Clone)]
enum DirOp {
    Link(String, Entry),
    Unlink(String),
    Rename(String, String),
}

#[derive(Debug, Default, Clone)]
struct Dir {
    names: BTreeMap<String, Entry>,
    durable: BTreeMap<String, Entry>,
    since: Vec<DirOp>,
}

impl Dir {
    fn apply(names: &mut BTreeMap<String, Entry>, op: &DirOp) {
        match op {
            DirOp::Link(name, entry) => drop(names.insert(name.clone(), *entry)),
            DirOp::Unlink(name) => drop(names.remove(name)),
            DirOp::Rename(from, to) => {
                if let Some(entry) = names.remove(from) {
                    names.insert(to.clone(), entry);
                }
            }
        }
    }

    fn change(&mut self, op: DirOp) {
        Self::apply(&mut self.names, &op);
        self.since.push(op);
    }
}

/// How often what happened.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) ops: u64,
    pub(crate) faults: u64,
    pub(crate) full: u64,
    pub(crate) kills: u64,
    pub(crate) power_cuts: u64,
    pub(crate) torn: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.ops += other.ops;
        self.faults += other.faults;
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

    /// Removes a directory and everything below.
    pub(crate) fn remove_tree(&mut self, dir: &Path) {
        for (name, entry) in self.names(dir).unwrap_or_default() {
            let path = dir.join(name);
            match entry {
                Entry::Dir => self.remove_tree(&path),
                Entry::File(_) => drop(self.unlink(&path)),
            }
        }
        let _ = self.rmdir(dir);
    }

    /// Takes a file of the harness out as if it had never been.
    pub(crate) fn forget_file(&mut self, path: &Path) {
        let (dir, name) = split(text_of(path));
        let Some(ino) = self.file_at(path) else { return };
        if let Some(dir) = self.dirs.get_mut(dir) {
            dir.names.remove(name);
            dir.durable.remove(name);
            dir.since.clear();
        }
        self.files[ino] = Inode::default();
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
            self.counts.faults += 1;
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

    /// Some number below `n`, for orders that nobody promises.
    pub(crate) fn order(&mut self, n: usize) -> usize {
        self.rng.index(n)
    }

    pub(crate) fn handle(&mut self) -> u64 {
        self.next_handle += 1;
        self.next_handle
    }

    // ---- names ----

    pub(crate) fn lookup(&self, path: &Path) -> Option<Entry> {
        if text_of(path) == "/" {
            return Some(Entry::Dir);
        }
        let (dir, name) = split(text_of(path));
        self.dirs.get(dir)?.names.get(name).copied()
    }

    pub(crate) fn file_at(&self, path: &Path) -> Option<usize> {
        match self.lookup(path)? {
            Entry::File(ino) => Some(ino),
            Entry::Dir => None,
        }
    }

    pub(crate) fn create(&mut self, path: &Path, mode: u32) -> Result<usize, i32> {
        let (dir, name) = split(text_of(path));
        let ino = self.files.len();
        let parent = self.dirs.get_mut(dir).ok_or(ENOENT)?;
        if parent.names.contains_key(name) {
            return Err(EEXIST);
        }
        parent.change(DirOp::Link(name.to_owned(), Entry::File(ino)));
        let modified_ms = self.wall_ms;
        self.files.push(Inode { mode, modified_ms, mount: Mount::of(path) as u8, ..Inode::default() });
        Ok(ino)
    }

    /// A file without a name.
    pub(crate) fn create_anonymous(&mut self) -> usize {
        self.files.push(Inode { mount: Mount::Rest as u8, ..Inode::default() });
        self.files.len() - 1
    }

    pub(crate) fn unlink(&mut self, path: &Path) -> Result<(), i32> {
        let (dir, name) = split(text_of(path));
        let parent = self.dirs.get_mut(dir).ok_or(ENOENT)?;
        if !parent.names.contains_key(name) {
            return Err(ENOENT);
        }
        parent.change(DirOp::Unlink(name.to_owned()));
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), i32> {
        let ((dir, old), (other, new)) = (split(text_of(from)), split(text_of(to)));
        if dir != other {
            return Err(EIO);
        }
        let parent = self.dirs.get_mut(dir).ok_or(ENOENT)?;
        if !parent.names.contains_key(old) {
            return Err(ENOENT);
        }
        parent.change(DirOp::Rename(old.to_owned(), new.to_owned()));
        Ok(())
    }

    /// Creates one directory; says whether it is new.
    pub(crate) fn mkdir(&mut self, dir: &Path) -> Result<bool, i32> {
        if self.dirs.contains_key(text_of(dir)) {
            return Ok(false);
        }
        let (parent, name) = split(text_of(dir));
        self.dirs.get_mut(parent).ok_or(ENOENT)?.change(DirOp::Link(name.to_owned(), Entry::Dir));
        self.dirs.insert(text_of(dir).to_owned(), Dir::default());
        Ok(true)
    }

    pub(crate) fn mkdir_all(&mut self, dir: &Path) {
        if let Some(parent) = dir.parent() {
            self.mkdir_all(parent);
        }
        let _ = self.mkdir(dir);
    }

    pub(crate) fn names(&self, dir: &Path) -> Option<Vec<(String, Entry)>> {
        Some(self.dirs.get(text_of(dir))?.names.iter().map(|(name, entry)| (name.clone(), *entry)).collect())
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&mut self, dir: &Path) -> Result<(), i32> {
        let (parent, name) = split(text_of(dir));
        let gone = self.dirs.remove(text_of(dir)).ok_or(ENOENT)?;
        self.removed.insert(text_of(dir).to_owned(), gone);
        self.dirs.get_mut(parent).ok_or(ENOENT)?.change(DirOp::Unlink(name.to_owned()));
        Ok(())
    }

    pub(crate) fn sync_dir(&mut self, dir: &Path) -> Result<(), i32> {
        let dir = self.dirs.get_mut(text_of(dir)).ok_or(ENOENT)?;
        for op in std::mem::take(&mut dir.since) {
            Dir::apply(&mut dir.durable, &op);
        }
        Ok(())
    }

    /// All files with their paths.
    pub(crate) fn walk(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for (path, dir) in &self.dirs {
            for (name, entry) in &dir.names {
                if matches!(entry, Entry::File(_)) {
                    all.push(Path::new(path).join(name));
                }
            }
        }
        all
    }

    // ---- contents ----

    /// How many of `more` bytes still fit.
    fn room(&mut self, ino: usize, more: usize) -> usize {
        let slot = usize::from(self.files[ino].mount);
        let Some(left) = &mut self.budgets[slot] else { return more };
        let granted = more.min(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= granted as u64;
        if granted < more {
            self.counts.full += 1;
        }
        granted
    }

    pub(crate) fn write(&mut self, ino: usize, bytes: &[u8], offset: u64) -> Result<(), i32> {
        let offset = usize::try_from(offset).map_err(|_| EIO)?;
        let end = offset + bytes.len();
        let more = end.saturating_sub(self.files[ino].data.len());
        let granted = self.room(ino, more);
        let len = bytes.len() - (more - granted).min(bytes.len());
        let now = self.wall_ms;
        let file = &mut self.files[ino];
        if len > 0 {
            let end = offset + len;
            if file.data.len() < end {
                let old = file.data.len();
                file.data.resize(end, 0);
                file.dirty.extend(old / SECTOR..end.div_ceil(SECTOR));
                file.len_changed = true;
            }
            file.data[offset..end].copy_from_slice(&bytes[..len]);
            file.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
        }
        file.modified_ms = now;
        file.version += 1;
        if granted < more { Err(ENOSPC) } else { Ok(()) }
    }

    pub(crate) fn set_len(&mut self, ino: usize, len: u64) -> Result<(), i32> {
        let len = usize::try_from(len).map_err(|_| EIO)?;
        let old = self.files[ino].data.len();
        let more = len.saturating_sub(old);
        if self.room(ino, more) < more {
            return Err(ENOSPC);
        }
        let now = self.wall_ms;
        let file = &mut self.files[ino];
        file.data.resize(len, 0);
        let (low, high) = (old.min(len), old.max(len));
        file.dirty.extend(low / SECTOR..high.div_ceil(SECTOR));
        file.len_changed |= old != len;
        if len < old {
            file.shortest = Some(file.shortest.map_or(len, |shortest| shortest.min(len)));
        }
        file.modified_ms = now;
        file.version += 1;
        Ok(())
    }

    pub(crate) fn sync(&mut self, ino: usize) {
        // The creation of a file is durable with its content, as on the file systems people use. A
        // rename is not.
        for dir in self.dirs.values_mut() {
            let made = dir.since.iter().position(|op| matches!(op, DirOp::Link(_, Entry::File(n)) if *n == ino));
            if let Some(at) = made {
                let op = dir.since.remove(at);
                Dir::apply(&mut dir.durable, &op);
                // What the name was before is of no account any more.
                let DirOp::Link(name, _) = op else { continue };
                let mut n = 0;
                dir.since.retain(|op| {
                    n += 1;
                    n > at || !matches!(op, DirOp::Link(old, _) | DirOp::Unlink(old) if *old == name)
                });
            }
        }
        let file = &mut self.files[ino];
        if file.dirty.is_empty() && !file.len_changed {
            return;
        }
        file.durable.resize(file.data.len(), 0);
        for &sector in &file.dirty {
            let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(file.data.len()));
            if from < to {
                file.durable[from..to].copy_from_slice(&file.data[from..to]);
            }
        }
        file.dirty.clear();
        file.len_changed = false;
        file.shortest = None;
    }

    /// A sync that failed and will never be made good: the pages count as clean from now on.
    pub(crate) fn forget_dirty(&mut self, ino: usize) {
        self.files[ino].dirty.clear();
        self.oracle.cannot_rely_on_syncs();
        self.other.cannot_rely_on_syncs();
    }

    /// Part of a write that was cut off by a kill.
    pub(crate) fn write_half(&mut self, who: Who, ino: usize, bytes: &[u8], offset: u64) {
        let len = self.rng.index(bytes.len() + 1);
        let _ = self.write(ino, &bytes[..len], offset);
        self.kill(who.proc);
    }

    /// Everything on the disk is durable now.
    pub(crate) fn sync_all(&mut self) {
        for ino in 0..self.files.len() {
            self.sync(ino);
        }
        for dir in self.dirs.values_mut() {
            dir.durable = dir.names.clone();
            dir.since.clear();
        }
        self.removed.clear();
    }

    /// The power comes back: what was not durable is kept, lost or torn.
    pub(crate) fn reboot(&mut self) {
        let betrayed = [Path::new(DB), Path::new(OTHER_DB)].map(|db| self.betrays(db));
        let mut rng = self.rng.clone();
        for ino in 0..self.files.len() {
            self.crash_file(ino, &mut rng);
        }
        self.reboot_dirs(betrayed, |dir| crash_dir(dir, &mut rng));
        self.rng = rng;
    }

    /// The power comes back, and what is lost is as `keep` says.
    pub(crate) fn reboot_keeping(&mut self, keep: Keep) {
        let paths = self.walk();
        let classes: BTreeMap<usize, Class> =
            paths.iter().filter_map(|path| Some((self.file_at(path)?, Class::of(path)))).collect();
        for (ino, file) in self.files.iter_mut().enumerate() {
            let class = classes.get(&ino).copied();
            let mut image = std::mem::take(&mut file.durable);
            let len = if class == Some(Class::Record) && !keep.record { image.len() } else { file.data.len() };
            image.resize(len, 0);
            for &sector in &file.dirty {
                let kept = match class {
                    Some(Class::Wal) => (keep.log)(sector),
                    Some(Class::Record) => keep.record,
                    _ => true,
                };
                let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(len));
                if kept && from < to {
                    image[from..to].copy_from_slice(&file.data[from..to]);
                }
            }
            file.data.clone_from(&image);
            file.durable = image;
            file.dirty.clear();
            (file.len_changed, file.shortest) = (false, None);
            file.version += 1;
        }
        self.reboot_dirs([false; 2], |dir| {
            match keep.names {
                true => dir.durable.clone_from(&dir.names),
                false => dir.names.clone_from(&dir.durable),
            }
            dir.since.clear();
        });
    }

    /// Whether a failed sync dropped sectors of a database or its log that nothing has written since.
    fn betrays(&self, db: &Path) -> bool {
        let wal = format!("{}-wal", text_of(db));
        [db, Path::new(&wal)].into_iter().filter_map(|path| self.file_at(path)).any(|ino| self.files[ino].lacks_sectors())
    }

    fn reboot_dirs(&mut self, [db, other]: [bool; 2], mut crash: impl FnMut(&mut Dir)) {
        for proc in Proc::ALL {
            self.end(proc);
        }
        self.disarm();
        self.off = false;
        for (path, dir) in std::mem::take(&mut self.removed) {
            self.dirs.entry(path).or_insert(dir);
        }
        self.dirs.values_mut().for_each(&mut crash);
        self.drop_orphans();
        self.oracle.power_was_cut(db);
        self.other.power_was_cut(other);
    }

    fn crash_file(&mut self, ino: usize, rng: &mut Rng) {
        let file = &mut self.files[ino];
        if file.dirty.is_empty() && !file.len_changed {
            return;
        }
        let style = rng.below(5);
        if let Some(shortest) = file.shortest.take() {
            if style == 0 || rng.below(2) == 0 {
                file.data.clone_from(&file.durable);
                file.dirty.clear();
                file.len_changed = false;
                file.version += 1;
                return;
            }
            file.durable.truncate(shortest);
        }
        let (old, new) = (file.durable.len(), file.data.len());
        let len = match style {
            0 => old,
            1 => new,
            _ => match rng.below(3) {
                0 => old,
                1 => new,
                _ => (old.min(new) + rng.index(old.abs_diff(new) + 1)).div_ceil(SECTOR) * SECTOR,
            },
        }
        .min(old.max(new));
        let mut image = std::mem::take(&mut file.durable);
        image.resize(len, 0);
        let keep_first = rng.index(file.dirty.len() + 1);
        for (n, &sector) in file.dirty.iter().enumerate() {
            let kept = match style {
                0 => false,
                1 => true,
                2 => n < keep_first,
                3 => rng.below(8) != 0,
                _ => rng.below(2) == 0,
            };
            let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(len).min(file.data.len()));
            if kept && from < to {
                image[from..to].copy_from_slice(&file.data[from..to]);
            }
            self.counts.torn += u64::from(!kept);
        }
        file.data.clone_from(&image);
        file.durable = image;
        file.dirty.clear();
        file.len_changed = false;
        file.version += 1;
        file.locks.clear();
    }

    /// Directories whose entry was lost are gone with everything below.
    fn drop_orphans(&mut self) {
        loop {
            let orphan = self.dirs.keys().find(|path| {
                let (parent, name) = split(path);
                *path != "/" && !self.dirs.get(parent).is_some_and(|dir| dir.names.get(name) == Some(&Entry::Dir))
            });
            let Some(orphan) = orphan.cloned() else { return };
            self.dirs.remove(&orphan);
        }
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

fn crash_dir(dir: &mut Dir, rng: &mut Rng) {
    if dir.since.is_empty() {
        return;
    }
    let any_subset = rng.below(4) == 0;
    let keep_first = rng.index(dir.since.len() + 1);
    let mut names = std::mem::take(&mut dir.durable);
    for (n, op) in dir.since.iter().enumerate() {
        if if any_subset { rng.below(2) == 0 } else { n < keep_first } {
            Dir::apply(&mut names, op);
        }
    }
    dir.names.clone_from(&names);
    dir.durable = names;
    dir.since.clear();
}
