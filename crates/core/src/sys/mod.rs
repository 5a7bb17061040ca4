//! The world outside: the only place that renames, syncs, locks files, reads clocks or draws
//! random numbers. Everything above receives a [`World`], so that production and simulation
//! differ only in what is put into it.

mod backoff;
mod blocking;
mod clock;
mod descriptors;
mod fault;
mod file_lock;
#[doc(hidden)]
pub mod fs;
mod memory;
mod news;
mod os_fs;
pub mod ownership;
mod publish;
mod random;
mod repeats;
mod task;

use std::sync::Arc;

pub use backoff::{Backoff, LogLimiter};
pub use blocking::{Begun, Steps, begin, blocking, run_steps_by, wait};
pub use clock::{BootId, Clock, ManualClock, SystemClock};
pub use descriptors::{allow_many_descriptors, descriptor_limit, restore_descriptor_limit};
#[cfg(debug_assertions)]
pub use fault::choose_mutant;
pub use fault::{FaultPoint, fault_point};
#[doc(hidden)]
pub use fault::{UNCHECKED, mutant};
pub use fs::{DirEntry, File, FileId, FileKind, FileStat, Fs, Lock, Modes, OpenMode, OwnerMode};
pub use memory::give_memory_back;
pub use news::{Follower, News};
pub use os_fs::OsFs;
pub use publish::{Publisher, read_full_at, read_up_to, rewrite, target_of_temp, unique_temp_path};
pub use random::{OsRandom, Random};
pub use repeats::{Repeats, Standing};
pub use task::{TaskGroup, to_the_end};

/// File system, clock and randomness, as everything above `sys` sees them.
#[derive(Debug, Clone)]
pub struct World {
    /// Files and directories.
    pub fs: Arc<dyn Fs>,
    /// Wall clock and monotonic clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness for temporary names and jitter.
    pub random: Arc<dyn Random>,
}

impl World {
    /// The real one.
    #[must_use]
    pub fn system() -> Self {
        Self { fs: Arc::new(OsFs), clock: Arc::new(SystemClock::new()), random: Arc::new(OsRandom) }
    }
}
