//! Checksums as LTX stores them.

use std::fmt;

/// CRC-64/GO-ISO with bit 63 forced on; zero means "none" (`spec: ltx-format` §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Checksum(u64);

impl Checksum {
    /// No checksum.
    pub const NONE: Self = Self(0);
    /// Set in every checksum that is present.
    pub const FLAG: u64 = 1 << 63;

    /// From the stored form.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// From a computed CRC: forces bit 63 on.
    #[must_use]
    pub const fn of_crc(crc: u64) -> Self {
        Self(crc | Self::FLAG)
    }

    /// The stored form.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether bit 63 is set.
    #[must_use]
    pub const fn is_flagged(self) -> bool {
        self.0 & Self::FLAG != 0
    }

    /// Adds or removes a page in a rolling database checksum.
    #[must_use]
    pub const fn roll(self, page: Self) -> Self {
        Self((self.0 ^ page.0) | Self::FLAG)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
