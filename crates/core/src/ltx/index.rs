//! The page index: where each page frame is.
//!
//! Per page, ascending, three LEB128 varints: page number, byte offset of the page frame, its
//! size. Then one zero byte, then the size of all that as 8 bytes (`spec: ltx-format` §5).

use std::io::Read;

use super::checksum::Crc;
use super::header::{Header, Trailer};
use super::order::PageOrder;
use super::page::{self, Encoding};
use super::source::{FileReader, Source, corrupt_at};
use crate::error::{Error, Result};
use crate::sys::{self, read_full_at};
use crate::types::{Checksum, PageSize, Pgno};

/// Bytes of the size behind the entries.
pub(super) const SIZE_SIZE: usize = 8;
/// A varint of 64 bits.
const MAX_VARINT: usize = 10;
const MAX_ENTRY: usize = 3 * MAX_VARINT;
/// Byte offset of the first page frame.
const FIRST_FRAME: u64 = Header::SIZE as u64;
/// A file without any page.
const MIN_FILE: u64 = FIRST_FRAME + (page::HEADER_SIZE + 1 + SIZE_SIZE + Trailer::SIZE) as u64;

/// One entry in its stored form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    bytes: [u8; MAX_ENTRY],
    len: usize,
}

impl Entry {
    pub(super) fn new(pgno: Pgno, offset: u64, size: u64) -> Self {
        let mut entry = Self { bytes: [0; MAX_ENTRY], len: 0 };
        for value in [u64::from(pgno.get()), offset, size] {
            entry.len += put_varint(value, &mut entry.bytes[entry.len..]);
        }
        entry
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Writes a varint to the front of `out`, which has room for it; how many bytes it took.
fn put_varint(mut value: u64, out: &mut [u8]) -> usize {
    let mut len = 0;
    for byte in out {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        len += 1;
        if value == 0 {
            *byte = low;
            break;
        }
        *byte = low | 0x80;
    }
    len
}

/// Reads a varint from the front; the value and how many bytes it took. `None` when it is cut off,
/// exceeds 64 bits, or is longer than it need be.
fn get_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (n, byte) in bytes.iter().take(MAX_VARINT).enumerate() {
        let low = u64::from(byte & 0x7f);
        if n == MAX_VARINT - 1 && low > 1 {
            return None;
        }
        value |= low << (7 * n);
        if byte & 0x80 == 0 {
            return if low == 0 && n > 0 { None } else { Some((value, n + 1)) };
        }
    }
    None
}

/// The frames written so far, kept in about three bytes per page: frames follow each other without
/// gaps, so that the step in the page number and the frame size say it all.
#[derive(Debug, Default)]
pub(super) struct FrameLog {
    chunks: Vec<Vec<u8>>,
    last: u32,
}

impl FrameLog {
    /// Chunks instead of one vector: growing must not copy, nor hold twice the memory.
    const CHUNK: usize = 64 * 1024;

    pub(super) fn push(&mut self, pgno: Pgno, size: u64) {
        let mut bytes = [0; 2 * MAX_VARINT];
        let mut len = put_varint(u64::from(pgno.get().wrapping_sub(self.last)), &mut bytes);
        len += put_varint(size, &mut bytes[len..]);
        self.last = pgno.get();
        match self.chunks.last_mut() {
            Some(chunk) if chunk.len() + len <= Self::CHUNK => chunk.extend_from_slice(&bytes[..len]),
            last => {
                // Most files are small: only a file that filled one chunk gets whole ones.
                let capacity = if last.is_some() { Self::CHUNK } else { 0 };
                let mut chunk = Vec::with_capacity(capacity);
                chunk.extend_from_slice(&bytes[..len]);
                self.chunks.push(chunk);
            }
        }
    }

    /// The index entries, ascending.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let (mut pgno, mut offset) = (0u32, FIRST_FRAME);
        let mut rest: &[u8] = &[];
        let mut chunks = self.chunks.iter();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                rest = chunks.next()?;
            }
            let (step, a) = get_varint(rest)?;
            let (size, b) = get_varint(&rest[a..])?;
            rest = &rest[a + b..];
            pgno = pgno.wrapping_add(u32::try_from(step).ok()?);
            let entry = Entry::new(Pgno::new(pgno)?, offset, size);
            offset += size;
            Some(entry)
        })
    }
}

/// What the index must look like, as length and CRC of its bytes: needs no memory per page.
#[derive(Debug)]
pub(super) struct IndexSum {
    crc: Crc,
    len: u64,
    pending: Vec<u8>,
}

impl IndexSum {
    const BATCH: usize = 4096;

    pub(super) fn new() -> Self {
        Self { crc: Crc::new(), len: 0, pending: Vec::new() }
    }

