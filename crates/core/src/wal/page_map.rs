//! Which frame holds the newest committed copy of each page in a stretch of the log.

use std::collections::HashMap;

use super::checksum::WalChecksum;
use super::frame::FrameHeader;
use super::reader::{FrameReader, Step, Stop};
use crate::error::{Error, Result};
use crate::sys::{File, mutant, read_full_at};
use crate::types::{PageSize, Pgno};

/// Newest committed frame of each page. Built from one or more segments, later ones winning.
#[derive(Debug)]
pub struct PageMap {
    frames: HashMap<Pgno, Slot>,
    /// Database size in pages after the last transaction; 0 while there is none.
    commit: u32,
    big_endian: bool,
    cache: Vec<u8>,
    cache_limit: usize,
    cached: HashMap<u64, usize>,
}

impl Default for PageMap {
    fn default() -> Self {
        Self::caching(Self::CACHE_BYTES)
    }
}

/// Where a frame is, and what proves that it is still the same one.
#[derive(Debug, Clone, Copy)]
struct Slot {
    offset: u64,
    /// Chain before the frame and after it.
    before: WalChecksum,
    after: WalChecksum,
}

/// A stretch of the log that was read up to a commit frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// End of the last committed frame; the start offset if there is none.
    pub end: u64,
    /// Chain at `end`.
    pub checksum: WalChecksum,
    /// Transactions found.
    pub commits: u64,
    /// Whether reading stopped at the byte limit rather than where the chain stops.
    pub limited: bool,
    /// Why the chain stops, when it was followed to its end.
    pub stop: Option<Stop>,
}

impl PageMap {
    /// Frames kept in memory per map unless told otherwise.
    pub const CACHE_BYTES: usize = 4 * 1024 * 1024;

    /// An empty map that keeps frames in memory up to so many bytes.
    #[must_use]
    pub fn caching(cache_limit: usize) -> Self {
        Self {
            frames: HashMap::new(),
            commit: 0,
            big_endian: false,
            cache: Vec::new(),
            cache_limit,
            cached: HashMap::new(),
        }
    }

    /// Adds the committed transactions that `reader` finds. With a `limit` reading stops at the
    /// first commit frame that ends at least so many bytes after the start.
    ///
    /// # Errors
    /// I/O errors.
    pub fn read(&mut self, mut reader: FrameReader<'_>, limit: Option<u64>) -> Result<Segment> {
        let start = reader.offset();
        let mut segment = Segment { end: start, checksum: reader.checksum(), commits: 0, limited: false, stop: None };
        let mut pending: HashMap<Pgno, Slot> = HashMap::new();
        self.big_endian = reader.big_endian();
        loop {
            let before = reader.checksum();
            let committed = match reader.step()? {
                Step::Stop(stop) => {
                    segment.stop = Some(stop);
                    break;
                }
                Step::Frame { offset, pgno, commit, bytes } => {
                    pending.insert(pgno, Slot { offset, before, after: frame_header(bytes).checksum });
                    if self.cache.len() + bytes.len() <= self.cache_limit {
                        self.cached.insert(offset, self.cache.len());
                        self.cache.extend_from_slice(bytes);
                    }
                    commit
                }
            };
            if committed == 0 && !mutant("half-a-transaction") {
                continue;
            }
            self.frames.extend(pending.drain());
            self.commit = if committed == 0 { self.commit } else { committed };
            segment.end = reader.offset();
            segment.checksum = reader.checksum();
            segment.commits += 1;
            if limit.is_some_and(|limit| segment.end - start >= limit) {
                segment.limited = true;
                break;
            }
        }
        Ok(segment)
    }

    /// Forgets pages beyond the final size: the database shrank.
    pub fn drop_beyond_commit(&mut self) {
        let commit = self.commit;
        self.frames.retain(|pgno, _| pgno.get() <= commit);
    }

    /// Database size in pages after the last transaction; 0 while there is none.
    #[must_use]
    pub fn commit(&self) -> u32 {
        self.commit
    }

    /// Whether a committed copy of the page was found.
    #[must_use]
    pub fn contains(&self, pgno: Pgno) -> bool {
        self.frames.contains_key(&pgno)
    }

    /// Number of pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether no page was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The pages, ascending.
    #[must_use]
    pub fn pages(&self) -> Vec<Pgno> {
        let mut pages: Vec<Pgno> = self.frames.keys().copied().collect();
        pages.sort_unstable();
        pages
    }

    /// Copies a page out of the log. `false` if the map does not have it. Frames that were not
    /// kept in memory are read again, and must continue the chain again: the log may have been
    /// restarted since, even between two reads (`spec: replication` D13).
    ///
    /// # Errors
    /// `Changed` if the frame is no longer the one that was mapped; I/O errors.
    pub fn copy_page(&self, pgno: Pgno, wal: &dyn File, page_size: PageSize, out: &mut [u8]) -> Result<bool> {
        let Some(&Slot { offset, before, after }) = self.frames.get(&pgno) else { return Ok(false) };
        let size = FrameHeader::SIZE + page_size.len();
        if let Some(&at) = self.cached.get(&offset) {
            out.copy_from_slice(&self.cache[at + FrameHeader::SIZE..at + size]);
            return Ok(true);
        }
        let mut head = [0; FrameHeader::SIZE];
        read_full_at(wal, &mut head, offset).map_err(|e| e.context("read wal frame"))?;
        read_full_at(wal, out, offset + FrameHeader::SIZE as u64).map_err(|e| e.context("read wal frame"))?;
        let chain = before.update(self.big_endian, &head[..8]).update(self.big_endian, out);
        let header = FrameHeader::decode(&head);
        let same = header.pgno == Some(pgno) && header.checksum == after && chain == after;
        if !same && !mutant("log-not-looked-at-again") {
            return Err(Error::new(
                crate::error::ErrorKind::Changed,
                format!("wal frame at {offset} changed while it was read"),
            ));
        }
        Ok(true)
    }

    /// Whether every frame of the map is in memory, so that the log may be reused.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        self.frames.values().all(|slot| self.cached.contains_key(&slot.offset))
    }
}

fn frame_header(frame: &[u8]) -> FrameHeader {
    let mut head = [0; FrameHeader::SIZE];
    head.copy_from_slice(&frame[..FrameHeader::SIZE]);
    FrameHeader::decode(&head)
}
