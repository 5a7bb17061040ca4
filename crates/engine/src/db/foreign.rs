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
//!   headers are compared instead of pages.
//! * This proof needs a file that is not being written: an image of the file alone demands that it was not, from
//!   before the index was read until the image is complete.
//! * From then on the log counts as foreign as long as nothing is committed to it, also in later lives of the
//!   engine: `<meta>/foreign-log` says where it ended. A commit there was made by SQLite, which read both: then both count.

use std::path::{Path, PathBuf};

use super::engine::Db;
use super::observe::LogView;
use super::quiet::{DbSeen, Page1};
use super::record::Record;
use super::session::Session;
use crate::error::{ErrorKind, Result};
use crate::ltx::crc64;
use crate::sys::{OpenMode, OwnerMode, World, mutant, read_up_to};
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
    pub(super) fn load(world: &World, meta: &Path) -> Result<Option<Self>> {
        let Some(file) = world.fs.open_opt(&Self::path(meta), OpenMode::Read)? else { return Ok(None) };
        let mut bytes = [0; 128];
        let len = read_up_to(file.as_ref(), &mut bytes, 0)?;
        let text = std::str::from_utf8(&bytes[..len]).unwrap_or_default();
        Ok(Self::parse(text))
    }

    /// Leaves it for later lives.
    ///
    /// # Errors
    /// I/O errors.
    fn store(self, world: &World, meta: &Path, owner_mode: OwnerMode) -> Result<()> {
        let path = Self::path(meta);
        let file = match world.fs.open(&path, OpenMode::CreateNew(owner_mode)) {
            Err(err) if err.kind() == ErrorKind::Exists => world.fs.open(&path, OpenMode::ReadWrite)?,
            other => other?,
        };
        let text = self.text();
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(text.len() as u64)
    }

    fn text(self) -> String {
        let facts = format!("{:08x} {:08x} {}", self.salts.salt1, self.salts.salt2, self.end);
        format!("{facts}\n{:016x}\n", crc64(facts.as_bytes()))
    }

    fn parse(text: &str) -> Option<Self> {
        let facts = text.lines().next()?;
        let mut words = facts.split(' ');
        let salt1 = u32::from_str_radix(words.next()?, 16).ok()?;
        let salt2 = u32::from_str_radix(words.next()?, 16).ok()?;
        let this = Self { salts: Salts { salt1, salt2 }, end: words.next()?.parse().ok()? };
        (this.text() == text).then_some(this)
    }
}

impl Before<'_> {
    /// Whether an image is due of a file whose log was not its own, and nothing was committed to that log since.
    pub(super) fn is_alone_beside(&self, view: &LogView) -> bool {
        !self.at_rest && self.foreign == Some(LogEnd::of(view)) && !mutant("foreign-log-forgotten")
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
        let torn = index.attempted > index.backfilled && !mutant("torn-page-is-foreign");
        if torn && page1.head.is_none() {
            return Ok(false);
        }
        let same = |page: Page1| if torn { page.head == page1.head } else { page.sum == page1.sum };
        if !index.is_empty() && copied_page_1(view, self.page_size, same)? {
            return Ok(false);
        }
        // Still that generation, or reading it may have ended early.
        Ok(self.wal_index()?.salts == index.salts)
    }
}

/// The log that an earlier look (`known`), or an earlier life, found not to be the database's. What has moved on since
/// is the database's again.
///
/// # Errors
/// I/O errors.
pub(super) fn still_foreign(
    known: &mut Option<Option<LogEnd>>,
    world: &World,
    meta: &Path,
    view: &LogView,
) -> Result<Option<LogEnd>> {
    let before = match *known {
        Some(before) => before,
        None => LogEnd::load(world, meta)?,
    };
    let still = before.filter(|log| *log == LogEnd::of(view));
    if before.is_some() && still.is_none() {
        // What stays would say nothing.
        let _ = world.fs.remove_file(&LogEnd::path(meta));
    }
    *known = Some(still);
    Ok(still)
}

impl Db {
    /// Remembers that the log is not the database's, before anything is published on the strength of it.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn note_foreign(&mut self, view: &LogView) -> Result<()> {
        let log = LogEnd::of(view);
        if self.foreign == Some(Some(log)) {
            return Ok(());
        }
        let owner_mode = self.modes().map_or(OwnerMode::PRIVATE_FILE, |modes| modes.file);
        log.store(&self.world, &self.config.meta_path, owner_mode)?;
        self.foreign = Some(Some(log));
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
    fn what_is_left_for_a_later_life_is_whole_or_nothing() {
        let log = LogEnd { salts: Salts { salt1: 7, salt2: u32::MAX }, end: 8272 };
        let text = log.text();
        assert_eq!(LogEnd::parse(&text), Some(log));
        for at in 0..text.len() {
            assert_eq!(LogEnd::parse(&text[..at]), None, "cut at {at}");
        }
        assert_eq!(LogEnd::parse(&text.replace("8272", "8273")), None);
        assert_eq!(LogEnd::parse(&format!("{text}rest")), None);
    }
}
