//! Header and trailer.
//!
//! | Header offset | Size | Field |
//! |---|---|---|
//! | 0 | 4 | magic `LTX1` |
//! | 4 | 4 | flags; only bit 1 (checksums are not tracked) is legal |
//! | 8 | 4 | page size |
//! | 12 | 4 | commit: database size in pages after this file |
//! | 16 / 24 | 8 / 8 | first / last TXID |
//! | 32 | 8 | timestamp, signed, ms |
//! | 40 | 8 | pre-apply checksum |
//! | 48 / 56 | 8 / 8 | WAL offset / size, signed |
//! | 64 / 68 | 4 / 4 | WAL salts |
//! | 72 | 8 | node id |
//! | 80 | 20 | reserved, zero |
//!
//! | Trailer offset | Size | Field |
//! |---|---|---|
//! | 0 | 8 | post-apply checksum |
//! | 8 | 8 | file checksum |
//!
//! Everything is big-endian (`spec: ltx-format` §3, §6).

use crate::error::{Error, Result};
use crate::types::{Checksum, PageSize, Timestamp, Txid, TxidRange};

const MAGIC: [u8; 4] = *b"LTX1";
const FLAG_NO_CHECKSUM: u32 = 0x2;

/// The part of the write-ahead log a file was made from. All zero when it was not made from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WalPos {
    /// Byte offset in the WAL where reading began; at most `i64::MAX`.
    pub offset: u64,
    /// Bytes read, up to the end of the last committed frame; at most `i64::MAX`.
    pub size: u64,
    /// First salt of the WAL generation.
    pub salt1: u32,
    /// Second salt of the WAL generation.
    pub salt2: u32,
}

impl WalPos {
    /// Byte offset behind the part: where the next file resumes.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.size)
    }
}

/// The first 100 bytes of an LTX file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Database checksums are not tracked. Litestream sets this in every file.
    pub no_checksum: bool,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Database size in pages after this file.
    pub commit: u32,
    /// Transactions covered.
    pub txids: TxidRange,
    /// When the (last) transaction was read.
    pub timestamp: Timestamp,
    /// Rolling database checksum before this file; none when not tracked, and in snapshots.
    pub pre_apply: Checksum,
    /// Where in the WAL it came from.
    pub wal: WalPos,
    /// Zero in files of Litestream, which never looks at it. Our L0 files keep the checksum chain of
    /// the log at their end here.
    pub node_id: u64,
}

impl Header {
    /// Bytes of a header.
    pub const SIZE: usize = 100;

    /// Reads and validates a header. Reserved bytes are not looked at.
    ///
    /// # Errors
    /// `Corrupt` for each violated rule of `spec: ltx-format` §8 (2–12), and for a TXID above
    /// [`Txid::MAX`].
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self> {
        let mut fields = Fields(bytes);
        if fields.take() != MAGIC {
            return Err(Error::corrupt("unmarshal header: invalid LTX file"));
        }
        let flags = fields.u32();
        if flags & !FLAG_NO_CHECKSUM != 0 {
            return Err(Error::corrupt(format!("invalid flags: 0x{flags:08x}")));
        }
        let page_size = PageSize::new(fields.u32())?;
        let commit = fields.u32();
        let txids = txid_range(fields.u64(), fields.u64())?;
        let timestamp = Timestamp::from_millis(fields.i64());
        let pre_apply = Checksum::from_bits(fields.u64());
        let wal = wal_pos(fields.i64(), fields.i64(), fields.u32(), fields.u32())?;
        let no_checksum = flags & FLAG_NO_CHECKSUM != 0;
        check_pre_apply(no_checksum, txids, pre_apply)?;
        let node_id = fields.u64();
        Ok(Self { no_checksum, page_size, commit, txids, timestamp, pre_apply, wal, node_id })
    }