    /// One that goes on from [`IndexSum::state`].
    pub(super) fn from_state((len, crc): (u64, u64)) -> Self {
        Self { crc: Crc::from_state(crc), len, pending: Vec::new() }
    }

    /// Length and state of the CRC.
    pub(super) fn state(&mut self) -> (u64, u64) {
        self.flush();
        (self.len, self.crc.state())
    }

    pub(super) fn push(&mut self, pgno: Pgno, offset: u64, size: u64) {
        self.pending.extend_from_slice(Entry::new(pgno, offset, size).as_bytes());
        if self.pending.len() >= Self::BATCH {
            self.flush();
        }
    }

    /// Length and checksum of the entries including the final zero byte.
    pub(super) fn finish(&mut self) -> (u64, Checksum) {
        self.pending.push(0);
        self.flush();
        (self.len, self.crc.checksum())
    }

    fn flush(&mut self) {
        self.crc.update(&self.pending);
        self.len += self.pending.len() as u64;
        self.pending.clear();
    }
}

/// Where one page frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRef {
    /// Byte offset of the page frame in the file.
    pub offset: u64,
    /// Bytes of the page frame: page header and compressed page.
    pub size: u64,
}

/// The page index of a local file, for reading single pages. Takes 12 bytes per page.
///
/// Opening checks the index against itself, the header and the file length. It does not verify the
/// file checksum, which would take reading the whole file: do that with [`super::verify`].
#[derive(Debug)]
pub struct PageIndex {
    header: Header,
    trailer: Trailer,
    pgnos: Vec<u32>,
    /// Start of each frame; the end of the last one follows.
    offsets: Vec<u64>,
}

impl PageIndex {
    /// Reads trailer, index and header.
    ///
    /// # Errors
    /// `Corrupt` when the file breaks a rule that can be seen without its pages; I/O errors.
    pub fn open(file: &dyn sys::File) -> Result<Self> {
        let block = IndexBlock::find(file)?;
        let (mut pgnos, mut offsets) = (Vec::new(), vec![FIRST_FRAME]);
        block.read(file, |pgno, end| {
            pgnos.push(pgno.get());
            offsets.push(end);
        })?;
        Ok(Self { header: block.header, trailer: block.trailer, pgnos, offsets })
    }

    /// Where a page is; `None` when the file does not hold it.
    #[must_use]
    pub fn find(&self, pgno: Pgno) -> Option<PageRef> {
        self.at(self.pgnos.binary_search(&pgno.get()).ok()?)
    }

    /// All pages, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (Pgno, PageRef)> + '_ {
        self.pgnos.iter().enumerate().filter_map(|(n, pgno)| Some((Pgno::new(*pgno)?, self.at(n)?)))
    }

    /// Number of pages in the file.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pgnos.len()
    }

    /// Whether the file holds no page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pgnos.is_empty()
    }

    /// The header of the file.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The trailer of the file; its checksum has not been compared.
    #[must_use]
    pub fn trailer(&self) -> &Trailer {
        &self.trailer
    }

    fn at(&self, n: usize) -> Option<PageRef> {
        let (offset, end) = (*self.offsets.get(n)?, *self.offsets.get(n + 1)?);
        Some(PageRef { offset, size: end - offset })
    }
}

/// Where a local file keeps its page index.
#[derive(Debug)]
struct IndexBlock {
    header: Header,
    trailer: Trailer,
    /// Byte offset and size of the index.
    start: u64,
    size: u64,
    /// Where the last page frame ends.
    frames_end: u64,
}

impl IndexBlock {
    fn find(file: &dyn sys::File) -> Result<Self> {
        let len = file.stat()?.len;
        if len < MIN_FILE {
            return Err(Error::corrupt(format!("ltx file too short to contain a page index: {len} bytes")));
        }
        let mut head = [0; Header::SIZE];
        read_full_at(file, &mut head, 0)?;
        let header = Header::decode(&head)?;

        let mut tail = [0; SIZE_SIZE + Trailer::SIZE];
        let size_at = len - tail.len() as u64;
        read_full_at(file, &mut tail, size_at)?;
        let (mut size, mut trailer) = ([0; SIZE_SIZE], [0; Trailer::SIZE]);
        size.copy_from_slice(&tail[..SIZE_SIZE]);
        trailer.copy_from_slice(&tail[SIZE_SIZE..]);
        let size = u64::from_be_bytes(size);
        let start = size_at.checked_sub(size).filter(|start| *start >= MIN_FILE - (tail.len() as u64 + 1));
        let Some(start) = start.filter(|_| size > 0) else {
            return Err(bad_index(corrupt_at(format!("page index size out of bounds: {size}"), size_at)));
        };
        let mut end = [0xff; page::HEADER_SIZE];
        let frames_end = start - end.len() as u64;
        read_full_at(file, &mut end, frames_end)?;
        if end != page::END {
            return Err(bad_index(corrupt_at("no end of the page block before the page index", frames_end)));
        }

        Ok(Self { header, trailer: Trailer::decode(&trailer), start, size, frames_end })
    }

