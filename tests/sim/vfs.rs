//! SQLite on the simulated disk: a VFS that is the default one of this test program.
//!
//! Files belong to the disk and the process that are current on the thread that opens them. Locks
//! follow the rules of SQLite's Unix VFS; the wal-index is memory that lives as long as somebody has
//! it open.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Once};

use rusqlite::ffi;

use crate::disk::{Class, Disk, ENOSPC, Entry, Fate, FileLock, Op, ShmUser, Who, current, who};
use crate::rng::mix;

#[repr(C)]
struct SimFile {
    base: ffi::sqlite3_file,
    open: *mut Open,
}

struct Open {
    disk: Arc<Disk>,
    who: Who,
    ino: usize,
    class: Class,
    path: Option<PathBuf>,
    handle: u64,
    persist_wal: bool,
    delete_on_close: bool,
    /// The directory entry is to be made durable with the first sync.
    new_entry: bool,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// Without shared memory SQLite keeps the wal-index on its heap. No locks either: who uses this is alone, or
/// believes so.
static METHODS_ALONE: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xLock: Some(no_lock),
    xUnlock: Some(no_lock),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    ..METHODS
};

/// Name of the VFS for who keeps the wal-index to himself.
pub(crate) const ALONE: &CStr = c"sim-alone";

unsafe extern "C" fn no_lock(_file: *mut ffi::sqlite3_file, _level: c_int) -> c_int {
    ffi::SQLITE_OK
}

/// Makes this VFS the default, once per program.
pub(crate) fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        register_as(ALONE, ptr::from_ref(&METHODS_ALONE), 0);
        register_as(c"sim", ptr::from_ref(&METHODS), 1);
    });
}

