//! Where the pages of a new file come from, and writing them out.

use std::io::Write;

use super::layer::{Layer, put_checksum};
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::Encoder;
use crate::sys::{File, mutant, read_full_at};
use crate::types::{PageSize, Pgno};
use crate::wal::PageMap;

/// Bytes read at once when pages of the database file are taken in order.
const READ_AHEAD: usize = 1024 * 1024;

/// Which pages a file holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pages {
    /// All of a database of this many pages.
    All(u32),
    /// What the log changed, and what the database grew by since it had `before` pages.
    Changed {
        /// Size in pages after the previous file.
        before: u32,
        /// Size in pages after this one.
        commit: u32,
    },
}

impl Pages {
    /// The pages, ascending, without the lock page. Not collected for a whole database: its list
    /// alone could be larger than what we may keep in memory.
    fn list(self, map: &PageMap, page_size: PageSize) -> Box<dyn Iterator<Item = Pgno>> {
        match self {
            Self::All(commit) => Box::new(Pgno::range(1, commit, page_size)),
            Self::Changed { before, commit } => {
                let lock = page_size.lock_page();
                let mut pages = map.pages();
                // A growing file always carries all new pages, even those nobody wrote to.
                pages.extend(Pgno::range(before.saturating_add(1), commit, page_size).filter(|p| !map.contains(*p)));
                pages.retain(|p| *p != lock);
                pages.sort_unstable();
                Box::new(pages.into_iter())
            }
        }
    }
}

/// The log's pages first, the database file's otherwise.
#[derive(Debug)]
pub(super) struct PageSource<'a> {
    pub(super) map: &'a PageMap,
    pub(super) wal: Option<&'a dyn File>,
    pub(super) db: &'a dyn File,
    pub(super) page_size: PageSize,
    /// Pages inside the database file.
    pub(super) db_pages: u64,
    /// Read ahead in the database file: right for a whole image, wasteful for single pages.
    pub(super) in_order: bool,
    /// Who else works on the pages.
    pub(super) layer: Layer,
}

/// Pages between two looks at whether to go on.
const PAGES_AT_ONCE: u64 = 64;

impl PageSource<'_> {
    /// Feeds `pages` to the encoder.
    ///
    /// # Errors
    /// `Changed` if a page is in neither place: it was cut off while we looked. I/O errors.
    pub(super) fn encode<W: Write>(&self, pages: Pages, encoder: &mut Encoder<W>) -> Result<u64> {
        self.encode_while(pages, encoder, || Ok(()))
    }

    /// As [`PageSource::encode`], asking `go_on` every few pages.
    ///
    /// # Errors
    /// Those of `go_on` too.
    pub(super) fn encode_while<W: Write>(
        &self,
        pages: Pages,
        encoder: &mut Encoder<W>,
        go_on: impl Fn() -> Result<()>,
    ) -> Result<u64> {
        let mut page = vec![0; self.page_size.len()];
        let mut ahead = ReadAhead::default();
        let mut count = 0;
        for pgno in pages.list(self.map, self.page_size) {
            if count % PAGES_AT_ONCE == 0 {
                go_on()?;
            }
            count += 1;
            let mapped = match self.wal {
                // Frames the database file holds already need not be looked for in the log. But which are those?
                Some(_) if self.in_order && mutant("image-from-the-file-alone") => false,
                Some(wal) => self.map.copy_page(pgno, wal, self.page_size, &mut page)?,
                None => false,
            };
            match (mapped, self.layer) {
                (false, _) => self.copy_from_db(pgno, &mut page, &mut ahead)?,
                // As the application's next checkpoint will.
                (true, Layer::Checksums) => put_checksum(&mut page),
                (true, _) => {}
            }
            encoder.page(pgno, &page)?;
        }
        Ok(count)
    }

    fn copy_from_db(&self, pgno: Pgno, out: &mut [u8], ahead: &mut ReadAhead) -> Result<()> {
        if u64::from(pgno.get()) > self.db_pages {
            return Err(Error::new(
                ErrorKind::Changed,
                format!("page {pgno} is neither in the wal nor in the database file of {} pages", self.db_pages),
            ));
        }
        let offset = self.page_size.offset_of(pgno);
        if !self.in_order {
            return read_full_at(self.db, out, offset).map_err(|e| e.context(format!("read database page {pgno}")));
        }
        let end = self.db_pages * self.page_size.len() as u64;
        ahead.copy(self.db, offset, end, out).map_err(|e| e.context(format!("read database page {pgno}")))
    }
}

/// A window onto a file that is read from front to back.
#[derive(Debug, Default)]
struct ReadAhead {
    buf: Vec<u8>,
    start: u64,
}

impl ReadAhead {
    /// Fills `out` from `offset` on; nothing from `limit` on will be asked for.
    fn copy(&mut self, file: &dyn File, offset: u64, limit: u64, out: &mut [u8]) -> Result<()> {
        let end = self.start + self.buf.len() as u64;
        if offset < self.start || offset + out.len() as u64 > end {
            self.start = offset;
            // Small databases are many: no buffer larger than what is left of them.
            let left = usize::try_from(limit.saturating_sub(offset)).unwrap_or(READ_AHEAD);
            self.buf.resize(READ_AHEAD.min(left), 0);
            let mut have = 0;
            while have < self.buf.len() {
                match file.read_at(&mut self.buf[have..], offset + have as u64) {
                    Ok(0) => break,
                    Ok(n) => have += n,
                    Err(err) => {
                        self.buf.clear();
                        return Err(err);
                    }
                }
            }
            self.buf.truncate(have);
        }
        let at = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        match self.buf.get(at..at.saturating_add(out.len())) {
            Some(bytes) => {
                out.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::corrupt(format!("unexpected EOF at offset {offset}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(pages: Pages) -> Vec<u32> {
        pages.list(&PageMap::default(), PageSize::new(512).unwrap()).map(Pgno::get).collect()
    }

    /// SQLite logs every page it adds, so only a log of somebody else's making shows this.
    #[test]
    fn a_file_carries_every_page_that_the_database_grew_by() {
        assert_eq!(pages(Pages::Changed { before: 3, commit: 6 }), [4, 5, 6]);
        assert_eq!(pages(Pages::Changed { before: 6, commit: 3 }), [0; 0]);
        assert_eq!(pages(Pages::All(3)), [1, 2, 3]);
    }
}
