//! What every networked backend does around one request: count it, bound how many run at once, give it a
//! deadline, and try again with jitter where that can help.
//!
//! This sits below [`ReplicaClient`](super::ReplicaClient) and not around it, because only here is the body
//! of an upload at hand a second time: the stream given to `put` can be read once.
//!
//! A deadline bounds silence and not the whole attempt: whoever moves bytes calls `progress`, and a slow transfer
//! goes on for as long as it gets on.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::hurry::in_a_hurry;
use super::location::store_of;
pub use super::stats::{Operation, Request, RequestStats};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{LogLimiter, World};

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

/// Failures of a request before the operator hears that something is being retried.
const QUIET_FAILURES: u32 = 2;
/// Between two lines about the requests to one store.
const SPACING: Duration = Duration::from_secs(30);

/// How long a store that is only asked may be silent before it is asked again, on another connection: the first one
/// may have died without a word.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// How long the failed attempts of one question may take together. Whoever waits for a restore is told within half a
/// minute that the store does not answer.
const NO_ANSWER: Duration = Duration::from_secs(25);
/// How long a store may be silent that was given something to do: it may be copying what it was sent.
const NO_EFFECT: Duration = Duration::from_secs(60);
/// Bytes a second that a line is believed to carry. What was handed to the system may be on its way for so long.
const SLOW_LINE: u64 = 64 * 1024;

tokio::task_local! {
    /// When the attempt that runs here last got on.
    static PULSE: Pulse;
}

/// When an attempt last got on.
#[derive(Debug, Clone)]
pub(crate) struct Pulse {
    began: Instant,
    /// Milliseconds from there.
    last: Arc<AtomicU64>,
}

impl Pulse {
    fn new() -> Self {
        Self { began: Instant::now(), last: Arc::default() }
    }

    /// The one of the attempt that runs here, for whoever moves its bytes elsewhere.
    #[cfg(feature = "web")]
    pub(crate) fn here() -> Option<Self> {
        PULSE.try_with(Clone::clone).ok()
    }

    /// It got on.
    pub(crate) fn beat(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(since, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    /// Ends once nothing has got on for so long.
    async fn silent_for(&self, limit: Duration) {
        loop {
            let until = self.last() + limit;
            tokio::time::sleep_until(until).await;
            if self.last() + limit <= until {
                return;
            }
        }
    }
}

/// Says that the attempt that runs here got on.
pub(crate) fn progress() {
    // Outside of an attempt nobody waits for it.
    let _ = PULSE.try_with(Pulse::beat);
}

/// Runs a part of an attempt that has a limit of its own.
#[cfg(any(feature = "abs", feature = "gs"))]
pub(crate) async fn bounded_by_itself<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        if let Ok(done) = tokio::time::timeout(Duration::from_secs(1), work.as_mut()).await {
            return done;
        }
        progress();
    }
}

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

