//! Page frames: header, and the page as one LZ4 block or (up to Litestream 0.5.15) one LZ4 frame.
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 4 | page number; 0 ends the page block |
//! | 4 | 2 | flags: 1 = block, 0 = frame |
//! | 6 | 4 | compressed size n (block only) |
//! | 10 or 6 | n | LZ4 block, or a complete LZ4 frame that tells its own length |
//!
//! `spec: ltx-format` §4.

use std::io::Read;

use super::lz4_frame;
use super::source::Source;
use crate::error::{Error, Result};
use crate::types::{PageSize, Pgno};

/// Bytes of a page header.
pub(super) const HEADER_SIZE: usize = 6;
/// Bytes of the compressed size behind the page header of a block.
pub(super) const LENGTH_SIZE: usize = 4;
/// Page header that ends the page block.
pub(super) const END: [u8; HEADER_SIZE] = [0; HEADER_SIZE];

const FLAG_BLOCK: u16 = 0x0001;

/// How a page is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Block,
    Frame,
}

/// The page header of a block.
#[inline]
pub(super) fn block_header(pgno: Pgno) -> [u8; HEADER_SIZE] {
    let [a, b, c, d] = pgno.get().to_be_bytes();
    let [e, f] = FLAG_BLOCK.to_be_bytes();
    [a, b, c, d, e, f]
}

/// Reads a page header; `None` at the end of the page block.
#[inline]
pub(super) fn parse_header(bytes: [u8; HEADER_SIZE]) -> Result<Option<(Pgno, Encoding)>> {
    let [a, b, c, d, e, f] = bytes;
    let flags = u16::from_be_bytes([e, f]);
    let Some(pgno) = Pgno::new(u32::from_be_bytes([a, b, c, d])) else {
        return if flags == 0 { Ok(None) } else { Err(Error::corrupt("page number required")) };
    };
    match flags {
        0 => Ok(Some((pgno, Encoding::Frame))),
        FLAG_BLOCK => Ok(Some((pgno, Encoding::Block))),
        _ => Err(Error::corrupt(format!("invalid page header flags: 0x{flags:04x}"))),
    }
}

/// Most bytes a page can take as an LZ4 block.
pub(super) const fn max_block(page_size: usize) -> usize {
    page_size + page_size / 255 + 16
}

/// Most bytes a page frame can take in either encoding. An LZ4 frame may cut the page into blocks
/// of its own; one 4-byte length per 64 bytes of page is far more than any writer produces.
pub(super) const fn max_frame(page_size: PageSize) -> u64 {
    (HEADER_SIZE + max_block(page_size.len()) + page_size.len() / 16 + 64) as u64
}

/// Reads a block with its length and expands it into exactly `out`. Returns the length as stored.
pub(super) fn read_block<R: Read>(source: &mut Source<R>, out: &mut [u8]) -> Result<[u8; LENGTH_SIZE]> {
    let length: [u8; LENGTH_SIZE] = source.take().map_err(|e| e.context("read data size"))?;
    let compressed = u32::from_be_bytes(length) as usize;
    if compressed > max_block(out.len()) {
        let message = format!("data size {compressed} out of bounds for page size {}", out.len());
        return Err(source.corrupt(message).context("read compressed data"));
    }
    let block = source.require(compressed).map_err(|e| e.context("read compressed data"))?;
    let expanded = expand(block, out);
    check_expanded(source, expanded, out.len())?;
    source.consume(compressed);
    Ok(length)
}

/// Reads an LZ4 frame and expands it into exactly `out`.
pub(super) fn read_frame<R: Read>(source: &mut Source<R>, out: &mut [u8]) -> Result<()> {
    lz4_frame::read(source, out)
}

/// Expands one LZ4 block; the number of bytes put into `out`, or `None` for anything undecodable.
#[inline]
fn expand(block: &[u8], out: &mut [u8]) -> Option<usize> {
    lz4_flex::block::decompress_into(block, out).ok()
}

fn check_expanded<R: Read>(source: &Source<R>, expanded: Option<usize>, page_size: usize) -> Result<()> {
    match expanded {
        Some(n) if n == page_size => Ok(()),
        Some(n) => Err(source.corrupt(format!("decompress block: {n} bytes instead of a page of {page_size}"))),
        None => Err(source.corrupt("decompress block: lz4: invalid source or destination buffer too short")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_of(page: &[u8]) -> Vec<u8> {
        let block = lz4_flex::block::compress(page);
        let mut bytes = (block.len() as u32).to_be_bytes().to_vec();
        bytes.extend(block);
        bytes
    }

    #[test]
    fn page_headers_read_back_and_unknown_ones_are_refused() {
        let pgno = Pgno::new(0x0102_0304).unwrap();
        assert_eq!(block_header(pgno), [1, 2, 3, 4, 0, 1]);
        assert_eq!(parse_header(block_header(pgno)).unwrap(), Some((pgno, Encoding::Block)));
        assert_eq!(parse_header([1, 2, 3, 4, 0, 0]).unwrap(), Some((pgno, Encoding::Frame)));
        assert_eq!(parse_header(END).unwrap(), None);
        assert_eq!(parse_header([0, 0, 0, 0, 0, 1]).unwrap_err().to_string(), "page number required");
        let err = parse_header([0, 0, 0, 1, 0, 3]).unwrap_err();
        assert_eq!(err.to_string(), "invalid page header flags: 0x0003");
    }

    #[test]
    fn a_block_must_fill_the_page_exactly() {
        let bytes = block_of(&[7; 600]);
        let mut out = vec![0; 600];
        read_block(&mut Source::new(bytes.as_slice()), &mut out).unwrap();
        assert_eq!(out, [7; 600]);
        for wrong in [512, 599, 601, 1024] {
            let mut out = vec![0; wrong];
            let err = read_block(&mut Source::new(bytes.as_slice()), &mut out).unwrap_err();
            assert!(err.to_string().starts_with("decompress block: "), "{err}");
        }
    }

    #[test]
    fn a_size_no_block_can_have_is_refused_before_memory_is_taken() {
        let mut out = vec![0; 512];
        let err = read_block(&mut Source::new([0xff_u8; 4].as_slice()), &mut out).unwrap_err();
        assert_eq!(
            err.to_string(),
            "read compressed data: data size 4294967295 out of bounds for page size 512 at offset 4"
        );
    }

    #[test]
    fn random_pages_stay_within_the_block_bound() {
        let mut state = 1u64;
        for size in [512, 4096, 65536] {
            let page: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .take(size)
            .collect();
            assert!(lz4_flex::block::compress(&page).len() <= max_block(size));
        }
    }
}
