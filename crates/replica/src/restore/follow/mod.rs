//! Keeping a restored database up to date (`spec: restore` §4).
//!
//! Guarantees:
//! 1. Nothing of a file touches the output before all files of its batch were read to their end and
//!    verified. A damaged file changes nothing (X4).
//! 2. Readers see whole batches only, whenever we are killed (`live` has the protocol).
//! 3. After a crash the output never goes back behind a state readers may have seen (`state`).
//! 4. A follower that falls behind says so: files that no longer lead on are bridged by a snapshot,
//!    and if there is none every round is an error (X2, X3).

mod exclusive;
mod journal;
mod live;
mod lock;
mod schema;
mod state;

use std::collections::HashSet;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::apply::{Applied, Base, Broken, Start, apply};
use super::fetch::{LtxFiles, fetch};
use super::pages::PageMap;
use super::plan::{Target, check_sizes, continuation, plan};
use super::progress::Progress;
use super::run::{Check, Request, check_destination, run_plan};
use super::survey::Plan;
use crate::error::{Error, ErrorKind, Result};
use crate::replica::{FileInfo, Replica, Stamps};
use crate::sys::{File, FileKind, OpenMode, OwnerMode, World, blocking, mutant, read_full_at, unique_temp_path};
use crate::types::{Level, Timestamp, Txid, format_duration};
pub use exclusive::{ExclusiveConn, ExclusiveDb};
use live::Live;
pub(super) use state::StateFiles;

/// Rounds in which files that do not lead on may be a listing taken between a merge and a deletion.
const PATIENCE: u32 = 2;
/// So often an idle follower looks at all levels, not only at the lowest.
const FULL_LOOK: u32 = 30;

/// How to follow.
#[derive(Debug, Clone)]
pub struct Following {
    /// Where to, and how to make it if it is not there. Its target is not used.
    pub request: Request,
    /// Between two looks at the replica.
    pub interval: Duration,
}

/// What happens before the first look at the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// The output was missing and is there now.
    Restored,
    /// The output is there, in whatever way.
    Following,
}

/// Restores the output if it is missing, else takes up where an earlier follower stopped; then applies
/// what comes until `stop`. `reached` hears of the milestones.
///
/// # Errors
/// When following cannot begin, or cannot go on: somebody else has changed the output, or the page
/// size is another one. Everything else is logged and tried again.
pub async fn follow(
    world: &World,
    replica: &Replica,
    following: &Following,
    check: Check,
    sqlite: Arc<dyn ExclusiveDb>,
    stop: &CancellationToken,
    mut reached: impl FnMut(Milestone),
) -> Result<()> {
    let output = following.request.output.as_path();
    let existing = {
        let (fs, output) = (world.fs.clone(), output.to_owned());
        blocking(move || fs.stat_opt(&output)).await?
    };
    let owner_mode = existing.map_or(OwnerMode::DEFAULT_FILE, |stat| stat.owner_mode);
    let state = StateFiles::new(world, output, owner_mode);
    // An empty file is no database.
    let (txid, floor) = match existing.filter(|stat| stat.kind != FileKind::File || stat.len > 0) {
        None => {
            let txid = begin(world, replica, &following.request, check, state.clone()).await?;
            reached(Milestone::Restored);
            (txid, None)
        }
        Some(_) => resume(replica, output, &state).await?,
    };
    let live = {
        let (world, output) = (world.clone(), output.to_owned());
        blocking(move || Live::open(&world, &output, sqlite)).await?
    };
    reached(Milestone::Following);
    info!(
        replica = replica.kind(),
        output = %output.display(),
        txid = %txid,
        interval = %format_duration(following.interval.try_into().unwrap_or_default()),
        "entering follow mode"
    );
    let mut follower = Follower {
        world,
        replica,
        request: &following.request,
        state,
        live: Some(live),
        txid,
        floor,
        applied_to: None,
        suspects: HashSet::new(),
        failures: 0,
        stalled: 0,
        quiet: 0,
    };
    follower.run(following.interval, stop).await?;
    info!(replica = replica.kind(), "follow mode stopped");
    Ok(())
}

/// Patches a fresh restore so that readers use it in rollback-journal mode. Blocks.
pub(super) fn make_followable(database: &dyn File, pages: u32) -> Result<()> {
    let mut head = vec![0; 100];
    read_full_at(database, &mut head, 0)?;
    let counter = live::change_counter(&head);
    let cookie = schema::cookie(&head);
    live::stamp(&mut head, counter, pages, cookie);
    database.write_all_at(&head, 0)
}

/// The first restore: never of a 0.3.x backup, which nothing follows.
async fn begin(world: &World, replica: &Replica, request: &Request, check: Check, state: StateFiles) -> Result<Txid> {
    check_destination(world, request).await?;
    let files = plan(&replica.list_all(Stamps::Cheap).await?, Target::Latest)?;
    let report = run_plan(world, replica, request, check, Plan::Ltx(files), Some(state)).await;
    let report = report.map_err(|broken| broken.error)?;
    report.txid.ok_or_else(|| Error::new(ErrorKind::Internal, "restored files without a TXID"))
}

