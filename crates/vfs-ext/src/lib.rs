//! The extension that SQLite loads: entry points, and composition of the crates below.
//!
//! There is one SQLite in the process, that of the host. Its functions are reached through the table that it hands to
//! the entry point ([`Api`]), never through symbols of our own. So far the extension only proves that it can be loaded:
//! it refuses a SQLite that is too old, and registers nothing.
//!
//! Three names lead here: the first is what SQLite makes of the file name `liblitestream_vfs.so`, the second that of
//! `litestream.so`, the third is the one it tries first.

use std::ffi::{c_char, c_int, c_void};
use std::panic::catch_unwind;

// Linked, so that the shared library proves what its dependency tree shows.
extern crate litestream_replica as _;

const SQLITE_ERROR: c_int = 1;
/// The extension stays when the connection that loaded it is closed: a VFS belongs to the process.
const SQLITE_OK_LOAD_PERMANENTLY: c_int = 256;
/// 3.31.0, the first with everything that is to come.
const MIN_VERSION: c_int = 3_031_000;

/// The beginning of `sqlite3_api_routines`. SQLite never changes the order of its members, it only appends some;
/// those before the one that is called are placeholders.
#[derive(Debug)]
#[repr(C)]
pub struct Api {
    /// `aggregate_context` to `libversion`.
    before: [Option<unsafe extern "C" fn()>; LIBVERSION_NUMBER],
    libversion_number: Option<unsafe extern "C" fn() -> c_int>,
}

/// Place of `libversion_number` in the table.
const LIBVERSION_NUMBER: usize = 67;

/// What loading comes to.
fn load(api: Option<&Api>) -> c_int {
    let Some(version) = api.and_then(|api| api.libversion_number) else { return SQLITE_ERROR };
    // SAFETY: the member is SQLite's own `sqlite3_libversion_number`, which takes nothing and may always be called.
    let version = unsafe { version() };
    if version < MIN_VERSION { SQLITE_ERROR } else { SQLITE_OK_LOAD_PERMANENTLY }
}

/// Nothing may unwind into SQLite.
///
/// # Safety
/// `api` is null or the table of the SQLite that calls.
unsafe fn enter(api: *const Api) -> c_int {
    // SAFETY: the caller's promise; the table is static.
    let api = unsafe { api.as_ref() };
    catch_unwind(|| load(api)).unwrap_or(SQLITE_ERROR)
}

/// The entry point of `liblitestream_vfs.so`.
///
/// # Safety
/// For SQLite to call: `api` is null or its table.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_litestreamvfs_init(
    _db: *mut c_void,
    _error: *mut *mut c_char,
    api: *const Api,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { enter(api) }
}

/// The entry point of a copy named `litestream.so`.
///
/// # Safety
/// For SQLite to call: `api` is null or its table.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_litestream_init(_db: *mut c_void, _error: *mut *mut c_char, api: *const Api) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { enter(api) }
}

/// The entry point SQLite tries first, whatever the file is called.
///
/// # Safety
/// For SQLite to call: `api` is null or its table.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_extension_init(_db: *mut c_void, _error: *mut *mut c_char, api: *const Api) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { enter(api) }
}
