//! One restore from start to end.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use futures::future::{Either, select};

use super::apply::{Broken, apply};
use super::fetch::{Waiting, fetch};
use super::follow::{self, StateFiles};
use super::output::{Destination, Overwrite, remove_sidecars};
use super::plan::{Target, check_sizes};
use super::progress::Progress;
use super::survey::{Plan, Survey, survey};
use crate::error::{ErrorKind, Result};
use crate::replica::{ByteStream, FileInfo, Replica};
use crate::sys::{File, World, blocking};
use crate::types::{IntegrityCheck, Level, PageSize, Timestamp, Txid};
use crate::v3;

/// A level-0 file that is so much younger than the state restored belongs to another history.
const HIDDEN_AHEAD_MILLIS: i64 = 60_000;

/// How many files to fetch at once: of small ones many, because it is the requests that take the time.
fn suggested(files: usize, bytes: u64) -> usize {
    const SMALL: u64 = 128 * 1024;
    let average = bytes / u64::try_from(files.max(1)).unwrap_or(1);
    if average < SMALL { 32 } else { 8 }
}

/// How often a plan is made anew because a file of it is gone.
const REPLANS: u32 = 3;

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
    /// Files fetched at once, 1…64; by default as many as their size suggests.
    pub parallelism: Option<usize>,
    /// Moved as the restore goes on.
    pub progress: Arc<Progress>,
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
            parallelism: None,
            progress: Arc::default(),
        }
    }
}

/// What a restore did.
#[derive(Debug, Clone)]
pub struct Report {
    /// The objects it used.
    pub plan: Plan,
    /// State of the database; backups of 0.3.x have no numbers.
    pub txid: Option<Txid>,
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
/// The store's; as [`super::Survey::plan`] and, if asked for, [`super::Survey::check_time`].
pub async fn plan_for(replica: &Replica, target: Target, require_known_time: bool) -> Result<Plan> {
    let survey = survey(replica, target).await?;
    if let Target::Before(time) = target
        && require_known_time
    {
        survey.check_time(time)?;
    }
    let plan = survey.plan(target)?;
    warn_of_hidden(&survey, &plan);
    Ok(plan)
}

/// A level 0 that was emptied and begun anew counts from 1 again: its files are younger, but what they
/// hold is thought to be known already (X6).
fn warn_of_hidden(survey: &Survey, plan: &Plan) {
    let Some(last) = plan.files().last() else { return };
    let hidden = survey.files.iter().rfind(|file| {
        let ahead = file.created.millis().saturating_sub(last.created.millis());
        file.level == Level::L0 && file.txids.max() < last.txids.max() && ahead > HIDDEN_AHEAD_MILLIS
    });
    if let Some(hidden) = hidden {
        tracing::warn!(
            file = %hidden,
            created = %hidden.created,
            restored_txid = %last.txids.max(),
            restored_from = %last.created,
            "the replica holds younger files with lower TXIDs: its level 0 was begun anew, and they are not restored"
        );
    }
}

/// Restores. See the module head for what holds when this returns.
///
/// # Errors
/// `Exists` for a destination that must not be replaced, `NotFound` when nothing leads to the
/// target, `Corrupt` for damaged or missing files; those of store and file system.
pub async fn run(world: &World, replica: &Replica, request: &Request, check: Check) -> Result<Report> {
    run_whole(world, replica, request, check).await.map_err(|broken| broken.error)
}

/// [`run`], with the file at fault.
pub(super) async fn run_whole(
    world: &World,
    replica: &Replica,
    request: &Request,
    check: Check,
) -> Result<Report, Broken> {
    check_destination(world, request).await?;
    let look = || plan_for(replica, request.target, request.require_known_time);
    let mut plan = look().await?;
    for _ in 0..REPLANS {
        match run_plan(world, replica, request, Arc::clone(&check), plan.clone(), None).await {
            // Retention took a file of the plan meanwhile; what it left leads there too, or says why not.
            Err(broken) if broken.error.kind() == ErrorKind::NotFound => {
                let now = look().await?;
                if now == plan {
                    return Err(broken);
                }
                plan = now;
            }
            done => return done,
        }
    }
    run_plan(world, replica, request, check, plan, None).await
}

/// Refuses a destination that must not be replaced.
///
/// # Errors
/// `Exists`; those of the file system.
pub(super) async fn check_destination(world: &World, request: &Request) -> Result<()> {
    let destination = Destination::new(request.output.clone(), request.overwrite);
    let fs = world.fs.clone();
    blocking(move || destination.check(fs.as_ref()).map(drop)).await
}

/// Fetches, builds, verifies and publishes a given plan. With `followed` the result is one that can be
/// followed: in rollback-journal mode, and its state noted beside it.
pub(super) async fn run_plan(
    world: &World,
    replica: &Replica,
    request: &Request,
    check: Check,
    plan: Plan,
    followed: Option<StateFiles>,
) -> Result<Report, Broken> {
    let work = Work { world, request, check, followed };
    let (_, listed) = plan.size();
    request.progress.begin(listed);
    let built = match &plan {
        Plan::Ltx(files) => {
            check_sizes(files)?;
            let newest_first = files.iter().rev().copied().collect();
            let open = |file: &FileInfo| replica.get_parallel(file);
            work.run(newest_first, open, move |files, out| Built::from_ltx(files, listed, out)).await
        }
        Plan::V3(backup) => {
            let open = |piece: &v3::Piece| Ok(replica.get_object(piece.key(), piece.size(), piece.key().to_string()));
            let time = backup.time();
            work.run(backup.pieces().collect(), open, move |pieces, out| Built::from_v3(pieces, time, out)).await
        }
    }?;
    let bytes = u64::from(built.pages) * u64::from(built.page_size.get());
    let Built { txid, timestamp, page_size, pages } = built;
    Ok(Report { plan, txid, timestamp, page_size, pages, bytes })
}

/// What is in the temporary file.
struct Built {
    txid: Option<Txid>,
    timestamp: Timestamp,
    page_size: PageSize,
    pages: u32,
}

impl Built {
    fn from_ltx(files: Waiting<FileInfo>, listed: u64, out: &dyn File) -> Result<Self, Broken> {
        let (applied, _) = apply(files, listed, None, out)?;
        Ok(Self {
            txid: Some(applied.txid),
            timestamp: applied.timestamp,
            page_size: applied.page_size,
            pages: applied.pages,
        })
    }

