//! One step: what was committed since the last L0 file becomes the next one.

use std::io::{BufWriter, Write};

use tracing::{debug, info, trace};

use super::encode::{PageSource, Pages};
use super::engine::{Db, Last, LocalState};
use super::foreign::{Before, still_foreign};
use super::observe::{Continuity, LogView, continuity};
use super::plan::{Beyond, Facts, LastFacts, Plan, Reason, Tail, Written, image, plan};
use super::quiet::{DbSeen, Places};
use super::record::{Record, Surroundings};
use super::unindexed::Stands;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::{Encoder, FileWriter, Header, WalPos};
use crate::sys::{Publisher, fault_point, mutant};
use crate::types::{Checksum, Level, Txid, TxidRange};
use crate::wal::{PageMap, Segment, Stop, WalChecksum, WalHeader};

/// How often a step is started over because the log moved under it.
const RETRIES: u32 = 8;
/// Files of limited size in one go. A writer that keeps ahead of them gets one without a limit: only where
/// reading ends can a checkpoint bring the log down.
const LIMITED_FILES: u32 = 16;
/// Buffer between encoder and file.
const WRITE_BUFFER: usize = 256 * 1024;

/// What a sync did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// TXID of the newest local L0 file.
    pub position: Option<Txid>,
    /// Files written.
    pub files: u32,
    /// How many of them are full images.
    pub full_images: u32,
    /// There is no database file yet.
    pub no_database: bool,
    /// A checkpoint copied the whole log.
    pub checkpointed: bool,
}

/// Outcome of one step.
#[derive(Debug, Clone, Copy)]
enum Step {
    NoDatabase,
    /// `behind`: a commit seems to stand behind the end of the log.
    Idle {
        behind: bool,
    },
    Wrote {
        full: bool,
        limited: bool,
        behind: bool,
    },
}

/// Pages that were read from the log and are about to become a file.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) map: PageMap,
    pub(super) segment: Segment,
    /// Where reading began.
    pub(super) from: u64,
    /// `None`: only what changed.
    pub(super) full: Option<Reason>,
    /// The database file must still be this when the image is complete.
    pub(super) unwritten: Option<DbSeen>,
    /// All frames are in memory: the log may be reused while the file is written.
    pub(super) detached: bool,
}

impl Db {
    /// Brings the local L0 files up to the last commit, and checkpoints if that is due.
    ///
    /// # Errors
    /// Whatever kept a step from finishing; files written before stay valid.
    pub fn sync(&mut self) -> Result<SyncReport> {
        let mut report = self.sync_log()?;
        if self.is_waited_for() {
            self.give_way()?;
        } else if !report.no_database && self.run_due_checkpoint()? {
            report.checkpointed = true;
            let after = self.sync_log()?;
            report.files += after.files;
            report.full_images += after.full_images;
        }
        if report.files == 0
            && let Some(session) = &mut self.session
        {
            session.close_idle();
        }
        report.position = self.position();
        Ok(report)
    }

    /// Brings the local L0 files up to the last commit.
    ///
    /// # Errors
    /// As for [`Db::sync`].
    pub fn sync_log(&mut self) -> Result<SyncReport> {
        let mut report = SyncReport::default();
        let mut retries = 0;
        // What came into the log after that is later than this call.
        let mut taken_in = false;
        loop {
            let limit = self.config.max_sync_wal_bytes.filter(|_| report.files < LIMITED_FILES);
            let (suspicious, failed) = match self.step(limit) {
                Ok(Step::NoDatabase) => {
                    report.no_database = true;
                    (false, None)
                }
                Ok(Step::Idle { behind }) => (behind, None),
                Ok(Step::Wrote { full, limited, behind }) => {
                    report.files += 1;
                    report.full_images += u32::from(full);
                    if limited {
                        continue;
                    }
                    (behind, None)
                }
                Err(err) if err.kind() == ErrorKind::Changed && retries < RETRIES => {
                    debug!(system = "store", db = %self.config.name(), error = %err, "sync step started over");
                    retries += 1;
                    continue;
                }
                // The log may contradict its index for good.
                Err(err) if matches!(err.kind(), ErrorKind::Changed | ErrorKind::Corrupt) => (true, Some(err)),
                Err(err) => return Err(err),
            };
            if suspicious && !taken_in {
                match (self.stands_unindexed()?, &failed) {
                    (Stands::Behind, _) => {
                        self.take_in_unindexed()?;
                        (taken_in, retries) = (true, 0);
                        continue;
                    }
                    // It has moved since.
                    (Stands::Nothing, None) if retries < RETRIES => {
                        retries += 1;
                        continue;
                    }
                    (Stands::Nothing, None) => return Err(Error::new(ErrorKind::Changed, "wal moves on by itself")),
                    // What is being written is not committed yet.
                    (Stands::BeingWritten, None) | (_, Some(_)) => {}
                }
            }
            if let Some(err) = failed {
                return Err(err);
            }
            report.position = self.position();
            return Ok(report);
        }
    }

