//! The task that keeps one database's targets small and whole: compaction, snapshots, retention,
//! validation, one at a time.
//!
//! An idle database costs a look at the manifest per interval, and two requests an hour.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::agenda::{Agenda, Ended, Job};
use super::database::Database;
use super::targets::Target;
use super::upkeep::Upkeep;
use crate::compaction::TrustedTime;
use crate::error::{Error, Result};
use crate::sys::LogLimiter;
use crate::types::{Level, Txid};

const ERROR_SPACING: Duration = Duration::from_secs(30);
/// Jobs of one boundary come due within this time of each other; then the order is ours.
const GATHER: Duration = Duration::from_millis(2);

/// What a keeper remembers.
struct Keeper {
    database: Arc<Database>,
    upkeep: Arc<Upkeep>,
    time: TrustedTime,
    local_done: Option<Txid>,
    limiter: LogLimiter,
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
    let mut keeper = Keeper { database, upkeep, time, local_done: None, limiter: LogLimiter::new(ERROR_SPACING) };
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
            Ok(()) => Ended::Done,
            Err(err) => {
                self.report(job, &err);
                Ended::Failed
            }
        }
    }

    async fn attempt(&mut self, job: Job, stop: &CancellationToken) -> Result<()> {
        let database = Arc::clone(&self.database);
        let upkeep = Arc::clone(&self.upkeep);
        let (mut compacted, mut looked) = (false, Ok(()));
        for target in database.targets() {
            match job {
                Job::Compact(level) => {
                    compacted |= upkeep.compact(&database, target, level, stop).await? && level.get() == 1;
                }
                Job::Snapshot => {
                    let written = upkeep.snapshot(&database, target).await;
                    // Whatever became of the snapshot: what is expired is expired.
                    let now = self.time.now(upkeep.config().retention.snapshots);
                    if let Err(err) = upkeep.retain_snapshots(target, now).await {
                        error!(system = "store", db = %database.name(), error = %err, hint = err.hint_text(),
                            "retention enforcement failed");
                    }
                    written?;
                }
                Job::Validate => upkeep.validate(&database, target).await?,
                // One that is out of reach hides no other.
                Job::Look => looked = looked.and(target.see(&database).await),
                Job::RetainL0 => {}
            }
        }
        if compacted || job == Job::RetainL0 {
            self.retain_l0().await;
        }
        looked
    }

    async fn retain_l0(&mut self) {
        let done = self.upkeep.retain_l0(&self.database, &self.time, &mut self.local_done).await;
        if let Err(err) = done {
            error!(system = "store", db = %self.database.name(), path = %self.database.path().display(), error = %err,
                hint = err.hint_text(), "l0 retention enforcement failed");
        }
    }

    fn report(&mut self, job: Job, err: &Error) {
        if !self.limiter.allow(self.database.world.clock.elapsed(), err) {
            return;
        }
        let (db, hint) = (self.database.name(), err.hint_text());
        let level = match job {
            Job::Compact(level) => level,
            Job::Snapshot => Level::SNAPSHOT,
            Job::Validate | Job::RetainL0 => {
                return warn!(system = "store", db = %db, error = %err, hint, "validation failed");
            }
            Job::Look => {
                return error!(system = "store", db = %db, error = %err, hint,
                    "cannot make sure that the replica still holds what was uploaded");
            }
        };
        error!(system = "store", db = %db, level = level.get(), error = %err, hint, "compaction failed");
    }
}
