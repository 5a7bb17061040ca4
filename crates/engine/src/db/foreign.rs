//! A log that is not the database file's own.
//!
//! A program that knows nothing of the log (sql.js, `cp new.db app.db`, `rsync --inplace`) may write a database over another
//! one whose frames still stand in the log. If what it writes says that it is in WAL mode, SQLite would read both as one,
//! and so would we; but neither is what anybody meant. Such a file is replicated without the log, where that is proved:
//!
//! * SQLite writes the file of a log that is its own by checkpoints alone. So if page 1 is another one than it was at some
//!   moment, and the log is of the same generation as at that moment, then a checkpoint copied this page 1 from that
//!   generation, or something else than SQLite wrote it. What was copied from a generation still stands in it, and
//!   not behind the frame up to which checkpoints were attempted.
//! * A checkpoint that was killed may have left half a page 1, which stands nowhere: the beginning of a frame's page, and
//!   the rest of the page before it. If that goes as far as the header, its 100 bytes are the frame's; if it ends before
//!   the change counter, nothing has changed; and in between, the change counter and the one for which the
//!   version is valid do not fit. So while a checkpoint is unfinished (or the index was rebuilt, which looks the same)
//!   headers are compared instead of pages. (A page whose halves are of two versions of SQLite, cut in or right before those
//!   four bytes, would pass for another one. A kernel copies whole pages of memory and does not cut there.)
//! * This proof needs a file that is not being written: an image of the file alone demands that it was not, from
//!   before the index was read until the image is complete.
//! * From then on the log counts as foreign as long as nothing is committed to it, also in later lives of the
//!   engine: `<meta>/foreign-log` says where it ended. A commit there was made by SQLite, which read both: then both count.

use std::path::{Path, PathBuf};

use super::engine::Db;
use super::observe::LogView;
use super::quiet::{DbSeen, Page1};
use super::record::{Record, load_sealed, store_sealed};
use super::session::Session;
use crate::error::Result;
use crate::sys::{OwnerMode, World, mutant};
use crate::types::{PageSize, Pgno};
use crate::wal::{FrameHeader, Salts, Step, WalHeader};

/// A file in the metadata directory, which Litestream 0.5 ignores.
pub(super) const MARK: &str = "foreign-log";

/// How much of a log is read to see whether a checkpoint that was announced wrote page 1. Of a longer one, which a busy writer
/// makes, that is believed: reading each log twice would cost as much as replicating it.
const ASKED_BYTES: u64 = 1024 * 1024;

/// Where a log ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogEnd {
    salts: Salts,
    end: u64,
}

/// What is known from before this look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before<'a> {
    /// The continuity record, where it counts.
    pub(super) record: Option<&'a Record>,
    /// Whether the record was written since the machine was started.
    pub(super) same_boot: bool,
    /// Generation of the log that the newest local file is from.
    pub(super) salts: Option<Salts>,
    /// A log that was found not to be the database's.
    pub(super) foreign: Option<LogEnd>,
    /// Nothing was written since everything was read, and no image is due.
    pub(super) at_rest: bool,
}

impl LogEnd {
    pub(super) fn of(view: &LogView) -> Self {
        Self { salts: view.index.salts, end: view.end }
    }

    fn path(meta: &Path) -> PathBuf {
        meta.join(MARK)
    }

    /// What an earlier life found; `None` if that is torn.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn load(world: &World, meta: &Path) -> Result<Option<Self>> {
        let found = load_sealed(world, &Self::path(meta))?;
        Ok(found.map(|(salt1, salt2, end)| Self { salts: Salts { salt1, salt2 }, end }))
    }

    /// Leaves it for later lives.
    ///
    /// # Errors
    /// I/O errors.
    fn store(self, world: &World, meta: &Path, owner_mode: OwnerMode) -> Result<()> {
        let Salts { salt1, salt2 } = self.salts;
        store_sealed(world, &Self::path(meta), &(salt1, salt2, self.end), owner_mode)
    }
}

impl Before<'_> {
    /// Whether an image is due of a file whose log was not its own, and nothing was committed to that log since.
    pub(super) fn is_alone_beside(&self, view: &LogView) -> bool {
        !self.at_rest && self.foreign == Some(LogEnd::of(view)) && !mutant("foreign-log-forgotten")
    }
}

impl Page1 {
    /// Whether a checkpoint may have made this page of that in a frame. `torn`: it may have been killed meanwhile.
    fn may_be_of(self, frame: Self, torn: bool) -> bool {
        if torn && !mutant("torn-page-is-foreign") { self.head == frame.head } else { self.sum == frame.sum }
    }
}

