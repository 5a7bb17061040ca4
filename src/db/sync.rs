//! One step: what was committed since the last L0 file becomes the next one.

use std::io::{BufWriter, Write};

use tracing::{debug, info, trace};

use super::encode::{PageSource, Pages};
use super::engine::{Db, Last, LocalState};
use super::observe::{Continuity, LogView, continuity};
use super::plan::{Beyond, Facts, LastFacts, Plan, Reason, Tail, plan};
use super::record::{Record, Surroundings};
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::{Encoder, FileWriter, Header, WalPos};
use crate::sys::{OwnerMode, Publisher, fault_point, mutant};
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
    Idle,
    Wrote { full: bool, limited: bool },
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
        if !report.no_database && self.run_due_checkpoint()? {
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
        loop {
            let limit = self.config.max_sync_wal_bytes.filter(|_| report.files < LIMITED_FILES);
            match self.step(limit) {
                Ok(Step::NoDatabase) => report.no_database = true,
                Ok(Step::Idle) => {}
                Ok(Step::Wrote { full, limited }) => {
                    report.files += 1;
                    report.full_images += u32::from(full);
                    if limited {
                        continue;
                    }
                }
                Err(err) if err.kind() == ErrorKind::Changed && retries < RETRIES => {
                    debug!(system = "store", db = %self.config.name(), error = %err, "sync step started over");
                    retries += 1;
                    continue;
                }
                Err(err) => return Err(err),
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
        self.check_in_place()?;
        let (Some(session), last) = (&mut self.session, self.last.as_ref().and_then(Option::as_ref)) else {
            return Ok(Step::NoDatabase);
        };
        session.ensure_reading()?;
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
        let mut found = Continuity::unknown();
        if let (false, Some(last)) = (session.protected, last) {
            let record = Record::load(&self.world, &self.config.meta_path)
                .filter(|r| r.is_about(last.txid, last.salts, last.end));
            let boot = self.world.clock.boot();
            found = continuity(&view, last, record.as_ref(), &self.local, session, boot, self.config.bounds.stale)?;
        }
        let facts = Facts {
            last: last.map(|l| LastFacts { page_size: l.page_size, salts: l.salts, end: l.end }),
            page_size: session.page_size,
            replaced: found.replaced,
            protected: session.protected,
            salts: view.index.salts,
            end: view.end,
            empty: view.index.is_empty(),
            tail: found.tail,
            beyond: found.beyond,
        };
        let decision = match self.force_full {
            Some(reason) => Plan::FullImage(reason),
            None => plan(&facts),
        };
        trace!(system = "store", db = %self.config.name(), facts = ?facts, plan = ?decision, "sync step");
        self.carry_out(decision, &view, found, limit)
    }

    /// Starts over on new ground if the paths name other files than the ones that are open.
    fn check_in_place(&mut self) -> Result<()> {
        let Some(session) = &self.session else { return Ok(()) };
        if self.is_in_place(session)? {
            return Ok(());
        }
        info!(system = "store", db = %self.config.name(), "database or wal file was replaced, starting over with a full image");
        self.session = None;
        self.force_full = Some(Reason::DatabaseReplaced);
        Err(Error::new(ErrorKind::Changed, "database or wal file was replaced").at(self.config.path.display()))
    }

    fn carry_out(&mut self, decision: Plan, view: &LogView, found: Continuity, limit: Option<u64>) -> Result<Step> {
        let chain_at_tail = self.last().and_then(|l| l.checksum).unwrap_or(found.checksum);
        let tail = self.last().map_or(WalHeader::SIZE, |l| l.end);
        let mut map = PageMap::caching(self.config.bounds.cached);
        let (from, chain, limit, full) = match decision {
            Plan::Nothing => {
                self.settle(chain_at_tail, view);
                return Ok(Step::Idle);
            }
            Plan::FromTail => (tail, chain_at_tail, limit, None),
            Plan::FromHead => (WalHeader::SIZE, view.log()?.header.checksum, limit, None),
            Plan::Recover => {
                info!(system = "store", db = %self.config.name(), "recovering commits from frames of the previous wal generation");
                map = found.stale;
                (WalHeader::SIZE, view.log()?.header.checksum, None, None)
            }
            Plan::FullImage(reason) => {
                if view.index.is_empty() {
                    // An image needs a position in the log that the next step can continue from.
                    self.touch()?;
                    return Err(Error::new(ErrorKind::Changed, "wrote a first frame into an empty wal"));
                }
                (WalHeader::SIZE, view.log()?.header.checksum, None, Some(reason))
            }
        };
        let segment = self.read_log(&mut map, view, from, chain, limit, full.is_some())?;
        if !mutant("pages-beyond-the-end-kept") {
            map.drop_beyond_commit();
        }
        let limited = segment.limited && segment.end < view.end;
        self.publish(view, &Batch { map, segment, from, full, detached: false })?;
        self.force_full = None;
        if (!limited || mutant("limited-read-protects"))
            && let Some(session) = &mut self.session
        {
            session.read_to_the_end();
        }
        Ok(Step::Wrote { full: full.is_some(), limited })
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
        let modes = self.modes().unwrap_or_default();
        self.world.fs.create_dir_all(&self.local.level_dir(Level::L0), modes.dir)?;
        self.make_names_durable()?;
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
        };
        let written = self.write_file(header, pages, &source, || {
            // Frames may have been replaced while they were copied: then the copy is void.
            if !batch.detached && !mutant("log-not-looked-at-again") && session.wal_index()?.salts != view.index.salts {
                return Err(Error::new(ErrorKind::Changed, "wal was restarted while it was copied"));
            }
            Ok(())
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

    /// Temporary file, all pages, last check, sync, rename, sync of the directory.
    fn write_file(
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
    fn remember(&self, last: &Last, view: &LogView) {
        let (Some(session), Some(log), Some(checksum)) = (&self.session, &view.file, last.checksum) else { return };
        let at = Surroundings {
            seq: log.header.checkpoint_seq,
            wal_len: log.len,
            inode: session.file_id.ino,
            boot: self.world.clock.boot(),
        };
        let record = Record::new(last.txid, last.salts, last.end, checksum, at);
        let owner_mode = self.modes().map_or(OwnerMode::PRIVATE_FILE, |m| m.file);
        if let Err(err) = record.store(&self.world, &self.config.meta_path, owner_mode) {
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
