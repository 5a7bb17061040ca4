//! Streaming reader that cannot skip the checksum.

use std::io::Read;

use serde::{Deserialize, Serialize};

use super::checksum::{Crc, page_checksum};
use super::header::{Header, Trailer, check_post_apply};
use super::index::{IndexSum, SIZE_SIZE};
use super::order::PageOrder;
use super::page::{self, Encoding, HEADER_SIZE};
use super::source::{Source, corrupt_at};
use crate::error::{Error, Result};
use crate::sys::UNCHECKED;
use crate::types::{Checksum, Pgno};

/// Reads one LTX file and believes nothing: every rule of `spec: ltx-format` §8 is checked,
/// including those Litestream's own reader does not notice.
///
/// Pages come out before the file checksum could be compared. Whoever acts on them must be able to
/// take it back until [`Decoder::next_page`] has returned `None`. Memory: a buffer of at most
/// 256 KiB, whatever the size of the file.
#[derive(Debug)]
pub struct Decoder<R> {
    source: Source<R>,
    header: Header,
    stage: Stage,
    order: PageOrder,
    crc: Crc,
    index: IndexSum,
    /// XOR of the page checksums, of a snapshot that tracks them.
    rolling: Option<Checksum>,
    pages: u64,
    /// Size of the LZ4 block of the last page, if it was one.
    block: Option<usize>,
    trailer: Option<Trailer>,
}

/// How far a decoder has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A page or the end of the page block is next.
    Pages,
    /// The page block has ended.
    Closing,
    /// All of the file was read and verified.
    Done,
    /// An error was returned; nothing more can be said.
    Failed {
        /// It was found behind the page block.
        closing: bool,
    },
}

/// Where a [`Decoder`] stands between two pages: all it takes to go on in another process, from the rest
/// of the file. It is what was verified so far and nothing of the pages, so it must be kept as safely as
/// they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Midway {
    /// The header, in hexadecimal digits.
    header: String,
    /// Bytes read.
    offset: u64,
    /// Number of the last page.
    last: u32,
    pages: u64,
    /// State of the file checksum.
    crc: u64,
    /// Length of the index so far, and state of its checksum.
    index: (u64, u64),
    rolling: Option<u64>,
}

impl Midway {
    /// Bytes of the file that were read: where its rest begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl<R: Read> Decoder<R> {
    /// Goes on where another decoder of the same file stood. `rest` begins at [`Midway::offset`].
    ///
    /// # Errors
    /// `Corrupt` for what no decoder has said.
    pub fn resume(rest: R, from: &Midway) -> Result<Self> {
        let header = Header::from_hex(&from.header)?;
        Ok(Self {
            source: Source::at_offset(rest, from.offset),
            header,
            stage: Stage::Pages,
            order: PageOrder::behind(&header, Pgno::new(from.last)),
            crc: Crc::from_state(from.crc),
            index: IndexSum::from_state(from.index),
            rolling: from.rolling.map(Checksum::from_bits),
            pages: from.pages,
            block: None,
            trailer: None,
        })
    }

    /// Where it stands; `None` once the last page was read, or after an error.
    pub fn midway(&mut self) -> Option<Midway> {
        (self.stage == Stage::Pages).then(|| Midway {
            header: self.header.to_hex(),
            offset: self.source.offset(),
            last: self.order.last().map_or(0, Pgno::get),
            pages: self.pages,
            crc: self.crc.state(),
            index: self.index.state(),
            rolling: self.rolling.map(Checksum::bits),
        })
    }