    fn from_v3(pieces: Waiting<v3::Piece>, timestamp: Timestamp, out: &dyn File) -> Result<Self, Broken> {
        let v3::Applied { page_size, pages } = v3::apply(pieces, out)?;
        Ok(Self { txid: None, timestamp, page_size, pages })
    }
}

struct Work<'a> {
    world: &'a World,
    request: &'a Request,
    check: Check,
    followed: Option<StateFiles>,
}

impl Work<'_> {
    /// Fetches while a blocking thread builds and publishes.
    async fn run<T, O, B>(self, objects: Vec<T>, open: O, build: B) -> Result<Built, Broken>
    where
        T: Clone + Send + 'static,
        O: Fn(&T) -> Result<ByteStream>,
        B: FnOnce(Waiting<T>, &dyn File) -> Result<Built, Broken> + Send + 'static,
    {
        let Request { output, overwrite, integrity, parallelism, progress, .. } = self.request;
        let parallelism = parallelism.unwrap_or_else(|| suggested(objects.len(), progress.total()));
        let (feeding, waiting) = fetch(objects, parallelism, progress.clone(), open);
        let job = Job {
            world: self.world.clone(),
            destination: Destination::new(output.clone(), *overwrite),
            integrity: *integrity,
            check: self.check,
            followed: self.followed,
        };
        // The outer error is that of the thread, the inner one tells the file at fault.
        let job = blocking(move || Ok(job.run(move |out| build(waiting, out))));
        match select(pin!(job), pin!(feeding)).await {
            Either::Left((done, _)) => done?,
            Either::Right(((), job)) => job.await?,
        }
    }
}

/// The blocking half.
struct Job {
    world: World,
    destination: Destination,
    integrity: IntegrityCheck,
    check: Check,
    followed: Option<StateFiles>,
}

impl Job {
    fn run(self, build: impl FnOnce(&dyn File) -> Result<Built, Broken>) -> Result<Built, Broken> {
        let fs = self.world.fs.as_ref();
        let publisher = self.destination.create(&self.world)?;
        let built = build(publisher.file())?;
        if self.followed.is_some() {
            follow::make_followable(publisher.file(), built.pages)?;
        }
        self.verify(publisher.temp_path())?;
        if let (Some(state), Some(txid)) = (&self.followed, built.txid) {
            // Before the database is there: without it this file means nothing, but a database
            // without this file could never be followed again.
            state.save(txid)?;
        }
        self.destination.publish(fs, publisher)?;
        Ok(built)
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
