//! The engine's file system and clock on the simulated disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use litestream::error::{Error, ErrorKind, Result};
use litestream::sys::{
    BootId, Clock, DirEntry, File, FileId, FileKind, FileStat, Fs, Lock, OpenMode, OwnerMode, Random, World,
};
use litestream::types::Timestamp;

use crate::disk::{Class, Disk, EEXIST, EIO, ENOENT, Entry, Fate, Inner, Op, Proc, Who};
use crate::rng::Rng;
use crate::store::perhaps_leave;

fn io(op: &'static str, errno: i32, path: &Path) -> Error {
    Error::io(op, std::io::Error::from_raw_os_error(errno)).at(path.display())
}

/// The world as one life of a process sees it.
pub(crate) fn world(disk: &Arc<Disk>, who: Who, seed: u64) -> World {
    World {
        fs: Arc::new(SimFs { disk: Arc::clone(disk), who }),
        clock: Arc::new(SimClock { disk: Arc::clone(disk), who }),
        random: Arc::new(SimRandom(std::sync::Mutex::new(Rng::new(seed)))),
    }
}

#[derive(Debug)]
struct SimRandom(std::sync::Mutex<Rng>);

impl Random for SimRandom {
    fn next_u64(&self) -> u64 {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next()
    }
}

#[derive(Debug)]
struct SimClock {
    disk: Arc<Disk>,
    who: Who,
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        self.disk.wall()
    }

    fn elapsed(&self) -> Duration {
        Duration::from_micros(self.disk.elapsed_us())
    }

    fn boot(&self) -> Option<BootId> {
        Some(BootId(u128::from(self.disk.lock().counts.power_cuts)))
    }

    fn pause(&self, time: Duration) {
        self.disk.lock().advance_us(u64::try_from(time.as_micros()).unwrap_or(0) * 4);
        let _ = self.disk.enter(self.who, Op::Pause, Class::Other);
    }
}

impl Inner {
    /// Both clocks go on.
    pub(crate) fn advance_us(&mut self, us: u64) {
        let before = self.elapsed_us / 1000;
        self.elapsed_us += us;
        self.wall_ms += i64::try_from(self.elapsed_us / 1000 - before).unwrap_or(0);
    }
}

#[derive(Debug)]
struct SimFs {
    disk: Arc<Disk>,
    who: Who,
}

#[derive(Debug)]
struct SimFsFile {
    disk: Arc<Disk>,
    who: Who,
    ino: usize,
    class: Class,
    path: PathBuf,
}

fn stat_of(inner: &Inner, ino: usize) -> FileStat {
    let file = &inner.files[ino];
    FileStat {
        kind: FileKind::File,
        len: file.data.len() as u64,
        modified: Timestamp::from_millis(file.modified_ms),
        changed: Timestamp::from_millis(inner.wall_ms),
        id: FileId { dev: 1, ino: ino as u64 },
        owner_mode: OwnerMode { mode: file.mode, owner: None },
    }
}

/// Held as long as this lives, or its process.
#[derive(Debug)]
struct SimLock {
    disk: Arc<Disk>,
    path: PathBuf,
    handle: u64,
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.lock().unlock_file(&self.path, self.handle);
    }
}

impl SimFs {
    fn enter(&self, op: Op, path: &Path, what: &'static str) -> Result<Fate> {
        perhaps_leave();
        self.disk.enter(self.who, op, Class::of(path)).map_err(|errno| io(what, errno, path))
    }
}

impl Fs for SimFs {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Box<dyn File>> {
        let op = if matches!(mode, OpenMode::CreateNew(_)) { Op::Create } else { Op::Open };
        self.enter(op, path, "open")?;
        let mut inner = self.disk.lock();
        let ino = match mode {
            OpenMode::CreateNew(om) => inner.create(path, om.mode),
            OpenMode::Read | OpenMode::ReadWrite => match inner.lookup(path) {
                Some(Entry::File(ino)) => Ok(ino),
                Some(Entry::Dir) => Err(EIO),
                None => Err(ENOENT),
            },
        };
        let ino = ino.map_err(|errno| io("open", errno, path))?;
        drop(inner);
        let (disk, who) = (Arc::clone(&self.disk), self.who);
        Ok(Box::new(SimFsFile { disk, who, ino, class: Class::of(path), path: path.to_owned() }))
    }

    fn stat(&self, path: &Path) -> Result<FileStat> {
        self.enter(Op::Stat, path, "stat")?;
        let inner = self.disk.lock();
        match inner.lookup(path) {
            Some(Entry::File(ino)) => Ok(stat_of(&inner, ino)),
            Some(Entry::Dir) => Ok(FileStat {
                kind: FileKind::Dir,
                len: 0,
                modified: Timestamp::from_millis(0),
                changed: Timestamp::from_millis(0),
                id: FileId { dev: 1, ino: u64::MAX },
                owner_mode: OwnerMode { mode: 0o755, owner: None },
            }),
            None => Err(io("stat", ENOENT, path)),
        }
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        self.enter(Op::List, dir, "open")?;
        let inner = self.disk.lock();
        let names = inner.names(dir).ok_or_else(|| io("open", ENOENT, dir))?;
        let kind = |entry| if entry == Entry::Dir { FileKind::Dir } else { FileKind::File };
        // In no order: backwards is as good as any.
        Ok(names.into_iter().rev().map(|(name, entry)| DirEntry { name, kind: kind(entry) }).collect())
    }