    /// Reads the entries: page number, and byte offset where its frame ends.
    fn read(&self, file: &dyn sys::File, entry: impl FnMut(Pgno, u64)) -> Result<()> {
        let reader = FileReader::at(file, self.start).take(self.size);
        read_entries(Source::at_offset(reader, self.start), &self.header, self.frames_end, entry).map_err(bad_index)
    }
}

/// Whether a local file holds every page of its database. Reads the index, not the pages, and keeps
/// none of it.
///
/// # Errors
/// As [`PageIndex::open`].
pub fn is_full_image(file: &dyn sys::File) -> Result<bool> {
    let block = IndexBlock::find(file)?;
    let mut pages = 0_u32;
    block.read(file, |_, _| pages += 1)?;
    let lock_page = block.header.page_size.lock_page().get();
    let all = block.header.commit - u32::from(block.header.commit >= lock_page);
    // The index was found to be ascending and within the database.
    Ok(pages == all)
}

fn bad_index(err: Error) -> Error {
    err.context("read page index")
}

/// Reads the entries and checks that they describe frames without gaps up to `frames_end`.
fn read_entries<R: Read>(
    mut source: Source<R>,
    header: &Header,
    frames_end: u64,
    mut entry: impl FnMut(Pgno, u64),
) -> Result<()> {
    let mut order = PageOrder::new(header);
    let mut next = FIRST_FRAME;
    loop {
        let number = read_varint(&mut source)?;
        if number == 0 {
            break;
        }
        let pgno = u32::try_from(number).ok().and_then(Pgno::new);
        let pgno = pgno.ok_or_else(|| source.corrupt(format!("page number out of range: {number}")))?;
        order.accept(pgno)?;
        let (offset, size) = (read_varint(&mut source)?, read_varint(&mut source)?);
        let fits = size > page::HEADER_SIZE as u64 && size <= page::max_frame(header.page_size);
        if offset != next || !fits {
            return Err(source.corrupt(format!("wrong place for page {pgno}: {size} bytes at {offset}")));
        }
        next += size;
        entry(pgno, next);
    }
    if !source.at_end()? {
        return Err(source.corrupt("bytes behind the last entry"));
    }
    if next != frames_end {
        return Err(source.corrupt(format!("frames end at {next}, page block at {frames_end}")));
    }
    order.end()
}

fn read_varint<R: Read>(source: &mut Source<R>) -> Result<u64> {
    let bytes = source.require_some(MAX_VARINT as u64)?;
    let mut parsed = get_varint(bytes);
    if parsed.is_none() && bytes.len() < MAX_VARINT {
        // It may merely straddle the buffer's end.
        let mut len = bytes.len() + 1;
        while parsed.is_none() && len <= MAX_VARINT {
            parsed = get_varint(source.require(len)?);
            len += 1;
        }
    }
    let Some((value, len)) = parsed else {
        return Err(source.corrupt("malformed number"));
    };
    source.consume(len);
    Ok(value)
}

