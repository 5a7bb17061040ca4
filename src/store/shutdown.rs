//! The final sync (`spec: replication` §11).

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::config::ShutdownPolicy;
use super::database::Database;
use super::monitor::nothing_to_sync;
use super::registry::Entry;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::World;
use crate::telemetry::duration;

/// Databases that are closed at the same time.
const AT_ONCE: usize = 16;

/// How long a final sync may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    policy: ShutdownPolicy,
    /// An attempt that is running then is given up.
    deadline: Option<Duration>,
}

impl Limits {
    /// As long as the settings say.
    pub(super) fn of(policy: ShutdownPolicy) -> Self {
        Self { policy, deadline: None }
    }

    /// The same, but no longer than `limit`.
    pub(super) fn within(policy: ShutdownPolicy, limit: Duration) -> Self {
        Self { policy: ShutdownPolicy { timeout: policy.timeout.min(limit), ..policy }, deadline: Some(limit) }
    }
}

/// Stops the tasks of all databases, then syncs, uploads and closes them.
pub(super) async fn close_all(
    world: &World,
    entries: &[Arc<Entry>],
    policy: ShutdownPolicy,
    interrupt: &CancellationToken,
) {
    entries.iter().for_each(|entry| entry.cancel());
    futures::stream::iter(entries)
        .for_each_concurrent(AT_ONCE, |entry| async move {
            let _turn = entry.turn.lock().await;
            let Some(mut running) = entry.take() else { return };
            running.tasks.stop().await;
            let database = &running.database;
            if let Err(err) = close_database(world, database, Limits::of(policy), interrupt).await {
                if err.kind() == ErrorKind::Cancelled {
                    warn!(error = %err, db = %database.name(), "shutdown sync skipped by user interrupt");
                } else {
                    error!(error = %err, db = %database.name(), "failed to close database");
                }
            }
        })
        .await;
}

/// The final sync of one database whose tasks have ended; then it is closed, whatever came of it.
pub(super) async fn close_database(
    world: &World,
    database: &Database,
    limits: Limits,
    interrupt: &CancellationToken,
) -> Result<()> {
    let synced = sync_finally(world, database, limits, interrupt).await;
    let closed = database.close().await;
    synced.and(closed)
}

async fn sync_finally(world: &World, database: &Database, limits: Limits, interrupt: &CancellationToken) -> Result<()> {
    let Limits { policy, deadline } = limits;
    let started = world.clock.elapsed();
    let mut attempts: u32 = 0;
    loop {
        let elapsed = world.clock.elapsed().saturating_sub(started);
        let time_left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_sub(elapsed));
        // Giving up drops a local step only while it waits its turn; one that runs is finished.
        let attempt = interrupt.run_until_cancelled(tokio::time::timeout(time_left, attempt(database)));
        let Some(outcome) = attempt.await else { return Err(interrupted(attempts)) };
        attempts += 1;
        let outcome = outcome.unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "context deadline exceeded")));
        let Err(err) = outcome else {
            if attempts > 1 {
                let took = world.clock.elapsed().saturating_sub(started);
                info!(system = "store", db = %database.name(), attempts, duration = duration(took),
                    "shutdown sync succeeded after retry");
            }
            return Ok(());
        };
        // Another process has the database or the target: waiting would not make it ours.
        if policy.timeout.is_zero() || err.kind() == ErrorKind::InUse {
            return Err(err);
        }
        let elapsed = world.clock.elapsed().saturating_sub(started);
        // No attempt is begun that could not be followed by another within the time.
        let Some(remaining) = policy.timeout.checked_sub(elapsed).filter(|r| *r >= policy.interval) else {
            return Err(err.context(format!("shutdown sync timeout after {attempts} attempts")));
        };
        warn!(system = "store", db = %database.name(), attempts, error = %err, elapsed = duration(elapsed),
            remaining = duration(remaining), "shutdown sync failed, retrying (press Ctrl+C again to skip)");
        let pause = tokio::time::sleep(policy.interval);
        if interrupt.run_until_cancelled(pause).await.is_none() {
            let took = world.clock.elapsed().saturating_sub(started);
            warn!(system = "store", db = %database.name(), attempts, duration = duration(took),
                "shutdown sync interrupted by signal");
            return Err(interrupted(attempts));
        }
    }
}

fn interrupted(attempts: u32) -> Error {
    Error::new(ErrorKind::Cancelled, format!("after {attempts} attempts: shutdown sync interrupted"))
}

async fn attempt(database: &Database) -> Result<()> {
    let report = database.sync_local().await?;
    if nothing_to_sync(&report) {
        return Ok(());
    }
    for target in database.targets() {
        target.sync(database, None).await?;
    }
    Ok(())
}
