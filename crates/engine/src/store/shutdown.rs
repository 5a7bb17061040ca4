//! The final sync (`spec: replication` §11).
//!
//! Guarantees:
//! 1. The program is gone once the shutdown timeout is over, whatever hangs; stopping tasks counts within it.
//! 2. Failures that waiting cannot cure end the final sync of a database at once.
//! 3. A database whose step hangs is not closed: closing a descriptor of a live database would drop SQLite's locks.
//!    The process ends with it open, which is as safe as being killed there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::config::ShutdownPolicy;
use super::database::Database;
use super::monitor::nothing_to_sync;
use super::registry::{Entry, Running};
use super::repeated::Failing;
use crate::error::{Error, ErrorKind, Result};
use crate::replica::hurried;
use crate::telemetry::duration;

/// Databases that are synced for the last time at the same time.
const AT_ONCE: usize = 16;
/// Who takes longer does not keep the others waiting: it may hang.
const PLACE: Duration = Duration::from_secs(1);
/// How long tasks may take to stop before the local files are brought up to date beside them.
const STOPPING: Duration = Duration::from_millis(500);
/// How long a database may take to close once time is up.
const CLOSING: Duration = Duration::from_millis(250);
/// The same where only one attempt is asked for.
const STOPPING_IN_A_HURRY: Duration = Duration::from_millis(200);
/// How long a store may be silent where only one attempt is asked for.
const SILENCE: Duration = Duration::from_millis(1500);
/// How long that one attempt may take where a disk hangs.
const ONE_ATTEMPT: Duration = Duration::from_secs(30);

/// How long a final sync may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    policy: ShutdownPolicy,
    /// What runs then is given up.
    until: Instant,
}

/// Why something was not waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GivenUp {
    TimeIsUp,
    Interrupted,
}

impl Limits {
    /// As long as the settings say, from `began` on.
    pub(super) fn since(began: Instant, policy: ShutdownPolicy) -> Self {
        let most = if policy.timeout.is_zero() { ONE_ATTEMPT } else { policy.timeout };
        Self { policy, until: far(began, most) }
    }

    /// The same, but no longer than `limit`.
    pub(super) fn within(policy: ShutdownPolicy, limit: Duration) -> Self {
        Self {
            policy: ShutdownPolicy { timeout: policy.timeout.min(limit), ..policy },
            until: far(Instant::now(), limit),
        }
    }

    fn one_attempt(&self) -> bool {
        self.policy.timeout.is_zero()
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Waits for `work` as long as it is worth it.
    async fn wait<T>(&self, interrupt: &CancellationToken, work: impl Future<Output = T>) -> Result<T, GivenUp> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = interrupt.cancelled() => Err(GivenUp::Interrupted),
            () = tokio::time::sleep_until(self.until) => Err(GivenUp::TimeIsUp),
        }
    }
}

/// So long from then; a clock has an end.
fn far(from: Instant, limit: Duration) -> Instant {
    from + limit.min(Duration::from_secs(365 * 24 * 3600))
}

/// Stops the tasks of all databases, then syncs, uploads and closes them, as long as the limits say. Those whose
/// replicas may lack commits come back.
pub(super) async fn close_all(entries: &[Arc<Entry>], limits: Limits, interrupt: &CancellationToken) -> Vec<PathBuf> {
    entries.iter().for_each(|entry| entry.cancel());
    let places = Semaphore::new(AT_ONCE);
    let one = |entry: &Arc<Entry>| {
        let (entry, final_sync) = (Arc::clone(entry), FinalSync { limits, interrupt });
        let places = &places;
        async move {
            match close_entry(&entry, &final_sync, places).await {
                Ok(()) => None,
                Err(err) if err.kind() == ErrorKind::Cancelled => {
                    warn!(error = %err, db = %entry.config.db.name(), "shutdown sync skipped by user interrupt");
                    Some(entry.path().to_owned())
                }
                Err(err) => {
                    error!(error = %err, hint = err.hint_text(), db = %entry.config.db.name(), "failed to close database");
                    Some(entry.path().to_owned())
                }
            }
        }
    };
    let closing: FuturesUnordered<_> = entries.iter().map(one).collect();
    closing.filter_map(futures::future::ready).collect().await
}

