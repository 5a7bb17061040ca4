//! LTX files: the pages one or several transactions changed, with their checksum.
//!
//! Guarantees:
//! 1. What [`Encoder`] finishes, [`Decoder`] and Litestream 0.5.16 or later read.
//! 2. [`Decoder::next_page`] returns `None` only for a file that is whole, ends where it should and
//!    keeps every rule of the format; until then its pages must be retractable.
//! 3. No input makes a reader panic or take memory beyond a small multiple of a page; only
//!    [`PageIndex`] grows with the file, by no more than the file's own index.
//! 4. [`merge()`] never builds a page from before a shrink of the database.
//!
//! There is no version number in a file. Pages are stored as LZ4 blocks (written here and by
//! Litestream since 0.5.16) or LZ4 frames (up to 0.5.15, read only), told apart page by page.

mod checksum;
mod decoder;
mod encoder;
mod header;
mod index;
mod local;
mod lz4_frame;
mod merge;
mod name;
mod order;
mod page;
mod source;
#[cfg(test)]
mod testing;

pub use checksum::{crc64, page_checksum};
pub use decoder::{Decoder, Midway, Summary, verify};
pub use encoder::Encoder;
pub use header::{Header, Trailer, WalPos};
pub use index::{PageIndex, PageRef, is_full_image, read_page};
pub use local::LocalDir;
pub use merge::{merge, snapshot_of};
pub use name::{file_name, parse_file_name};
pub use source::{FileReader, FileWriter};

use crate::error::{Error, Result};
use crate::types::PageSize;

fn check_page_buffer(len: usize, page_size: PageSize) -> Result<()> {
    if len == page_size.len() {
        return Ok(());
    }
    Err(Error::invalid(format!("invalid page buffer size: {len}, expecting {page_size}")))
}