    /// [`Header::encode`] in hexadecimal digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        self.encode().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The other way round.
    ///
    /// # Errors
    /// `Corrupt`, as [`Header::decode`], and for anything but digits of a whole header.
    pub fn from_hex(digits: &str) -> Result<Self> {
        let bad = || Error::corrupt("not a header in hexadecimal digits");
        let mut bytes = [0; Self::SIZE];
        if digits.len() != 2 * bytes.len() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|_| bad())?;
        }
        Self::decode(&bytes)
    }

    /// Checks that a file with this header is what its name says.
    ///
    /// # Errors
    /// `Corrupt` when the name stands for other transactions.
    pub fn check_name(&self, named: TxidRange) -> Result<()> {
        if self.txids == named {
            return Ok(());
        }
        Err(Error::corrupt(format!("ltx file is named {named} but its header says {}", self.txids)))
    }

    /// The stored form. Not validated: [`Header::decode`] of the result does that.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let flags = if self.no_checksum { FLAG_NO_CHECKSUM } else { 0 };
        let mut out = [0; Self::SIZE];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        put(&flags.to_be_bytes());
        put(&self.page_size.get().to_be_bytes());
        put(&self.commit.to_be_bytes());
        put(&self.txids.min().get().to_be_bytes());
        put(&self.txids.max().get().to_be_bytes());
        put(&self.timestamp.millis().to_be_bytes());
        put(&self.pre_apply.bits().to_be_bytes());
        put(&self.wal.offset.to_be_bytes());
        put(&self.wal.size.to_be_bytes());
        put(&self.wal.salt1.to_be_bytes());
        put(&self.wal.salt2.to_be_bytes());
        put(&self.node_id.to_be_bytes());
        out
    }
}

fn txid_range(min: u64, max: u64) -> Result<TxidRange> {
    let min = Txid::new(min).ok_or_else(|| Error::corrupt("minimum transaction id required"))?;
    let max = Txid::new(max).ok_or_else(|| Error::corrupt("maximum transaction id required"))?;
    let range = TxidRange::new(min, max)?;
    if max > Txid::MAX {
        return Err(Error::corrupt(format!("maximum transaction id out of range: {max}")));
    }
    Ok(range)
}

fn wal_pos(offset: i64, size: i64, salt1: u32, salt2: u32) -> Result<WalPos> {
    let negative = |what: &str, n: i64| Error::corrupt(format!("wal {what} cannot be negative: {n}"));
    let pos = WalPos {
        offset: u64::try_from(offset).map_err(|_| negative("offset", offset))?,
        size: u64::try_from(size).map_err(|_| negative("size", size))?,
        salt1,
        salt2,
    };
    if pos.offset == 0 && (salt1 != 0 || salt2 != 0) {
        return Err(Error::corrupt("wal offset required if salt exists"));
    }
    if pos.offset == 0 && pos.size != 0 {
        return Err(Error::corrupt("wal offset required if wal size exists"));
    }
    Ok(pos)
}

fn check_pre_apply(no_checksum: bool, txids: TxidRange, pre_apply: Checksum) -> Result<()> {
    let message = match (txids.is_snapshot(), no_checksum) {
        (true, _) if !pre_apply.is_none() => "pre-apply checksum must be zero on snapshots",
        (false, true) if !pre_apply.is_none() => "pre-apply checksum not allowed",
        (false, false) if pre_apply.is_none() => "pre-apply checksum required on non-snapshot files",
        (false, false) if !pre_apply.is_flagged() => "invalid pre-apply checksum format",
        _ => return Ok(()),
    };
    Err(Error::corrupt(message))
}

/// The last 16 bytes of an LTX file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Rolling database checksum after this file; none when not tracked.
    pub post_apply: Checksum,
    /// CRC of the file, with the pages uncompressed (`spec: ltx-format` §7.2).
    pub file_checksum: Checksum,
}

impl Trailer {
    /// Bytes of a trailer.
    pub const SIZE: usize = 16;

    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[..8].copy_from_slice(&self.post_apply.bits().to_be_bytes());
        out[8..].copy_from_slice(&self.file_checksum.bits().to_be_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let mut fields = Fields(bytes);
        Self { post_apply: Checksum::from_bits(fields.u64()), file_checksum: Checksum::from_bits(fields.u64()) }
    }
}

/// Whether a file with this header may carry this post-apply checksum.
pub(super) fn check_post_apply(header: &Header, post_apply: Checksum) -> Result<()> {
    let message = match header.no_checksum {
        true if !post_apply.is_none() => "post-apply checksum not allowed",
        false if post_apply.is_none() => "post-apply checksum required",
        false if !post_apply.is_flagged() => "invalid post-apply checksum format",
        _ if header.commit == 0 && post_apply.bits() != Checksum::FLAG => {
            "post-apply checksum must be empty for zero-length database"
        }
        _ => return Ok(()),
    };
    Err(Error::corrupt(message))
}

