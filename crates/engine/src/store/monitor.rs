//! The task that looks after one database's log.
//!
//! A look at an idle database is two `stat` calls and 100 bytes of shared memory. While commits
//! come in it looks more often: not to write more files, but so that a burst is read and
//! checkpointed before the log outgrows the page cache.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::database::Database;
use super::repeated::{Failing, counted};
use crate::db::SyncReport;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::Backoff;
use crate::telemetry::duration;

const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// A database that is not there is said to be missing after this.
const ABSENCE_SAID_AFTER: Duration = Duration::from_secs(3);
/// How often a busy log is looked at.
const BUSY_LOOK: Duration = Duration::from_millis(20);
/// A log that brought something within this time is busy.
const BUSY_FOR: Duration = Duration::from_secs(3);
/// How often to look whether the application's own checkpoint waits for our read mark, while we have one.
const COURTESY_LOOK: Duration = Duration::from_millis(40);
/// After that time without a commit a checkpoint of our own has left the log, or waits for other readers too.
const COURTESY_FOR: Duration = Duration::from_secs(75);
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
    let mut trouble = Trouble::new(Arc::clone(&database), interval);
    let mut absence = Absence::default();
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
                    trouble.over();
                    absence.note(&database, report.no_database, now);
                    if report.files > 0 {
                        times.found = Some(now);
                    }
                    wait = times.next_look(now);
                }
                Err(err) => {
                    wait = trouble.step(&err).await;
                    // Whatever the log looks like then: what was not read has not been read.
                    times.synced = None;
                }
            }
        }
        let recent = times.found.is_some_and(|found| now.saturating_sub(found) < COURTESY_FOR);
        if recent && database.try_db().is_some_and(|db| db.holds_a_mark()) {
            wait = wait.min(COURTESY_LOOK);
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
    if db.is_waited_for() {
        return Look::Sync;
    }
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

/// A database that is not there is waited for; once that takes longer than an application needs to start, it
/// is said.
#[derive(Default)]
struct Absence {
    since: Option<Duration>,
    said: bool,
}

impl Absence {
    fn note(&mut self, database: &Database, absent: bool, now: Duration) {
        if !absent {
            *self = Self::default();
            return;
        }
        let since = *self.since.get_or_insert(now);
        if self.said || now.saturating_sub(since) < ABSENCE_SAID_AFTER {
            return;
        }
        self.said = true;
        let path = &database.config.db.configured;
        let text = path.to_string_lossy();
        let uri = (text.contains("file:") || text.contains('?')).then_some(
            "this looks like the URI an application opens: write the plain path, without file: and parameters",
        );
        warn!(system = "store", db = %database.name(), path = %path.display(), hint = uri,
            "there is no such database; nothing is replicated until there is");
    }
}

/// Backing off and saying so.
struct Trouble {
    database: Arc<Database>,
    backoff: Backoff,
}

impl Drop for Trouble {
    fn drop(&mut self) {
        self.database.succeeded(|failing| failing == Failing::Sync);
    }
}

impl Trouble {
    fn new(database: Arc<Database>, interval: Duration) -> Self {
        Self { database, backoff: Backoff::new(interval, MAX_BACKOFF) }
    }

    fn over(&mut self) {
        if self.backoff.reset() > 0
            && let Some(over) = self.database.succeeded(|failing| failing == Failing::Sync)
        {
            info!(system = "store", db = %self.database.name(), previous_errors = over.failures, databases = over.failing,
                outage = duration(over.lasted), "sync recovered");
        }
    }

    async fn step(&mut self, err: &Error) -> Duration {
        let database = &self.database;
        let mut wait = self.backoff.step();
        if err.kind() == ErrorKind::InUse {
            // When the other process ends, this one takes over at once.
            wait = wait.min(LOCK_LOOK);
        }
        let failures = self.backoff.failures();
        let full = err.kind() == ErrorKind::DiskFull;
        database.health().local_trouble(&database.world, err, failures, wait);
        // A database that cannot be compared with its target is one of all that the store keeps waiting.
        if let Some(standing) = database.failed(Failing::Sync, database.blamed(), err) {
            let (databases, in_all, outage) = counted(standing);
            if full {
                error!(system = "store", db = %database.name(), error = %err, consecutive_errors = failures,
                    databases, failures = in_all, outage, backoff = ?wait, max_backoff = ?MAX_BACKOFF,
                    "disk full while staging ltx file, replication paused until space is freed");
            } else {
                error!(system = "store", db = %database.name(), error = %err, hint = err.hint_text(),
                    consecutive_errors = failures, databases, failures = in_all, outage, backoff = ?wait, "sync error");
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
