//! Whether another process waits for our read mark.
//!
//! A checkpoint in mode FULL, RESTART or TRUNCATE holds two locks of the wal-index, the writer's and the
//! checkpointer's, and waits until nobody reads behind what it needs. Asking for somebody's lock (`F_GETLK`) takes
//! and changes nothing, but needs a descriptor of the `-shm` file, and one of our own could never be closed: that drops
//! SQLite's locks on it (see `sqlite`). So SQLite's own descriptor is asked, which [`remember_shm`] learns
//! when SQLite opens it, through the function table that its Unix layer keeps for that.
//!
//! Nothing but this answer depends on it: without it the application's checkpoint waits for its busy timeout.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};
use std::sync::Once;

use rusqlite::ffi;

/// Where the locks of the wal-index lie in its file: that of writers, then that of checkpointers.
const FIRST_LOCK: libc::off_t = 120;

thread_local! {
    /// The `-shm` file that SQLite opened last on this thread.
    static OPENED: Cell<Option<c_int>> = const { Cell::new(None) };
}

/// A descriptor that SQLite keeps open as long as the connection that caused it to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ShmDescriptor(c_int);

impl ShmDescriptor {
    /// Whether one other process has both locks.
    pub(super) fn is_waited_on(self) -> bool {
        match (self.holder_of(FIRST_LOCK), self.holder_of(FIRST_LOCK + 1)) {
            (Some(writer), Some(checkpointer)) => writer == checkpointer,
            _ => false,
        }
    }

    /// The other process that has the lock; 0 stands for one that cannot be named here.
    fn holder_of(self, at: libc::off_t) -> Option<libc::pid_t> {
        // SAFETY: `flock` is a plain structure of numbers, for which zero is a value.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        (lock.l_type, lock.l_whence) = (SHARED_OR_NOT.0, libc::SEEK_SET as libc::c_short);
        (lock.l_start, lock.l_len) = (at, 1);
        // SAFETY: F_GETLK reads and writes one `flock`. On a descriptor that is closed by now it fails.
        let code = unsafe { libc::fcntl(self.0, libc::F_GETLK, &raw mut lock) };
        (code == 0 && lock.l_type == SHARED_OR_NOT.1).then_some(lock.l_pid)
    }
}

/// Asking whether we could have a shared lock finds only exclusive ones.
const SHARED_OR_NOT: (libc::c_short, libc::c_short) = (libc::F_RDLCK as libc::c_short, libc::F_WRLCK as libc::c_short);

/// What SQLite opened on this thread since the last call.
pub(super) fn take_opened() -> Option<ShmDescriptor> {
    OPENED.take().map(ShmDescriptor)
}

/// Makes SQLite's Unix layer open files through [`open`], once per program.
pub(super) fn remember_shm() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the name is NUL-terminated; null or a VFS that lives as long as the program comes back.
        let Some(vfs) = (unsafe { ffi::sqlite3_vfs_find(c"unix".as_ptr()).as_mut() }) else { return };
        let Some(set) = vfs.xSetSystemCall else { return };
        let open: unsafe extern "C" fn(*const c_char, c_int, c_int) -> c_int = open;
        // SAFETY: SQLite calls what is registered under "open" with a name, flags and a mode, which is the
        // signature of `open`; a function pointer may be handed through one of another type.
        unsafe {
            let open = std::mem::transmute::<
                unsafe extern "C" fn(*const c_char, c_int, c_int) -> c_int,
                unsafe extern "C" fn(),
            >(open);
            set(vfs, c"open".as_ptr(), Some(open));
        }
    });
}

/// # Safety
/// `name` is NUL-terminated.
unsafe extern "C" fn open(name: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: as the caller promises.
    let fd = unsafe { libc::open(name, flags, mode) };
    // SAFETY: as the caller promises.
    if fd >= 0 && unsafe { CStr::from_ptr(name) }.to_bytes().ends_with(b"-shm") {
        OPENED.set(Some(fd));
    }
    fd
}
