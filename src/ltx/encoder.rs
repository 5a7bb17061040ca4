//! Streaming writer.

use std::io::Write;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::checksum::Crc;
use super::header::{Header, Trailer, check_post_apply};
use super::index::{FrameLog, SIZE_SIZE};
use super::order::PageOrder;
use super::page::{self, HEADER_SIZE, LENGTH_SIZE};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{Checksum, Pgno};

/// Bytes gathered before they are written; holds several of the largest pages.
const BUFFER: usize = 256 * 1024;
/// End and size of the index, and the trailer.
const TAIL: usize = 1 + SIZE_SIZE + Trailer::SIZE;

/// Writes one LTX file: header, pages in ascending order, index, trailer.
///
/// Pages are stored as LZ4 blocks. The output is complete only when [`Encoder::finish`] returned;
/// after any error it must be thrown away. Memory: one buffer, and about 3 bytes per page.
pub struct Encoder<W> {
    writer: W,
    header: Header,
    order: PageOrder,
    crc: Crc,
    frames: FrameLog,
    table: CompressTable,
    /// Bytes not yet written are `buf[..len]`.
    buf: Vec<u8>,
    len: usize,
    /// Bytes already given to the writer.
    written: u64,
    /// A write failed: what is in the output is unknown.
    broken: bool,
}

impl<W: Write> Encoder<W> {
    /// Starts a file.
    ///
    /// # Errors
    /// `Corrupt` when the header breaks a rule of [`Header::decode`].
    pub fn new(writer: W, header: Header) -> Result<Self> {
        let bytes = header.encode();
        Header::decode(&bytes)?;
        let mut encoder = Self {
            writer,
            header,
            order: PageOrder::new(&header),
            crc: Crc::new(),
            frames: FrameLog::default(),
            table: CompressTable::small(),
            buf: vec![0; BUFFER],
            len: 0,
            written: 0,
            broken: false,
        };
        encoder.put(&bytes);
        encoder.crc.update(&bytes);
        Ok(encoder)
    }

    /// The header given at the start.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of the file so far, those still buffered included.
    pub fn bytes_written(&self) -> u64 {
        self.written + self.len as u64
    }

    /// Adds a page; `data` is one page long.
    ///
    /// # Errors
    /// `Corrupt` when the page may not come here (`spec: ltx-format` §4.4, §8), `Invalid` for a
    /// buffer of the wrong size, and the writer's errors.
    pub fn page(&mut self, pgno: Pgno, data: &[u8]) -> Result<()> {
        let start = self.begin_page(pgno, data)?;
        let block = compress_into_with_table(data, &mut self.buf[start..], &mut self.table)
            .map_err(|e| Error::new(ErrorKind::Internal, "compress page").caused_by(e))?;
        self.end_page(pgno, data, block)
    }

    /// Adds a page whose LZ4 block is known already, which must expand to `data`.
    pub(super) fn page_with_block(&mut self, pgno: Pgno, data: &[u8], block: &[u8]) -> Result<()> {
        if block.len() > page::max_block(data.len()) {
            return self.page(pgno, data);
        }
        let start = self.begin_page(pgno, data)?;
        self.buf[start..start + block.len()].copy_from_slice(block);
        self.end_page(pgno, data, block.len())
    }

    /// Writes index and trailer. `post_apply` is [`Checksum::NONE`] in files of Litestream.
    ///
    /// # Errors
    /// `Corrupt` when pages are missing from a snapshot or `post_apply` does not fit the header;
    /// the writer's errors.
    pub fn finish(mut self, post_apply: Checksum) -> Result<(W, Trailer)> {
        self.order.end()?;
        check_post_apply(&self.header, post_apply)?;
        self.reserve(HEADER_SIZE + TAIL)?;
        let mut start = self.len;
        self.put(&page::END);
        let index_start = self.bytes_written();
        for entry in std::mem::take(&mut self.frames).entries() {
            if self.buf.len() - self.len < entry.as_bytes().len() + TAIL {
                self.crc.update(&self.buf[start..self.len]);
                self.flush()?;
                start = 0;
            }
            self.put(entry.as_bytes());
        }
        self.put(&[0]);
        let size = self.bytes_written() - index_start;
        self.put(&size.to_be_bytes());
        self.put(&post_apply.bits().to_be_bytes());
        self.crc.update(&self.buf[start..self.len]);
        let trailer = Trailer { post_apply, file_checksum: self.crc.checksum() };
        self.put(&trailer.file_checksum.bits().to_be_bytes());
        self.flush()?;
        self.writer.flush().map_err(|e| Error::io("write ltx file", e))?;
        Ok((self.writer, trailer))
    }

    /// Checks a page and makes room for it; where in the buffer its block goes.
    fn begin_page(&mut self, pgno: Pgno, data: &[u8]) -> Result<usize> {
        super::check_page_buffer(data.len(), self.header.page_size)?;
        self.order.accept(pgno)?;
        self.reserve(HEADER_SIZE + LENGTH_SIZE + get_maximum_output_size(data.len()))?;
        Ok(self.len + HEADER_SIZE + LENGTH_SIZE)
    }

    /// Puts the page header before the block of `block` bytes that is in place.
    fn end_page(&mut self, pgno: Pgno, data: &[u8], block: usize) -> Result<()> {
        let too_big = || Error::new(ErrorKind::Internal, "compressed page too big");
        let length = u32::try_from(block).map_err(|_| too_big())?;
        let start = self.len;
        self.put(&page::block_header(pgno));
        self.put(&length.to_be_bytes());
        self.crc.update(&self.buf[start..self.len]);
        self.crc.update(data);
        self.len += block;
        self.frames.push(pgno, (self.len - start) as u64);
        Ok(())
    }

    /// Makes room for `len` bytes in the buffer.
    fn reserve(&mut self, len: usize) -> Result<()> {
        if self.buf.len() - self.len < len { self.flush() } else { Ok(()) }
    }

    /// Buffers a few bytes, for which room was reserved.
    fn put(&mut self, bytes: &[u8]) {
        self.buf[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn flush(&mut self) -> Result<()> {
        let fail = |e| Error::io("write ltx file", e);
        if self.broken {
            return Err(fail(std::io::Error::other("an earlier write failed")));
        }
        self.broken = true;
        self.writer.write_all(&self.buf[..self.len]).map_err(fail)?;
        self.broken = false;
        self.written += self.len as u64;
        self.len = 0;
        Ok(())
    }
}

impl<W> std::fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("header", &self.header).field("order", &self.order).finish_non_exhaustive()
    }
}
