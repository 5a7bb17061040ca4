//! Snapshot and logs → database file.
//!
//! Frames are written where their page belongs as they come, so a log takes no memory whatever its
//! length; a page that is committed later overwrites. That is right only because a log is taken as a
//! whole or not at all: nothing may be used before [`apply`] has returned `Ok`.

use std::io::Read;

use lz4_flex::frame::FrameDecoder;

use super::list::{Piece, Segment};
use crate::error::{Error, Result};
use crate::sys::{File, UNCHECKED};
use crate::types::PageSize;
use crate::wal::{FrameHeader, WalChecksum, WalHeader};

/// Bytes taken out of an LZ4 frame at once; holds several of the largest WAL frames.
const CHUNK: usize = 512 * 1024;
/// What every SQLite database starts with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Bytes of the database header that are looked at.
const HEAD: usize = 18;

/// What [`apply`] built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Size of a page.
    pub page_size: PageSize,
    /// Pages of the database.
    pub pages: u32,
}

/// Writes the database that `sources` describe to `out`, and sets its length. `sources` are the
/// pieces of a plan in order. Blocks.
///
/// # Errors
/// `Corrupt` for damaged, missing or overlapping objects; errors of the readers and of `out`, whose
/// content is worthless then.
pub fn apply<R: Read>(mut sources: impl Iterator<Item = Result<(Piece, R)>>, out: &dyn File) -> Result<Applied> {
    let Some(first) = sources.next() else { return Err(Error::invalid("no snapshots available")) };
    let (first, reader) = first?;
    let Piece::Snapshot(snapshot) = first else { return Err(Error::invalid("a snapshot must come first")) };
    let base =
        write_snapshot(reader, out).map_err(|e| e.context(snapshot.key.to_string()).context("download snapshot"))?;
    let mut logs = Logs { out, size: base, next_index: snapshot.index, log: None };
    for source in sources {
        let (piece, reader) = source?;
        let Piece::Segment(segment) = piece else { return Err(Error::invalid("only one snapshot may come")) };
        logs.take(&segment, reader).map_err(|e| e.context("apply WAL segments"))?;
    }
    logs.end().map_err(|e| e.context("apply WAL segments"))?;
    Ok(logs.size)
}

/// Calls `take` with all bytes of an LZ4 frame, which must end where the object ends.
fn unpack<R: Read>(reader: R, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut decoder = FrameDecoder::new(reader);
    let mut buf = vec![0; CHUNK];
    let mut empty = true;
    loop {
        match decoder.read(&mut buf).map_err(unpack_error)? {
            0 => break,
            n => take(&buf[..n])?,
        }
        empty = false;
    }
    let behind = decoder.get_mut().read(&mut [0]).map_err(unpack_error)?;
    if behind > 0 {
        return Err(Error::corrupt("lz4: data behind the end of the frame"));
    }
    if empty {
        return Err(Error::corrupt("lz4: nothing in the frame"));
    }
    Ok(())
}

/// Errors of the store keep their kind; everything else is damage.
fn unpack_error(err: std::io::Error) -> Error {
    match err.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        true => Error::io("read", err),
        false => Error::corrupt(format!("lz4: {err}")),
    }
}

fn write_snapshot<R: Read>(reader: R, out: &dyn File) -> Result<Applied> {
    let mut head = Vec::with_capacity(HEAD);
    let mut len = 0_u64;
    unpack(reader, |bytes| {
        if head.len() < HEAD {
            head.extend_from_slice(&bytes[..bytes.len().min(HEAD - head.len())]);
        }
        out.write_all_at(bytes, len)?;
        len += bytes.len() as u64;
        Ok(())
    })?;
    if head.len() < HEAD || !head.starts_with(MAGIC) {
        return Err(Error::corrupt("not a SQLite database"));
    }
    let page_size = match u32::from(u16::from_be_bytes([head[16], head[17]])) {
        1 => PageSize::new(PageSize::MAX)?,
        bytes => PageSize::new(bytes)?,
    };
    let pages = len / u64::from(page_size.get());
    match u32::try_from(pages) {
        Ok(pages) if len == u64::from(pages) * u64::from(page_size.get()) => Ok(Applied { page_size, pages }),
        _ => Err(Error::corrupt(format!("{len} bytes are not a number of pages of {page_size} bytes"))),
    }
}

/// The logs of a plan, one after another.
struct Logs<'a> {
    out: &'a dyn File,
    /// State of the database after the logs that are complete.
    size: Applied,
    /// Number of the log that comes next.
    next_index: u32,
    log: Option<Log>,
}

/// One log, up to where it was read.
struct Log {
    index: u32,
    /// Bytes read.
    len: u64,
    /// Known once 32 bytes are there.
    header: Option<WalHeader>,
    checksum: WalChecksum,
    /// What is left of the bytes read: less than a frame.
    rest: Vec<u8>,
    /// Size of the database in pages before the log.
    base: u32,
    /// Frames of pages beyond that.
    beyond: u64,
    /// The last frame's commit field; `None` while there is no frame.
    commit: Option<u32>,
}

