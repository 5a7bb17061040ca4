//! One target of a database: uploads L0 files in order.

mod heal;
mod moment;
mod presence;
mod snapshot;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use moment::Moment;

use crate::compaction::{Manifest, SharedManifest};
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::{self, Header};
use crate::replica::{FileInfo, Replica, Stamps};
use crate::store::ahead::Ahead;
use crate::store::config::TargetConfig;
use crate::store::database::Database;
use crate::store::lineage::{self, Kinship};
use crate::store::repeated::{Failing, counted};
use crate::store::retry::{Outages, Retry};
use crate::store::unguarded::{self, Noted};
use crate::sys::{OpenMode, blocking, mutant};
use crate::telemetry::duration;
use crate::types::{Level, PageSize, Txid, TxidRange};
use crate::wal::WalHeader;

/// A place that files go to.
#[derive(Debug)]
pub(super) struct Target {
    /// Which one of the database's.
    n: usize,
    config: TargetConfig,
    /// How old a proof that nobody else writes to it may be when something is uploaded.
    trust: Duration,
    /// One upload pass at a time.
    state: Mutex<Known>,
    manifest: SharedManifest,
    /// Whether an upload pass ever went through.
    ready: AtomicBool,
    /// See [`Target::shared_until`]; 0 = nothing.
    shared_until: AtomicU64,
    /// A snapshot of ours that others could still follow.
    ahead: Ahead,
    /// Counts the looks whether everything is still there.
    looks: AtomicUsize,
    /// Set once somebody else was found to write to it. From then on nothing is: see [`lineage`].
    rival: OnceLock<Txid>,
    /// What was told of how it treats a second writer.
    noted: Noted,
}

/// What the target is known to hold. Forgotten after any error.
#[derive(Debug, Default)]
struct Known {
    position: Option<Position>,
}

#[derive(Debug, Clone, Copy)]
struct Position {
    /// Highest TXID in any level.
    txid: Option<Txid>,
    /// Page size of the file that ends there.
    page_size: Option<PageSize>,
    /// When this was last known to be where the target ends.
    proven: Moment,
}

/// Whether an upload pass left something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// The target has everything.
    Done,
    /// Stopped at the limit of files per pass.
    More,
}

impl Target {
    pub(super) fn new(n: usize, config: TargetConfig, trust: Duration) -> Self {
        Self {
            n,
            config,
            trust,
            state: Mutex::default(),
            manifest: SharedManifest::new(),
            ready: AtomicBool::new(false),
            shared_until: AtomicU64::new(0),
            ahead: Ahead::default(),
            looks: AtomicUsize::new(0),
            rival: OnceLock::new(),
            noted: Noted::default(),
        }
    }

    pub(super) fn replica(&self) -> &Replica {
        &self.config.replica
    }

    /// What it holds.
    pub(super) fn manifest(&self) -> &SharedManifest {
        &self.manifest
    }

