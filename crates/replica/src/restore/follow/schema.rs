//! Whether a batch may change the schema that readers of the output have read.
//!
//! SQLite reads the schema once, and anew only if the schema cookie (bytes 40-43 of page 1) is another
//! one. The cookies of a source are no guide: two databases that take each other's place may have the same
//! one, and so may two schemas of which one was edited by hand. So the output has a cookie of its own,
//! which goes up by one with each batch that could matter. The rule, and why it suffices:
//!
//! * The schema is the content of the b-tree at page 1, and some fields of the header. If no page of that
//!   b-tree, overflow pages included, is in the batch, and page 1 is the same but for the fields that say
//!   nothing about the schema, then every page that is reachable from page 1 is the same, hence the tree,
//!   hence the schema. This does not depend on where the batch came from.
//! * Two cases more, for what readers keep besides (state of virtual tables): the source's cookie is another one
//!   than in the batch before, or not known, and a batch that holds every page, as one with another database does.
//!
//! A reader that has the cookie of any earlier state of this file therefore has that state's schema, and
//! all batches since had the same.

use std::ops::Range;

use crate::error::Result;
use crate::restore::pages::PageMap;
use crate::sys::{File, read_full_at};
use crate::types::{PageSize, Pgno};

/// More pages than this are not walked; the schema then counts as changed each time.
const MOST_PAGES: usize = 20_000;
/// Fields of page 1 that say nothing about the schema, or are ours: journal mode; change counter, number of
/// pages, free pages, cookie; version-valid-for and library version.
const NO_SCHEMA: [Range<usize>; 3] = [18..20, 24..44, 92..100];
const INTERIOR: u8 = 5;
const LEAF: u8 = 13;

/// What is known of the schema in the output.
#[derive(Debug, Default)]
pub(super) struct Schema {
    /// Pages of its b-tree but page 1; `None` if not known.
    pages: Option<Vec<u32>>,
    /// Cookie of the source in the newest batch.
    source_cookie: Option<u32>,
}

/// The cookie in a database header.
pub(super) fn cookie(head: &[u8]) -> u32 {
    u32::from_be_bytes([head[40], head[41], head[42], head[43]])
}

impl Schema {
    /// Whether readers must read the schema anew after this batch. `old` and `new` are the first page before
    /// and after it; `new` is that of the source, if the batch has it.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn may_change(
        &mut self,
        database: &dyn File,
        page_size: PageSize,
        map: &PageMap,
        old: &[u8],
        new: &[u8],
    ) -> Result<bool> {
        let source_cookie = if map.has(1) { Some(cookie(new)) } else { self.source_cookie };
        let known = source_cookie == self.source_cookie;
        self.source_cookie = source_cookie;
        if self.pages.is_none() {
            self.pages = tree(database, page_size, old)?;
        }
        let touched = self.pages.as_ref().is_none_or(|pages| pages.iter().any(|pgno| map.has(*pgno)));
        let changed = !known || map.is_complete() || touched || !same_but_for(old, new);
        if changed {
            self.pages = None;
        }
        Ok(changed)
    }
}

fn same_but_for(old: &[u8], new: &[u8]) -> bool {
    let mut from = 0;
    for Range { start, end } in NO_SCHEMA {
        if old[from..start] != new[from..start] {
            return false;
        }
        from = end;
    }
    old[from..] == new[from..]
}

/// Pages of the b-tree at page 1, which is `first`, but page 1 itself; `None` if it cannot be followed.
fn tree(database: &dyn File, page_size: PageSize, first: &[u8]) -> Result<Option<Vec<u32>>> {
    let len = database.stat()?.len;
    let last = u32::try_from(len / u64::from(page_size.get())).unwrap_or(u32::MAX);
    let usable = page_size.len() - usize::from(first[20]);
    let (mut found, mut ahead) = (Vec::new(), Vec::new());
    if links(first, 100, usable, &mut ahead).is_none() {
        return Ok(None);
    }
    let mut page = vec![0; page_size.len()];
    while let Some(link) = ahead.pop() {
        let (Link::Page(pgno) | Link::Overflow(pgno)) = link;
        let Some(at) = Pgno::new(pgno).filter(|_| pgno <= last && found.len() < MOST_PAGES) else { return Ok(None) };
        found.push(pgno);
        read_full_at(database, &mut page, page_size.offset_of(at))?;
        match link {
            Link::Overflow(_) => match word(&page, 0) {
                Some(0) => {}
                Some(next) => ahead.push(Link::Overflow(next)),
                None => return Ok(None),
            },
            Link::Page(_) => {
                if links(&page, 0, usable, &mut ahead).is_none() {
                    return Ok(None);
                }
            }
        }
    }
    Ok(Some(found))
}

#[derive(Clone, Copy)]
enum Link {
    Page(u32),
    Overflow(u32),
}

/// Adds what a page of a table's b-tree refers to. Its header begins at `head`.
fn links(page: &[u8], head: usize, usable: usize, ahead: &mut Vec<Link>) -> Option<()> {
    let kind = *page.get(head)?;
    let cells = usize::from(half(page, head + 3)?);
    let pointers = match kind {
        INTERIOR => head + 12,
        LEAF => head + 8,
        _ => return None,
    };
    if kind == INTERIOR {
        ahead.push(Link::Page(word(page, head + 8)?));
    }
    for n in 0..cells {
        let cell = usize::from(half(page, pointers + 2 * n)?);
        if kind == INTERIOR {
            ahead.push(Link::Page(word(page, cell)?));
        } else if let Some(overflow) = overflow_of(page, cell, usable)? {
            ahead.push(Link::Overflow(overflow));
        }
    }
    Some(())
}