async fn close_entry(entry: &Entry, final_sync: &FinalSync<'_>, places: &Semaphore) -> Result<()> {
    let (limits, interrupt) = (final_sync.limits, final_sync.interrupt);
    // Somebody may be stopping it on request, and waits for a store.
    let turn = limits.wait(interrupt, entry.turn.lock()).await;
    let _turn = turn.map_err(|why| final_sync.error(why, 0, None))?;
    let Some(mut running) = entry.take() else { return Ok(()) };
    let synced = final_sync.stop_and_sync(&mut running, places).await;
    // What was never opened has nothing to close but what a step may be opening now.
    let hurry = interrupt.is_cancelled() || !running.database.was_opened();
    let patience = if hurry { CLOSING } else { limits.left().max(CLOSING) };
    let closing = async {
        running.tasks.abandon().await;
        running.database.close().await
    };
    match tokio::time::timeout(patience, closing).await {
        Ok(closed) => synced.and(closed),
        Err(_) => {
            // Not even when the last of its users lets go of it.
            std::mem::forget(Arc::clone(&running.database));
            synced.and_then(|()| Err(final_sync.error(GivenUp::TimeIsUp, 1, None)))
        }
    }
}

/// Stops and syncs one database for the last time, then closes it, whatever came of that and however long it takes:
/// the program goes on, and another engine may come to its path.
pub(super) async fn close_database(
    mut running: Running,
    limits: Limits,
    interrupt: &CancellationToken,
) -> (Result<()>, Arc<Database>) {
    let final_sync = FinalSync { limits, interrupt };
    let synced = final_sync.stop_and_sync(&mut running, &Semaphore::new(1)).await;
    running.tasks.abandon().await;
    let closed = running.database.close().await;
    (synced.and(closed), running.database)
}

/// The final sync of one database.
#[derive(Debug, Clone, Copy)]
struct FinalSync<'a> {
    limits: Limits,
    interrupt: &'a CancellationToken,
}

/// Why an attempt failed.
struct Failed {
    error: Error,
    /// Waiting cannot cure it.
    hopeless: bool,
    /// The target that failed.
    target: Option<usize>,
}