    /// Reads and validates the header.
    ///
    /// # Errors
    /// `Corrupt` for what is no LTX file; the reader's errors.
    pub fn new(reader: R) -> Result<Self> {
        let mut source = Source::new(reader);
        let bytes: [u8; Header::SIZE] = source.take()?;
        let header = Header::decode(&bytes)?;
        let mut crc = Crc::new();
        crc.update(&bytes);
        let tracked = header.txids.is_snapshot() && !header.no_checksum;
        Ok(Self {
            source,
            header,
            stage: Stage::Pages,
            order: PageOrder::new(&header),
            crc,
            index: IndexSum::new(),
            rolling: tracked.then(|| Checksum::of_crc(0)),
            pages: 0,
            block: None,
            trailer: None,
        })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The trailer, once all of the file was verified.
    pub fn trailer(&self) -> Option<&Trailer> {
        self.trailer.as_ref()
    }

    /// Pages returned so far.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Bytes of the file read so far.
    pub fn bytes_read(&self) -> u64 {
        self.source.offset()
    }

    /// The next page, written to `buf`, which is one page long. `None` only after index, trailer,
    /// checksum and end of file were verified.
    ///
    /// # Errors
    /// `Corrupt` for every violated rule, with the byte offset; `Invalid` for a buffer of the wrong
    /// size; the reader's errors. After an error the content of `buf` is meaningless, and every
    /// further call fails.
    pub fn next_page(&mut self, buf: &mut [u8]) -> Result<Option<Pgno>> {
        super::check_page_buffer(buf.len(), self.header.page_size)?;
        match self.stage {
            Stage::Done => return Ok(None),
            Stage::Failed { .. } => return Err(Error::corrupt("ltx file was given up after an error")),
            Stage::Pages | Stage::Closing => {}
        }
        let result = self.advance(buf);
        if result.is_err() {
            self.stage = Stage::Failed { closing: self.stage == Stage::Closing };
        }
        result
    }

    fn advance(&mut self, buf: &mut [u8]) -> Result<Option<Pgno>> {
        let start = self.source.offset();
        if self.source.at_end()? {
            self.stage = Stage::Closing;
            return Err(corrupt_at("cannot close, expected page", start));
        }
        let head: [u8; HEADER_SIZE] = self.source.take()?;
        let at = |e: Error| e.at(format_args!("at offset {start}"));
        let Some((pgno, encoding)) = page::parse_header(head).map_err(at)? else {
            self.stage = Stage::Closing;
            self.order.end().map_err(at)?;
            self.crc.update(&head);
            self.close()?;
            self.stage = Stage::Done;
            return Ok(None);
        };
        self.order.accept(pgno).map_err(at)?;
        self.read_body(head, encoding, buf)?;
        self.index.push(pgno, start, self.source.offset() - start);
        if let Some(rolling) = &mut self.rolling {
            *rolling = rolling.roll(page_checksum(pgno, buf));
        }
        self.pages += 1;
        Ok(Some(pgno))
    }

    fn read_body(&mut self, head: [u8; HEADER_SIZE], encoding: Encoding, buf: &mut [u8]) -> Result<()> {
        match encoding {
            Encoding::Block => {
                let length = page::read_block(&mut self.source, buf)?;
                let [a, b, c, d, e, f] = head;
                let [g, h, i, j] = length;
                self.crc.update(&[a, b, c, d, e, f, g, h, i, j]);
                self.block = Some(u32::from_be_bytes(length) as usize);
            }
            Encoding::Frame => {
                page::read_frame(&mut self.source, buf)?;
                self.crc.update(&head);
                self.block = None;
            }
        }
        self.crc.update(buf);
        Ok(())
    }

    /// The LZ4 block of the page returned last, unless that was stored as a frame.
    pub(super) fn last_block(&self) -> Option<&[u8]> {
        self.block.map(|len| self.source.consumed(len))
    }

    /// Verifies everything behind the page block.
    fn close(&mut self) -> Result<()> {
        self.check_index().map_err(|e| e.context("read page index"))?;
        let trailer_at = self.source.offset();
        let bytes: [u8; Trailer::SIZE] = self.source.take()?;
        let trailer = Trailer::decode(&bytes);
        self.crc.update(&bytes[..8]);
        if trailer.file_checksum != self.crc.checksum() && !UNCHECKED {
            return Err(corrupt_at("file checksum mismatch", trailer_at + 8));
        }
        check_post_apply(&self.header, trailer.post_apply).map_err(|e| e.at(format_args!("at offset {trailer_at}")))?;
        if let Some(rolling) = self.rolling.filter(|sum| *sum != trailer.post_apply && !UNCHECKED) {
            return Err(Error::corrupt(format!(
                "post-apply checksum in trailer ({}) does not match calculated checksum ({rolling})",
                trailer.post_apply
            )));
        }
        if !self.source.at_end()? {
            return Err(self.source.corrupt("file checksum mismatch: data behind the trailer"));
        }
        self.trailer = Some(trailer);
        Ok(())
    }

    /// Compares the page index with the frames that were read.
    fn check_index(&mut self) -> Result<()> {
        let start = self.source.offset();
        let (len, expected) = self.index.finish();
        let mut found = Crc::new();
        let mut left = len;
        while left > 0 {
            let bytes = self.source.require_some(left)?;
            let n = bytes.len();
            found.update(bytes);
            self.crc.update(bytes);
            self.source.consume(n);
            left -= n as u64;
        }
        if found.checksum() != expected && !UNCHECKED {
            return Err(corrupt_at("entries do not match the page frames", start));
        }
        let size_at = self.source.offset();
        let size: [u8; SIZE_SIZE] = self.source.take().map_err(|e| e.context("read page index size"))?;
        if u64::from_be_bytes(size) != len {
            let size = u64::from_be_bytes(size);
            return Err(corrupt_at(format!("page index size is {size}, should be {len}"), size_at));
        }
        self.crc.update(&size);
        Ok(())
    }
}

/// What [`verify`] counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Pages in the file.
    pub pages: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Reads a whole file and checks everything.
///
/// # Errors
/// As [`Decoder::next_page`]; the message says in which step.
pub fn verify(reader: impl Read) -> Result<(Header, Trailer, Summary)> {
    let mut decoder = Decoder::new(reader).map_err(|e| e.context("decode header"))?;
    let mut page = vec![0; decoder.header.page_size.len()];
    loop {
        match decoder.next_page(&mut page) {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(err) if decoder.stage == (Stage::Failed { closing: true }) => return Err(err.context("close reader")),
            Err(err) => return Err(err.context(format!("decode page {}", decoder.pages))),
        }
    }
    let summary = Summary { pages: decoder.pages, bytes: decoder.bytes_read() };
    let trailer = decoder.trailer.ok_or_else(|| Error::corrupt("ltx file without trailer"))?;
    Ok((decoder.header, trailer, summary))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{file, header, page};
    use super::*;
    use crate::error::ErrorKind;

    fn error_of(bytes: &[u8]) -> String {
        let err = verify(bytes).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Corrupt);
        err.to_string()
    }

