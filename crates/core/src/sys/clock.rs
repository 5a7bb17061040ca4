//! Clocks. Nothing above `sys` asks the operating system for the time.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::types::Timestamp;

/// Wall clock for stamps, monotonic clock for intervals.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Wall-clock time. May jump either way.
    fn now(&self) -> Timestamp;
    /// Time since an arbitrary start. Never goes back.
    fn elapsed(&self) -> Duration;
    /// Blocks the calling thread for so long.
    fn pause(&self, time: Duration);
    /// Names the time since the machine was started: another one after a power cut. `None` where
    /// that cannot be told.
    fn boot(&self) -> Option<BootId>;
}

/// One run of the operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootId(pub u128);

impl BootId {
    /// From the text of a UUID.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
        u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32).map(Self)
    }
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Monotonic time starts now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    fn now(&self) -> Timestamp {
        Timestamp::from_system(SystemTime::now())
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Linux only.
    fn boot(&self) -> Option<BootId> {
        BootId::parse(&std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?)
    }
}

/// A clock that tests move by hand.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall_millis: AtomicI64,
    elapsed_millis: AtomicU64,
}

impl ManualClock {
    /// Starts at the given wall-clock time.
    #[must_use]
    pub fn starting_at(now: Timestamp) -> Self {
        Self { wall_millis: AtomicI64::new(now.millis()), elapsed_millis: AtomicU64::new(0) }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.elapsed_millis.fetch_add(millis, Ordering::SeqCst);
        self.wall_millis.fetch_add(i64::try_from(millis).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    /// Moves only the wall clock, as an administrator or a time server would.
    pub fn step_wall(&self, millis: i64) {
        self.wall_millis.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.wall_millis.load(Ordering::SeqCst))
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed_millis.load(Ordering::SeqCst))
    }

    fn pause(&self, time: Duration) {
        self.advance(time);
    }

    fn boot(&self) -> Option<BootId> {
        Some(BootId(1))
    }
}