    /// Whether an upload pass ever went through, before which there is nothing to compact, and the
    /// target is still ours.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && self.rival.get().is_none()
    }

    /// How far local files are known to be those of the target.
    pub(super) fn shared_until(&self) -> Option<Txid> {
        if mutant("store-local-files-trusted") {
            return Txid::new(u64::MAX);
        }
        self.known_ours()
    }

    fn known_ours(&self) -> Option<Txid> {
        Txid::new(self.shared_until.load(Ordering::Acquire))
    }

    /// The target has the local file of this TXID, and with it all local files before.
    fn is_there(&self, txid: Txid) {
        self.shared_until.fetch_max(txid.get(), Ordering::AcqRel);
        self.ahead.reached(txid);
    }

    /// Refuses a target that has another writer.
    fn check_ours(&self) -> Result<()> {
        self.rival.get().map_or(Ok(()), |txid| Err(lineage::taken(self.replica(), *txid)))
    }

    /// Somebody else wrote `txid`.
    fn lost_to_rival(&self, txid: Txid) -> Error {
        let _ = self.rival.set(txid);
        lineage::taken(self.replica(), txid)
    }

    /// Uploads pending files, at most `limit`.
    ///
    /// # Errors
    /// `NotFound` (`no position, waiting for data`) while nothing was ever synced; `InUse` once another
    /// writer was met; the store's.
    pub(super) async fn sync(&self, database: &Database, limit: Option<NonZeroUsize>) -> Result<Pass> {
        self.pass(database, limit, false).await
    }

    /// Uploads all pending files, for somebody who is to be told that everything is there: the target is asked whether
    /// it still holds what it held, and if nothing was uploaded just now, whether it still is ours.
    ///
    /// # Errors
    /// As [`Target::sync`].
    pub(super) async fn sync_surely(&self, database: &Database) -> Result<()> {
        self.pass(database, None, true).await.map(drop)
    }

    async fn pass(&self, database: &Database, limit: Option<NonZeroUsize>, surely: bool) -> Result<Pass> {
        let mut known = self.state.lock().await;
        if let Err(err) = self.check_ours() {
            self.ahead.take_back(database, self, self.known_ours()).await;
            return Err(err);
        }
        let Some(local) = database.seen().position else {
            return Err(Error::new(ErrorKind::NotFound, "no position, waiting for data"));
        };
        let began = Moment::now(database);
        // What was sent before the program stopped waiting is not known to be there.
        let unfinished = Unfinished(&self.manifest);
        let mut remembered = known.position.take();
        let uploaded = async {
            if surely && remembered.is_some() && self.is_gone(database).await? {
                remembered = None;
            }
            let whole = remembered.is_none();
            let position = match remembered {
                Some(position) => position,
                None if mutant("store-replica-not-asked") => {
                    let proven = Moment::now(database);
                    Position { txid: Txid::new(local.get() - 1), page_size: None, proven }
                }
                None => self.look(database, local).await?,
            };
            let (position, pass) = self.upload(database, position, local, limit).await?;
            if !surely {
                return Ok((position, pass, whole));
            }
            let since = |proven: Moment| proven.age(database) <= began.age(database);
            let looked = self.still_ours(database, position, local, since).await?;
            if looked.txid == position.txid {
                return Ok((looked, pass, whole));
            }
            let (position, pass) = self.upload(database, looked, local, limit).await?;
            Ok((position, pass, whole))
        };
        match uploaded.await {
            Ok((position, pass, whole)) => {
                std::mem::forget(unfinished);
                // Only now, so that an error leaves nothing assumed.
                known.position = Some(position);
                let told = if mutant("store-local-position-told") { Some(local) } else { position.txid };
                database.health().reached(self.n, told, pass == Pass::Done);
                if whole && pass == Pass::Done {
                    self.is_whole(database);
                }
                self.ready.store(true, Ordering::Release);
                Ok(pass)
            }
            Err(err) => {
                drop(unfinished);
                database.health().lost_track(&database.world, self.n);
                if self.rival.get().is_some() {
                    self.ahead.take_back(database, self, self.known_ours()).await;
                }
                Err(err)
            }
        }
    }

    /// Makes sure that the target still holds what we put there and nothing else. `local` is the newest TXID of
    /// ours: what is beyond it was put there by somebody else, for a start continues above everything it finds.
    async fn check_alone(&self, database: &Database, local: Txid) -> Result<(Kinship, Moment)> {
        let kinship = lineage::kinship(database, self).await?;
        match kinship {
            Kinship::Other(txid) => return Err(self.lost_to_rival(txid)),
            Kinship::Same(txid) => self.is_there(txid),
            Kinship::Unreadable(_) | Kinship::Unknown(_) => {}
        }
        let began = Moment::now(database);
        // Not from what is remembered: whoever is at work there keeps its newest file in level 0.
        let listed = self.replica().list(Level::L0, None, Stamps::Cheap).await?;
        let newest = listed.iter().map(|file| file.txids.max()).max().max(kinship.txid());
        match newest {
            Some(txid) if txid > local && !mutant("store-foreign-end-ignored") => Err(self.lost_to_rival(txid)),
            _ => Ok((kinship, began)),
        }
    }

    /// Asks the target what it holds, and closes gaps.
    async fn look(&self, database: &Database, local: Txid) -> Result<Position> {
        let (kinship, proven) = self.check_alone(database, local).await?;
        self.close_gaps(database).await?;
        if matches!(kinship, Kinship::Unreadable(_)) {
            warn!(system = "store", db = %database.name(), replica = self.replica().kind(),
                "newest ltx file on the replica is damaged, bridging it with a snapshot");
            self.snapshot(database).await?;
        }
        let ends = |manifest: &Manifest| {
            let key = |f: &&FileInfo| (f.txids.max(), f.level);
            let chain = manifest.iter().filter(|f| f.level != Level::SNAPSHOT).max_by_key(key).copied();
            (chain, manifest.iter().max_by_key(key).copied())
        };
        let (chain, newest) = self.manifest.read(self.replica(), ends).await?;
        let known = kinship.txid().max(self.known_ours());
        if chain.map(|file| file.txids.max()) > known {
            return Err(Error::new(ErrorKind::Changed, "replica changed while it was looked at"));
        }
        let Some(newest) = newest else { return Ok(Position { txid: None, page_size: None, proven }) };
        // A snapshot may be ahead of the uploads; they go on where they ended, if they can.
        let newest = match chain {
            Some(chain) if self.has_local(database, chain.txids.max(), newest.txids.max()).await? => chain,
            _ => newest,
        };
        let header = match self.replica().header(newest.level, newest.txids).await {
            Err(err) if err.kind() != ErrorKind::Corrupt => return Err(err),
            other => other,
        };
        // A damaged newest file must not stop uploads; it only cannot tell its page size.
        Ok(Position { txid: Some(newest.txids.max()), page_size: header.ok().map(|h| h.page_size), proven })
    }

    /// Whether every local file behind `after` up to `last` is there.
    async fn has_local(&self, database: &Database, after: Txid, last: Txid) -> Result<bool> {
        if after >= last {
            return Ok(true);
        }
        let local = database.local().clone();
        blocking(move || {
            let mut reached = Some(after);
            for file in local.list(Level::L0)? {
                if file.extends(reached) {
                    reached = Some(file.max());
                }
            }
            Ok(reached >= Some(last))
        })
        .await
    }

    async fn upload(
        &self,
        database: &Database,
        mut at: Position,
        local: Txid,
        limit: Option<NonZeroUsize>,
    ) -> Result<(Position, Pass)> {
        debug!(system = "store", db = %database.name(), replica = self.replica().kind(),
            "txid.replica" = at.txid.map_or_else(|| "0".repeat(16), |t| t.to_string()), "txid.db" = %local, "replica sync");
        let mut count = 0;
        let mut next = Txid::after(at.txid);
        while next <= local {
            if limit.is_some_and(|limit| count >= limit.get()) {
                return Ok((at, Pass::More));
            }
            let txids = TxidRange::single(next);
            let header = lineage::healed(database, txids, lineage::local_header(database, txids).await).await?;
            let Some(Header { page_size, wal, .. }) = header else {
                // The chain cannot be continued file by file; a snapshot spans whatever is missing.
                info!(system = "store", db = %database.name(), replica = self.replica().kind(), txid = %next,
                    "local ltx file is missing, bridging the gap with a snapshot");
                let (snapshot, proven) = self.snapshot(database).await?;
                at = Position { txid: Some(snapshot.txids.max()), page_size: Some(snapshot.page_size), proven };
                self.put(database, TxidRange::single(snapshot.txids.max())).await?;
                next = Txid::after(at.txid);
                continue;
            };
            if at.page_size.is_some_and(|before| before != page_size) {
                // Files of two page sizes never merge: restores must start behind the boundary.
                info!(system = "store", db = %database.name(), page_size = page_size.get(), "page size changed, taking a snapshot");
                self.snapshot(database).await?;
            }
            let looked = self.still_ours(database, at, local, |proven| proven.age(database) < self.trust).await?;
            if looked.txid != at.txid {
                (at, next) = (looked, Txid::after(looked.txid));
                continue;
            }
            let proven = Moment::now(database);
            let info = self.put(database, txids).await?;
            // Images are taken from the head of a log, so most files tell by their header that they are none.
            if next > Txid::FIRST && wal.offset == WalHeader::SIZE && is_full_image(database, txids).await? {
                // Restores need not go back further, and level 9 need not read the database again (C5).
                Box::pin(self.promote(database, &info)).await?;
            }
            at = Position { txid: Some(next), page_size: Some(page_size), proven };
            next = next.next();
            count += 1;
        }
        Ok((at, Pass::Done))
    }

    /// Makes sure that a transaction of another writer in the place of our next one could not be gone from level 0
    /// already: only while it is there is ours refused. So a writer that was idle looks again before it goes on.
    async fn still_ours(
        &self,
        database: &Database,
        mut at: Position,
        local: Txid,
        suffices: impl Fn(Moment) -> bool,
    ) -> Result<Position> {
        for _ in 0..3 {
            if suffices(at.proven) || mutant("store-idle-writer-trusted") {
                return Ok(at);
            }
            match self.check_alone(database, at.txid.unwrap_or(Txid::FIRST)).await {
                Ok((_, proven)) => at.proven = proven,
                // What was remembered is gone.
                Err(err) if err.kind() == ErrorKind::NotFound => {
                    self.manifest.forget();
                    at = self.look(database, local).await?;
                }
                Err(err) => return Err(err),
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the replica answers too slowly to be sure that nobody else writes to it",
        ))
    }

    /// Uploads one local L0 file.
    async fn put(&self, database: &Database, txids: TxidRange) -> Result<FileInfo> {
        let (path, modes) = (database.local().path(Level::L0, txids), database.seen().modes);
        let put = self.replica().put_local(Level::L0, txids, &database.world, &path, modes).await;
        let info = match put {
            Err(err) if err.kind() == ErrorKind::Exists => {
                let ours = lineage::ours(database, self, txids).await;
                match ours.map_err(|e| e.context("write ltx file"))? {
                    // The answer to an earlier try was lost.
                    Some(info) => info,
                    None => return Err(self.lost_to_rival(txids.max())),
                }
            }
            Err(err) if err.kind() == ErrorKind::Corrupt => {
                return lineage::healed(database, txids, Err(err)).await;
            }
            other => other.map_err(|e| e.context("write ltx file"))?,
        };
        self.manifest.written(info);
        self.is_there(txids.max());
        unguarded::note(database, self.n, &self.noted).await;
        debug!(system = "store", db = %database.name(), replica = self.replica().kind(), level = 0,
            minTXID = %txids.min(), maxTXID = %txids.max(), size = info.size, "ltx file uploaded");
        Ok(info)
    }
}