fn register_as(name: &'static CStr, methods: *const ffi::sqlite3_io_methods, default: c_int) {
    let vfs = ffi::sqlite3_vfs {
        iVersion: 2,
        szOsFile: c_int::try_from(size_of::<SimFile>()).expect("a small structure"),
        mxPathname: 512,
        pNext: ptr::null_mut(),
        zName: name.as_ptr(),
        pAppData: methods.cast_mut().cast::<c_void>(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        xDlOpen: None,
        xDlError: None,
        xDlSym: None,
        xDlClose: None,
        xRandomness: Some(randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(current_time),
        xGetLastError: Some(last_error),
        xCurrentTimeInt64: Some(current_time_int64),
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    };
    // SAFETY: SQLite keeps the pointer for good, so the structure is leaked; all functions in
    // it have the signatures that SQLite calls them with.
    let code = unsafe { ffi::sqlite3_vfs_register(Box::into_raw(Box::new(vfs)), default) };
    assert_eq!(code, ffi::SQLITE_OK, "register the simulated file system");
}

/// Lets SQLite's own random numbers, which salts are made of, start anew from the disk's seed.
pub(crate) fn reset_randomness() {
    // SAFETY: N = 0 only resets the generator; no buffer is written to.
    unsafe { ffi::sqlite3_randomness(0, ptr::null_mut()) };
}

/// # Safety
/// `file` was opened by [`open`] and not closed yet; SQLite uses a file on one thread at a time.
unsafe fn opened<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Open {
    // SAFETY: as the caller promises; `open` stored a pointer from Box::into_raw.
    unsafe { &mut *(*file.cast::<SimFile>()).open }
}

impl Open {
    fn enter(&self, op: Op) -> Result<Fate, i32> {
        self.disk.enter(self.who, op, self.class)
    }
}

/// # Safety
/// `name` is null or a NUL-terminated string.
unsafe fn path_of(name: *const c_char) -> Option<PathBuf> {
    if name.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    let bytes = unsafe { CStr::from_ptr(name) }.to_bytes();
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(bytes)))
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes a block of szOsFile bytes; without methods it will not be closed.
    unsafe { (*file).pMethods = ptr::null() };
    let Some(disk) = current() else { return ffi::SQLITE_CANTOPEN };
    let who = who();
    // SAFETY: SQLite passes null or a NUL-terminated name.
    let path = unsafe { path_of(name) };
    let class = path.as_deref().map_or(Class::Other, Class::of);
    if disk.enter(who, Op::Open, class).is_err() {
        return ffi::SQLITE_CANTOPEN;
    }
    let mut inner = disk.lock();
    let journal = flags & (ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_SUPER_JOURNAL) != 0;
    let (ino, new) = match path.as_deref() {
        None => (inner.create_anonymous(), true),
        Some(path) => match inner.lookup(path) {
            Some(Entry::Dir) => return ffi::SQLITE_CANTOPEN,
            Some(Entry::File(ino)) => (ino, false),
            None if flags & ffi::SQLITE_OPEN_CREATE == 0 => return ffi::SQLITE_CANTOPEN,
            None => match inner.create(path, 0o644) {
                Ok(ino) => (ino, true),
                Err(_) => return ffi::SQLITE_CANTOPEN,
            },
        },
    };
    let handle = inner.handle();
    drop(inner);
    let open = Open {
        disk,
        who,
        ino,
        class,
        new_entry: new && journal && path.is_some(),
        delete_on_close: flags & ffi::SQLITE_OPEN_DELETEONCLOSE != 0,
        path,
        handle,
        persist_wal: false,
    };
    // SAFETY: `file` is a block of szOsFile bytes, which is the size of SimFile; `out_flags` is null
    // or points to an int; `vfs` is one of those that `register_as` made.
    unsafe {
        (*file.cast::<SimFile>()).open = Box::into_raw(Box::new(open));
        (*file).pMethods = (*vfs).pAppData.cast::<ffi::sqlite3_io_methods>();
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file once; `open` stored a pointer from Box::into_raw.
    let open = unsafe { Box::from_raw((*file.cast::<SimFile>()).open) };
    // SAFETY: as above.
    unsafe { (*file).pMethods = ptr::null() };
    let mut inner = open.disk.lock();
    let handle = open.handle;
    inner.files[open.ino].locks.retain(|lock| lock.handle != handle);
    if open.delete_on_close
        && !inner.is_dead(open.who)
        && let Some(path) = &open.path
    {
        let _ = inner.unlink(path);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, out: *mut c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite passes an open file and a buffer of `len` bytes.
    let (open, out) =
        unsafe { (opened(file), std::slice::from_raw_parts_mut(out.cast::<u8>(), usize::try_from(len).unwrap_or(0))) };
    if open.enter(Op::Read).is_err() {
        return ffi::SQLITE_IOERR_READ;
    }
    let inner = open.disk.lock();
    let data = &inner.files[open.ino].data;
    let rest = usize::try_from(offset).ok().and_then(|at| data.get(at..)).unwrap_or_default();
    let have = rest.len().min(out.len());
    out[..have].copy_from_slice(&rest[..have]);
    if have < out.len() {
        out[have..].fill(0);
        return ffi::SQLITE_IOERR_SHORT_READ;
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, bytes: *const c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite passes an open file and a buffer of `len` bytes.
    let (open, bytes) =
        unsafe { (opened(file), std::slice::from_raw_parts(bytes.cast::<u8>(), usize::try_from(len).unwrap_or(0))) };
    let offset = u64::try_from(offset).unwrap_or(0);
    match open.enter(Op::Write) {
        Err(ENOSPC) => ffi::SQLITE_FULL,
        Err(_) => ffi::SQLITE_IOERR_WRITE,
        Ok(Fate::Half) => {
            open.disk.lock().write_half(open.who, open.ino, bytes, offset);
            ffi::SQLITE_IOERR_WRITE
        }
        Ok(_) => match open.disk.lock().write(open.ino, bytes, offset) {
            Ok(()) => ffi::SQLITE_OK,
            Err(_) => ffi::SQLITE_FULL,
        },
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: SQLite passes an open file.
    let open = unsafe { opened(file) };
    if open.enter(Op::Truncate).is_err() {
        return ffi::SQLITE_IOERR_TRUNCATE;
    }
    match open.disk.lock().set_len(open.ino, u64::try_from(size).unwrap_or(0)) {
        Ok(()) => ffi::SQLITE_OK,
        Err(_) => ffi::SQLITE_IOERR_TRUNCATE,
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    let open = unsafe { opened(file) };
    match open.enter(Op::Sync) {
        Err(_) => return ffi::SQLITE_IOERR_FSYNC,
        Ok(Fate::FailSync { forget }) => {
            if forget {
                open.disk.lock().forget_dirty(open.ino);
            }
            return ffi::SQLITE_IOERR_FSYNC;
        }
        Ok(_) => {}
    }
    let mut inner = open.disk.lock();
    inner.sync(open.ino);
    if std::mem::take(&mut open.new_entry)
        && let Some(dir) = open.path.as_deref().and_then(Path::parent)
    {
        let _ = inner.sync_dir(dir);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, out: *mut i64) -> c_int {
    // SAFETY: SQLite passes an open file.
    let open = unsafe { opened(file) };
    if open.enter(Op::Stat).is_err() {
        return ffi::SQLITE_IOERR_FSTAT;
    }
    let len = open.disk.lock().files[open.ino].data.len();
    // SAFETY: SQLite passes a pointer to an integer.
    unsafe { *out = i64::try_from(len).unwrap_or(i64::MAX) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    let open = unsafe { opened(file) };
    if open.enter(Op::Lock).is_err() {
        return ffi::SQLITE_IOERR_LOCK;
    }
    let mut inner = open.disk.lock();
    let locks = &mut inner.files[open.ino].locks;
    let mine = locks.iter().position(|l| l.handle == open.handle);
    let have = mine.map_or(0, |at| locks[at].level);
    if have >= level {
        return ffi::SQLITE_OK;
    }
    let others = locks.iter().filter(|l| l.handle != open.handle).map(|l| l.level).max().unwrap_or(0);
    let mut granted = level;
    match level {
        ffi::SQLITE_LOCK_SHARED if others >= ffi::SQLITE_LOCK_PENDING => return ffi::SQLITE_BUSY,
        ffi::SQLITE_LOCK_RESERVED if others >= ffi::SQLITE_LOCK_RESERVED => return ffi::SQLITE_BUSY,
        ffi::SQLITE_LOCK_PENDING | ffi::SQLITE_LOCK_EXCLUSIVE if others >= ffi::SQLITE_LOCK_RESERVED => {
            return ffi::SQLITE_BUSY;
        }
        ffi::SQLITE_LOCK_EXCLUSIVE if others > 0 => granted = ffi::SQLITE_LOCK_PENDING,
        _ => {}
    }
    match mine {
        Some(at) => locks[at].level = granted,
        None => locks.push(FileLock { handle: open.handle, who: open.who, level: granted }),
    }
    if granted == level { ffi::SQLITE_OK } else { ffi::SQLITE_BUSY }
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    let open = unsafe { opened(file) };
    let mut inner = open.disk.lock();
    let locks = &mut inner.files[open.ino].locks;
    if level == ffi::SQLITE_LOCK_NONE {
        locks.retain(|l| l.handle != open.handle);
    } else if let Some(lock) = locks.iter_mut().find(|l| l.handle == open.handle) {
        lock.level = lock.level.min(level);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    let open = unsafe { opened(file) };
    let inner = open.disk.lock();
    let reserved = inner.files[open.ino].locks.iter().any(|l| l.level >= ffi::SQLITE_LOCK_RESERVED);
    // SAFETY: SQLite passes a pointer to an integer.
    unsafe { *out = c_int::from(reserved) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, op: c_int, arg: *mut c_void) -> c_int {
    // SAFETY: SQLite passes an open file.
    let open = unsafe { opened(file) };
    if op != ffi::SQLITE_FCNTL_PERSIST_WAL {
        return ffi::SQLITE_NOTFOUND;
    }
    // SAFETY: this operation's argument is a pointer to an int.
    let arg = unsafe { &mut *arg.cast::<c_int>() };
    if *arg < 0 {
        *arg = c_int::from(open.persist_wal);
    } else {
        open.persist_wal = *arg != 0;
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn sector_size(_file: *mut ffi::sqlite3_file) -> c_int {
    512
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite passes an open file.
    let open = unsafe { opened(file) };
    if open.disk.lock().powersafe { ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE } else { 0 }
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    _size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite passes an open file and a place for a pointer.
    let open = unsafe {
        *out = ptr::null_mut();
        opened(file)
    };
    if open.enter(Op::Shm).is_err() {
        return ffi::SQLITE_IOERR_SHMMAP;
    }
    let mut inner = open.disk.lock();
    if inner.files[open.ino].shm.users.is_empty() {
        // Whoever comes first finds nothing that a crash may have left.
        inner.retire(open.ino);
    }
    let shm = &mut inner.files[open.ino].shm;
    if !shm.users.iter().any(|u| u.handle == open.handle) {
        shm.users.push(ShmUser { handle: open.handle, who: open.who, shared: 0, exclusive: 0 });
    }
    let region = usize::try_from(region).unwrap_or(0);
    while shm.regions.len() <= region {
        if extend == 0 {
            return ffi::SQLITE_OK;
        }
        shm.regions.push(Box::new([const { AtomicU64::new(0) }; 4096]));
    }
    // SAFETY: `out` as above. Regions are freed only with the disk, which every open file keeps.
    unsafe { *out = shm.regions[region].as_ptr().cast_mut().cast::<c_void>() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, first: c_int, n: c_int, flags: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    let open = unsafe { opened(file) };
    let mask = u8::try_from(((1_u32 << n) - 1) << first).unwrap_or(u8::MAX);
    let locking = flags & ffi::SQLITE_SHM_LOCK != 0;
    if locking && open.enter(Op::Lock).is_err() {
        return ffi::SQLITE_IOERR_SHMLOCK;
    }
    let mut inner = open.disk.lock();
    let users = &mut inner.files[open.ino].shm.users;
    let (mut shared, mut exclusive) = (0, 0);
    for user in users.iter().filter(|u| u.handle != open.handle) {
        shared |= user.shared;
        exclusive |= user.exclusive;
    }
    let Some(me) = users.iter_mut().find(|u| u.handle == open.handle) else {
        return if locking { ffi::SQLITE_IOERR_SHMLOCK } else { ffi::SQLITE_OK };
    };
    if !locking {
        me.shared &= !mask;
        me.exclusive &= !mask;
        drop(inner);
        // Others may come in just then; it cannot fail.
        let _ = open.enter(Op::Unlock);
    } else if flags & ffi::SQLITE_SHM_SHARED != 0 {
        if exclusive & mask != 0 {
            return ffi::SQLITE_BUSY;
        }
        me.shared |= mask;
    } else {
        if (exclusive | shared) & mask != 0 {
            return ffi::SQLITE_BUSY;
        }
        me.exclusive |= mask;
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn shm_barrier(_file: *mut ffi::sqlite3_file) {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, _delete: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    let open = unsafe { opened(file) };
    let mut inner = open.disk.lock();
    let handle = open.handle;
    inner.files[open.ino].shm.users.retain(|u| u.handle != handle);
    if inner.files[open.ino].shm.users.is_empty() {
        inner.retire(open.ino);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn delete(_vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync_dir: c_int) -> c_int {
    let Some(disk) = current() else { return ffi::SQLITE_IOERR_DELETE };
    // SAFETY: SQLite passes a NUL-terminated name.
    let Some(path) = (unsafe { path_of(name) }) else { return ffi::SQLITE_IOERR_DELETE };
    if disk.enter(who(), Op::Remove, Class::of(&path)).is_err() {
        return ffi::SQLITE_IOERR_DELETE;
    }
    let mut inner = disk.lock();
    if inner.unlink(&path).is_err() {
        return ffi::SQLITE_IOERR_DELETE_NOENT;
    }
    if sync_dir != 0
        && let Some(dir) = path.parent()
    {
        let _ = inner.sync_dir(dir);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn access(_vfs: *mut ffi::sqlite3_vfs, name: *const c_char, _flags: c_int, out: *mut c_int) -> c_int {
    let Some(disk) = current() else { return ffi::SQLITE_IOERR_ACCESS };
    // SAFETY: SQLite passes a NUL-terminated name.
    let Some(path) = (unsafe { path_of(name) }) else { return ffi::SQLITE_IOERR_ACCESS };
    if disk.enter(who(), Op::Stat, Class::of(&path)).is_err() {
        return ffi::SQLITE_IOERR_ACCESS;
    }
    let there = disk.lock().lookup(&path).is_some();
    // SAFETY: SQLite passes a pointer to an int.
    unsafe { *out = c_int::from(there) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    len: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite passes a NUL-terminated name and a buffer of `len` bytes.
    unsafe {
        let bytes = CStr::from_ptr(name).to_bytes_with_nul();
        if bytes.len() > usize::try_from(len).unwrap_or(0) {
            return ffi::SQLITE_CANTOPEN;
        }
        ptr::copy_nonoverlapping(bytes.as_ptr(), out.cast::<u8>(), bytes.len());
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn randomness(_vfs: *mut ffi::sqlite3_vfs, len: c_int, out: *mut c_char) -> c_int {
    // SAFETY: SQLite passes a buffer of `len` bytes.
    let out = unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), usize::try_from(len).unwrap_or(0)) };
    match current() {
        Some(disk) => disk.lock().sqlite_rng.fill(out),
        None => out.fill(u8::try_from(mix(7) & 0xff).unwrap_or(0)),
    }
    len
}

unsafe extern "C" fn sleep(_vfs: *mut ffi::sqlite3_vfs, us: c_int) -> c_int {
    if let Some(disk) = current() {
        disk.lock().advance_us(u64::try_from(us).unwrap_or(0));
        let _ = disk.enter(who(), Op::Pause, Class::Other);
    }
    us
}

unsafe extern "C" fn current_time(_vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: SQLite passes a pointer to a number.
    unsafe { *out = 2_460_000.5 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time_int64(_vfs: *mut ffi::sqlite3_vfs, out: *mut i64) -> c_int {
    let wall = current().map_or(0, |disk| disk.lock().wall_ms);
    // SAFETY: SQLite passes a pointer to a number.
    unsafe { *out = wall + 210_866_760_000_000 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn last_error(_vfs: *mut ffi::sqlite3_vfs, _len: c_int, _out: *mut c_char) -> c_int {
    0
}
