//! The first 32 bytes of a WAL file.
//!
//! | Off | Field |
//! |---|---|
//! | 0 | magic `377f0682` (sums over little-endian words) or `377f0683` (big-endian words) |
//! | 4 | version 3007000 |
//! | 8 | page size |
//! | 12 | checkpoint sequence |
//! | 16 | salt-1, salt-2 |
//! | 24 | checksum of the first 24 bytes |

use std::fmt;

use super::checksum::WalChecksum;
use crate::error::{Error, Result};
use crate::types::PageSize;

/// The pair of numbers that marks one generation of a WAL file. SQLite adds 1 to the first and
/// draws the second anew at every restart of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Salts {
    /// Counts restarts.
    pub salt1: u32,
    /// Random.
    pub salt2: u32,
}

impl Salts {
    /// Whether `self` can be the generation right after `before`.
    #[must_use]
    pub fn follows(self, before: Self) -> bool {
        self.salt1 == before.salt1.wrapping_add(1)
    }

    /// From the stored form.
    #[must_use]
    pub fn decode(bytes: [u8; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self { salt1: u32::from_be_bytes([a, b, c, d]), salt2: u32::from_be_bytes([e, f, g, h]) }
    }
}

impl fmt::Display for Salts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}{:08x}", self.salt1, self.salt2)
    }
}

/// A valid WAL header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    /// Byte order of the words that are summed.
    pub big_endian: bool,
    /// Page size of every frame.
    pub page_size: PageSize,
    /// Restarts of the log since it was made.
    pub checkpoint_seq: u32,
    /// The generation.
    pub salts: Salts,
    /// Start of the checksum chain.
    pub checksum: WalChecksum,
}

impl WalHeader {
    /// Bytes on disk; the first frame starts here.
    pub const SIZE: u64 = 32;

    /// Parses a header.
    ///
    /// # Errors
    /// `Corrupt`: magic, version, page size or checksum are wrong.
    pub fn decode(bytes: &[u8; 32]) -> Result<Self> {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let magic = word(0);
        if magic & !1 != 0x377f_0682 {
            return Err(Error::corrupt(format!("invalid wal header magic: {magic:x}")));
        }
        if word(4) != 3_007_000 {
            return Err(Error::corrupt(format!("unsupported wal version: {}", word(4))));
        }
        let big_endian = magic & 1 == 1;
        let checksum = WalChecksum { s0: word(24), s1: word(28) };
        if WalChecksum::default().update(big_endian, &bytes[..24]) != checksum {
            return Err(Error::corrupt("wal header checksum mismatch"));
        }
        Ok(Self {
            big_endian,
            page_size: PageSize::new(word(8))?,
            checkpoint_seq: word(12),
            salts: Salts { salt1: word(16), salt2: word(20) },
            checksum,
        })
    }
}