/// Takes big-endian fields off the front. Zero past the end, which fixed-size input never reaches.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }

    fn i64(&mut self) -> i64 {
        i64::from_be_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            no_checksum: true,
            page_size: PageSize::new(65536).unwrap(),
            commit: 7,
            txids: TxidRange::new(Txid::new(2).unwrap(), Txid::new(9).unwrap()).unwrap(),
            timestamp: Timestamp::from_millis(-1),
            pre_apply: Checksum::NONE,
            wal: WalPos { offset: 32, size: 4120, salt1: 5, salt2: 6 },
            node_id: 8,
        }
    }

    fn fails_with(header: Header, patch: impl FnOnce(&mut [u8; 100])) -> String {
        let mut bytes = header.encode();
        patch(&mut bytes);
        Header::decode(&bytes).unwrap_err().to_string()
    }

    #[test]
    fn every_field_survives_a_round_trip() {
        assert_eq!(Header::decode(&header().encode()).unwrap(), header());
        assert_eq!(header().wal.end(), 4152);
    }

    #[test]
    fn reserved_bytes_are_not_looked_at() {
        let mut bytes = header().encode();
        bytes[80..].fill(0xff);
        assert_eq!(Header::decode(&bytes).unwrap(), header());
    }

    #[test]
    fn rules_are_checked_in_the_documented_order() {
        let wreck = |b: &mut [u8; 100]| b[4..].fill(0xff);
        assert_eq!(fails_with(header(), wreck), "invalid flags: 0xffffffff");
        assert_eq!(fails_with(header(), |b| b.fill(0)), "unmarshal header: invalid LTX file");
        assert_eq!(fails_with(header(), |b| b[8..].fill(0)), "invalid page size: 0");
        assert_eq!(fails_with(header(), |b| b[16..].fill(0)), "minimum transaction id required");
        assert_eq!(fails_with(header(), |b| b[24..].fill(0)), "maximum transaction id required");
        assert_eq!(fails_with(header(), |b| b[31] = 1), "transaction ids out of order: (2,1)");
        assert_eq!(fails_with(header(), |b| b[48..64].fill(0xff)), "wal offset cannot be negative: -1");
        assert_eq!(fails_with(header(), |b| b[56..64].fill(0xff)), "wal size cannot be negative: -1");
        assert_eq!(fails_with(header(), |b| b[48..56].fill(0)), "wal offset required if salt exists");
        let sized = |b: &mut [u8; 100]| {
            b[48..56].fill(0);
            b[64..72].fill(0);
        };
        assert_eq!(fails_with(header(), sized), "wal offset required if wal size exists");
    }

    #[test]
    fn a_file_under_the_name_of_another_is_noticed() {
        assert!(header().check_name(header().txids).is_ok());
        let err = header().check_name(TxidRange::single(Txid::FIRST)).unwrap_err();
        assert_eq!(err.kind(), crate::error::ErrorKind::Corrupt);
    }

    #[test]
    fn a_txid_that_leaves_no_room_to_count_on_is_refused() {
        let text = fails_with(header(), |b| b[24..32].fill(0xff));
        assert_eq!(text, "maximum transaction id out of range: ffffffffffffffff");
    }

    #[test]
    fn the_pre_apply_checksum_fits_the_kind_of_file() {
        let flagged = Checksum::of_crc(5);
        let snapshot = Header { txids: TxidRange::single(Txid::FIRST), ..header() };
        let with = |h: Header, pre_apply| fails_with(Header { pre_apply, ..h }, |_| {});
        assert_eq!(with(snapshot, flagged), "pre-apply checksum must be zero on snapshots");
        assert_eq!(with(header(), flagged), "pre-apply checksum not allowed");
        let tracking = Header { no_checksum: false, ..header() };
        assert_eq!(with(tracking, Checksum::NONE), "pre-apply checksum required on non-snapshot files");
        assert_eq!(with(tracking, Checksum::from_bits(5)), "invalid pre-apply checksum format");
        assert!(Header::decode(&Header { pre_apply: flagged, ..tracking }.encode()).is_ok());
    }

    #[test]
    fn the_post_apply_checksum_fits_the_kind_of_file() {
        let text = |h: Header, sum| check_post_apply(&h, sum).unwrap_err().to_string();
        let tracking = Header { no_checksum: false, ..header() };
        let empty = Header { commit: 0, ..tracking };
        assert_eq!(text(header(), Checksum::of_crc(1)), "post-apply checksum not allowed");
        assert_eq!(text(tracking, Checksum::NONE), "post-apply checksum required");
        assert_eq!(text(tracking, Checksum::from_bits(1)), "invalid post-apply checksum format");
        let expected = "post-apply checksum must be empty for zero-length database";
        assert_eq!(text(empty, Checksum::of_crc(1)), expected);
        assert_eq!(text(Header { no_checksum: true, ..empty }, Checksum::NONE), expected);
        assert!(check_post_apply(&empty, Checksum::of_crc(0)).is_ok());
    }
}
