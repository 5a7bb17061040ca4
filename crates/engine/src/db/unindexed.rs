//! Commits that stand in the log but not in SQLite's index of it.
//!
//! A writer that does not keep the wal-index leaves them: SQLite with `vfs=unix-none` or `unix-dotfile` (whose
//! wal-index is on the heap), some builds for WebAssembly, Turso with several processes. So does a writer
//! of SQLite's own that is killed, or whose disk fails, between the last frame of a commit and the index. These two look
//! alike in the log, and must not be treated alike: the first kind is committed, the second kind is
//! not, as long as a connection that knows better is open.
//!
//! SQLite decides. The procedure:
//!
//! 1. *Look.* After everything that the index knows was read, follow the checksum chain behind its end. No commit frame:
//!    nothing was committed there. It costs 24 bytes, unless somebody has a large transaction open.
//! 2. *Confirm.* Take the write lock, unless somebody has it (then look again later), and look again. Under it no
//!    writer that keeps SQLite's locks is between its last frame and the index.
//! 3. *Reopen.* Close all our connections and open again. If nobody else has the database open by SQLite's locks, SQLite
//!    rebuilds the index from the log, as it does for whoever comes first after a crash: what stands in
//!    the log is committed then. If somebody else has it open, the index stays, and the sync fails, until
//!    that one's next commit takes the place of these frames or it closes.
//! 4. From then on the session is not *kept*: its read transaction protects nothing, because such a writer does
//!    not look at it. Every step asks for proof (rows 7 to 11 of [`super::plan()`]); an image also demands that the
//!    database file was not written meanwhile (`image`); and nothing is written to the database or its log, and no
//!    checkpoint is run, since that writer would not know of it. This ends when a commit shows in the index by itself.
//!
//! The same with a log that is shorter than the index says, or of another generation, while
//! nobody has the write lock: SQLite's own writers change the index first.

use std::path::PathBuf;

use tracing::{info, warn};

use super::engine::Db;
use super::observe::{LogView, OpenLog};
use super::quiet::{Behind, Places, Settled};
use super::sync::not_open;
use crate::error::{Error, ErrorKind, Result};
use crate::sqlite::WalIndex;
use crate::sys::{OpenMode, mutant};
use crate::types::PageSize;
use crate::wal::{Salts, Step, WalChecksum, WalHeader, read_frame_header};

/// What stands behind the end of the log.
#[derive(Debug, Clone, Copy)]
pub(super) enum Found {
    /// No frame that continues it.
    Nothing,
    /// Frames of a transaction that is open, or was rolled back.
    Uncommitted(Behind),
    /// A whole transaction.
    Commit,
}

/// What stands in the log besides what its index knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stands {
    /// Nothing.
    Nothing,
    /// A writer that knows SQLite's locks is at work: perhaps what it is about to commit.
    BeingWritten,
    /// Commits, or another log.
    Behind,
}

/// The slot where the next frame would stand, and the chain up to it.
fn next_slot(view: &LogView) -> Option<(&OpenLog, Salts, u64, WalChecksum)> {
    let log = view.file.as_ref()?;
    if !view.index.is_empty() {
        return Some((log, view.index.salts, view.end, view.index.checksum));
    }
    // A log that SQLite is about to restart still shows the generation before. That was read to its end.
    let restarting = view.index.salts.follows(log.header.salts);
    (!restarting).then_some((log, log.header.salts, WalHeader::SIZE, log.header.checksum))
}

/// Step 1 of the module head. `known` is what was found the last time.
///
/// # Errors
/// I/O errors.
pub(super) fn look_behind(view: &LogView, page_size: PageSize, known: Option<Behind>) -> Result<Found> {
    let Some((log, salts, end, checksum)) = next_slot(view) else { return Ok(Found::Nothing) };
    if log.header.page_size != page_size || mutant("unindexed-ignored") {
        return Ok(Found::Nothing);
    }
    // Nearly always an older generation's frame, or nothing, stands there.
    let next = read_frame_header(log.file.as_ref(), end)?;
    if next.is_none_or(|header| header.salts != salts) {
        return Ok(Found::Nothing);
    }
    if let Some(known) = known.filter(|known| (known.salts, known.end) == (salts, end)) {
        match follow(log, page_size, known)? {
            // It did not go on; perhaps others took the place of those frames.
            Found::Uncommitted(found) if found.offset == known.offset => {}
            // It was rolled back after it went on, and a shorter one took the place of its first frames.
            Found::Uncommitted(_) if a_commit_stands_between(log, page_size, end, known.offset)? => {}
            found => return Ok(found),
        }
    }
    match follow(log, page_size, Behind { salts, end, offset: end, checksum })? {
        Found::Uncommitted(found) if found.offset == end => Ok(Found::Nothing),
        found => Ok(found),
    }
}