    #[test]
    fn nothing_more_is_read_after_an_error() {
        let mut bytes = file(header(2, 2, 4), &[(1, 1), (2, 2)]);
        bytes[105] = 9;
        let mut decoder = Decoder::new(bytes.as_slice()).unwrap();
        let mut out = page(0);
        assert!(decoder.next_page(&mut out).is_err());
        let again = decoder.next_page(&mut out).unwrap_err();
        assert_eq!(again.to_string(), "ltx file was given up after an error");
        assert_eq!(decoder.trailer(), None);
    }

    #[test]
    fn another_decoder_goes_on_between_any_two_pages_and_notices_all_the_same() {
        let pages: Vec<_> = (1..=9).map(|n| (n, n as u8)).collect();
        // A snapshot with checksums tracked, and one of a file that is none.
        let tracked = crate::ltx::Header { no_checksum: false, ..header(1, 1, 9) };
        let mut sum = Checksum::of_crc(0);
        for (pgno, fill) in &pages {
            sum = sum.roll(page_checksum(Pgno::new(*pgno).unwrap(), &page(*fill)));
        }
        let mut encoder = super::super::Encoder::new(Vec::new(), tracked).unwrap();
        for (pgno, fill) in &pages {
            encoder.page(Pgno::new(*pgno).unwrap(), &page(*fill)).unwrap();
        }
        for bytes in [encoder.finish(sum).unwrap().0, file(header(2, 2, 9), &pages)] {
            for stop in 0..=pages.len() {
                let mut first = Decoder::new(bytes.as_slice()).unwrap();
                let mut out = page(0);
                for _ in 0..stop {
                    first.next_page(&mut out).unwrap();
                }
                let text = serde_json::to_string(&first.midway().unwrap()).unwrap();
                let midway: Midway = serde_json::from_str(&text).unwrap();
                let rest = &bytes[midway.offset() as usize..];
                let mut second = Decoder::resume(rest, &midway).unwrap();
                let mut found = stop;
                while let Some(pgno) = second.next_page(&mut out).unwrap() {
                    found += 1;
                    assert_eq!((pgno.get() as usize, &out), (found, &page(found as u8)));
                }
                assert_eq!((found, second.midway()), (pages.len(), None));

                let mut damaged = rest.to_vec();
                let last = damaged.len() - 1;
                damaged[last] ^= 1;
                let mut third = Decoder::resume(damaged.as_slice(), &midway).unwrap();
                let mut read = || third.next_page(&mut out);
                let end = std::iter::from_fn(|| read().transpose()).find_map(Result::err);
                assert!(end.unwrap().to_string().contains("file checksum mismatch"));
            }
        }
    }

