//! The final sync (`spec: replication` §11).

use std::sync::Arc;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::config::ShutdownPolicy;
use super::database::Database;
use super::monitor::nothing_to_sync;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::World;
use crate::telemetry::duration;

/// Databases that are closed at the same time.
const AT_ONCE: usize = 16;

/// Syncs, uploads and closes all databases.
pub(super) async fn close_all(
    world: &World,
    databases: &[Arc<Database>],
    policy: ShutdownPolicy,
    interrupt: &CancellationToken,
) {
    futures::stream::iter(databases)
        .for_each_concurrent(AT_ONCE, |database| async move {
            if let Err(err) = sync_finally(world, database, policy, interrupt).await {
                if err.kind() == ErrorKind::Cancelled {
                    warn!(error = %err, db = %database.name(), "shutdown sync skipped by user interrupt");
                } else {
                    error!(error = %err, db = %database.name(), "failed to close database");
                }
            }
            if let Err(err) = database.close().await {
                error!(error = %err, db = %database.name(), "failed to close database");
            }
        })
        .await;
}

async fn sync_finally(
    world: &World,
    database: &Database,
    policy: ShutdownPolicy,
    interrupt: &CancellationToken,
) -> Result<()> {
    let started = world.clock.elapsed();
    let mut attempts: u32 = 0;
    loop {
        let interrupted =
            || Error::new(ErrorKind::Cancelled, format!("after {attempts} attempts: shutdown sync interrupted"));
        // Interrupting drops a local step only while it waits its turn; one that runs is finished.
        let Some(outcome) = interrupt.run_until_cancelled(attempt(database)).await else {
            return Err(interrupted());
        };
        attempts += 1;
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
            return Err(Error::new(
                ErrorKind::Cancelled,
                format!("after {attempts} attempts: shutdown sync interrupted"),
            ));
        }
    }
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
