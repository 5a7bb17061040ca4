//! What every networked backend does around one request: count it, bound how many run at once, give it a
//! deadline, and try again with jitter where that can help.
//!
//! This sits below [`ReplicaClient`](super::ReplicaClient) and not around it, because only here is the body
//! of an upload at hand a second time: the stream given to `put` can be read once.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

pub use super::stats::{Operation, Request, RequestStats};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::World;

/// Why one attempt failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Its kind says whether another attempt can help.
    pub(crate) error: Error,
    /// The service's own code, or a word for it.
    pub(crate) code: String,
    /// How long the service asks us to wait.
    pub(crate) retry_after: Option<Duration>,
}

/// Makes an answer of a refusal that was reckoned with, which is no failure then, neither for counts nor for logs:
/// `None` if `outcome` failed with this kind.
#[cfg(any(feature = "abs", feature = "gs", feature = "oss", feature = "s3"))]
pub(crate) fn unless<T>(kind: ErrorKind, outcome: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match outcome {
        Ok(done) => Ok(Some(done)),
        Err(failure) if failure.error.kind() == kind => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Whether there is an object, of somebody who looked for it. Where looking is not allowed, nothing was seen.
#[cfg(any(feature = "abs", feature = "gs", feature = "oss", feature = "s3"))]
pub(crate) fn seen(looked: Result<bool>) -> Result<bool> {
    match looked {
        Err(err) if err.kind() == ErrorKind::PermissionDenied => {
            tracing::debug!(error = %err, "cannot look whether an object is there before it is written");
            Ok(false)
        }
        looked => looked,
    }
}

/// How often, and how long apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryPolicy {
    pub(crate) attempts: u32,
    /// The longest first wait. Each further one may be twice as long.
    pub(crate) first: Duration,
    pub(crate) max: Duration,
}

impl RetryPolicy {
    /// Spread over about 15 seconds. Waits stay short, so that a store that is back is noticed soon.
    pub(crate) const DEFAULT: Self =
        Self { attempts: 12, first: Duration::from_millis(100), max: Duration::from_secs(5) };

    /// The wait after attempt `n` (from 1): somewhere up to the bound ("full jitter"), so that many clients
    /// that failed together do not come back together. What the service asks for is kept, up to a minute.
    fn wait(&self, n: u32, retry_after: Option<Duration>, random: u64) -> Duration {
        let bound = self.first.saturating_mul(1 << (n - 1).min(16)).min(self.max);
        let jitter = bound.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64);
        match retry_after {
            Some(asked) => asked.min(Duration::from_secs(60)) + jitter,
            None => jitter,
        }
    }
}

/// Requests in flight of all clients of this process together: enough for a fast restore, few enough not to
/// bring a small service down.
const IN_FLIGHT: usize = 64;

/// Failures before the operator hears that something is being retried.
const QUIET_FAILURES: u32 = 2;

/// Runs the requests of one client.
#[derive(Debug, Clone)]
pub(crate) struct Requests {
    world: World,
    policy: RetryPolicy,
    stats: Arc<RequestStats>,
}

/// One kind of request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) operation: Operation,
    /// For log lines: `s3`.
    pub(crate) kind: &'static str,
    /// What is requested.
    pub(crate) target: &'a str,
    pub(crate) objects: u64,
    /// Bytes of the body; they also buy time.
    pub(crate) bytes: u64,
}

impl Requests {
    pub(crate) fn new(world: World) -> Self {
        Self { world, policy: RetryPolicy::DEFAULT, stats: Arc::default() }
    }

    #[cfg(feature = "s3")]
    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    pub(crate) fn stats(&self) -> &Arc<RequestStats> {
        &self.stats
    }

    /// Runs one attempt: for what cannot be tried twice. Counted and bounded like any other.
    pub(crate) async fn once<T>(
        &self,
        call: Call<'_>,
        attempt: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        static PERMITS: Semaphore = Semaphore::const_new(IN_FLIGHT);
        // A slow line must be able to finish: 64 KiB/s.
        let deadline = Duration::from_secs(60) + Duration::from_secs(call.bytes / (64 * 1024));
        let permit = PERMITS.acquire().await;
        let began = self.world.clock.elapsed();
        let outcome = match tokio::time::timeout(deadline, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => Err(timed_out(call, deadline)),
        };
        drop(permit);
        self.stats.record(&Request {
            operation: call.operation,
            objects: call.objects,
            bytes: if outcome.is_ok() { call.bytes } else { 0 },
            took: self.world.clock.elapsed().saturating_sub(began),
            error: outcome.as_ref().err().map(|f| f.code.as_str()),
        });
        outcome
    }