    #[test]
    fn a_buffer_of_the_wrong_size_is_the_callers_mistake_and_harmless() {
        let bytes = file(header(2, 2, 4), &[(1, 1)]);
        let mut decoder = Decoder::new(bytes.as_slice()).unwrap();
        assert_eq!(decoder.next_page(&mut [0; 511]).unwrap_err().kind(), ErrorKind::Invalid);
        assert!(decoder.next_page(&mut page(0)).unwrap().is_some());
    }

    #[test]
    fn an_error_of_the_reader_is_not_taken_for_damage() {
        struct Dropped<'a>(&'a [u8]);
        impl Read for Dropped<'_> {
            fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
                if self.0.is_empty() {
                    return Err(Error::new(ErrorKind::Unavailable, "get object").into());
                }
                self.0.read(buf)
            }
        }
        let bytes = file(header(2, 2, 4), &[(1, 1), (2, 2)]);
        for len in 0..bytes.len() {
            assert_eq!(verify(Dropped(&bytes[..len])).unwrap_err().kind(), ErrorKind::Unavailable);
        }
    }

    #[test]
    fn a_lock_page_is_refused() {
        let header = Header { page_size: crate::types::PageSize::new(65536).unwrap(), ..header(2, 2, 20_000) };
        let mut bytes = file(header, &[(16384, 1)]);
        bytes[100..104].copy_from_slice(&16385u32.to_be_bytes());
        assert_eq!(error_of(&bytes), "decode page 0: cannot encode lock page: pgno=16385 at offset 100");
    }

    #[test]
    fn a_database_of_no_pages_needs_a_checksum_that_says_so() {
        let mut bytes = file(header(2, 2, 1), &[]);
        bytes[12..16].fill(0);
        let mut crc = Crc::new();
        let end = bytes.len() - 8;
        crc.update(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.checksum().bits().to_be_bytes());
        assert!(error_of(&bytes).starts_with("close reader: post-apply checksum must be empty for zero-length"));
    }

    #[test]
    fn reserved_header_bytes_are_covered_by_the_checksum() {
        let mut bytes = file(header(2, 2, 1), &[]);
        bytes[99] = 1;
        let offset = bytes.len() - 8;
        assert_eq!(error_of(&bytes), format!("close reader: file checksum mismatch at offset {offset}"));
    }
}