    fn step(&mut self, limit: Option<u64>) -> Result<Step> {
        if !self.open()? {
            return Ok(Step::NoDatabase);
        }
        if let LocalState::Corrupt { error, .. } = self.local_state()? {
            return Err(error.hint("the file will be fetched again or replaced by a full image at the next start"));
        }
        let Some(places) = self.check_in_place()? else { return Ok(Step::NoDatabase) };
        if let Some(session) = &mut self.session {
            session.ensure_reading()?;
        }
        let (Some(session), last) = (&mut self.session, self.last.as_ref().and_then(Option::as_ref)) else {
            return Ok(Step::NoDatabase);
        };
        let view = match LogView::take(&self.world, &self.config, session) {
            Err(err) if err.kind() == ErrorKind::Busy => {
                session.repair_wal_index()?;
                return Err(Error::new(ErrorKind::Changed, "wal-index was repaired"));
            }
            other => other?,
        };
        if let Some(log) = &view.file {
            session.wal_id.get_or_insert(log.id);
        }
        if last.is_some_and(|last| last.salts != view.index.salts) {
            session.log_was_restarted();
        }
        let record = match last {
            Some(last) if !session.protected => Record::load(&self.world, &self.config.meta_path)
                .filter(|r| r.is_about(last.txid, last.salts, last.end)),
            _ => None,
        };
        let settled = session.is_settled(&places, &view.index);
        let boot = self.world.clock.boot();
        let foreign = still_foreign(&mut self.foreign, &self.world, &self.config.meta_path, &view);
        let before = Before {
            record: record.as_ref(),
            same_boot: record.as_ref().is_some_and(|record| record.is_of_boot(boot)),
            salts: last.map(|last| last.salts),
            foreign,
            at_rest: settled && self.force_full.is_none(),
        };
        let written = session.how_written(&places.db, &view, &before)?;
        let mut found = Continuity::unknown();
        if let (false, Some(last)) = (session.protected || settled, last) {
            found = continuity(&view, last, record.as_ref(), &self.local, session, boot, self.config.bounds.stale)?;
        }
        let facts = Facts {
            last: last.map(|l| LastFacts { page_size: l.page_size, salts: l.salts, end: l.end }),
            page_size: session.page_size,
            replaced: found.replaced,
            written,
            protected: session.protected,
            settled,
            may_write: session.kept && !session.layer.is_somebodys(),
            salts: view.index.salts,
            end: view.end,
            empty: view.index.is_empty(),
            tail: found.tail,
            beyond: found.beyond,
        };
        if written == Written::PastTheLog {
            // A checkpoint that comes between this and the image must not explain it away.
            self.force_full.get_or_insert(Reason::DatabaseRewritten);
        }
        let decision = match self.force_full {
            _ if written == Written::WithoutTheLog => plan(&facts),
            Some(reason) => image(&facts, reason),
            None => plan(&facts),
        };
        trace!(system = "store", db = %self.config.name(), facts = ?facts, plan = ?decision, "sync step");
        if settled && !facts.protected && decision == Plan::Nothing {
            return Ok(Step::Idle { behind: false });
        }
        let index = view.index;
        self.note_index(&index);
        if decision == Plan::FileImage {
            if written != Written::WithoutTheLog {
                self.insist_on_empty_log(&view)?;
            }
            self.publish_file_alone(&places, &view, written)?;
            return Ok(Step::Wrote { full: true, limited: false, behind: false });
        }
        self.carry_out(decision, &view, &places, found, limit)
    }

    /// Starts over on new ground if the paths name other files than the ones that are open.
    fn check_in_place(&mut self) -> Result<Option<Places>> {
        let Some(session) = &self.session else { return Ok(None) };
        if let Some(places) = self.places(session)? {
            return Ok(Some(places));
        }
        info!(system = "store", db = %self.config.name(), "database or wal file was replaced, starting over with a full image");
        self.session = None;
        self.force_full = Some(Reason::DatabaseReplaced);
        Err(Error::new(ErrorKind::Changed, "database or wal file was replaced").at(self.config.path.display()))
    }