/// Reads one page where the index says it is.
///
/// # Errors
/// `Corrupt` when another page is there or it cannot be decoded; `Invalid` when `out` is not one
/// page long; I/O errors. The content is not covered by a checksum of its own.
pub fn read_page(file: &dyn sys::File, at: PageRef, pgno: Pgno, page_size: PageSize, out: &mut [u8]) -> Result<()> {
    super::check_page_buffer(out.len(), page_size)?;
    if at.size > page::max_frame(page_size) {
        return Err(corrupt_at(format!("page frame size out of bounds: {}", at.size), at.offset));
    }
    let reader = FileReader::at(file, at.offset).take(at.size);
    let mut source = Source::at_offset(reader, at.offset);
    let head = source.take()?;
    match page::parse_header(head).map_err(|e| e.at(format_args!("at offset {}", at.offset)))? {
        Some((found, encoding)) if found == pgno => match encoding {
            Encoding::Block => page::read_block(&mut source, out).map(|_| ())?,
            Encoding::Frame => page::read_frame(&mut source, out)?,
        },
        found => {
            let found = found.map_or(0, |(pgno, _)| pgno.get());
            return Err(corrupt_at(format!("page {found} found instead of page {pgno}"), at.offset));
        }
    }
    if !source.at_end()? {
        return Err(source.corrupt(format!("page frame of page {pgno} is longer than its page")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{file, header, page, pgno};
    use super::*;
    use crate::error::ErrorKind;
    use crate::sys::{Fs, OpenMode, OsFs, OwnerMode};

    fn opened(bytes: &[u8]) -> (tempfile::TempDir, Box<dyn sys::File>) {
        let dir = tempfile::tempdir().unwrap();
        let file = OsFs.open(&dir.path().join("x"), OpenMode::CreateNew(OwnerMode::PRIVATE_FILE)).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        (dir, file)
    }

    fn open_error(bytes: &[u8]) -> String {
        let err = PageIndex::open(&*opened(bytes).1).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Corrupt);
        err.to_string()
    }

    #[test]
    fn varints_read_back_in_their_shortest_form_only() {
        for value in [0, 1, 127, 128, 300, 16383, 16384, u64::from(u32::MAX), 1 << 63, u64::MAX] {
            let mut bytes = [0xff; MAX_VARINT];
            let len = put_varint(value, &mut bytes);
            assert_eq!(get_varint(&bytes), Some((value, len)), "{value}");
            assert_eq!(get_varint(&bytes[..len - 1]), None);
        }
        assert_eq!(get_varint(&[0x80, 0x00]), None);
        assert_eq!(get_varint(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), None);
        assert_eq!(get_varint(&[0x80; 11]), None);
    }

    #[test]
    fn the_compact_log_gives_the_entries_back_across_chunks() {
        let mut log = FrameLog::default();
        let mut expected = Vec::new();
        let mut offset = FIRST_FRAME;
        for n in 1..50_000u32 {
            let (number, size) = (pgno(n * 3), u64::from(n % 4000 + 7));
            log.push(number, size);
            expected.extend_from_slice(Entry::new(number, offset, size).as_bytes());
            offset += size;
        }
        assert!(log.chunks.len() > 2);
        let bytes: usize = log.chunks.iter().map(Vec::len).sum();
        assert!(bytes < 50_000 * 4, "{bytes}");
        let entries: Vec<u8> = log.entries().flat_map(|e| e.as_bytes().to_vec()).collect();
        assert_eq!(entries, expected);
    }

    #[test]
    fn pages_are_found_and_read_by_number() {
        let (_dir, file) = opened(&file(header(2, 2, 9), &[(2, 20), (3, 30), (7, 70)]));
        let index = PageIndex::open(&*file).unwrap();
        assert_eq!((index.len(), index.is_empty()), (3, false));
        let mut out = page(0);
        for n in 1..=9 {
            let at = index.find(pgno(n));
            assert_eq!(at.is_some(), [2, 3, 7].contains(&n));
            if let Some(at) = at {
                read_page(&*file, at, pgno(n), index.header().page_size, &mut out).unwrap();
                assert_eq!(out, page(u8::try_from(n).unwrap() * 10));
            }
        }
    }

    #[test]
    fn a_reference_that_does_not_fit_the_page_is_refused() {
        let (_dir, file) = opened(&file(header(2, 2, 9), &[(2, 20), (3, 30)]));
        let index = PageIndex::open(&*file).unwrap();
        let at = index.find(pgno(2)).unwrap();
        let size = index.header().page_size;
        let mut out = page(0);
        let mut read = |at| read_page(&*file, at, pgno(2), size, &mut out).unwrap_err().to_string();
        assert!(read(PageRef { size: at.size + 1, ..at }).contains("longer than its page"));
        assert!(read(PageRef { size: at.size - 1, ..at }).contains("unexpected EOF"));
        assert!(read(PageRef { offset: at.offset + at.size, ..at }).contains("page 3 found instead of page 2"));
        assert!(read(PageRef { size: u64::MAX, ..at }).contains("out of bounds"));
        assert!(read(PageRef { offset: 1 << 40, ..at }).contains("EOF"));
    }

    #[test]
    fn an_index_that_cannot_be_true_is_refused() {
        let good = file(header(2, 2, 9), &[(2, 20), (3, 30)]);
        let len = good.len();
        let patched = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            open_error(&bytes)
        };
        assert!(PageIndex::open(&*opened(&good).1).is_ok());
        assert_eq!(open_error(&good[..130]), "ltx file too short to contain a page index: 130 bytes");
        // The size: too large by far, too small by one, zero.
        assert!(patched(len - 24, 0xff).contains("page index size out of bounds"));
        assert!(patched(len - 17, good[len - 17] - 1).starts_with("read page index: "));
        assert!(patched(len - 17, 0).contains("page index size out of bounds: 0"));
        // The entries: page number, order, offset, size, end.
        let start = len - 24 - usize::from(good[len - 17]);
        assert!(patched(start, 10).contains("out-of-bounds for commit size 9"));
        assert!(patched(start, 3).contains("out-of-order page numbers: 3,3"));
        assert!(patched(start + 1, 101).contains("wrong place for page 2"));
        assert!(patched(start + 2, good[start + 2] + 1).contains("wrong place for page 3"));
        assert!(patched(len - 25, 1).starts_with("read page index: "));
        assert!(patched(start - 1, 1).contains("no end of the page block"));
    }
}
