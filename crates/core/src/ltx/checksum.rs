//! CRC-64/GO-ISO over files and pages.
//!
//! The polynomial is `0x1B`, reflected, with all ones in and out; every stored value has bit 63
//! forced on (`spec: ltx-format` §7).

use crc_fast::{CrcAlgorithm, Digest};

use crate::types::{Checksum, Pgno};

/// A running CRC. Few large updates are much cheaper than many small ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crc(Digest);

impl Crc {
    pub(super) fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64GoIso))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// One that goes on from [`Crc::state`].
    pub(super) fn from_state(state: u64) -> Self {
        Self(Digest::new_with_init_state(CrcAlgorithm::Crc64GoIso, state))
    }

    /// All that it knows of the bytes so far.
    pub(super) fn state(&self) -> u64 {
        self.0.get_state()
    }

    /// The value so far, in its stored form.
    pub(super) fn checksum(&self) -> Checksum {
        Checksum::of_crc(self.0.finalize())
    }
}

/// Checksum of one page: its number (4 bytes, big-endian) and its content.
///
/// XOR-ing these over all pages with [`Checksum::roll`] gives the rolling database checksum.
#[must_use]
pub fn page_checksum(pgno: Pgno, data: &[u8]) -> Checksum {
    let mut crc = Crc::new();
    crc.update(&pgno.get().to_be_bytes());
    crc.update(data);
    crc.checksum()
}

/// Plain CRC-64/GO-ISO of some bytes, bit 63 as it comes out.
#[must_use]
pub fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64GoIso, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogued_check_value_comes_out() {
        let mut crc = Crc::new();
        crc.update(b"1234");
        crc.update(b"56789");
        assert_eq!(crc.checksum().bits(), 0xb909_56c7_75a4_1001);
    }

    #[test]
    fn a_running_crc_goes_on_from_its_state() {
        let mut crc = Crc::new();
        crc.update(b"1234");
        let mut other = Crc::from_state(crc.state());
        other.update(b"56789");
        assert_eq!(other.checksum().bits(), 0xb909_56c7_75a4_1001);
    }
}