/// Whether one of these frames says that it ends a transaction. None did when they were followed.
fn a_commit_stands_between(log: &OpenLog, page_size: PageSize, from: u64, to: u64) -> Result<bool> {
    let step = usize::try_from(page_size.frame_size()).unwrap_or(usize::MAX);
    for offset in (from..to).step_by(step) {
        if read_frame_header(log.file.as_ref(), offset)?.is_some_and(|header| header.commit != 0) {
            return Ok(!mutant("replaced-frames-trusted"));
        }
    }
    Ok(false)
}

/// Follows the chain until it ends or commits.
fn follow(log: &OpenLog, page_size: PageSize, from: Behind) -> Result<Found> {
    let mut reader = log.reader_of(from.salts, page_size, from.offset, from.checksum);
    loop {
        match reader.step()? {
            Step::Frame { commit: 0, .. } => {}
            Step::Frame { .. } => return Ok(Found::Commit),
            Step::Stop(_) => {
                let (offset, checksum) = (reader.offset(), reader.checksum());
                return Ok(Found::Uncommitted(Behind { offset, checksum, ..from }));
            }
        }
    }
}

/// Whether the log is still the one that was looked at. Its writer may even have put another file in its place, if it
/// does not keep the index.
fn still_this_log(view: &LogView, kept: bool, open: impl FnOnce() -> Result<Option<OpenLog>>) -> Result<bool> {
    let Some(log) = view.file.as_ref() else { return Ok(kept || open()?.is_none()) };
    if kept {
        return Ok(log.header_now()?.is_some_and(|header| header.salts == log.header.salts));
    }
    Ok(open()?.is_some_and(|now| now.id == log.id && now.header.salts == log.header.salts))
}

/// Whether index and log can both be right.
fn contradict(index: &WalIndex, log: Option<&OpenLog>, page_size: PageSize) -> bool {
    if index.is_empty() {
        return false;
    }
    log.is_none_or(|log| log.header.salts != index.salts || log.len < index.end(page_size))
}

impl Db {
    /// Everything that the index knows was read. Remembers that, if nothing stands behind it. Says whether a
    /// commit does, as far as can be told without the write lock.
    pub(super) fn settle_files(&mut self, view: &LogView, places: &Places) -> Result<bool> {
        let clock = self.world.clock.clone();
        let session = self.session.as_mut().ok_or_else(not_open)?;
        session.settled = None;
        // A busy writer that keeps the index: what stands behind is no secret, and following it costs a read of the log.
        if session.kept && !session.wal_index().is_ok_and(|now| now.is_at(&view.index)) {
            return Ok(false);
        }
        let behind = look_behind(view, session.page_size, session.behind.take())?;
        // Such a writer may have restarted the log while we looked, over what we looked for.
        if !still_this_log(view, session.kept, || OpenLog::open(&self.world, &self.config))? {
            if session.wal_index().is_ok_and(|now| now.is_at(&view.index)) {
                return Err(Error::new(ErrorKind::Changed, "wal was restarted while it was looked at"));
            }
            return Ok(false);
        }
        match behind {
            Found::Nothing => {}
            Found::Uncommitted(behind) => session.behind = Some(behind),
            // What came since the index was read is no secret.
            Found::Commit => return Ok(session.wal_index().is_ok_and(|now| now.is_at(&view.index))),
        }
        session.settled = Some(Settled::at(places, &view.index)).filter(|settled| settled.is_certain(clock.as_ref()));
        Ok(false)
    }

    /// Step 1 of the module head, without remembering anything.
    pub(super) fn finds_commit_behind(&self, view: &LogView) -> Result<bool> {
        let session = self.session.as_ref().ok_or_else(not_open)?;
        Ok(matches!(look_behind(view, session.page_size, None)?, Found::Commit))
    }

