//! One restore from start to end.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use futures::future::{Either, select};
use tracing::warn;

use super::apply::{Broken, Ledger, Start, apply};
use super::fetch::{LtxFiles, Origin, Waiting, fetch};
use super::follow::{self, StateFiles};
use super::output::{Destination, Overwrite, remove_sidecars};
use super::partial::{self, Left, Record};
use super::plan::{Target, check_sizes};
use super::progress::Progress;
use super::survey::{Plan, Survey, survey};
use crate::error::{Error, ErrorKind, Result};
use crate::replica::{FileInfo, Replica};
use crate::sys::{File, Publisher, World, blocking, mutant, unique_temp_path};
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

/// What there is to do after an error that may pass.
const GOES_ON: &str = "what was restored so far is kept: the same command goes on from there";

/// Whether what was built until then is worth keeping. A full disk needs the room.
fn may_be_continued(err: &Error) -> bool {
    matches!(err.kind(), ErrorKind::Unavailable | ErrorKind::Cancelled)
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
    /// Bytes of the plan that an interrupted restore had read before; they were not read again.
    pub resumed: u64,
}

/// Lists the replica and plans, without touching anything.
///
/// # Errors
/// The store's; as [`super::Survey::plan`] and, if asked for, [`super::Survey::check_time`].
pub async fn plan_for(replica: &Replica, target: Target, require_known_time: bool) -> Result<Plan> {
    let mut found = survey(replica, target).await?;
    if let Target::Before(time) = target
        && require_known_time
    {
        found.check_time(time)?;
    }
    let mut plan = found.plan(target);
    for _ in 0..REPLANS {
        if plan.is_ok() || found.files.is_empty() || mutant("store-listed-once") {
            break;
        }
        // Levels are not listed in one moment: what was compacted and deleted in between may be missing from all.
        let again = survey(replica, target).await?;
        if again.files == found.files {
            break;
        }
        found = again;
        plan = found.plan(target);
    }
    let plan = plan?;
    warn_of_hidden(&found, &plan);
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
        warn!(
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
    let (built, resumed) = match &plan {
        Plan::Ltx(files) => {
            check_sizes(files)?;
            work.run_ltx(replica, files.iter().rev().copied().collect(), listed).await?
        }
        Plan::V3(backup) => {
            // Removes what was left of a restore of something else.
            work.look(Vec::new(), 0).await?;
            request.progress.begin(listed, 0);
            let (time, site) = (backup.time(), Site::default());
            let build = move |pieces: Waiting<_>, _, _: Option<&mut dyn Ledger>, out: &dyn File| {
                Built::from_v3(pieces, time, out)
            };
            (work.run(backup.pieces().collect(), replica.clone(), site, build).await?, 0)
        }
    };
    let bytes = u64::from(built.pages) * u64::from(built.page_size.get());
    let Built { txid, timestamp, page_size, pages } = built;
    Ok(Report { plan, txid, timestamp, page_size, pages, bytes, resumed })
}

/// What is in the temporary file.
struct Built {
    txid: Option<Txid>,
    timestamp: Timestamp,
    page_size: PageSize,
    pages: u32,
}

impl Built {
    fn from_ltx(
        files: Waiting<FileInfo>,
        listed: u64,
        start: Start,
        ledger: Option<&mut dyn Ledger>,
        out: &dyn File,
    ) -> Result<Self, Broken> {
        let (applied, _) = apply(files, listed, start, ledger, out)?;
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

/// Where to build.
#[derive(Debug, Default)]
struct Site {
    /// In the file of an interrupted restore, instead of a new one.
    left: Option<Left>,
    /// The files that a new one is to keep a record of, from the newest, and their bytes.
    recorded: Option<(Vec<FileInfo>, u64)>,
}

struct Work<'a> {
    world: &'a World,
    request: &'a Request,
    check: Check,
    followed: Option<StateFiles>,
}

impl Work<'_> {
    /// Restores LTX files, from where an interrupted restore of the same files ended.
    async fn run_ltx(
        &self,
        replica: &Replica,
        newest_first: Vec<FileInfo>,
        listed: u64,
    ) -> Result<(Built, u64), Broken> {
        let left = self.look(newest_first.clone(), listed).await?;
        let resumed = left.as_ref().map_or(0, |left| left.bytes);
        let done = self.attempt(replica, newest_first.clone(), listed, left).await;
        match done {
            // The files may be damaged, or what was there before, or the two do not go together. Only what is
            // read from the start can tell.
            Err(broken) if resumed > 0 && broken.error.kind() == ErrorKind::Corrupt => {
                warn!(error = %broken.error, "an interrupted restore could not be completed, starting anew");
                Ok((self.attempt(replica, newest_first, listed, None).await?, 0))
            }
            done => Ok((done?, resumed)),
        }
    }

    async fn attempt(
        &self,
        replica: &Replica,
        mut newest_first: Vec<FileInfo>,
        listed: u64,
        left: Option<Left>,
    ) -> Result<Built, Broken> {
        let (done, offset, bytes) = left.as_ref().map_or((0, 0, 0), |left| (left.done(), left.offset(), left.bytes));
        self.request.progress.begin(listed, bytes);
        let recorded = left.is_none().then(|| (newest_first.clone(), listed));
        let rest = newest_first.split_off(done.min(newest_first.len()));
        let begun = rest.first().filter(|_| offset > 0).map(|file| (*file, offset));
        let origin = LtxFiles { replica, begun };
        let build = move |files: Waiting<_>, start, ledger: Option<&mut dyn Ledger>, out: &dyn File| {
            Built::from_ltx(files, listed, start, ledger, out)
        };
        self.run(rest, origin, Site { left, recorded }, build).await
    }

    /// Finds what an interrupted restore left, and removes what is of no use.
    async fn look(&self, newest_first: Vec<FileInfo>, listed: u64) -> Result<Option<Left>> {
        let (world, request) = (self.world.clone(), self.request.clone());
        blocking(move || {
            let destination = Destination::new(request.output.clone(), request.overwrite);
            let existing = destination.check(world.fs.as_ref())?.map(|stat| stat.owner_mode);
            Ok(partial::look(&world, &request.output, existing, &newest_first, listed))
        })
        .await
    }

    /// Fetches while a blocking thread builds and publishes.
    async fn run<T, O, B>(&self, objects: Vec<T>, origin: O, site: Site, build: B) -> Result<Built, Broken>
    where
        T: Clone + Send + 'static,
        O: Origin<T>,
        B: FnOnce(Waiting<T>, Start, Option<&mut dyn Ledger>, &dyn File) -> Result<Built, Broken> + Send + 'static,
    {
        let Request { output, overwrite, integrity, parallelism, progress, .. } = self.request;
        let parallelism = parallelism.unwrap_or_else(|| suggested(objects.len(), progress.total()));
        let (feeding, waiting) = fetch(objects, parallelism, progress.clone(), origin);
        let job = Job {
            world: self.world.clone(),
            output: output.clone(),
            destination: Destination::new(output.clone(), *overwrite),
            integrity: *integrity,
            check: Arc::clone(&self.check),
            followed: self.followed.clone(),
        };
        // The outer error is that of the thread, the inner one tells the file at fault.
        let job = blocking(move || Ok(job.run(site, move |start, ledger, out| build(waiting, start, ledger, out))));
        match select(pin!(job), pin!(feeding)).await {
            Either::Left((done, _)) => done?,
            Either::Right(((), job)) => job.await?,
        }
    }
}

/// The blocking half.
struct Job {
    world: World,
    output: PathBuf,
    destination: Destination,
    integrity: IntegrityCheck,
    check: Check,
    followed: Option<StateFiles>,
}

impl Job {
    fn run(
        &self,
        site: Site,
        build: impl FnOnce(Start, Option<&mut dyn Ledger>, &dyn File) -> Result<Built, Broken>,
    ) -> Result<Built, Broken> {
        let fs = self.world.fs.as_ref();
        let (publisher, mut record, start) = self.begin(site)?;
        let ledger = record.as_mut().map(|record| record as &mut dyn Ledger);
        let built = build(start, ledger, publisher.file()).and_then(|built| {
            self.complete(&publisher, &built)?;
            Ok(built)
        });
        let done = match built {
            Ok(built) => self.destination.publish(fs, publisher).map(|()| built).map_err(Broken::from),
            Err(broken) if may_be_continued(&broken.error) && record.as_ref().is_some_and(Record::is_of_use) => {
                publisher.leave();
                let Broken { file, error } = broken;
                return Err(Broken { file, error: error.hint(GOES_ON) });
            }
            Err(broken) => {
                drop(publisher);
                Err(broken)
            }
        };
        if let Some(record) = record {
            // Without its file it says nothing.
            let _ = record.remove(fs);
        }
        done
    }

    /// The file to write, its record, and what is in it.
    fn begin(&self, site: Site) -> Result<(Publisher<'_>, Option<Record>, Start)> {
        let fs = self.world.fs.as_ref();
        if let Some(Left { temp, file, record, resumed, .. }) = site.left {
            return Ok((Publisher::adopt(fs, temp, &self.output, file), Some(record), Start::Resumed(resumed)));
        }
        self.destination.prepare(fs)?;
        let temp = unique_temp_path(self.world.random.as_ref(), &self.output);
        let record = match site.recorded {
            Some((files, listed)) => Record::create(fs, &temp, &files, listed)?,
            None => None,
        };
        match self.destination.create(fs, temp) {
            Ok(publisher) => Ok((publisher, record, Start::Empty)),
            Err(err) => {
                if let Some(record) = record {
                    let _ = record.remove(fs);
                }
                Err(err)
            }
        }
    }

    /// What is to be done with a whole database before it can be published.
    fn complete(&self, publisher: &Publisher<'_>, built: &Built) -> Result<()> {
        if self.followed.is_some() {
            follow::make_followable(publisher.file(), built.pages)?;
        }
        self.verify(publisher.temp_path())?;
        if let (Some(state), Some(txid)) = (&self.followed, built.txid) {
            // Before the database is there: without it this file means nothing, but a database
            // without this file could never be followed again.
            state.save(txid)?;
        }
        Ok(())
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
