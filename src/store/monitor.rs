//! The task that looks after one database's log.
//!
//! A look at an idle database is two `stat` calls and 100 bytes of shared memory. While commits
//! come in it looks more often: not to write more files, but so that a burst is read and
//! checkpointed before the log outgrows the page cache.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::database::Database;
use crate::db::SyncReport;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{Backoff, LogLimiter};

const MAX_BACKOFF: Duration = Duration::from_secs(300);
const ERROR_SPACING: Duration = Duration::from_secs(30);
/// How often a busy log is looked at.
const BUSY_LOOK: Duration = Duration::from_millis(20);
/// A log that brought something within this time is busy.
const BUSY_FOR: Duration = Duration::from_secs(3);
/// How often a database is tried that another process replicates.
const LOCK_LOOK: Duration = Duration::from_secs(1);
/// Even a log that seems untouched is read this often.
const FULL_PASS: Duration = Duration::from_secs(60);
/// Between intervals, sync once so many checkpoint thresholds' worth of log is unread.
const BURST_FACTOR: u64 = 4;

/// What to do after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Nothing,
    /// There is nothing that was not read.
    Current,
    Sync,
}

/// Times of a monitor, all monotonic.
#[derive(Debug)]
struct Times {
    interval: Duration,
    /// Start of the last sync.
    synced: Option<Duration>,
    /// When something was last found.
    found: Option<Duration>,
}

impl Times {
    fn busy(&self, now: Duration) -> bool {
        self.found.is_some_and(|found| now.saturating_sub(found) < BUSY_FOR)
    }

    fn next_look(&self, now: Duration) -> Duration {
        if self.busy(now) { self.interval.min(BUSY_LOOK) } else { self.interval }
    }
}

/// Follows the database until told to stop.
pub(super) async fn run(database: Arc<Database>, stop: CancellationToken) {
    let Some(interval) = database.config.monitor_interval else { return };
    let clock = database.world.clock.clone();
    let mut times = Times { interval, synced: None, found: None };
    let mut trouble = Trouble::new(interval);
    loop {
        let now = clock.elapsed();
        let mut wait = times.next_look(now);
        let found = look(&database, &times, now);
        if found == Look::Current {
            database.health().looked(&database.world, now);
        }
        if found == Look::Sync {
            times.synced = Some(now);
            let Some(_turn) = stop.run_until_cancelled(database.turn()).await else { return };
            match database.sync_local().await {
                Ok(report) => {
                    trouble.over(&database);
                    if report.files > 0 {
                        times.found = Some(now);
                    }
                    wait = times.next_look(now);
                }
                Err(err) => wait = trouble.step(&database, &err, clock.elapsed()).await,
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Whether a sync is worth it now. Does not block.
fn look(database: &Database, times: &Times, now: Duration) -> Look {
    let since = match times.synced {
        None => return Look::Sync,
        Some(synced) => now.saturating_sub(synced),
    };
    if since >= FULL_PASS {
        return Look::Sync;
    }
    if database.is_at_rest() {
        return Look::Current;
    }
    // Somebody else is at it; there will be another look.
    let Some(db) = database.try_db() else { return Look::Nothing };
    if since >= times.interval {
        return if db.needs_step() { Look::Sync } else { Look::Current };
    }
    let frames = u64::from(database.config.db.min_checkpoint_pages).saturating_mul(BURST_FACTOR);
    let burst = db.page_size().map(|size| frames.saturating_mul(size.frame_size()));
    match (db.log_bytes(), burst) {
        (Some((unread, _)), Some(burst)) if unread >= burst => Look::Sync,
        _ => Look::Nothing,
    }
}

/// Backing off and saying so.
struct Trouble {
    backoff: Backoff,
    limiter: LogLimiter,
}

impl Trouble {
    fn new(interval: Duration) -> Self {
        Self { backoff: Backoff::new(interval, MAX_BACKOFF), limiter: LogLimiter::new(ERROR_SPACING) }
    }

    fn over(&mut self, database: &Database) {
        let failures = self.backoff.reset();
        if failures > 0 {
            self.limiter.reset();
            info!(system = "store", db = %database.name(), previous_errors = failures, "sync recovered");
        }
    }

    async fn step(&mut self, database: &Database, err: &Error, now: Duration) -> Duration {
        let mut wait = self.backoff.step();
        if err.kind() == ErrorKind::InUse {
            // When the other process ends, this one takes over at once.
            wait = wait.min(LOCK_LOOK);
        }
        let failures = self.backoff.failures();
        let full = err.kind() == ErrorKind::DiskFull;
        database.health().local_trouble(&database.world, err, failures, wait);
        if self.limiter.allow(now, err) {
            if full {
                error!(system = "store", db = %database.name(), error = %err, consecutive_errors = failures,
                    backoff = ?wait, max_backoff = ?MAX_BACKOFF,
                    "disk full while staging ltx file, replication paused until space is freed");
            } else {
                error!(system = "store", db = %database.name(), error = %err, hint = err.hint_text(),
                    consecutive_errors = failures, backoff = ?wait, "sync error");
            }
        }
        if full && failures >= 3 {
            let _: Result<()> = database
                .with_db(|db| {
                    db.local().remove_temp_files();
                    Ok(())
                })
                .await;
        }
        wait
    }
}

/// Whether there is nothing to wait for at shutdown.
pub(super) fn nothing_to_sync(report: &SyncReport) -> bool {
    report.no_database || report.position.is_none()
}