impl FinalSync<'_> {
    async fn stop_and_sync(&self, running: &mut Running, places: &Semaphore) -> Result<()> {
        if !running.database.was_opened()
            && let Some(error) = running.database.health().local_error()
        {
            // What could not be opened so far is not waited for: it was tried a moment ago.
            running.tasks.abandon().await;
            if error.kind() != ErrorKind::InUse {
                return Err(error);
            }
            // Whoever had it may be gone by now, and what was committed since is in nobody's replica.
            let synced = self.sync(&running.database, places).await;
            return synced.or_else(|error| {
                if running.database.was_opened() || error.kind() != ErrorKind::InUse {
                    return Err(error);
                }
                // Whoever has it replicates it: nothing is missing for our not having had it.
                info!(system = "store", db = %running.database.name(), error = %error, "database was never ours, nothing to sync");
                Ok(())
            });
        }
        self.stop(running).await?;
        self.sync(&running.database, places).await
    }

    /// Waits for the tasks, which end the step they are in.
    async fn stop(&self, running: &mut Running) -> Result<()> {
        let Running { tasks, database, .. } = running;
        let patience = if self.limits.one_attempt() { STOPPING_IN_A_HURRY } else { STOPPING };
        if tokio::time::timeout(patience, self.limits.wait(self.interrupt, tasks.stop())).await.is_ok_and(|w| w.is_ok())
        {
            return Ok(());
        }
        if self.limits.one_attempt() {
            tasks.abandon().await;
            return Ok(());
        }
        // A store holds them up. The local files need none.
        let both = futures::future::join(tasks.stop(), Box::pin(database.sync_local()));
        self.limits.wait(self.interrupt, both).await.map(drop).map_err(|why| self.error(why, 0, None))
    }

    async fn sync(&self, database: &Database, places: &Semaphore) -> Result<()> {
        let Limits { policy, .. } = self.limits;
        let started = Instant::now();
        let mut attempts: u32 = 0;
        let mut last: Option<Error> = None;
        let mut vanished = false;
        loop {
            let attempt =
                self.limits.wait(self.interrupt, self.in_place(places, Box::pin(self.attempt(database)))).await;
            let failed = match attempt {
                Err(why) => return Err(self.error(why, attempts + u32::from(why == GivenUp::TimeIsUp), last)),
                Ok(Ok(())) => {
                    self.succeeded(database, attempts + 1, started);
                    return Ok(());
                }
                Ok(Err(failed)) => failed,
            };
            attempts += 1;
            let Failed { error, hopeless, target } = failed;
            if self.limits.one_attempt() {
                return Err(error);
            }
            if error.kind() == ErrorKind::NotFound && !vanished {
                // An object that was deleted meanwhile; the next attempt looks again.
                vanished = true;
                continue;
            }
            if hopeless {
                return Err(error);
            }
            let remaining = self.limits.left();
            // No attempt is begun that could not be followed by another within the time.
            if remaining < policy.interval {
                return Err(self.error(GivenUp::TimeIsUp, attempts, Some(error)));
            }
            if let Some(standing) = database.failed(Failing::FinalSync, target, &error) {
                warn!(system = "store", db = %database.name(), attempts, error = %error,
                    elapsed = duration(started.elapsed()), remaining = duration(remaining), databases = standing.failing,
                    "shutdown sync failed, retrying (press Ctrl+C again to skip)");
            }
            last = Some(error);
            if self.limits.wait(self.interrupt, tokio::time::sleep(policy.interval)).await == Err(GivenUp::Interrupted)
            {
                warn!(system = "store", db = %database.name(), attempts, duration = duration(started.elapsed()),
                    "shutdown sync interrupted by signal");
                return Err(self.error(GivenUp::Interrupted, attempts, last));
            }
        }
    }

    fn succeeded(&self, database: &Database, attempts: u32, started: Instant) {
        database.succeeded(|failing| failing == Failing::FinalSync);
        if attempts > 1 {
            info!(system = "store", db = %database.name(), attempts, duration = duration(started.elapsed()),
                "shutdown sync succeeded after retry");
        }
    }

    /// Runs an attempt in one of the places; one that takes long goes on without.
    async fn in_place<T>(&self, places: &Semaphore, attempt: impl Future<Output = T>) -> T {
        let place = places.acquire().await;
        let mut attempt = std::pin::pin!(attempt);
        if let Ok(done) = tokio::time::timeout(PLACE, attempt.as_mut()).await {
            return done;
        }
        drop(place);
        attempt.await
    }

    async fn attempt(&self, database: &Database) -> Result<(), Failed> {
        let all = Box::pin(async {
            let report = database.sync_local().await.map_err(|error| Failed {
                // One that could not even be opened is not missed by anybody yet.
                hopeless: !error.is_transient() || !database.was_opened(),
                target: database.blamed(),
                error,
            })?;
            if nothing_to_sync(&report) {
                return Ok(());
            }
            for (n, target) in database.targets().iter().enumerate() {
                let synced = target.sync(database, None).await;
                synced.map_err(|error| Failed { hopeless: !error.is_transient(), target: Some(n), error })?;
            }
            Ok(())
        });
        if self.limits.one_attempt() { hurried(SILENCE, all).await } else { all.await }
    }

    /// `last` is what went wrong before.
    fn error(&self, why: GivenUp, attempts: u32, last: Option<Error>) -> Error {
        match why {
            GivenUp::Interrupted => {
                Error::new(ErrorKind::Cancelled, format!("after {attempts} attempts: shutdown sync interrupted"))
            }
            GivenUp::TimeIsUp => {
                let silent = || Error::new(ErrorKind::Unavailable, "context deadline exceeded");
                last.unwrap_or_else(silent).context(format!("shutdown sync timeout after {attempts} attempts"))
            }
        }
    }
}
