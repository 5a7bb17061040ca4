//! One restore from start to end.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use futures::future::{Either, select};
use futures::stream::{self, StreamExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::apply::{Applied, apply};
use super::output::{Destination, Overwrite, remove_sidecars};
use super::plan::{Target, check_sizes, check_time, plan};
use crate::error::{Error, ErrorKind, Result};
use crate::replica::{FedReader, FileInfo, Replica, Stamps, bridge};
use crate::sys::{World, blocking};
use crate::types::{IntegrityCheck, PageSize, Timestamp, Txid};

/// Bytes that wait between network and decoder, over all files together.
const PREFETCH: usize = 16 << 20;
/// Most files fetched at once: each may hold a piece beyond its share of [`PREFETCH`].
const MAX_PARALLELISM: usize = 32;

/// Runs SQLite's own check on a database file; an error says what is wrong with it
/// (`integrity check failed: …`). Blocks. Not called for [`IntegrityCheck::None`].
pub type Check = Arc<dyn Fn(&Path, IntegrityCheck) -> Result<()> + Send + Sync>;

/// What to restore, and where to.
#[derive(Debug, Clone)]
pub struct Request {
    /// The state.
    pub target: Target,
    /// Refuse a timestamp before the oldest or after the newest file.
    pub require_known_time: bool,
    /// The database to be.
    pub output: PathBuf,
    /// What may be replaced there.
    pub overwrite: Overwrite,
    /// How thoroughly to check the result.
    pub integrity: IntegrityCheck,
    /// Files fetched at once, 1…32.
    pub parallelism: usize,
}

impl Request {
    /// The newest state to a place where nothing is yet.
    #[must_use]
    pub fn new(output: impl Into<PathBuf>) -> Self {
        Self {
            target: Target::Latest,
            require_known_time: false,
            output: output.into(),
            overwrite: Overwrite::Refuse,
            integrity: IntegrityCheck::None,
            parallelism: 8,
        }
    }
}

/// What a restore did.
#[derive(Debug, Clone)]
pub struct Report {
    /// The files it used, oldest first.
    pub plan: Vec<FileInfo>,
    /// State of the database.
    pub txid: Txid,
    /// When that was.
    pub timestamp: Timestamp,
    /// Size of a page.
    pub page_size: PageSize,
    /// Pages of the database.
    pub pages: u32,
    /// Size of the database in bytes.
    pub bytes: u64,
}

/// Lists the replica and plans, without touching anything.
///
/// # Errors
/// The store's; as [`plan`] and, if asked for, [`check_time`].
pub async fn plan_for(replica: &Replica, target: Target, require_known_time: bool) -> Result<Vec<FileInfo>> {
    let stamps = if matches!(target, Target::Before(_)) { Stamps::Exact } else { Stamps::Cheap };
    let files = replica.list_all(stamps).await?;
    if let Target::Before(time) = target
        && require_known_time
    {
        check_time(&files, time)?;
    }
    plan(&files, target)
}

/// Restores. See the module head for what holds when this returns.
///
/// # Errors
/// `Exists` for a destination that must not be replaced, `NotFound` when nothing leads to the
/// target, `Corrupt` for damaged or missing files; those of store and file system.
pub async fn run(world: &World, replica: &Replica, request: &Request, check: Check) -> Result<Report> {
    let destination = Destination::new(request.output.clone(), request.overwrite);
    blocking({
        let (fs, destination) = (world.fs.clone(), destination.clone());
        move || destination.check(fs.as_ref()).map(drop)
    })
    .await?;
    let plan = plan_for(replica, request.target, request.require_known_time).await?;
    check_sizes(&plan)?;

    let parallelism = request.parallelism.clamp(1, MAX_PARALLELISM).min(plan.len());
    let share = u32::try_from(PREFETCH / parallelism).unwrap_or(u32::MAX);
    let (readers, waiting) = unbounded_channel();
    // At most `parallelism` feeders run or wait to be finished in turn, so that is also the bound
    // of the channel. The one the decoder reads is always among them.
    let feeding = stream::iter(plan.iter().rev().copied().collect::<Vec<_>>())
        .map(move |file| {
            let (feeder, reader) = bridge(share);
            let _ = readers.send((file, reader));
            feeder.feed(replica.get_resumable(&file))
        })
        .buffered(parallelism)
        .for_each(|()| async {});

    let job = Job {
        world: world.clone(),
        destination,
        integrity: request.integrity,
        check,
        files: plan.len(),
        listed: plan.iter().map(|file| file.size).sum(),
        waiting,
    };
    let applied = match select(pin!(blocking(move || job.run())), pin!(feeding)).await {
        Either::Left((done, _)) => done,
        Either::Right(((), job)) => job.await,
    }?;
    Ok(Report {
        plan,
        txid: applied.txid,
        timestamp: applied.timestamp,
        page_size: applied.page_size,
        pages: applied.pages,
        bytes: applied.bytes(),
    })
}

/// The blocking half.
struct Job {
    world: World,
    destination: Destination,
    integrity: IntegrityCheck,
    check: Check,
    files: usize,
    listed: u64,
    waiting: UnboundedReceiver<(FileInfo, FedReader)>,
}

impl Job {
    fn run(mut self) -> Result<Applied> {
        let fs = self.world.fs.as_ref();
        let publisher = self.destination.create(&self.world)?;
        let sources = (0..self.files).map(|_| {
            // No more to come although files are missing: whoever wanted this has left.
            self.waiting.blocking_recv().ok_or_else(|| Error::new(ErrorKind::Cancelled, "restore was stopped"))
        });
        let applied = apply(sources, self.listed, publisher.file())?;
        self.verify(publisher.temp_path())?;
        self.destination.publish(fs, publisher)?;
        Ok(applied)
    }

    /// SQLite's own check, on the temporary file. A `-wal` beside it would be taken for its own.
    fn verify(&self, temp: &Path) -> Result<()> {
        if self.integrity == IntegrityCheck::None {
            return Ok(());
        }
        let fs = self.world.fs.as_ref();
        remove_sidecars(fs, temp)?;
        let checked = (self.check)(temp, self.integrity);
        let removed = remove_sidecars(fs, temp);
        checked.map_err(|err| err.context("post-restore integrity check"))?;
        removed
    }
}