    /// A number nobody else has.
    #[cfg(feature = "abs")]
    pub(crate) fn random(&self) -> u64 {
        self.world.random.next_u64()
    }

    /// Runs `attempt` until it succeeds, fails for good, or the policy is used up. It is told how many
    /// attempts came before: after the first, an earlier one may have taken effect.
    pub(crate) async fn run<T, F>(&self, call: Call<'_>, mut attempt: impl FnMut(u32) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut failures = 0;
        loop {
            // Requests of SDKs are states of many KiB: on the heap, they do not grow whoever waits for one.
            let outcome = self.once(call, Box::pin(attempt(failures))).await;
            let failure = match outcome {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            failures += 1;
            if failures >= self.policy.attempts || !may_pass(failure.error.kind()) {
                return Err(match failure.retry_after {
                    Some(asked) => failure.error.asks_to_wait(asked),
                    None => failure.error,
                });
            }
            let wait = self.policy.wait(failures, failure.retry_after, self.world.random.next_u64());
            if failures == QUIET_FAILURES {
                tracing::warn!(
                    replica = call.kind,
                    operation = call.operation.name(),
                    target = call.target,
                    error = %failure.error,
                    hint = failure.error.hint_text(),
                    "storage request failed, retrying"
                );
            }
            tokio::time::sleep(wait).await;
        }
    }
}

fn timed_out(call: Call<'_>, deadline: Duration) -> Failure {
    let text = format!("no answer within {}s", deadline.as_secs());
    Failure {
        error: Error::new(ErrorKind::Unavailable, format!("{} {}", call.kind, call.operation.name()))
            .at(call.target)
            .caused_by(text),
        code: "Timeout".to_owned(),
        retry_after: None,
    }
}

/// Whether another attempt of the same request can help.
fn may_pass(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Busy)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const CALL: Call<'static> = Call { operation: Operation::Put, kind: "s3", target: "k", objects: 1, bytes: 10 };

    fn failure(kind: ErrorKind, retry_after: Option<Duration>) -> Failure {
        Failure { error: Error::new(kind, "no"), code: "SlowDown".to_owned(), retry_after }
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_again_and_counted() {
        let requests = Requests::new(World::system());
        let calls = AtomicU32::new(0);
        let done = requests
            .run(CALL, |before| {
                assert_eq!(before, calls.fetch_add(1, Ordering::Relaxed));
                async move { if before < 3 { Err(failure(ErrorKind::Unavailable, None)) } else { Ok(before) } }
            })
            .await;
        assert_eq!(done.unwrap(), 3);
        assert_eq!(requests.stats().count(Operation::Put), (1, 3));
        assert_eq!(requests.stats().count(Operation::Get), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final() {
        let requests = Requests::new(World::system());
        let done: Result<()> = requests.run(CALL, |_| async { Err(failure(ErrorKind::PermissionDenied, None)) }).await;
        assert_eq!(done.unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(requests.stats().count(Operation::Put), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_end_and_waits_are_bounded() {
        let requests = Requests::new(World::system());
        let began = tokio::time::Instant::now();
        let done: Result<()> = requests.run(CALL, |_| async { Err(failure(ErrorKind::Busy, None)) }).await;
        assert_eq!(done.unwrap_err().kind(), ErrorKind::Busy);
        assert_eq!(requests.stats().count(Operation::Put), (0, u64::from(RetryPolicy::DEFAULT.attempts)));
        assert!(began.elapsed() < Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_a_failure_that_may_pass() {
        let requests = Requests::new(World::system());
        let done = requests
            .run(CALL, |before| async move {
                if before == 0 {
                    std::future::pending::<()>().await;
                }
                Ok(before)
            })
            .await;
        assert_eq!(done.unwrap(), 1);
    }

    #[test]
    fn the_service_is_given_the_time_it_asks_for() {
        let policy = RetryPolicy::DEFAULT;
        let asked = Some(Duration::from_secs(7));
        assert!(policy.wait(1, asked, 0) >= Duration::from_secs(7));
        assert!(policy.wait(1, Some(Duration::MAX), u64::MAX) <= Duration::from_secs(61));
        assert_eq!(policy.wait(1, None, 0), Duration::ZERO);
        assert!(policy.wait(1, None, u64::MAX) <= Duration::from_millis(100));
        assert!(policy.wait(60, None, u64::MAX) <= policy.max);
        assert!(policy.wait(60, None, u64::MAX) > policy.max / 2);
    }
}
