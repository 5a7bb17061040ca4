//! The header of the wal-index (`-shm`): what SQLite itself believes about the log.
//!
//! Two copies of 48 bytes, native byte order, then the checkpoint information:
//!
//! | Off | Field |
//! |---|---|
//! | 0 | version 3007000 |
//! | 8 | change counter, +1 with every transaction |
//! | 12 | initialised (1 byte), checksums over big-endian words (1 byte), page size (2 bytes, 1 = 65536) |
//! | 16 | last valid frame |
//! | 20 | database size in pages |
//! | 24 | checksum chain at the last valid frame |
//! | 32 | salts, copied byte by byte from the WAL header |
//! | 40 | checksum of the first 40 bytes |
//! | 96 | frames copied back into the database (`nBackfill`) |
//! | 128 | frames that a checkpoint set out to copy (`nBackfillAttempted`), set before it writes |
//!
//! A writer changes the second copy first, then the first. Equal copies with a good checksum are
//! one consistent state.

use crate::types::PageSize;
use crate::wal::{Salts, WalChecksum, WalHeader};

/// One consistent state of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalIndex {
    /// Grows with every transaction.
    pub change: u32,
    /// Number of the last committed frame; 0 while the log is empty.
    pub last_frame: u32,
    /// Size of the database in pages.
    pub page_count: u32,
    /// Checksum chain at the last committed frame.
    pub checksum: WalChecksum,
    /// Generation of the log. With `last_frame` 0 the file may still show an older one.
    pub salts: Salts,
    /// Frames that were copied into the database file.
    pub backfilled: u32,
    /// Frames that a checkpoint set out to copy: it writes this before it touches the database file. More than
    /// `backfilled` while one runs, and after one that was cut short.
    pub attempted: u32,
}

impl WalIndex {
    /// Bytes that [`WalIndex::decode`] wants.
    pub(super) const BYTES: usize = 132;

    /// `None` unless both copies agree and their checksum holds.
    #[expect(clippy::host_endian_bytes, reason = "the wal-index is shared memory in native order")]
    pub(super) fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..48] != bytes[48..96] || bytes[12] == 0 || word(0) != 3_007_000 {
            return None;
        }
        let sum = WalChecksum::default().update(cfg!(target_endian = "big"), &bytes[..40]);
        if sum != (WalChecksum { s0: word(40), s1: word(44) }) {
            return None;
        }
        Some(Self {
            change: word(8),
            last_frame: word(16),
            page_count: word(20),
            checksum: WalChecksum { s0: word(24), s1: word(28) },
            salts: Salts::decode([
                bytes[32], bytes[33], bytes[34], bytes[35], bytes[36], bytes[37], bytes[38], bytes[39],
            ]),
            backfilled: word(96),
            attempted: word(128),
        })
    }

    /// Byte offset in the file at which the log ends. The page size is the database's: the copy
    /// in the wal-index is 0 until the first frame is written.
    #[must_use]
    pub fn end(&self, page_size: PageSize) -> u64 {
        WalHeader::SIZE + u64::from(self.last_frame) * page_size.frame_size()
    }

    /// Whether the log ends where it ended in `other`: nothing was committed in between.
    #[must_use]
    pub fn is_at(&self, other: &Self) -> bool {
        (self.salts, self.last_frame, self.checksum) == (other.salts, other.last_frame, other.checksum)
    }

    /// Whether the log holds no frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last_frame == 0
    }

    /// Whether every frame of the log is in the database file too.
    #[must_use]
    pub fn is_fully_backfilled(&self) -> bool {
        self.backfilled >= self.last_frame
    }
}