    /// The index says that the log is empty.
    ///
    /// # Errors
    /// `Changed` if it is not; I/O errors.
    pub(super) fn insist_on_empty_log(&self, view: &LogView) -> Result<()> {
        if self.finds_commit_behind(view)? {
            return Err(Error::new(ErrorKind::Changed, "wal holds commits that its index does not know"));
        }
        Ok(())
    }

    /// Step 2 of the module head.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn stands_unindexed(&self) -> Result<Stands> {
        let (world, config) = (&self.world, &self.config);
        let Some(session) = self.session.as_ref().filter(|_| !mutant("unindexed-ignored")) else {
            return Ok(Stands::Nothing);
        };
        let found = session.without_writers(|| {
            let index = session.wal_index()?;
            if contradict(&index, OpenLog::open(world, config)?.as_ref(), session.page_size) {
                return Ok(true);
            }
            let view = LogView::of(index, world, config, session.page_size)?;
            Ok(matches!(look_behind(&view, session.page_size, None)?, Found::Commit))
        })?;
        Ok(match found {
            None => Stands::BeingWritten,
            Some(true) => Stands::Behind,
            Some(false) => Stands::Nothing,
        })
    }

    /// Step 3 of the module head.
    ///
    /// # Errors
    /// `Busy` if the index is still what it was: somebody else has the database open.
    pub(super) fn take_in_unindexed(&mut self) -> Result<()> {
        let before = self.session.as_ref().ok_or_else(not_open)?.wal_index()?;
        // Waits for snapshots that are being read.
        self.session = None;
        if !self.open()? {
            return Ok(());
        }
        let session = self.session.as_mut().ok_or_else(not_open)?;
        if session.wal_index()?.is_at(&before) {
            return Err(Error::new(ErrorKind::Busy, "commits stand in the wal that its index does not know")
                .at(self.config.wal_path().display())
                .hint(HINT_OPEN_ELSEWHERE));
        }
        session.kept = mutant("unindexed-writer-trusted");
        self.mark_unkept()?;
        if !std::mem::replace(&mut self.unkept, true) {
            warn!(system = "store", db = %self.config.name(), hint = HINT_NOT_KEPT,
                "commits stood in the wal that its index did not know, and were taken in");
        }
        Ok(())
    }

    /// Where it is noted that some writer does not keep the index, for a later life of the engine: it must not begin by
    /// writing a frame into that one's log.
    pub(super) fn unkept_mark(&self) -> PathBuf {
        self.config.meta_path.join(MARK)
    }

    /// Leaves the note before the log is read on the strength of it.
    fn mark_unkept(&self) -> Result<()> {
        match self.world.fs.open(&self.unkept_mark(), OpenMode::CreateNew(self.file_mode())) {
            Err(err) if err.kind() != ErrorKind::Exists => Err(err),
            _ => Ok(()),
        }
    }

    /// Notices that somebody keeps the index (again).
    pub(super) fn note_index(&mut self, index: &WalIndex) {
        let Some(session) = &mut self.session else { return };
        if session.kept || session.first_index.is_none_or(|first| first.is_at(index)) {
            return;
        }
        session.kept = true;
        self.unkept = false;
        // What stays would only make the next start more careful than need be.
        let _ = self.world.fs.remove_file(&self.unkept_mark());
        info!(system = "store", db = %self.config.name(), "a commit shows in the wal-index, checkpoints go on");
    }
}

/// A file in the metadata directory, which Litestream 0.5 ignores.
pub(super) const MARK: &str = "unindexed-writer";
const HINT_OPEN_ELSEWHERE: &str = "either a writer was killed in the middle of a commit, and the next commit ends this, or \
    a program writes without the wal-index (vfs=unix-none or unix-dotfile, builds for WebAssembly, Turso with \
    multiprocess_wal) while another one has the database open: close one of them";
const HINT_NOT_KEPT: &str = "a writer was killed in the middle of a commit, or does not keep the wal-index (vfs=unix-none or \
    unix-dotfile, builds for WebAssembly, Turso with multiprocess_wal); in the second case it must checkpoint by itself, \
    and no other program may write to the database";
