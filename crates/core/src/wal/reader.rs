//! Reads frames from an offset and checks each against the chain.

use super::checksum::WalChecksum;
use super::frame::FrameHeader;
use super::header::Salts;
use crate::error::Result;
use crate::sys::{File, mutant, read_up_to};
use crate::types::{PageSize, Pgno};

/// Bytes fetched at a time; at least one frame.
const CHUNK: usize = 256 * 1024;

/// Why reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The file ends. `partial`: in the middle of a slot.
    EndOfFile {
        /// Some bytes of a further frame are there.
        partial: bool,
    },
    /// A whole slot of another generation.
    OtherSalts(Salts),
    /// A whole slot of this generation that does not continue the chain.
    BrokenChain,
}

/// What is at the next slot.
#[derive(Debug)]
pub enum Step<'a> {
    /// A frame that continues the chain.
    Frame {
        /// Byte offset of the frame header in the file.
        offset: u64,
        /// Page number.
        pgno: Pgno,
        /// Database size in pages if the frame commits, else 0.
        commit: u32,
        /// Header and page as stored.
        bytes: &'a [u8],
    },
    /// No further frame of the chain.
    Stop(Stop),
}

/// Walks the chain of one generation.
#[derive(Debug)]
pub struct FrameReader<'a> {
    file: &'a dyn File,
    frame_size: usize,
    big_endian: bool,
    salts: Salts,
    checksum: WalChecksum,
    offset: u64,
    limit: u64,
    buf: Vec<u8>,
    start: usize,
}

impl<'a> FrameReader<'a> {
    /// Starts at `offset`, where the chain stands at `checksum`.
    #[must_use]
    pub fn new(
        file: &'a dyn File,
        page_size: PageSize,
        big_endian: bool,
        salts: Salts,
        offset: u64,
        checksum: WalChecksum,
    ) -> Self {
        Self {
            file,
            frame_size: FrameHeader::SIZE + page_size.len(),
            big_endian,
            salts,
            checksum,
            offset,
            limit: u64::MAX,
            buf: Vec::new(),
            start: 0,
        }
    }

    /// Reads no byte at or beyond `offset`; used when the end of the log is known.
    #[must_use]
    pub fn bounded(mut self, offset: u64) -> Self {
        self.limit = offset;
        self
    }

    /// Byte order of the words that are summed.
    #[must_use]
    pub(super) fn big_endian(&self) -> bool {
        self.big_endian
    }

    /// Where the next slot starts.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The chain up to [`FrameReader::offset`].
    #[must_use]
    pub fn checksum(&self) -> WalChecksum {
        self.checksum
    }

    /// Looks at the next slot and moves past it if it continues the chain.
    ///
    /// # Errors
    /// I/O errors, as what they are: an unreadable log is not a short one.
    pub fn step(&mut self) -> Result<Step<'_>> {
        if self.buf.len() - self.start < self.frame_size {
            self.fill()?;
        }
        let have = self.buf.len() - self.start;
        if have < self.frame_size {
            return Ok(Step::Stop(Stop::EndOfFile { partial: have > 0 }));
        }
        let frame = &self.buf[self.start..self.start + self.frame_size];
        let (head, page) = frame.split_at(FrameHeader::SIZE);
        let mut fixed = [0; FrameHeader::SIZE];
        fixed.copy_from_slice(head);
        let header = FrameHeader::decode(&fixed);
        if header.salts != self.salts {
            return Ok(Step::Stop(Stop::OtherSalts(header.salts)));
        }
        let chain = self.checksum.update(self.big_endian, &head[..8]).update(self.big_endian, page);
        let Some(pgno) = header.pgno.filter(|_| chain == header.checksum) else {
            return Ok(Step::Stop(Stop::BrokenChain));
        };
        let offset = self.offset;
        self.checksum = chain;
        self.offset += self.frame_size as u64;
        let at = self.start;
        self.start += self.frame_size;
        Ok(Step::Frame { offset, pgno, commit: header.commit, bytes: &self.buf[at..at + self.frame_size] })
    }

    /// Refills the buffer with as many bytes as fit, keeping an unread rest.
    fn fill(&mut self) -> Result<()> {
        self.buf.drain(..self.start);
        self.start = 0;
        let want = CHUNK.max(self.frame_size) / self.frame_size * self.frame_size;
        let room = self.limit.saturating_sub(self.offset);
        let want = usize::try_from(room).unwrap_or(usize::MAX).min(want);
        let mut have = self.buf.len();
        self.buf.resize(want.max(have), 0);
        while have < self.buf.len() {
            match self.file.read_at(&mut self.buf[have..], self.offset + have as u64) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(_) if mutant("read-error-ends-log") => break,
                Err(err) => {
                    self.buf.truncate(0);
                    return Err(err.context("read wal frame"));
                }
            }
        }
        self.buf.truncate(have);
        Ok(())
    }
}

/// Reads only the frame header at `offset`; `None` if the file ends before its end.
///
/// # Errors
/// I/O errors.
pub fn read_frame_header(file: &dyn File, offset: u64) -> Result<Option<FrameHeader>> {
    let mut head = [0; FrameHeader::SIZE];
    Ok(read_whole(file, &mut head, offset)?.then(|| FrameHeader::decode(&head)))
}

/// Fills `out`; `false` if the file ends before.
fn read_whole(file: &dyn File, out: &mut [u8], offset: u64) -> Result<bool> {
    let done = read_up_to(file, out, offset).map_err(|e| e.context("read wal frame"))?;
    Ok(done == out.len())
}

/// Reads the frame header at `offset`; `None` unless the whole slot is inside the file.
///
/// # Errors
/// I/O errors.
pub fn read_slot(
    file: &dyn File,
    page_size: PageSize,
    offset: u64,
    frame: &mut Vec<u8>,
) -> Result<Option<FrameHeader>> {
    frame.resize(FrameHeader::SIZE + page_size.len(), 0);
    if !read_whole(file, frame, offset)? {
        return Ok(None);
    }
    let mut head = [0; FrameHeader::SIZE];
    head.copy_from_slice(&frame[..FrameHeader::SIZE]);
    Ok(Some(FrameHeader::decode(&head)))
}