impl Session {
    /// Whether the log provably is not the file's own: see the module head. `page1` was read after the index in `view`.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn is_without_log(
        &self,
        page1: Page1,
        seen: Option<DbSeen>,
        before: &Before<'_>,
        view: &LogView,
    ) -> Result<bool> {
        let index = &view.index;
        let announced = seen.is_some_and(|seen| seen.announced_since(index));
        if announced && u64::from(index.attempted) * self.page_size.frame_size() > ASKED_BYTES {
            return Ok(false);
        }
        let then = match (seen, before.record.and_then(Record::db)) {
            (Some(seen), _) => (seen.salts == index.salts).then_some(seen.page1.sum),
            // A power cut may have taken the log back behind what was copied from it.
            (None, Some((_, then))) => {
                let same_log = before.same_boot && !index.is_empty() && before.salts == Some(index.salts);
                same_log.then_some(then)
            }
            (None, None) => None,
        };
        let Some(then) = then.filter(|_| !mutant("foreign-log-read")) else { return Ok(false) };
        if then == page1.sum {
            return Ok(false);
        }
        // A checkpoint that was killed may have left half a page: see the module head.
        let torn = index.attempted > index.backfilled;
        if torn && page1.head.is_none() {
            return Ok(false);
        }
        if !index.is_empty() && copied_page_1(view, self.page_size, |frame| page1.may_be_of(frame, torn))? {
            return Ok(false);
        }
        // Still that generation, or reading it may have ended early.
        Ok(self.wal_index()?.salts == index.salts)
    }
}

/// What is `known` of a foreign log, if that is still this one. What has moved on since is the database's again.
pub(super) fn still_foreign(known: &mut Option<LogEnd>, world: &World, meta: &Path, view: &LogView) -> Option<LogEnd> {
    if known.is_some_and(|log| log != LogEnd::of(view)) {
        *known = None;
        // What stays would say nothing.
        let _ = world.fs.remove_file(&LogEnd::path(meta));
    }
    *known
}

impl Db {
    /// Remembers that the log is not the database's, before anything is published on the strength of it.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn note_foreign(&mut self, view: &LogView) -> Result<()> {
        let log = LogEnd::of(view);
        if self.foreign != Some(log) {
            log.store(&self.world, &self.config.meta_path, self.file_mode())?;
            self.foreign = Some(log);
        }
        Ok(())
    }
}

/// Whether a checkpoint may have copied such a page 1 from the log: one stands in a frame up to which one was
/// attempted.
pub(super) fn copied_page_1(view: &LogView, page_size: PageSize, same: impl Fn(Page1) -> bool) -> Result<bool> {
    let Some(log) = view.file.as_ref().filter(|_| !view.index.is_empty()) else { return Ok(true) };
    let attempted = WalHeader::SIZE + u64::from(view.index.attempted) * page_size.frame_size();
    let limit = attempted.min(view.end);
    let mut reader = log.reader(page_size, WalHeader::SIZE, log.header.checksum).bounded(limit);
    loop {
        match reader.step()? {
            Step::Frame { pgno: Pgno::FIRST, bytes, .. } if same(Page1::of(&bytes[FrameHeader::SIZE..])) => {
                return Ok(true);
            }
            Step::Frame { .. } => {}
            // Where it ends early, nothing can be said.
            Step::Stop(_) => return Ok(reader.offset() < limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_page_is_no_proof_wherever_a_checkpoint_was_killed() {
        let page = |change: u32, fill: u8| {
            let mut page = [fill; 512];
            page[..24].copy_from_slice(b"SQLite format 3\0\x02\0\x02\x02\0\x40\x20\x20");
            page[24..28].copy_from_slice(&change.to_be_bytes());
            page[92..96].copy_from_slice(&change.to_be_bytes());
            page[96..100].copy_from_slice(&3_049_001_u32.to_be_bytes());
            page
        };
        let (before, frame) = (page(0x0102_0304, 1), page(0x0506_0708, 2));
        for cut in 0..=512 {
            let mut half = before;
            half[..cut].copy_from_slice(&frame[..cut]);
            let half = Page1::of(&half);
            let unchanged = half.sum == Page1::of(&before).sum;
            assert!(unchanged || half.head.is_none() || half.may_be_of(Page1::of(&frame), true), "cut at {cut}");
        }
        let foreign = Page1::of(&page(0x0506_0709, 2));
        assert!(foreign.head.is_some() && !foreign.may_be_of(Page1::of(&frame), true));
    }

    #[test]
    fn what_is_left_for_a_later_life_is_whole_or_nothing() {
        let (dir, world) = (tempfile::tempdir().unwrap(), World::system());
        let load = || LogEnd::load(&world, dir.path()).unwrap();
        let log = LogEnd { salts: Salts { salt1: 7, salt2: u32::MAX }, end: 8272 };
        assert_eq!(load(), None);
        log.store(&world, dir.path(), OwnerMode::DEFAULT_FILE).unwrap();
        assert_eq!(load(), Some(log));
        let path = LogEnd::path(dir.path());
        let text = std::fs::read_to_string(&path).unwrap();
        for at in 0..text.len() {
            std::fs::write(&path, &text[..at]).unwrap();
            assert_eq!(load(), None, "cut at {at}");
        }
        for other in [text.replace("8272", "8273"), format!("{text}rest")] {
            std::fs::write(&path, &other).unwrap();
            assert_eq!(load(), None, "{other}");
        }
    }
}