/// First overflow page of the row at `cell` of a leaf; the inner `None` if it has none.
fn overflow_of(page: &[u8], cell: usize, usable: usize) -> Option<Option<u32>> {
    let (payload, len) = varint(page, cell)?;
    let (_, rowid_len) = varint(page, cell + len)?;
    let payload = usize::try_from(payload).ok()?;
    let most = usable.checked_sub(35)?;
    if payload <= most {
        return Some(None);
    }
    let least = usable.checked_sub(12)? * 32 / 255 - 23;
    let local = least + (payload - least) % (usable - 4);
    let local = if local <= most { local } else { least };
    Some(Some(word(page, cell + len + rowid_len + local)?))
}

/// SQLite's variable-length integer, and its length.
fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for n in 0..9 {
        let byte = *bytes.get(at + n)?;
        if n == 8 {
            return Some((value << 8 | u64::from(byte), 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, n + 1));
        }
    }
    None
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::sys::{Fs, OpenMode, OsFs};

    /// Pages that SQLite itself counts to the b-tree at page 1, overflow pages included.
    #[test]
    fn every_page_of_the_schema_is_found() {
        for (page_size, reserved) in [(512, 0), (1024, 8), (4096, 0), (65536, 0)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("db");
            let conn = Connection::open(&path).unwrap();
            conn.execute_batch(&format!("PRAGMA page_size = {page_size}")).unwrap();
            if reserved > 0 {
                let mut bytes = reserved;
                // SAFETY: the handle is open, and SQLITE_FCNTL_RESERVE_BYTES reads and writes one int.
                let code = unsafe {
                    rusqlite::ffi::sqlite3_file_control(
                        conn.handle(),
                        c"main".as_ptr(),
                        rusqlite::ffi::SQLITE_FCNTL_RESERVE_BYTES,
                        std::ptr::from_mut(&mut bytes).cast(),
                    )
                };
                assert_eq!(code, rusqlite::ffi::SQLITE_OK);
            }
            for n in 0..60 {
                let comment = "x".repeat(n * n % 5000);
                let sql = format!("CREATE TABLE t{n}(a /* {comment} */); INSERT INTO t{n} VALUES (zeroblob(3000))");
                conn.execute_batch(&sql).unwrap();
            }
            let root_pages: u32 =
                conn.query_row("SELECT count(*) FROM sqlite_schema WHERE rootpage > 0", [], |row| row.get(0)).unwrap();
            assert_eq!(root_pages, 60);
            drop(conn);
            let file = OsFs.open(&path, OpenMode::Read).unwrap();
            let size = PageSize::new(page_size).unwrap();
            let mut first = vec![0; size.len()];
            read_full_at(file.as_ref(), &mut first, 0).unwrap();
            let mut found = tree(file.as_ref(), size, &first).unwrap().unwrap();
            found.sort_unstable();
            let all = found.len();
            found.dedup();
            assert_eq!(found.len(), all, "each once");
            // With all other pages destroyed, the whole schema can still be read.
            let mut bytes = std::fs::read(&path).unwrap();
            for (n, page) in bytes.chunks_mut(size.len()).enumerate().skip(1) {
                if found.binary_search(&(n as u32 + 1)).is_err() {
                    page.fill(0xee);
                }
            }
            let damaged = dir.path().join("damaged");
            std::fs::write(&damaged, &bytes).unwrap();
            let sum = |path: &std::path::Path| -> (u32, u64) {
                let sql = "SELECT count(*), total(length(sql)) FROM sqlite_schema WHERE sql LIKE '%'";
                Connection::open(path)
                    .unwrap()
                    .query_row(sql, [], |row| Ok((row.get(0)?, row.get::<_, f64>(1)? as u64)))
                    .unwrap()
            };
            assert_eq!(sum(&damaged), sum(&path));
            // And none of those found is there for nothing.
            for pgno in found {
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[(pgno as usize - 1) * size.len()..pgno as usize * size.len()].fill(0xee);
                std::fs::write(&damaged, &bytes).unwrap();
                let conn = Connection::open(&damaged).unwrap();
                let read =
                    conn.query_row("SELECT total(length(sql)) FROM sqlite_schema", [], |row| row.get::<_, f64>(0));
                assert!(read.is_err(), "page {pgno}");
            }
        }
    }

    #[test]
    fn a_tree_in_a_circle_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let mut page = vec![0; 512];
        page[100] = INTERIOR;
        page[108..112].copy_from_slice(&2_u32.to_be_bytes());
        let mut second = vec![0; 512];
        second[0] = INTERIOR;
        second[8..12].copy_from_slice(&2_u32.to_be_bytes());
        std::fs::write(&path, [page.clone(), second].concat()).unwrap();
        let file = OsFs.open(&path, OpenMode::Read).unwrap();
        assert_eq!(tree(file.as_ref(), PageSize::new(512).unwrap(), &page).unwrap(), None);
        // Random bytes are no tree either, and no reason to panic.
        for seed in 1..2000_u32 {
            for (n, byte) in page.iter_mut().enumerate() {
                *byte = (seed.wrapping_mul(2_654_435_761).wrapping_mul(n as u32 + 7) >> 13) as u8;
            }
            page[20] = 0;
            page[100] = if seed % 2 == 0 { INTERIOR } else { LEAF };
            let _ = tree(file.as_ref(), PageSize::new(512).unwrap(), &page).unwrap();
        }
    }
}
