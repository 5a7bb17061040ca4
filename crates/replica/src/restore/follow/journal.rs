//! SQLite's rollback journal, written by us.
//!
//! What it buys: a batch of pages that is written in place becomes visible as a whole or not at all,
//! although we may be killed at any byte. Whoever opens the database next, a reader or we, finds the
//! journal, and SQLite itself puts the old pages back.
//!
//! | Header offset | Size | Field |
//! |---|---|---|
//! | 0 | 8 | magic `d9d505f920a163d7` |
//! | 8 | 4 | number of records |
//! | 12 | 4 | nonce of the record checksums |
//! | 16 | 4 | pages of the database before |
//! | 20 | 4 | sector size: bytes of this header, padded |
//! | 24 | 4 | page size |
//!
//! A record is a page number, the page, and the nonce plus every 200th byte of the page from the end.
//! Everything is big-endian.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::{File, read_full_at};
use crate::types::{PageSize, Pgno};

const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
const SECTOR: u32 = 512;
/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;

/// Copies the old content of `pages` from `database`, which has `old_pages` pages, into `journal`, and
/// makes it durable. The directory entry is the caller's.
pub(super) fn write(
    journal: &dyn File,
    nonce: u32,
    database: &dyn File,
    page_size: PageSize,
    old_pages: u32,
    pages: impl Iterator<Item = Pgno> + Clone,
) -> Result<()> {
    let too_many = |_| Error::new(ErrorKind::Internal, "too many pages for one journal");
    let records = u32::try_from(pages.clone().count()).map_err(too_many)?;
    let mut head = [0; SECTOR as usize];
    head[..8].copy_from_slice(&MAGIC);
    let fields = [records, nonce, old_pages, SECTOR, page_size.get()];
    for (field, at) in fields.iter().zip((8..).step_by(4)) {
        head[at..at + 4].copy_from_slice(&field.to_be_bytes());
    }
    let mut out = Vec::with_capacity(BUFFER + page_size.len() + 8);
    out.extend_from_slice(&head);
    let mut written = 0;
    for pgno in pages {
        out.extend_from_slice(&pgno.get().to_be_bytes());
        let start = out.len();
        out.resize(start + page_size.len(), 0);
        read_full_at(database, &mut out[start..], page_size.offset_of(pgno))?;
        let sum = checksum(nonce, &out[start..]);
        out.extend_from_slice(&sum.to_be_bytes());
        if out.len() >= BUFFER {
            journal.write_all_at(&out, written)?;
            written += out.len() as u64;
            out.clear();
        }
    }
    journal.write_all_at(&out, written)?;
    journal.sync()
}

fn checksum(nonce: u32, page: &[u8]) -> u32 {
    let mut sum = nonce;
    let mut at = page.len().saturating_sub(200);
    while at > 0 {
        sum = sum.wrapping_add(u32::from(page[at]));
        at = at.saturating_sub(200);
    }
    sum
}