/// Checks that the replica can lead on from where the output is (X2).
async fn resume(replica: &Replica, output: &Path, state: &StateFiles) -> Result<(Txid, Option<Txid>)> {
    let shown = output.display();
    let loaded = {
        let state = state.clone();
        blocking(move || match state.load()? {
            None => Ok(None),
            Some(saved) => Ok(Some((saved, state.announced(saved)?))),
        })
    };
    let Some((saved, announced)) = loaded.await? else {
        return Err(Error::invalid(format!(
            "cannot resume follow mode: database exists but no -txid file found; delete the database to re-restore: \
             {shown}"
        )));
    };
    let files = replica.list_all(Stamps::Cheap).await?;
    let newest = files.iter().map(|file| file.txids.max()).max();
    if newest.is_none_or(|newest| saved > newest) {
        let newest = newest.map_or(0, Txid::get);
        return Err(Error::invalid(format!(
            "cannot resume follow mode: saved TXID {saved} is ahead of the replica (max TXID {newest:016x}); \
             delete {shown} and {shown}-txid to re-restore"
        )));
    }
    if newest > Some(saved) && continuation(&files, saved).is_empty() {
        let earliest = files.iter().map(|file| file.txids.min()).filter(|min| *min > saved).min();
        let earliest = earliest.map_or(0, Txid::get);
        return Err(Error::invalid(format!(
            "cannot resume follow mode: saved TXID {saved} is behind the earliest file that follows (min TXID \
             {earliest:016x}); replica history has been pruned -- delete {shown} and {shown}-txid to re-restore"
        )));
    }
    info!(
        replica = replica.kind(),
        txid = %saved,
        output = %shown,
        "resuming follow mode from crash recovery"
    );
    Ok((saved, announced))
}

struct Follower<'a> {
    world: &'a World,
    replica: &'a Replica,
    request: &'a Request,
    state: StateFiles,
    /// Taken while a blocking thread works on it; `None` after such a thread has died.
    live: Option<Live>,
    /// State of the output.
    txid: Txid,
    /// The output may be as far as this: the next batch must not stop before.
    floor: Option<Txid>,
    /// Time of that state.
    applied_to: Option<Timestamp>,
    /// Files that were found damaged. They are asked for again only if nothing else leads on.
    suspects: HashSet<FileInfo>,
    /// Rounds that failed since the last one that did not.
    failures: u32,
    /// Rounds in which nothing led on although the replica is further.
    stalled: u32,
    /// Rounds without news since the last look at all levels.
    quiet: u32,
}

/// A batch that is ready to be applied: verified, and its pages in a file without a name.
struct Batch {
    image: Box<dyn File>,
    applied: Applied,
    map: PageMap,
}

