//! Waiting longer after each failure, and saying the same thing less often.

use std::time::Duration;

use crate::error::Error;

/// Doubling wait between attempts.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
    failures: u32,
}

impl Backoff {
    /// Starts at `first`, never waits longer than `max`.
    #[must_use]
    pub fn new(first: Duration, max: Duration) -> Self {
        let first = first.min(max);
        Self { first, max, next: first, failures: 0 }
    }

    /// Counts one more failure and says how long to wait.
    pub fn step(&mut self) -> Duration {
        let wait = self.next;
        self.failures = self.failures.saturating_add(1);
        self.next = wait.saturating_mul(2).min(self.max);
        wait
    }

    /// Failures since the last reset.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Forgets all failures; returns how many there were.
    pub fn reset(&mut self) -> u32 {
        self.next = self.first;
        std::mem::take(&mut self.failures)
    }
}

/// Lets the first of a run of error lines through, then one per `spacing`.
#[derive(Debug)]
pub struct LogLimiter {
    spacing: Duration,
    last: Option<Duration>,
}

impl LogLimiter {
    /// At most one line per `spacing`.
    #[must_use]
    pub fn new(spacing: Duration) -> Self {
        Self { spacing, last: None }
    }

    /// Whether a line may be written at monotonic time `now`.
    pub fn allow(&mut self, now: Duration, _err: &Error) -> bool {
        match self.last {
            Some(last) if now < last + self.spacing => false,
            _ => {
                self.last = Some(now);
                true
            }
        }
    }

    /// After a success the next error is news again.
    pub fn reset(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_start_over_after_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let waits: Vec<u64> = (0..5).map(|_| backoff.step().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 5, 5]);
        assert_eq!(backoff.reset(), 5);
        assert_eq!(backoff.step().as_secs(), 1);
    }

    #[test]
    fn repeated_errors_are_logged_once_per_spacing() {
        let mut limiter = LogLimiter::new(Duration::from_secs(30));
        let err = Error::invalid("x");
        let at = |s| Duration::from_secs(s);
        assert!(limiter.allow(at(0), &err));
        assert!(!limiter.allow(at(29), &err));
        assert!(limiter.allow(at(30), &err));
        limiter.reset();
        assert!(limiter.allow(at(31), &err));
    }
}
