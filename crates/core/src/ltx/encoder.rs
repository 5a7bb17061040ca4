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

#[cfg(test)]
mod tests {
    use super::super::testing::{file, header, page, pgno};
    use super::*;

    fn encoder(header: Header) -> Encoder<Vec<u8>> {
        Encoder::new(Vec::new(), header).unwrap()
    }

    /// Fails from the `n`th write on.
    struct FailingWriter(usize);

    impl Write for FailingWriter {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            match self.0.checked_sub(1) {
                Some(left) => {
                    self.0 = left;
                    Ok(buf.len())
                }
                None => Err(std::io::Error::from_raw_os_error(28)),
            }
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = file(header(2, 2, 4), &[(2, 7)]);
        let block = lz4_flex::block::compress(&page(7));
        let n = u8::try_from(block.len()).unwrap();
        let mut expected = header(2, 2, 4).encode().to_vec();
        expected.extend([0, 0, 0, 2, 0, 1, 0, 0, 0, n]);
        expected.extend(block);
        expected.extend([0, 0, 0, 0, 0, 0, 2, 100, 10 + n, 0, 0, 0, 0, 0, 0, 0, 0, 4]);
        expected.extend([0; 8]);
        assert_eq!(bytes[..bytes.len() - 8], expected);
    }

    #[test]
    fn a_header_no_reader_would_accept_is_refused() {
        let bad = Header { pre_apply: Checksum::of_crc(1), ..header(2, 2, 1) };
        assert_eq!(Encoder::new(Vec::new(), bad).unwrap_err().to_string(), "pre-apply checksum not allowed");
        let mut far = header(2, 2, 1);
        far.wal.offset = u64::MAX;
        assert_eq!(Encoder::new(Vec::new(), far).unwrap_err().to_string(), "wal offset cannot be negative: -1");
    }

    #[test]
    fn a_page_that_may_not_come_is_refused_and_leaves_no_trace() {
        let mut e = encoder(header(2, 2, 4));
        e.page(pgno(2), &page(1)).unwrap();
        let before = e.bytes_written();
        let err = e.page(pgno(2), &page(1)).unwrap_err();
        assert_eq!(err.to_string(), "out-of-order page numbers: 2,2");
        let err = e.page(pgno(5), &page(1)).unwrap_err();
        assert_eq!(err.to_string(), "page number 5 out-of-bounds for commit size 4");
        let err = e.page(pgno(3), &[0; 100]).unwrap_err();
        assert_eq!(
            (err.kind(), err.to_string().as_str()),
            (ErrorKind::Invalid, "invalid page buffer size: 100, expecting 512")
        );
        assert_eq!(e.bytes_written(), before);
        assert_eq!(e.finish(Checksum::NONE).unwrap().0, file(header(2, 2, 4), &[(2, 1)]));
    }

    #[test]
    fn a_file_cannot_be_finished_against_the_rules() {
        let err = encoder(header(1, 1, 2)).finish(Checksum::NONE).unwrap_err();
        assert_eq!(err.to_string(), "snapshot transaction file ends with page number 0, commit size is 2");
        let err = encoder(header(2, 2, 2)).finish(Checksum::of_crc(1)).unwrap_err();
        assert_eq!(err.to_string(), "post-apply checksum not allowed");
        let err = encoder(header(2, 2, 0)).finish(Checksum::NONE).unwrap_err();
        assert_eq!(err.to_string(), "post-apply checksum must be empty for zero-length database");
    }

    #[test]
    fn after_a_failed_write_the_file_cannot_be_finished() {
        // Noise, so that pages fill the buffer.
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(512)
        .collect();
        for writes in 0..3 {
            let mut e = Encoder::new(FailingWriter(writes), header(2, 2, 10_000)).unwrap();
            let failed = (1..=10_000).find_map(|n| e.page(pgno(n), &noise).err()).unwrap();
            assert_eq!(failed.kind(), ErrorKind::DiskFull);
            assert!(e.finish(Checksum::NONE).is_err());
        }
    }

    #[test]
    fn a_small_file_is_a_single_write() {
        struct Once(bool);
        impl Write for Once {
            fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
                assert!(!std::mem::replace(&mut self.0, true));
                Ok(buf.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut e = Encoder::new(Once(false), header(2, 2, 4)).unwrap();
        e.page(pgno(1), &page(1)).unwrap();
        e.finish(Checksum::NONE).unwrap();
    }
}
