//! When a target that cannot be written to is tried again.
//!
//! Commits wait meanwhile, so soon; but a store in trouble must not be kept there by those who ask
//! whether it is over:
//!
//! * After each failure the wait doubles, up to [`SOON`]. Failures that waiting cannot cure take until
//!   [`LATE`].
//! * All failing targets of the process together make at most one attempt per [`SPACING`].
//! * What a service asks for is kept.
//! * Nobody waits in step with others: each wait is stretched or shortened by up to a fifth.
//! * Once one target is reached again, the others are tried without further waiting, one after
//!   another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::error::{Error, ErrorKind};
use crate::sys::Backoff;

/// The longest wait after a failure that may pass, for uploads at least as frequent.
const SOON: Duration = Duration::from_secs(5);
/// The longest wait after one that passes only when somebody does something about it.
const LATE: Duration = Duration::from_secs(60);
/// Between two attempts of all failing targets together.
const SPACING: Duration = Duration::from_millis(50);
/// Between two attempts once the store was reached again.
const RETURN_SPACING: Duration = Duration::from_millis(5);
/// Nobody waits longer, however many fail.
const LONGEST: Duration = Duration::from_secs(300);

/// The targets of one process that fail at the moment.
#[derive(Debug, Default)]
pub(super) struct Outages {
    failing: AtomicU32,
    over: Notify,
}

/// The attempts of one target.
#[derive(Debug)]
pub(super) struct Retry {
    outages: Arc<Outages>,
    backoff: Backoff,
    /// The longest wait after a failure that may pass.
    soon: Duration,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Well,
    /// May be over as soon as another target is reached.
    Hopeful,
    Stuck,
}

impl Retry {
    /// For a target that is uploaded to at most once per `interval`.
    pub(super) fn new(outages: Arc<Outages>, interval: Duration) -> Self {
        let first = interval.clamp(Duration::from_millis(100), Duration::from_secs(1));
        // Uploads that are rare by choice need not be tried much more often.
        let soon = interval.clamp(SOON, LATE);
        Self { outages, backoff: Backoff::new(first, LATE), soon, state: State::Well }
    }

