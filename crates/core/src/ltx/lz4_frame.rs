//! One LZ4 frame that holds one page.
//!
//! Written here rather than taken from a library because the frame's length is known only by
//! parsing it: not a byte behind its footer may be read, and a frame that ends early must be an
//! error, not a short read.
//!
//! | Part | Size | |
//! |---|---|---|
//! | magic | 4 | `04 22 4D 18` |
//! | FLG | 1 | version 01, block independence, block checksums, content size, content checksum, dictionary |
//! | BD | 1 | block size 4…7 = 64 KiB…4 MiB |
//! | content size | 0 or 8 | little-endian |
//! | header checksum | 1 | second byte of xxHash32 of FLG…content size |
//! | blocks | 4 + n (+ 4) | little-endian size, bit 31 = stored; block; its xxHash32 |
//! | end mark | 4 | zero |
//! | content checksum | 0 or 4 | xxHash32 of the page |

use std::io::Read;

use super::page::max_block;
use super::source::Source;
use crate::error::{Error, Result};
use crate::sys::UNCHECKED;

const MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
const STORED: u32 = 1 << 31;

/// Reads one frame and expands it into exactly `out`. Stops behind the footer.
///
/// # Errors
/// `Corrupt` for anything that is not one well-formed frame of exactly that size.
pub(super) fn read<R: Read>(source: &mut Source<R>, out: &mut [u8]) -> Result<()> {
    let flags = read_header(source, out.len())?;
    let mut done = 0;
    while done < out.len() {
        let size = u32::from_le_bytes(source.take().map_err(in_frame)?);
        if size == 0 {
            return Err(in_frame(source.corrupt(format!("{done} bytes instead of a page of {}", out.len()))));
        }
        done += read_block(source, size, flags, out, done).map_err(in_frame)?;
    }
    let end: [u8; 4] = source.take().map_err(in_trailer)?;
    if end != [0; 4] {
        return Err(source.corrupt("read lz4 trailer: expected lz4 end frame"));
    }
    if flags.content_checksum && u32::from_le_bytes(source.take().map_err(in_trailer)?) != hash(out) && !UNCHECKED {
        return Err(source.corrupt("read lz4 trailer: content checksum mismatch"));
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Flags {
    independent: bool,
    block_checksums: bool,
    content_checksum: bool,
    /// Most bytes a block may expand to.
    block_size: usize,
}

fn read_header<R: Read>(source: &mut Source<R>, page_size: usize) -> Result<Flags> {
    let fail = |source: &Source<R>, message: &str| in_frame(source.corrupt(message));
    if source.take().map_err(in_frame)? != MAGIC {
        return Err(fail(source, "bad magic number"));
    }
    let [flg, bd] = source.take().map_err(in_frame)?;
    // Version 01; bit 1 is reserved; bit 0 announces a dictionary, which nobody has.
    if flg & 0b1100_0011 != 0b0100_0000 {
        return Err(fail(source, "unsupported frame flags"));
    }
    if bd & 0b1000_1111 != 0 || bd >> 4 < 4 {
        return Err(fail(source, "unsupported block size"));
    }
    let mut descriptor = vec![flg, bd];
    if flg & 0b1000 != 0 {
        let size: [u8; 8] = source.take().map_err(in_frame)?;
        if u64::from_le_bytes(size) != page_size as u64 {
            return Err(fail(source, "content size differs from the page size"));
        }
        descriptor.extend(size);
    }
    let [check] = source.take().map_err(in_frame)?;
    if check != hash(&descriptor).to_le_bytes()[1] && !UNCHECKED {
        return Err(fail(source, "header checksum mismatch"));
    }
    Ok(Flags {
        independent: flg & 0b10_0000 != 0,
        block_checksums: flg & 0b1_0000 != 0,
        content_checksum: flg & 0b100 != 0,
        block_size: 1 << (2 * (bd >> 4) + 8),
    })
}

/// Expands one block to `out[done..]`; how many bytes it gave. Never zero.
fn read_block<R: Read>(source: &mut Source<R>, size: u32, flags: Flags, out: &mut [u8], done: usize) -> Result<usize> {
    let len = (size & !STORED) as usize;
    let (before, rest) = out.split_at_mut(done);
    let room = rest.len().min(flags.block_size);
    if len == 0 || len > max_block(room) {
        return Err(source.corrupt(format!("block size {len} out of bounds")));
    }
    let block = source.require(len)?;
    let block_hash = if flags.block_checksums { hash(block) } else { 0 };
    let rest = &mut rest[..room];
    let expanded = if size & STORED != 0 {
        rest.get_mut(..len).map(|to| {
            to.copy_from_slice(block);
            len
        })
    } else if flags.independent || before.is_empty() {
        lz4_flex::block::decompress_into(block, rest).ok()
    } else {
        lz4_flex::block::decompress_into_with_dict(block, rest, before).ok()
    };
    let Some(n) = expanded.filter(|n| *n > 0) else {
        return Err(source.corrupt("lz4: invalid source or destination buffer too short"));
    };
    source.consume(len);
    if flags.block_checksums && u32::from_le_bytes(source.take()?) != block_hash && !UNCHECKED {
        return Err(source.corrupt("block checksum mismatch"));
    }
    Ok(n)
}

fn hash(bytes: &[u8]) -> u32 {
    twox_hash::XxHash32::oneshot(0, bytes)
}

fn in_frame(err: Error) -> Error {
    err.context("decompress frame")
}

fn in_trailer(err: Error) -> Error {
    err.context("read lz4 trailer")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

    use super::*;

    fn page(size: usize) -> Vec<u8> {
        (0..size).map(|n| ((n * n) >> 6) as u8).collect()
    }

    fn frame(info: FrameInfo, content: &[u8]) -> Vec<u8> {
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        // Two writes with a flush between make two blocks.
        let half = content.len() / 2;
        encoder.write_all(&content[..half]).unwrap();
        encoder.flush().unwrap();
        encoder.write_all(&content[half..]).unwrap();
        encoder.finish().unwrap()
    }

    fn read_page(bytes: &[u8], size: usize) -> Result<(Vec<u8>, u64)> {
        let mut source = Source::new(bytes);
        let mut out = vec![0; size];
        read(&mut source, &mut out)?;
        Ok((out, source.offset()))
    }

    #[test]
    fn every_kind_of_frame_is_read_to_its_last_byte_and_no_further() {
        for size in [512, 4096, 65536] {
            for linked in [false, true] {
                for checks in 0..8u8 {
                    let mut info = FrameInfo::new()
                        .block_size(BlockSize::Max64KB)
                        .block_mode(if linked { BlockMode::Linked } else { BlockMode::Independent })
                        .block_checksums(checks & 1 != 0)
                        .content_checksum(checks & 2 != 0);
                    if checks & 4 != 0 {
                        info = info.content_size(Some(size as u64));
                    }
                    let mut bytes = frame(info, &page(size));
                    let len = bytes.len();
                    bytes.extend([0xee; 9]);
                    let (out, read) = read_page(&bytes, size).unwrap();
                    assert_eq!(out, page(size), "{size} {linked} {checks}");
                    assert_eq!(read, len as u64);
                }
            }
        }
    }

    #[test]
    fn a_frame_of_another_size_than_the_page_is_refused() {
        let info = || FrameInfo::new().block_size(BlockSize::Max64KB).content_checksum(true);
        let err = read_page(&frame(info(), &page(1024)), 2048).unwrap_err();
        assert!(err.to_string().starts_with("decompress frame: 1024 bytes instead of a page of 2048"), "{err}");
        let err = read_page(&frame(info(), &page(1024)), 512).unwrap_err();
        assert!(err.to_string().starts_with("read lz4 trailer: expected lz4 end frame"), "{err}");
        assert!(read_page(&frame(info().content_size(Some(1024)), &page(1024)), 512).is_err());
    }

    #[test]
    fn every_cut_and_every_damaged_byte_is_noticed() {
        let info = FrameInfo::new().block_size(BlockSize::Max64KB).content_checksum(true);
        let bytes = frame(info, &page(512));
        for len in 0..bytes.len() {
            assert!(read_page(&bytes[..len], 512).is_err(), "cut to {len}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                if let Ok((out, _)) = read_page(&bad, 512) {
                    assert_eq!(out, page(512), "byte {at} bit {bit}");
                }
            }
        }
    }
}