    fn carry_out(
        &mut self,
        decision: Plan,
        view: &LogView,
        places: &Places,
        found: Continuity,
        limit: Option<u64>,
    ) -> Result<Step> {
        let chain_at_tail = self.last().and_then(|l| l.checksum).unwrap_or(found.checksum);
        let tail = self.last().map_or(WalHeader::SIZE, |l| l.end);
        let mut map = PageMap::caching(self.config.bounds.cached);
        let (from, chain, limit, full) = match decision {
            Plan::Nothing => {
                self.settle(chain_at_tail, view);
                return Ok(Step::Idle { behind: self.settle_files(view, places)? });
            }
            Plan::FromTail => (tail, chain_at_tail, limit, None),
            Plan::FromHead => (WalHeader::SIZE, view.log()?.header.checksum, limit, None),
            Plan::Recover => {
                info!(system = "store", db = %self.config.name(), "recovering commits from frames of the previous wal generation");
                map = found.stale;
                (WalHeader::SIZE, view.log()?.header.checksum, None, None)
            }
            Plan::FileImage => unreachable!("published without the log"),
            Plan::FullImage(reason) => {
                if view.index.is_empty() {
                    self.insist_on_empty_log(view)?;
                    // An image needs a position in the log that the next step can continue from.
                    self.touch()?;
                    return Err(Error::new(ErrorKind::Changed, "wrote a first frame into an empty wal"));
                }
                self.prepare_image(reason, view, places)?;
                (WalHeader::SIZE, view.log()?.header.checksum, None, Some(reason))
            }
        };
        let segment = self.read_log(&mut map, view, from, chain, limit, full.is_some())?;
        if !mutant("pages-beyond-the-end-kept") {
            map.drop_beyond_commit();
        }
        let limited = segment.limited && segment.end < view.end;
        let unwritten = self.guard_of(full, view, places);
        self.publish(view, &Batch { map, segment, from, full, unwritten, detached: false })?;
        self.force_full = None;
        if (!limited || mutant("limited-read-protects"))
            && let Some(session) = &mut self.session
        {
            session.read_to_the_end();
            if unwritten.is_some() {
                session.account_for(&places.db, &view.index)?;
            }
        }
        let behind = !limited && self.settle_files(view, places)?;
        Ok(Step::Wrote { full: full.is_some(), limited, behind })
    }

    /// Nothing was committed since the newest file: from now on that is known for certain.
    fn settle(&mut self, chain: WalChecksum, view: &LogView) {
        let Some(session) = &mut self.session else { return };
        let was_protected = session.protected;
        session.read_to_the_end();
        if was_protected {
            return;
        }
        if let Some(mut last) = self.last().cloned()
            && last.salts == view.index.salts
        {
            last.checksum = Some(chain);
            self.set_last(last);
        }
    }

    /// Maps the committed frames from `from` on, and insists on what SQLite says about their end.
    pub(super) fn read_log(
        &mut self,
        map: &mut PageMap,
        view: &LogView,
        from: u64,
        chain: WalChecksum,
        limit: Option<u64>,
        full: bool,
    ) -> Result<Segment> {
        let Some(session) = &self.session else { return Err(not_open()) };
        let reader = view.log()?.reader(session.page_size, from, chain).bounded(view.end);
        let segment = map.read(reader, limit)?;
        let complete = segment.end == view.end && segment.checksum == view.index.checksum;
        let complete = complete || mutant("log-may-end-early");
        let unreadable = matches!(segment.stop, Some(Stop::EndOfFile { .. }));
        let complete = complete || (unreadable && mutant("read-error-ends-log"));
        if complete || (segment.limited && segment.end < view.end) {
            return Ok(segment);
        }
        if session.wal_index()?.salts != view.index.salts {
            return Err(Error::new(ErrorKind::Changed, "wal was restarted while it was read"));
        }
        if !full {
            self.force_full = Some(Reason::Diverged);
            return Err(Error::new(ErrorKind::Changed, "wal no longer continues what was synced"));
        }
        Err(Error::corrupt(format!(
            "wal frames can be followed up to offset {} only, but its index says the log ends at {}",
            segment.end, view.end
        ))
        .at(self.config.wal_path().display()))
    }