/// Lets the manifest be read again, if dropped.
struct Unfinished<'a>(&'a SharedManifest);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.forget();
    }
}

/// Whether a local L0 file holds every page of the database.
async fn is_full_image(database: &Database, txids: TxidRange) -> Result<bool> {
    let (path, fs) = (database.local().path(Level::L0, txids), database.world.fs.clone());
    blocking(move || ltx::is_full_image(fs.open(&path, OpenMode::Read)?.as_ref())).await
}

/// Takes what it failed at out of the count, when dropped.
struct Gone<'a>(&'a Database);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.succeeded(|failing| failing == Failing::Upload);
    }
}

/// Uploads whenever there is something new, at most once per sync interval, until told to stop.
pub(super) async fn run(database: Arc<Database>, n: usize, outages: Arc<Outages>, stop: CancellationToken) {
    let target = &database.targets()[n];
    let clock = database.world.clock.clone();
    let interval = target.config.sync_interval;
    let mut news = database.watch();
    let random = database.world.random.clone();
    let mut retry = Retry::new(outages, interval);
    let uploads = |failing| failing == Failing::Upload;
    let _gone = Gone(&database);
    loop {
        // Leading edge: the first file after a quiet interval goes out at once.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = news.until(|seen| seen.position.is_some()) => {}
        }
        news.mark_seen();
        let started = clock.elapsed();
        let mut failed = None;
        loop {
            match target.sync(&database, target.config.max_files).await {
                Ok(Pass::More) if !stop.is_cancelled() => {}
                Ok(_) => {
                    let failures = retry.succeeded();
                    if failures > 0
                        && let Some(over) = database.succeeded(uploads)
                    {
                        info!(system = "store", db = %database.name(), replica = target.replica().kind(),
                            previous_errors = over.failures, databases = over.failing, outage = duration(over.lasted),
                            "replica sync recovered");
                    }
                    break;
                }
                Err(err) => {
                    let wait = retry.failed(&err, random.next_u64());
                    failed = Some(wait);
                    database.health().target_trouble(&database.world, n, &err, retry.failures(), wait);
                    if let Some(standing) = database.failed(Failing::Upload, Some(n), &err) {
                        let (databases, failures, outage) = counted(standing);
                        error!(system = "store", db = %database.name(), replica = target.replica().kind(), error = %err,
                            hint = err.hint_text(), consecutive_errors = retry.failures(), databases, failures, outage,
                            "monitor error");
                    }
                    news.mark_unseen();
                    break;
                }
            }
        }
        let pause = async {
            match failed {
                Some(wait) => retry.pause(wait, random.next_u64()).await,
                None => tokio::time::sleep(interval.saturating_sub(clock.elapsed().saturating_sub(started))).await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = pause => {}
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = news.changed() => {}
        }
    }
}
