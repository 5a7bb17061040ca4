//! The 24 bytes before each page in a WAL: page number, database size in pages if this frame
//! commits (else 0), salts, running checksum.

use super::checksum::WalChecksum;
use super::header::Salts;
use crate::types::Pgno;

/// A frame header as stored; nothing about it is verified yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Page in this frame; `None` stands for the illegal number 0.
    pub pgno: Option<Pgno>,
    /// Size of the database in pages after this transaction; 0 if the frame does not commit.
    pub commit: u32,
    /// Generation.
    pub salts: Salts,
    /// Chain up to and including this frame.
    pub checksum: WalChecksum,
}

impl FrameHeader {
    /// Bytes on disk.
    pub const SIZE: usize = 24;

    /// Splits the bytes.
    #[must_use]
    #[inline]
    pub fn decode(bytes: &[u8; 24]) -> Self {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            pgno: Pgno::new(word(0)),
            commit: word(4),
            salts: Salts { salt1: word(8), salt2: word(12) },
            checksum: WalChecksum { s0: word(16), s1: word(20) },
        }
    }
}