impl Call<'_> {
    /// Whether the store is only asked, and given nothing to do.
    fn asks(&self) -> bool {
        self.bytes == 0 && matches!(self.operation, Operation::Get | Operation::List)
    }

    /// How long an attempt may be silent if those before it have taken `spent`.
    fn patience(&self, spent: Duration) -> Duration {
        // A slow line must be able to finish.
        let under_way = Duration::from_secs(self.bytes / SLOW_LINE);
        match in_a_hurry() {
            Some(patience) => patience + under_way,
            None if self.asks() && spent.is_zero() => FIRST_ANSWER,
            // Never nothing: an attempt that is made can succeed.
            None if self.asks() => NO_ANSWER.saturating_sub(spent).max(Duration::from_secs(1)),
            None => NO_EFFECT + under_way,
        }
    }

    /// Whether failed attempts have taken so long that another one is for nothing.
    fn is_answerless(&self, spent: Duration) -> bool {
        self.asks() && spent >= NO_ANSWER
    }
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
    #[cfg(any(feature = "nats", feature = "sftp", feature = "webdav"))]
    pub(crate) async fn once<T>(
        &self,
        call: Call<'_>,
        attempt: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.attempt(call, call.patience(Duration::ZERO), attempt).await
    }

    async fn attempt<T>(
        &self,
        call: Call<'_>,
        patience: Duration,
        attempt: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        static PERMITS: Semaphore = Semaphore::const_new(IN_FLIGHT);
        let permit = PERMITS.acquire().await;
        let began = self.world.clock.elapsed();
        let pulse = Pulse::new();
        let attempt = pin!(PULSE.scope(pulse.clone(), attempt));
        let outcome = tokio::select! {
            biased;
            outcome = attempt => outcome,
            () = pulse.silent_for(patience) => Err(timed_out(call, patience)),
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
        let mut spent = Duration::ZERO;
        loop {
            let began = Instant::now();
            // Requests of SDKs are states of many KiB: on the heap, they do not grow whoever waits for one.
            let outcome = self.attempt(call, call.patience(spent), Box::pin(attempt(failures))).await;
            let failure = match outcome {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            failures += 1;
            spent += began.elapsed();
            let enough = failures >= self.policy.attempts || in_a_hurry().is_some() || call.is_answerless(spent);
            if enough || !may_pass(failure.error.kind()) {
                return Err(match failure.retry_after {
                    Some(asked) => failure.error.asks_to_wait(asked),
                    None => failure.error,
                });
            }
            let wait = self.policy.wait(failures, failure.retry_after, self.world.random.next_u64());
            if failures >= QUIET_FAILURES
                && let Some(repeated) = told(self.world.clock.elapsed(), call.target, &failure.error)
            {
                tracing::warn!(
                    replica = call.kind,
                    operation = call.operation.name(),
                    target = call.target,
                    error = %failure.error,
                    hint = failure.error.hint_text(),
                    failures = Some(repeated).filter(|count| *count > 1),
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

/// Counts a failure at monotonic time `now`. How many there were since the last line, if it is time for another: all
/// requests to a store share their lines.
fn told(now: Duration, target: &str, err: &Error) -> Option<u64> {
    type Lines = HashMap<(String, ErrorKind), (LogLimiter, u64)>;
    static LINES: LazyLock<Mutex<Lines>> = LazyLock::new(Mutex::default);
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let new = || (LogLimiter::new(SPACING), 0);
    let (limiter, count) = lines.entry((store_of(target), err.kind())).or_insert_with(new);
    *count += 1;
    limiter.allow(now, err).then(|| std::mem::take(count))
}

/// Whether another attempt of the same request can help.
fn may_pass(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Busy)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::hurry::hurried;
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

    /// How long it takes until a store that never answers is given up.
    async fn given_up_after(call: Call<'_>) -> (Duration, Error) {
        let requests = Requests::new(World::system());
        let began = Instant::now();
        let done: Result<()> = requests.run(call, |_| std::future::pending()).await;
        (began.elapsed(), done.unwrap_err())
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_never_answers_a_question_is_given_up_within_half_a_minute() {
        for operation in [Operation::Get, Operation::List] {
            let (took, err) = given_up_after(Call { operation, bytes: 0, ..CALL }).await;
            assert!(took < Duration::from_secs(27), "{took:?}");
            assert_eq!(err.kind(), ErrorKind::Unavailable);
            assert!(err.to_string().contains("no answer within"), "{err}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_transfer_is_never_cut_while_it_gets_on() {
        let requests = Requests::new(World::system());
        for operation in [Operation::Get, Operation::Put] {
            let done = requests
                .once(Call { operation, bytes: 0, ..CALL }, async {
                    for _ in 0..100 {
                        tokio::time::sleep(Duration::from_secs(9)).await;
                        progress();
                    }
                    Ok(())
                })
                .await;
            assert!(done.is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_in_a_hurry_tries_once_and_waits_little() {
        let began = Instant::now();
        let patience = Duration::from_secs(2);
        let (took, _) = hurried(patience, given_up_after(CALL)).await;
        assert_eq!(took, patience);
        let requests = Requests::new(World::system());
        let done: Result<()> =
            hurried(patience, requests.run(CALL, |_| async { Err(failure(ErrorKind::Unavailable, None)) })).await;
        assert_eq!(done.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(requests.stats().count(Operation::Put), (0, 1));
        assert_eq!(began.elapsed(), patience);
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