impl Follower<'_> {
    async fn run(&mut self, interval: Duration, stop: &CancellationToken) -> Result<()> {
        loop {
            match self.round(stop).await {
                Ok(()) => self.failures = 0,
                Err(err) if err.kind() == ErrorKind::Cancelled && stop.is_cancelled() => return Ok(()),
                // What another program did, or another page size: no round can succeed any more.
                Err(err) if err.kind() == ErrorKind::Changed => return Err(err.context("cannot go on following")),
                Err(err) => {
                    self.failures = self.failures.saturating_add(1);
                    let lag = self.applied_to.map_or(0, |at| self.world.clock.now().millis() - at.millis());
                    error!(
                        replica = self.replica.kind(),
                        err = %err,
                        consecutive_errors = self.failures,
                        txid = %self.txid,
                        lag_ms = lag.max(0),
                        "follow: error applying updates"
                    );
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    /// Brings the output to the newest state there is, in one batch.
    async fn round(&mut self, stop: &CancellationToken) -> Result<()> {
        let look = async {
            let chain = self.look().await?;
            if chain.is_empty() { Ok(None) } else { self.fetch(chain).await.map(Some) }
        };
        let batch = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Error::new(ErrorKind::Cancelled, "follow mode was stopped")),
            batch = look => batch?,
        };
        // From here on the step runs to its end.
        match batch {
            None => Ok(()),
            Some(batch) => self.apply(batch, stop).await,
        }
    }

    /// The files that lead on.
    async fn look(&mut self) -> Result<Vec<FileInfo>> {
        let mut files = self.replica.list(Level::L0, None, Stamps::Cheap).await?;
        let newest = newest_of(&files);
        let chain = self.choose(&files);
        let simple = !files.is_empty() && reach(&chain).max(Some(self.txid)) >= newest && self.failures == 0;
        if simple && (!chain.is_empty() || self.quiet < FULL_LOOK) {
            self.quiet = if chain.is_empty() { self.quiet + 1 } else { 0 };
            self.stalled = 0;
            return self.admit(chain, newest);
        }
        self.quiet = 0;
        for level in Level::all().filter(|level| *level != Level::L0) {
            files.extend(self.replica.list(level, None, Stamps::Cheap).await?);
        }
        let newest = newest_of(&files);
        let patient = self.stalled < PATIENCE && self.failures < PATIENCE;
        if patient {
            files.retain(|file| file.level != Level::SNAPSHOT);
        }
        let chain = self.choose(&files);
        if !chain.is_empty() || newest <= Some(self.txid) {
            self.stalled = 0;
            return self.admit(chain, newest);
        }
        self.stalled = self.stalled.saturating_add(1);
        if patient {
            debug!(replica = self.replica.kind(), txid = %self.txid, "follow: files do not lead on yet");
            return Ok(chain);
        }
        let newest = newest.map_or(0, Txid::get);
        Err(Error::corrupt(format!(
            "the replica is at TXID {newest:016x}, but none of its files leads on from {}",
            self.txid
        ))
        .hint("files are missing in the replica; a new snapshot would bridge the gap"))
    }

    /// Files that were damaged are left out as long as the rest leads on.
    fn choose(&self, files: &[FileInfo]) -> Vec<FileInfo> {
        let trusted: Vec<FileInfo> = files.iter().filter(|file| !self.suspects.contains(file)).copied().collect();
        let chain = continuation(&trusted, self.txid);
        if chain.is_empty() && trusted.len() < files.len() { continuation(files, self.txid) } else { chain }
    }

    /// Refuses a batch that would end before what readers may have seen.
    fn admit(&self, chain: Vec<FileInfo>, newest: Option<Txid>) -> Result<Vec<FileInfo>> {
        match self.floor {
            Some(floor) if reach(&chain) < Some(floor) && !mutant("follow-floor-forgotten") => {
                Err(Error::corrupt(format!(
                    "the output may be at TXID {floor}, but files lead only to {:016x}",
                    reach(&chain).or(newest).map_or(0, Txid::get)
                )))
            }
            _ => Ok(chain),
        }
    }

    /// Fetches and verifies the files of a batch.
    async fn fetch(&mut self, chain: Vec<FileInfo>) -> Result<Batch> {
        check_sizes(&chain)?;
        let Some(live) = &self.live else { return Err(Error::new(ErrorKind::Internal, "follow mode has failed")) };
        let base = live.base(self.txid)?;
        let listed = chain.iter().map(|file| file.size).fold(0, u64::saturating_add);
        let newest_first: Vec<FileInfo> = chain.into_iter().rev().collect();
        let origin = LtxFiles { replica: self.replica, begun: None };
        let parallelism = self.request.parallelism.unwrap_or(8);
        let (feeding, waiting) = fetch(newest_first, parallelism, Arc::<Progress>::default(), origin);
        let (world, output) = (self.world.clone(), self.request.output.clone());
        let job = blocking(move || Ok(spool(&world, &output, waiting, listed, base)));
        let done = match select(pin!(job), pin!(feeding)).await {
            Either::Left((done, _)) => done?,
            Either::Right(((), job)) => job.await?,
        };
        done.map_err(|broken| {
            if let (Some(file), ErrorKind::Corrupt) = (broken.file, broken.error.kind()) {
                self.suspects.insert(file);
            }
            broken.error
        })
    }

    async fn apply(&mut self, batch: Batch, stop: &CancellationToken) -> Result<()> {
        let Some(mut live) = self.live.take() else {
            return Err(Error::new(ErrorKind::Internal, "follow mode has failed"));
        };
        let (state, from, stop) = (self.state.clone(), self.txid, stop.clone());
        let Applied { txid: to, timestamp, pages, .. } = batch.applied;
        let work = blocking(move || {
            let done = state
                .announce(from, to)
                .and_then(|()| live.apply(batch.image.as_ref(), &batch.map, pages, &stop))
                .and_then(|()| state.save(to));
            Ok((live, done))
        });
        let (live, done) = work.await?;
        self.live = Some(live);
        if done.is_err() {
            // The batch may be in the output, if only the note of it failed.
            self.floor = Some(to);
        }
        done?;
        (self.txid, self.floor, self.applied_to) = (to, None, Some(timestamp));
        self.suspects.clear();
        info!(replica = self.replica.kind(), from_txid = %from, to_txid = %to, "follow: applied updates");
        Ok(())
    }
}

/// Builds the pages of a batch in a file that nobody else can see. Blocks.
fn spool<R: std::io::Read>(
    world: &World,
    output: &Path,
    files: impl Iterator<Item = Result<(FileInfo, R)>>,
    listed: u64,
    base: Base,
) -> Result<Batch, Broken> {
    let temp = unique_temp_path(world.random.as_ref(), output);
    let image = world.fs.open(&temp, OpenMode::CreateNew(OwnerMode::PRIVATE_FILE))?;
    // Without a name it goes away with us, however we end.
    world.fs.remove_file(&temp)?;
    let (applied, map) = apply(files, listed, Start::Base(base), None, image.as_ref())?;
    Ok(Batch { image, applied, map })
}

fn newest_of(files: &[FileInfo]) -> Option<Txid> {
    files.iter().map(|file| file.txids.max()).max()
}

fn reach(chain: &[FileInfo]) -> Option<Txid> {
    chain.last().map(|file| file.txids.max())
}