    /// Writes one L0 file and makes it the newest.
    pub(super) fn publish(&mut self, view: &LogView, batch: &Batch) -> Result<()> {
        let Some(session) = &self.session else { return Err(not_open()) };
        let commit = batch.map.commit();
        if commit == 0 {
            return Err(Error::corrupt("wal holds no committed transaction where one was expected"));
        }
        let txid = self.next_txid();
        let header = Header {
            no_checksum: true,
            page_size: session.page_size,
            commit,
            txids: TxidRange::single(txid),
            timestamp: self.world.clock.now(),
            pre_apply: Checksum::NONE,
            wal: WalPos {
                offset: batch.from,
                size: batch.segment.end - batch.from,
                salt1: view.index.salts.salt1,
                salt2: view.index.salts.salt2,
            },
            node_id: batch.segment.checksum.as_node_id(),
        };
        self.prepare_level_0()?;
        let session = self.session.as_ref().ok_or_else(not_open)?;
        let before = self.last().map_or(0, |l| l.commit);
        let pages = match batch.full {
            Some(_) => Pages::All(commit),
            None => Pages::Changed { before, commit },
        };
        let source = PageSource {
            map: &batch.map,
            wal: view.file.as_ref().map(|l| l.file.as_ref()),
            db: session.file(),
            page_size: session.page_size,
            db_pages: session.file_pages()?,
            in_order: batch.full.is_some(),
            layer: session.layer,
        };
        let written = self.write_file(header, pages, &source, || {
            // Frames may have been replaced while they were copied: then the copy is void.
            if !batch.detached && !mutant("log-not-looked-at-again") && session.wal_index()?.salts != view.index.salts {
                return Err(Error::new(ErrorKind::Changed, "wal was restarted while it was copied"));
            }
            session.check_unwritten(batch.unwritten)
        });
        let pages = written.map_err(|e| e.context(format!("write ltx file for txid {txid}")))?;
        let reason = batch.full.map(tracing::field::display);
        debug!(system = "store", db = %self.config.name(), status = "ok", txid = %txid, pages, "full-image" = reason, "db sync");
        let last = Last {
            txid,
            page_size: header.page_size,
            commit,
            start: batch.from,
            end: batch.segment.end,
            salts: view.index.salts,
            checksum: Some(batch.segment.checksum),
            chain: Some(batch.segment.checksum),
        };
        self.counters.wal_bytes += last.end.saturating_sub(last.start);
        self.remember(&last, view);
        self.set_last(last);
        self.checkpoints.note_change();
        Ok(())
    }

    /// Makes sure that a file of level 0 can be published.
    pub(super) fn prepare_level_0(&mut self) -> Result<()> {
        let modes = self.modes().unwrap_or_default();
        self.world.fs.create_dir_all(&self.local.level_dir(Level::L0), modes.dir)?;
        self.make_names_durable()
    }

    /// Temporary file, all pages, last check, sync, rename, sync of the directory.
    pub(super) fn write_file(
        &self,
        header: Header,
        pages: Pages,
        source: &PageSource<'_>,
        still_true: impl FnOnce() -> Result<()>,
    ) -> Result<u64> {
        let modes = self.modes().unwrap_or_default();
        let path = self.local.path(Level::L0, header.txids);
        let publisher = Publisher::create(self.world.fs.as_ref(), &path, modes.file)?;
        let out = BufWriter::with_capacity(WRITE_BUFFER, FileWriter::new(publisher.file()));
        let mut encoder = Encoder::new(out, header)?;
        let count = source.encode(pages, &mut encoder)?;
        let (mut out, _) = encoder.finish(Checksum::NONE)?;
        out.flush().map_err(|e| Error::io("write", e).at(path.display()))?;
        drop(out);
        fault_point("sync.before_publish")?;
        still_true()?;
        publisher.publish(None)?;
        fault_point("sync.after_publish")?;
        Ok(count)
    }

    /// Leaves the continuity record. Nothing depends on it, so failing to is only worth a word.
    pub(super) fn remember(&self, last: &Last, view: &LogView) {
        let Some(session) = &self.session else { return };
        let alone = last.is_of_file_alone();
        let at = Surroundings {
            seq: view.file.as_ref().map_or(0, |log| log.header.checkpoint_seq),
            wal_len: view.file.as_ref().map_or(0, |log| log.len),
            inode: session.file_id.ino,
            boot: self.world.clock.boot(),
            // What it says of page 1 counts for the generation that the file is from.
            db: session
                .db_seen
                .filter(|seen| alone || seen.salts == last.salts)
                .map(|seen| (seen.stamp, seen.page1.sum)),
        };
        let checksum = last.checksum.unwrap_or_default();
        let record = Record::new(last.txid, last.salts, last.end, checksum, at);
        if let Err(err) = record.store(&self.world, &self.config.meta_path, self.file_mode()) {
            debug!(system = "store", db = %self.config.name(), error = %err, "continuity record not written");
        }
    }

    /// Commits a page that changes nothing.
    fn touch(&mut self) -> Result<()> {
        let session = self.session.as_mut().ok_or_else(not_open)?;
        let touched = session.touch(self.world.clock.as_ref(), None);
        session.close_idle();
        match touched {
            // Busy writers kept the lock from us, but then they wrote the frame we wanted.
            Err(err) if err.kind() == ErrorKind::Busy && !session.wal_index()?.is_empty() => Ok(()),
            other => other.map_err(|e| e.context("ensure wal exists")),
        }
    }
}

impl Continuity {
    fn unknown() -> Self {
        Self {
            tail: Tail::Gone,
            beyond: Beyond::Unclear,
            checksum: WalChecksum::default(),
            stale: PageMap::default(),
            replaced: false,
        }
    }
}

pub(super) fn not_open() -> Error {
    Error::new(ErrorKind::Internal, "database is not open")
}
