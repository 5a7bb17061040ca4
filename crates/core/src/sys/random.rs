//! Randomness for names and jitter. Not for secrets.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Source of random numbers.
pub trait Random: fmt::Debug + Send + Sync + 'static {
    /// The next number.
    fn next_u64(&self) -> u64;
}

/// Seeded by the operating system once per process.
#[derive(Debug)]
pub struct OsRandom;

impl Random for OsRandom {
    fn next_u64(&self) -> u64 {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // Every RandomState carries fresh keys derived from operating-system entropy.
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u64(COUNT.fetch_add(1, Ordering::Relaxed));
        hasher.finish()
    }
}
