//! Who does what to which file, and what may become of it.

use std::path::Path;

use super::{split, text_of};

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

impl Op {
    const ALL: [Self; 17] = [
        Self::Open,
        Self::Create,
        Self::Read,
        Self::Peek,
        Self::Write,
        Self::Truncate,
        Self::Sync,
        Self::Stat,
        Self::List,
        Self::Rename,
        Self::Remove,
        Self::Mkdir,
        Self::SyncDir,
        Self::Lock,
        Self::Unlock,
        Self::Shm,
        Self::Pause,
    ];
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
    const ALL: [Self; 6] = [Self::Db, Self::Wal, Self::Ltx, Self::Temp, Self::Record, Self::Other];

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
    pub(super) fn of(path: &Path) -> Self {
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

/// Faults that struck, by operation and file.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Struck {
    counts: [[u64; Class::ALL.len()]; Op::ALL.len()],
    /// Of reads, those that had a bit turned over.
    flipped: u64,
    /// Of syncs, those that forgot what they were to write.
    forgot: u64,
}

impl Struck {
    pub(super) fn count(&mut self, op: Op, class: Class, fault: &Fault) {
        self.counts[op as usize][class as usize] += 1;
        self.forgot += u64::from(op == Op::Sync && fault.forget);
        self.flipped += u64::from(op != Op::Sync && fault.flip);
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.as_flattened_mut().iter_mut().zip(other.counts.as_flattened()) {
            *mine += theirs;
        }
        self.flipped += other.flipped;
        self.forgot += other.forgot;
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts.as_flattened().iter().sum()
    }
}

impl std::fmt::Display for Struck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for op in Op::ALL {
            for class in Class::ALL {
                let count = self.counts[op as usize][class as usize];
                if count > 0 {
                    write!(f, "{op:?} {class:?} {count}, ")?;
                }
            }
        }
        write!(f, "{} reads with a bit turned, {} syncs that forgot", self.flipped, self.forgot)
    }
}
