//! The C library's allocator.

/// Makes the C library return large buffers to the system when they are freed, and keep few pools.
///
/// By default glibc stops doing the first after the first large buffer, and keeps a pool for many a
/// thread: a daemon whose work moves between threads would hold the sum of all its peaks.
pub fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator; it is called before any other thread
    // is started.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
