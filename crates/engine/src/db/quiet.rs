//! How the two files of a database looked when nothing was left to read, so that a write that does not
//! show in the wal-index is noticed by what it does to them.

use super::foreign::{Before, copied_page_1};
use super::layer::{HEADER, MAGIC};
use super::observe::LogView;
use super::plan::Written;
use super::record::Record;
use super::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::crc64;
use crate::sqlite::WalIndex;
use crate::sys::{Clock, File, FileStat, mutant, read_full_at, read_up_to};
use crate::types::{PageSize, Timestamp};
use crate::wal::{Salts, WalChecksum};

/// A file that was written less than so many milliseconds ago may be written again without a new
/// modification time: file systems count in ticks of up to 10 ms.
const RACY_MILLIS: i64 = 50;

/// What the paths of the database and its log name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub(super) db: FileStat,
    pub(super) wal: Option<FileStat>,
}

/// What changes when a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) len: u64,
    pub(super) modified: Timestamp,
}

impl Stamp {
    pub(super) fn of(stat: &FileStat) -> Self {
        Self { len: stat.len, modified: stat.modified }
    }

    /// Whether a further write would show in the modification time. A time in the future counts as old: it
    /// would never become so.
    pub(super) fn is_settled(self, clock: &dyn Clock) -> bool {
        let age = clock.now().millis().saturating_sub(self.modified.millis());
        !(-RACY_MILLIS..RACY_MILLIS).contains(&age)
    }
}

/// A moment at which everything was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settled {
    db: Stamp,
    wal: Option<Stamp>,
    index: WalIndex,
}

impl Settled {
    /// `places` must have been measured before the log was looked at, so that a write after that shows.
    pub(super) fn at(places: &Places, index: &WalIndex) -> Self {
        Self { db: Stamp::of(&places.db), wal: places.wal.as_ref().map(Stamp::of), index: *index }
    }

    /// Whether the log ended there.
    pub(super) fn is_at(&self, index: &WalIndex) -> bool {
        self.index.is_at(index)
    }

    /// Whether every later write shows in the modification times.
    pub(super) fn is_certain(&self, clock: &dyn Clock) -> bool {
        self.db.is_settled(clock) && self.wal.is_none_or(|wal| wal.is_settled(clock))
    }
}

/// The database file when it was last accounted for, and what the index said about copying to it then.
#[derive(Debug, Clone, Copy)]
pub(super) struct DbSeen {
    pub(super) stamp: Stamp,
    pub(super) page1: Page1,
    pub(super) salts: Salts,
    backfilled: u32,
    attempted: u32,
}

impl DbSeen {
    /// `stat` must have been measured before `index`: a checkpoint announces itself in the index first. `page1` must
    /// have been read after it, or no checkpoint have been announced since: see `Session::is_without_log`.
    pub(super) fn at(stat: &FileStat, index: &WalIndex, page1: Page1) -> Self {
        let WalIndex { salts, backfilled, attempted, .. } = *index;
        Self { stamp: Stamp::of(stat), page1, salts, backfilled, attempted }
    }

    /// Whether a checkpoint has been at work since, or is.
    pub(super) fn checkpointed_since(&self, index: &WalIndex) -> bool {
        index.attempted > index.backfilled || self.announced_since(index)
    }

    /// Whether the index tells of a checkpoint since, or of another log.
    pub(super) fn announced_since(&self, index: &WalIndex) -> bool {
        (self.salts, self.backfilled, self.attempted) != (index.salts, index.backfilled, index.attempted)
    }
}

/// How far the chain behind the end of the log was followed without finding a commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Behind {
    pub(super) salts: Salts,
    pub(super) end: u64,
    pub(super) offset: u64,
    pub(super) checksum: WalChecksum,
}

/// What the database header says of the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct DbHeader {
    pub(super) page_size: PageSize,
    pub(super) page_count: u64,
}

impl DbHeader {
    /// `None` unless these are the first bytes of a whole database of `len` bytes.
    fn parse(head: &[u8; HEADER], len: u64) -> Option<Self> {
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if head[..16] != *MAGIC {
            return None;
        }
        let page_size = match u16::from_be_bytes([head[16], head[17]]) {
            1 => 65536,
            n => u32::from(n),
        };
        let page_size = PageSize::new(page_size).ok()?;
        let in_file = len / u64::from(page_size.get());
        // The size in the header counts only if the version that wrote it was the last to write.
        let said = if word(24) == word(92) { u64::from(word(28)) } else { 0 };
        let page_count = if said == 0 { in_file } else { said };
        let whole = page_count > 0 && page_count <= in_file && len.is_multiple_of(u64::from(page_size.get()));
        whole.then_some(Self { page_size, page_count })
    }
}

/// Reads the header of the database file.
///
/// # Errors
/// `Changed` while it is no header of a whole database; I/O errors.
pub(super) fn db_header(file: &dyn File, stat: &FileStat) -> Result<DbHeader> {
    let mut head = [0; HEADER];
    let parsed = match stat.len >= HEADER as u64 {
        true => {
            read_full_at(file, &mut head, 0).map_err(|e| e.context("read database header"))?;
            DbHeader::parse(&head, stat.len)
        }
        false => None,
    };
    parsed.ok_or_else(being_rewritten)
}

/// Somebody is in the middle of writing the database file.
pub(super) fn being_rewritten() -> Error {
    Error::new(ErrorKind::Changed, "database file is being rewritten in place").hint(
        "it is read again when it has not been written for a moment; replace databases by renaming a complete file",
    )
}

