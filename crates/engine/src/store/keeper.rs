//! The task that keeps one database's targets small and whole: compaction, snapshots, retention,
//! validation, one at a time.
//!
//! An idle database costs a look at the manifest per interval, and two requests an hour.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::agenda::{Agenda, Ended, Job};
use super::database::Database;
use super::repeated::{Failing, counted};
use super::targets::Target;
use super::upkeep::Upkeep;
use crate::compaction::TrustedTime;
use crate::error::{Error, Result};
use crate::telemetry::duration;
use crate::types::{Level, Txid};

/// Jobs of one boundary come due within this time of each other; then the order is ours.
const GATHER: Duration = Duration::from_millis(2);

/// What a keeper remembers.
struct Keeper {
    database: Arc<Database>,
    upkeep: Arc<Upkeep>,
    time: TrustedTime,
    local_done: Option<Txid>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.database.succeeded(is_upkeep);
    }
}

/// Whether it is a keeper that fails at this.
fn is_upkeep(failing: Failing) -> bool {
    !matches!(failing, Failing::Sync | Failing::Upload | Failing::FinalSync)
}

/// Looks after the database until told to stop.
pub(super) async fn run(database: Arc<Database>, upkeep: Arc<Upkeep>, stop: CancellationToken) {
    let mut news = database.watch();
    tokio::select! {
        biased;
        () = stop.cancelled() => return,
        () = news.until(|seen| seen.position.is_some()) => {}
    }
    let clock = database.world.clock.clone();
    let mut settings = upkeep.watch();
    let mut agenda = Agenda::new(&settings.borrow_and_update().clone(), clock.elapsed());
    let time = TrustedTime::new(clock.now(), clock.elapsed());
    let mut keeper = Keeper { database, upkeep, time, local_done: None };
    loop {
        let wait = agenda.pause(clock.elapsed()) + GATHER;
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = settings.changed() => {
                if changed.is_err() {
                    return;
                }
                agenda = Agenda::new(&settings.borrow_and_update().clone(), clock.elapsed());
            }
            () = tokio::time::sleep(wait) => {}
        }
        while let Some(job) = agenda.ready(clock.elapsed()).filter(|_| !stop.is_cancelled()) {
            // Whatever is dropped half-way was not published, and is made again after the next start.
            let Some(ended) = stop.run_until_cancelled(keeper.work(job, &stop)).await else { return };
            agenda.ended(job, ended, clock.now(), clock.elapsed());
        }
    }
}

impl Keeper {
    async fn work(&mut self, job: Job, stop: &CancellationToken) -> Ended {
        let clock = &self.database.world.clock;
        self.time.observe(clock.now(), clock.elapsed());
        if !self.database.targets().iter().all(Target::is_ready) {
            return Ended::NotReady;
        }
        match self.attempt(job, stop).await {
            Ok(()) => {
                self.over(what(job));
                Ended::Done
            }
            Err((target, err)) => {
                self.report(what(job), target, &err);
                Ended::Failed
            }
        }
    }

    /// An error comes with the target it happened at.
    async fn attempt(&mut self, job: Job, stop: &CancellationToken) -> Result<(), (usize, Error)> {
        let database = Arc::clone(&self.database);
        let upkeep = Arc::clone(&self.upkeep);
        let (mut compacted, mut looked) = (false, Ok(()));
        for (n, target) in database.targets().iter().enumerate() {
            let at = |err| (n, err);
            match job {
                Job::Compact(level) => {
                    let wrote = upkeep.compact(&database, target, level, stop).await.map_err(at)?;
                    compacted |= wrote && level.get() == 1;
                }
                Job::Snapshot => {
                    let written = upkeep.snapshot(&database, target).await;
                    // Whatever became of the snapshot: what is expired is expired.
                    let now = self.time.now(upkeep.config().retention.snapshots);
                    match upkeep.retain_snapshots(target, now).await {
                        Ok(_) => self.over(Failing::SnapshotRetention),
                        Err(err) => self.report(Failing::SnapshotRetention, n, &err),
                    }
                    written.map_err(at)?;
                }
                Job::Validate => upkeep.validate(&database, target).await.map_err(at)?,
                // One that is out of reach hides no other.
                Job::Look => looked = looked.and(target.see(&database).await.map_err(at)),
                Job::RetainL0 => {}
            }
        }
        if compacted || job == Job::RetainL0 {
            self.retain_l0().await;
        }
        looked
    }

    async fn retain_l0(&mut self) {
        match self.upkeep.retain_l0(&self.database, &self.time, &mut self.local_done).await {
            Ok(()) => self.over(Failing::L0Retention),
            Err(err) => self.report(Failing::L0Retention, 0, &err),
        }
    }

    /// Says what failed, unless that is known.
    fn report(&self, failing: Failing, target: usize, err: &Error) {
        let Some(standing) = self.database.failed(failing, Some(target), err) else { return };
        let (databases, failures, outage) = counted(standing);
        let (db, hint) = (self.database.name(), err.hint_text());
        match failing {
            Failing::Compaction(level) => {
                error!(system = "store", db = %db, level, error = %err, hint, databases, failures, outage, "compaction failed");
            }
            Failing::SnapshotRetention => {
                error!(system = "store", db = %db, error = %err, hint, databases, failures, outage,
                    "retention enforcement failed");
            }
            Failing::L0Retention => {
                error!(system = "store", db = %db, path = %self.database.path().display(), error = %err, hint, databases,
                    failures, outage, "l0 retention enforcement failed");
            }
            Failing::Look => {
                error!(system = "store", db = %db, error = %err, hint, databases, failures, outage,
                    "cannot make sure that the replica still holds what was uploaded");
            }
            _ => {
                warn!(system = "store", db = %db, error = %err, hint, databases, failures, outage, "validation failed")
            }
        }
    }

    /// Says that it works again, if the last one was waited for.
    fn over(&self, done: Failing) {
        let Some(over) = self.database.succeeded(|failing| failing == done) else { return };
        info!(system = "store", db = %self.database.name(), work = done.name(), previous_errors = over.failures,
            databases = over.failing, outage = duration(over.lasted), "upkeep recovered");
    }
}

/// What fails if a job does.
fn what(job: Job) -> Failing {
    match job {
        Job::Compact(level) => Failing::Compaction(level.get()),
        Job::Snapshot => Failing::Compaction(Level::SNAPSHOT.get()),
        Job::Validate => Failing::Validation,
        Job::RetainL0 => Failing::L0Retention,
        Job::Look => Failing::Look,
    }
}