impl Logs<'_> {
    fn take<R: Read>(&mut self, segment: &Segment, reader: R) -> Result<()> {
        let (index, offset) = (segment.index, segment.offset);
        if offset == 0 {
            self.end()?;
            if index != self.next_index {
                let expected = self.next_index;
                return Err(missing("index", expected, 0, index, offset));
            }
            self.log = Some(Log::new(index, self.size.pages));
        }
        let expected = self.log.as_ref().map_or((self.next_index, 0), |log| (log.index, log.len));
        let Some(log) = self.log.as_mut().filter(|_| expected == (index, offset)) else {
            return Err(missing("segment", expected.0, expected.1, index, offset));
        };
        let (page_size, out) = (self.size.page_size, self.out);
        unpack(reader, |bytes| log.push(bytes, page_size, out))
            .map_err(|e| e.context(segment.key.to_string()).context(format!("write WAL segment {index}/{offset}")))
    }

    /// Ends a log: from here on its last commit is the state.
    fn end(&mut self) -> Result<()> {
        let Some(log) = self.log.take() else { return Ok(()) };
        let index = log.index;
        if let Some(pages) = log.finish().map_err(|e| e.context(format!("WAL {index}")))? {
            self.size.pages = pages;
            self.out.set_len(u64::from(pages) * u64::from(self.size.page_size.get()))?;
        }
        self.next_index = index + 1;
        Ok(())
    }
}

/// Litestream's words.
fn missing(what: &str, index: u32, offset: u64, found_index: u32, found_offset: u64) -> Error {
    Error::corrupt(format!("missing WAL {what}: expected {index}/{offset}, got {found_index}/{found_offset}"))
        .hint("objects are missing in the replica; an earlier -timestamp may still be restorable")
}

impl Log {
    fn new(index: u32, base: u32) -> Self {
        let checksum = WalChecksum::default();
        Self { index, len: 0, header: None, checksum, rest: Vec::new(), base, beyond: 0, commit: None }
    }

    fn push(&mut self, bytes: &[u8], page_size: PageSize, out: &dyn File) -> Result<()> {
        self.len += bytes.len() as u64;
        let mut rest = std::mem::take(&mut self.rest);
        rest.extend_from_slice(bytes);
        let mut left = rest.as_slice();
        if self.header.is_none()
            && let Some((head, behind)) = left.split_first_chunk::<{ WalHeader::SIZE as usize }>()
        {
            let header = WalHeader::decode(head)?;
            if header.page_size != page_size {
                return Err(Error::corrupt(format!(
                    "page size {} of the log is not that of the database, {page_size}",
                    header.page_size
                )));
            }
            self.checksum = header.checksum;
            self.header = Some(header);
            left = behind;
        }
        if let Some(header) = self.header {
            while let Some((head, behind)) = left.split_first_chunk::<{ FrameHeader::SIZE }>()
                && behind.len() >= page_size.len()
            {
                let (page, behind) = behind.split_at(page_size.len());
                let at = self.len - left.len() as u64;
                self.frame(&header, head, page, out).map_err(|e| e.at(format_args!("at offset {at}")))?;
                left = behind;
            }
        }
        let consumed = rest.len() - left.len();
        rest.drain(..consumed);
        self.rest = rest;
        Ok(())
    }

    fn frame(&mut self, log: &WalHeader, head: &[u8; FrameHeader::SIZE], page: &[u8], out: &dyn File) -> Result<()> {
        let frame = FrameHeader::decode(head);
        let chain = self.checksum.update(log.big_endian, &head[..8]).update(log.big_endian, page);
        if frame.salts != log.salts || (chain != frame.checksum && !UNCHECKED) {
            return Err(Error::corrupt("frame does not continue the log"));
        }
        let Some(pgno) = frame.pgno.filter(|pgno| *pgno != log.page_size.lock_page()) else {
            return Err(Error::corrupt("frame of a page that does not exist"));
        };
        self.beyond += u64::from(pgno.get() > self.base);
        // Every page a database grows by is written: what claims more cannot be whole, and would
        // only make the file vast.
        if u64::from(frame.commit) > u64::from(self.base) + self.beyond + 1 {
            return Err(Error::corrupt(format!("database of {} pages cannot come from this log", frame.commit)));
        }
        self.checksum = chain;
        self.commit = Some(frame.commit);
        out.write_all_at(page, log.page_size.offset_of(pgno))
    }

    /// Size of the database in pages after the log; `None` if it holds no frame.
    fn finish(&self) -> Result<Option<u32>> {
        if self.header.is_none() || !self.rest.is_empty() {
            return Err(Error::corrupt(format!("unexpected EOF at offset {}", self.len)));
        }
        match self.commit {
            Some(0) => Err(Error::corrupt(format!("ends inside a transaction at offset {}", self.len))),
            commit => Ok(commit),
        }
    }
}