    fn create_dir_all(&self, dir: &Path, _: OwnerMode) -> Result<()> {
        if dir.as_os_str().is_empty() || matches!(self.disk.lock().lookup(dir), Some(Entry::Dir)) {
            return Ok(());
        }
        if let Some(parent) = dir.parent() {
            self.create_dir_all(parent, OwnerMode::PRIVATE_DIR)?;
        }
        self.enter(Op::Mkdir, dir, "mkdir")?;
        let new = self.disk.lock().mkdir(dir).map_err(|errno| io("mkdir", errno, dir))?;
        match dir.parent() {
            Some(parent) if new => self.sync_dir(parent),
            _ => Ok(()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.enter(Op::Rename, from, "rename")?;
        self.disk.lock().rename(from, to).map_err(|errno| io("rename", errno, from))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        self.enter(Op::Rename, from, "rename")?;
        let mut inner = self.disk.lock();
        if inner.lookup(to).is_some() {
            return Err(io("rename", EEXIST, to));
        }
        inner.rename(from, to).map_err(|errno| io("rename", errno, from))
    }

    fn lock(&self, path: &Path, owner_mode: OwnerMode, _owner: &str) -> Result<Box<dyn Lock>> {
        match self.open(path, OpenMode::CreateNew(owner_mode)) {
            Err(err) if err.kind() == ErrorKind::Exists => {}
            other => drop(other?),
        }
        let Some(handle) = self.disk.lock().lock_file(path, self.who) else {
            return Err(Error::new(ErrorKind::InUse, "locked by another process:").at(path.display()));
        };
        Ok(Box::new(SimLock { disk: Arc::clone(&self.disk), path: path.to_owned(), handle }))
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        self.enter(Op::Remove, path, "remove")?;
        match self.disk.lock().unlink(path) {
            Err(ENOENT) | Ok(()) => Ok(()),
            Err(errno) => Err(io("remove", errno, path)),
        }
    }

    fn remove_dir_all(&self, dir: &Path) -> Result<()> {
        let Some(mut names) = self.disk.lock().names(dir) else { return Ok(()) };
        // In the order in which they happen to lie there.
        let turn = self.disk.lock().order(names.len());
        names.rotate_left(turn);
        for (name, entry) in names {
            let path = dir.join(name);
            match entry {
                Entry::Dir => self.remove_dir_all(&path)?,
                Entry::File(_) => self.remove_file(&path)?,
            }
        }
        self.enter(Op::Remove, dir, "remove")?;
        self.disk.lock().rmdir(dir).map_err(|errno| io("remove", errno, dir))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        if let Fate::FailSync { .. } = self.enter(Op::SyncDir, dir, "sync directory")? {
            return Err(io("sync directory", EIO, dir));
        }
        self.disk.lock().sync_dir(dir).map_err(|errno| io("sync directory", errno, dir))
    }
}

impl SimFsFile {
    fn enter(&self, op: Op, what: &'static str) -> Result<Fate> {
        perhaps_leave();
        self.disk.enter(self.who, op, self.class).map_err(|errno| io(what, errno, &self.path))
    }
}

impl File for SimFsFile {
    /// Whoever finds a file of an earlier life may have it; within one life nobody looks.
    fn claim(&self) -> Result<Option<bool>> {
        Ok(Some(true))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let fate = self.enter(Op::Peek, "read")?;
        let mut inner = self.disk.lock();
        let data = &inner.files[self.ino].data;
        let rest = usize::try_from(offset).ok().and_then(|at| data.get(at..)).unwrap_or_default();
        let mut len = rest.len().min(buf.len());
        if inner.short_reads && len > 1 {
            len = len.div_ceil(2);
        }
        buf[..len].copy_from_slice(&rest[..len]);
        if fate == Fate::Flip {
            inner.flip(&mut buf[..len]);
        }
        Ok(len)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let fate = self.enter(Op::Write, "write")?;
        let mut inner = self.disk.lock();
        if fate == Fate::Half {
            inner.write_half(self.who, self.ino, buf, offset);
            return Err(io("write", EIO, &self.path));
        }
        inner.write(self.ino, buf, offset).map_err(|errno| io("write", errno, &self.path))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.enter(Op::Truncate, "truncate")?;
        self.disk.lock().set_len(self.ino, len).map_err(|errno| io("truncate", errno, &self.path))
    }

    fn sync(&self) -> Result<()> {
        let fate = self.enter(Op::Sync, "sync")?;
        let mut inner = self.disk.lock();
        if let Fate::FailSync { forget } = fate {
            if forget {
                inner.forget_dirty(self.ino);
            }
            return Err(io("sync", EIO, &self.path));
        }
        inner.sync(self.ino);
        Ok(())
    }

    fn stat(&self) -> Result<FileStat> {
        self.enter(Op::Stat, "stat")?;
        Ok(stat_of(&self.disk.lock(), self.ino))
    }

    fn set_modified(&self, at: Timestamp) -> Result<()> {
        self.enter(Op::Stat, "set time of")?;
        self.disk.lock().files[self.ino].modified_ms = at.millis();
        Ok(())
    }
}

impl Drop for SimFsFile {
    /// POSIX: closing any descriptor of a file drops all locks this process holds on it.
    fn drop(&mut self) {
        if self.who.proc != Proc::Harness {
            let who = self.who;
            self.disk.lock().files[self.ino].locks.retain(|lock| lock.who != who);
        }
    }
}
