//! What the keeper does to one target: the effects; when is for [`super::agenda`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::config::UpkeepConfig;
use super::database::{Database, Waiting};
use super::targets::Target;
use crate::compaction::{
    Compactor, Deletion, Due, Limits, Manifest, SnapshotSource, Step, TrustedTime, base, expired, findings, l0,
    local_l0, snapshot_due, too_early,
};
use crate::error::{Error, ErrorKind, Result};
use crate::replica::{FileInfo, Stamps};
use crate::sys::blocking;
use crate::telemetry::{Metrics, duration};
use crate::types::{Level, Timestamp, Txid};

/// Compactions and snapshots at once, over all databases: more than cores, because most of the time
/// they wait for a store, and few, because each holds buffers.
const AT_ONCE: usize = 4;
/// Findings logged for one level in one validation.
const MAX_FINDINGS: usize = 20;

/// Settings, and what bounds the work of all keepers together.
#[derive(Debug)]
pub(super) struct Upkeep {
    config: watch::Sender<Arc<UpkeepConfig>>,
    pool: Semaphore,
    waiting: AtomicUsize,
    metrics: Arc<Metrics>,
}

/// A database as one target's snapshots see it.
struct Source<'a> {
    database: &'a Database,
    target: &'a Target,
}

#[async_trait]
impl SnapshotSource for Source<'_> {
    fn position(&self) -> Option<Txid> {
        self.database.seen().position
    }

    async fn snapshot(&self) -> Result<FileInfo> {
        self.target.snapshot_uploaded(self.database).await
    }
}

impl Upkeep {
    /// See [`UpkeepConfig::trust`].
    pub(super) fn trust(&self) -> Duration {
        self.config.borrow().trust()
    }

    pub(super) fn new(config: UpkeepConfig, metrics: Arc<Metrics>) -> Self {
        let config = watch::Sender::new(Arc::new(config));
        Self { config, pool: Semaphore::new(AT_ONCE), waiting: AtomicUsize::new(0), metrics }
    }

    /// The settings in force.
    pub(super) fn config(&self) -> Arc<UpkeepConfig> {
        Arc::clone(&self.config.borrow())
    }