    /// Counts a failure, and says how long to wait.
    pub(super) fn failed(&mut self, err: &Error, random: u64) -> Duration {
        let (state, longest) = if may_pass(err.kind()) { (State::Hopeful, self.soon) } else { (State::Stuck, LATE) };
        if std::mem::replace(&mut self.state, state) == State::Well {
            self.outages.failing.fetch_add(1, Ordering::Relaxed);
        }
        wait(self.backoff.step().min(longest), self.outages.failing(), err.retry_after(), random)
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// Waits for the next attempt: so long, or until another target was reached again.
    pub(super) async fn pause(&self, wait: Duration, random: u64) {
        // Registered from here on, so that nothing is missed between this and the wait.
        let over = self.outages.over.notified();
        tokio::select! {
            biased;
            () = over, if self.state == State::Hopeful => {
                let turn = crowd(RETURN_SPACING, self.outages.failing()).mul_f64(fraction(random));
                tokio::time::sleep(turn.min(wait)).await;
            }
            () = tokio::time::sleep(wait) => {}
        }
    }

    /// Forgets all failures; returns how many there were.
    pub(super) fn succeeded(&mut self) -> u32 {
        if self.leave() {
            self.outages.over.notify_waiters();
        }
        self.backoff.reset()
    }

    /// Whether it was among the failing.
    fn leave(&mut self) -> bool {
        let failed = std::mem::replace(&mut self.state, State::Well) != State::Well;
        if failed {
            self.outages.failing.fetch_sub(1, Ordering::Relaxed);
        }
        failed
    }
}

impl Drop for Retry {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Outages {
    fn failing(&self) -> u32 {
        self.failing.load(Ordering::Relaxed)
    }
}

/// How long to wait after a failure. `backoff` is what doubling came to, `failing` the number of those who
/// share [`SPACING`], `random` decides the spread.
fn wait(backoff: Duration, failing: u32, asked: Option<Duration>, random: u64) -> Duration {
    let wait = backoff.max(crowd(SPACING, failing)).min(LONGEST);
    let spread = 0.8 + 0.4 * fraction(random);
    wait.mul_f64(spread).max(asked.unwrap_or_default().min(LONGEST))
}

/// The time in which so many make one attempt each. One alone waits for nobody.
fn crowd(spacing: Duration, failing: u32) -> Duration {
    spacing.saturating_mul(failing.saturating_sub(1))
}

/// From 0 up to 1.
fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// Whether a failure of this kind may pass by itself, or by what an operator does while he watches.
fn may_pass(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::Busy
        | ErrorKind::DiskFull
        | ErrorKind::Unavailable
        | ErrorKind::Changed
        | ErrorKind::Io
        | ErrorKind::PermissionDenied => true,
        ErrorKind::NotFound
        | ErrorKind::Exists
        | ErrorKind::InUse
        | ErrorKind::Corrupt
        | ErrorKind::Invalid
        | ErrorKind::Cancelled
        | ErrorKind::Internal => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    /// In the middle of the spread: waits as they are.
    const EVEN: u64 = 1 << 63;

    fn retry(outages: &Arc<Outages>, interval: Duration) -> Retry {
        Retry::new(Arc::clone(outages), interval)
    }

    fn waits(retry: &mut Retry, kind: ErrorKind) -> Vec<u64> {
        let err = Error::new(kind, "no");
        (0..8).map(|_| retry.failed(&err, EVEN).as_secs()).collect()
    }

    #[test]
    fn a_store_that_is_away_is_tried_every_few_seconds() {
        let outages = Arc::default();
        let mut retry = retry(&outages, SECOND);
        assert_eq!(waits(&mut retry, ErrorKind::Unavailable), [1, 2, 4, 5, 5, 5, 5, 5]);
        assert_eq!(retry.succeeded(), 8);
        assert_eq!(waits(&mut retry, ErrorKind::Unavailable)[0], 1);
    }

    #[test]
    fn what_waiting_cannot_cure_is_tried_every_minute() {
        assert_eq!(waits(&mut retry(&Arc::default(), SECOND), ErrorKind::Corrupt), [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn rare_uploads_are_retried_less_often() {
        assert_eq!(waits(&mut retry(&Arc::default(), 20 * SECOND), ErrorKind::Io)[5..], [20, 20, 20]);
        assert_eq!(waits(&mut retry(&Arc::default(), 3600 * SECOND), ErrorKind::Io)[6..], [60, 60]);
    }

    #[test]
    fn many_failing_targets_share_the_attempts() {
        assert_eq!(wait(5 * SECOND, 1001, None, EVEN), 50 * SECOND);
        assert_eq!(wait(5 * SECOND, 1_000_000, None, EVEN), LONGEST);
        let outages: Arc<Outages> = Arc::default();
        let mut all: Vec<Retry> = (0..3).map(|_| retry(&outages, SECOND)).collect();
        for one in &mut all {
            one.failed(&Error::new(ErrorKind::Io, "no"), EVEN);
            one.failed(&Error::new(ErrorKind::Io, "no"), EVEN);
        }
        assert_eq!(outages.failing(), 3);
        all[0].succeeded();
        all[0].succeeded();
        assert_eq!(outages.failing(), 2);
        drop(all);
        assert_eq!(outages.failing(), 0);
    }

    #[test]
    fn the_service_is_given_the_time_it_asks_for() {
        let err = Error::new(ErrorKind::Unavailable, "slow down").asks_to_wait(30 * SECOND).context("write ltx file");
        assert_eq!(retry(&Arc::default(), SECOND).failed(&err, EVEN), 30 * SECOND);
        assert_eq!(wait(SECOND, 1, Some(Duration::MAX), EVEN), LONGEST);
    }

    #[test]
    fn waits_differ_by_a_fifth() {
        assert_eq!(wait(5 * SECOND, 1, None, 0), 4 * SECOND);
        assert!(wait(5 * SECOND, 1, None, u64::MAX) > Duration::from_millis(5990));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_reached_again_calls_the_others() {
        let outages = Arc::default();
        let (mut first, mut second, mut third) =
            (retry(&outages, SECOND), retry(&outages, SECOND), retry(&outages, SECOND));
        first.failed(&Error::new(ErrorKind::Unavailable, "no"), EVEN);
        second.failed(&Error::new(ErrorKind::Unavailable, "no"), EVEN);
        third.failed(&Error::new(ErrorKind::Corrupt, "no"), EVEN);
        let began = tokio::time::Instant::now();
        let (wait, stuck, ()) = tokio::join!(
            async {
                second.pause(100 * SECOND, EVEN).await;
                began.elapsed()
            },
            async {
                third.pause(100 * SECOND, EVEN).await;
                began.elapsed()
            },
            async {
                tokio::time::sleep(SECOND).await;
                first.succeeded();
            },
        );
        assert!(wait < 2 * SECOND, "{wait:?}");
        assert!(stuck >= 100 * SECOND, "{stuck:?}");
    }
}