impl Session {
    /// Whether neither file was written since everything was read.
    pub(super) fn is_settled(&self, places: &Places, index: &WalIndex) -> bool {
        let now = Settled::at(places, index);
        self.settled.is_some_and(|then| (then.db, then.wal) == (now.db, now.wal) && then.index.is_at(index))
    }

    /// How the database file was written since it was last accounted for. `stat` was measured before the
    /// index in `view`. What checkpoints explain is accounted for here; the rest once an image of it is published.
    ///
    /// # Errors
    /// `Changed` while it is being written; I/O errors.
    pub(super) fn how_written(&mut self, stat: &FileStat, view: &LogView, before: &Before<'_>) -> Result<Written> {
        if before.is_alone_beside(view) {
            return Ok(Written::WithoutTheLog);
        }
        let stamp = Stamp::of(stat);
        let seen = self.db_seen;
        if let Some(seen) = seen.filter(|seen| seen.stamp == stamp) {
            // A checkpoint may have come between the file's last look and its index.
            let page1 = if seen.announced_since(&view.index) {
                Page1::of(&page_1(self.file(), self.page_size)?)
            } else {
                seen.page1
            };
            self.db_seen = Some(DbSeen::at(stat, &view.index, page1));
            return Ok(Written::ByCheckpoints);
        }
        if stat.len < HEADER as u64 && seen.is_none() {
            // A database that stands in its log only.
            return Ok(Written::ByCheckpoints);
        }
        let page = page_1(self.file(), self.page_size)?;
        let Some(head) = page.get(..HEADER).filter(|head| head[..16] == *MAGIC) else {
            return Err(being_rewritten());
        };
        if head[18] == 1 && head[19] == 1 {
            return Ok(Written::WithoutTheLog);
        }
        let page1 = Page1::of(&page);
        let then = before.record.and_then(Record::db);
        // Its writer may copy from the log without saying so. What it copies, the log shows.
        if self.kept && !mutant("rewriting-ignored") {
            if self.is_without_log(page1, seen, before, view)? {
                return Ok(Written::WithoutTheLog);
            }
            let explained = match (seen, then) {
                (Some(seen), _) => seen.checkpointed_since(&view.index),
                (None, None) => true,
                (None, Some((then, page1_then))) => {
                    let same = |page: Page1| page.sum == page1.sum;
                    then == stamp || page1_then == page1.sum || copied_page_1(view, self.page_size, same)?
                }
            };
            if !explained {
                return Ok(Written::PastTheLog);
            }
        }
        self.db_seen = Some(DbSeen::at(stat, &view.index, page1));
        Ok(Written::ByCheckpoints)
    }

    /// An image of the file was published: from now on only further writing counts.
    pub(super) fn account_for(&mut self, stat: &FileStat, index: &WalIndex) -> Result<()> {
        let page1 = Page1::of(&page_1(self.file(), self.page_size)?);
        self.db_seen = Some(DbSeen::at(stat, index, page1));
        Ok(())
    }
}

/// What identifies a page 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Page1 {
    /// Checksum of all of it.
    pub(super) sum: u64,
    /// Checksum of the header, if all of that is of one change.
    pub(super) head: Option<u64>,
}

impl Page1 {
    pub(super) fn of(page: &[u8]) -> Self {
        // The change counter, and the one that the version of SQLite behind it is of.
        let head = page.get(..HEADER).filter(|head| head[24..28] == head[92..96]);
        Self { sum: crc64(page), head: head.map(crc64) }
    }
}

/// Page 1 in the database file, or what there is of it.
fn page_1(file: &dyn File, page_size: PageSize) -> Result<Vec<u8>> {
    let mut page = vec![0; page_size.len()];
    let have = read_up_to(file, &mut page, 0).map_err(|e| e.context("read database header"))?;
    page.truncate(have);
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ManualClock;

    fn header(pages: u32, valid_for: u32, mode: u8) -> [u8; HEADER] {
        let mut head = [0; HEADER];
        head[..16].copy_from_slice(MAGIC);
        head[16..18].copy_from_slice(&4096_u16.to_be_bytes());
        (head[18], head[19]) = (mode, mode);
        head[24..28].copy_from_slice(&7_u32.to_be_bytes());
        head[28..32].copy_from_slice(&pages.to_be_bytes());
        head[92..96].copy_from_slice(&valid_for.to_be_bytes());
        head
    }

    #[test]
    fn half_a_file_is_no_database() {
        let whole = DbHeader::parse(&header(3, 7, 1), 3 * 4096).unwrap();
        assert_eq!(whole.page_count, 3);
        assert!(DbHeader::parse(&header(3, 7, 1), 2 * 4096).is_none());
        assert!(DbHeader::parse(&header(3, 7, 1), 3 * 4096 + 1).is_none());
        assert!(DbHeader::parse(&[0; HEADER], 4096).is_none());
        // An old version of SQLite wrote last: the length of the file counts.
        assert_eq!(DbHeader::parse(&header(9, 6, 2), 3 * 4096).unwrap().page_count, 3);
    }

    #[test]
    fn a_file_written_a_moment_ago_may_be_written_again_unnoticed() {
        let clock = ManualClock::starting_at(Timestamp::from_millis(1_000_000));
        let settled = |at| Stamp { len: 1, modified: Timestamp::from_millis(at) }.is_settled(&clock);
        assert!(settled(999_000) && settled(2_000_000));
        assert!(!settled(1_000_000) && !settled(999_980) && !settled(1_000_020));
    }
}