    /// Follows the settings.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<UpkeepConfig>> {
        self.config.subscribe()
    }

    /// Puts others in force.
    pub(super) fn set_config(&self, config: UpkeepConfig) {
        self.config.send_replace(Arc::new(config));
    }

    /// Says what will be done, as Litestream does.
    pub(super) fn announce(&self) {
        let config = self.config();
        for (level, interval) in config.levels.iter().chain([(Level::SNAPSHOT, config.snapshot_interval)]) {
            info!(system = "store", level = level.get(), interval = duration(interval), "starting compaction monitor");
        }
        if let Some(retention) = config.retention.l0 {
            let interval = duration(config.l0_check_interval);
            info!(system = "store", interval, retention = duration(retention), "starting L0 retention monitor");
        }
        if let Some(interval) = config.validation_interval {
            info!(system = "store", interval = duration(interval), "starting validation monitor");
        }
    }

    async fn permit(&self) -> Result<SemaphorePermit<'_>> {
        let _waiting = Waiting::begin(&self.waiting);
        self.pool.acquire().await.map_err(|_| Error::new(ErrorKind::Cancelled, "the program is shutting down"))
    }

    /// How many compactions and snapshots wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Fills a level from the one below, if it is time. Returns whether anything was written.
    pub(super) async fn compact(
        &self,
        database: &Database,
        target: &Target,
        level: Level,
        stop: &CancellationToken,
    ) -> Result<bool> {
        let config = self.config();
        let Some((_, interval)) = config.levels.iter().find(|(l, _)| *l == level) else { return Ok(false) };
        let now = database.world.clock.now();
        let early = |m: &Manifest| too_early(m.newest(level).map(|f| f.created), now, interval);
        if target.manifest().read(target.replica(), early).await? {
            return Ok(false);
        }
        if level.get() == 1 && database.seen().position > target.manifest().peek(|m| m.max(level)).flatten() {
            // Increments without a base are of no use to anybody. Also while they cannot be uploaded.
            target.see(database).await?;
        }
        let compactor = Compactor {
            replica: target.replica(),
            manifest: target.manifest(),
            local: Some(database.local()),
            local_until: target.shared_until(),
            modes: database.seen().modes,
            limits: Limits::default(),
        };
        let until = compactor.end_below(level).await?;
        if target.manifest().read(target.replica(), |m| m.max(level) >= until).await? {
            return Ok(false);
        }
        let _permit = self.permit().await?;
        let (mut wrote, mut healed) = (false, false);
        while !stop.is_cancelled() {
            let began = database.world.clock.elapsed();
            match compactor.step(level, until).await? {
                Step::Nothing => break,
                Step::Merged(file) => {
                    wrote = true;
                    self.metrics.wrote_level(level, database.world.clock.elapsed().saturating_sub(began), file.size);
                    info!(system = "store", db = %database.name(), level = level.get(), "txid.min" = %file.txids.min(),
                        "txid.max" = %file.txids.max(), size = file.size, "compaction complete");
                }
                Step::Gap(_) if !healed => {
                    healed = true;
                    target.heal(database).await?;
                }
                Step::Gap(txids) => {
                    return Err(Error::corrupt(format!("transactions {txids} are missing on the replica")));
                }
            }
        }
        if wrote && config.verify_compaction {
            verify(database, target, level).await?;
        }
        Ok(wrote)
    }

    /// Writes a snapshot if one is due.
    pub(super) async fn snapshot(&self, database: &Database, target: &Target) -> Result<()> {
        let source = Source { database, target };
        let (position, now) = (source.position(), database.world.clock.now());
        let interval = self.config().snapshot_interval;
        let due = |m: &Manifest| snapshot_due(m.newest(Level::SNAPSHOT), position, now, interval);
        if target.manifest().read(target.replica(), due).await? == Due::Now {
            let _permit = self.permit().await?;
            let began = database.world.clock.elapsed();
            let file = source.snapshot().await?;
            let took = database.world.clock.elapsed().saturating_sub(began);
            self.metrics.wrote_level(Level::SNAPSHOT, took, file.size);
        }
        Ok(())
    }

    /// Deletes snapshots from before the window, and what only they needed.
    pub(super) async fn retain_snapshots(&self, target: &Target, now: Timestamp) -> Result<usize> {
        let policy = self.config().retention;
        let window = now.minus(policy.snapshots);
        let gone = target.manifest().read(target.replica(), |m| expired(m, window)).await?;
        // Snapshots last: as long as one is there, a pass that ended half-way is taken up again.
        let (snapshots, others): (Vec<_>, Vec<_>) = gone.into_iter().partition(|file| file.level == Level::SNAPSHOT);
        let mut count = 0;
        for files in [others, snapshots] {
            count += Deletion::from_iter(files).run(target.replica(), target.manifest(), policy).await?;
        }
        Ok(count)
    }

    /// Deletes L0 files from all targets, then locally those that no target needs any more.
    /// `local_done` is how far the local ones were deleted before.
    pub(super) async fn retain_l0(
        &self,
        database: &Database,
        time: &TrustedTime,
        local_done: &mut Option<Txid>,
    ) -> Result<()> {
        let policy = self.config().retention;
        let Some(age) = policy.l0 else { return Ok(()) };
        let window = time.cutoff(policy.snapshots);
        let mut needless = Vec::new();
        for target in database.targets() {
            let decide = |m: &Manifest| l0(m, time.cutoff(age), base(m, window).map(|f| f.txids.max()));
            let decision = target.manifest().read(target.replica(), decide).await?;
            let eligible = decision.delete.len();
            database.health().metrics.l0_files(eligible, decision.not_compacted, decision.too_recent);
            let count = decision.delete.run(target.replica(), target.manifest(), policy).await?;
            if count > 0 {
                info!(system = "store", db = %database.name(), deleted_count = count,
                    max_l1_txid = decision.max_l1.map(tracing::field::display), "l0 retention enforced");
            }
            needless.push(decision.local);
        }
        let up_to = needless.iter().min().copied().flatten();
        if up_to <= *local_done {
            return Ok(());
        }
        let local = database.local().clone();
        let removed = blocking(move || {
            local_l0(&local.list(Level::L0)?, &needless).into_iter().try_for_each(|file| local.remove(Level::L0, file))
        });
        match removed.await {
            Ok(()) => *local_done = up_to,
            Err(err) => warn!(system = "store", db = %database.name(), error = %err, "cannot remove local ltx files"),
        }
        Ok(())
    }

    /// Lists everything afresh and compares neighbours; closes what gaps it finds in level 0.
    pub(super) async fn validate(&self, database: &Database, target: &Target) -> Result<()> {
        target.manifest().forget();
        let levels: Vec<Level> =
            std::iter::once(Level::L0).chain(self.config().levels.iter().map(|(l, _)| l)).collect();
        for level in levels {
            let look = |m: &Manifest| findings(m.level(level)).take(MAX_FINDINGS).collect::<Vec<_>>();
            for finding in target.manifest().read(target.replica(), look).await? {
                warn!(system = "store", db = %database.name(), level = level.get(), "type" = finding.fault.name(),
                    message = %finding.validation_text(), "validation error detected");
            }
        }
        target.heal(database).await
    }
}

/// Lists a level after it was written to.
async fn verify(database: &Database, target: &Target, level: Level) -> Result<()> {
    let files = target.replica().list(level, None, Stamps::Cheap).await?;
    if let Some(finding) = findings(&files).next() {
        database.health().metrics.verify_error();
        warn!(subsystem = "compactor", level = level.get(), error = %finding.compaction_text(),
            "post-compaction verification failed");
    }
    Ok(())
}
