//! Names inside a 0.3.x replica (`spec: v3-format` §1).
//!
//! ```text
//! generations/<generation>/snapshots/<index>.snapshot.lz4
//! generations/<generation>/wal/<index>_<offset>.wal.lz4
//! ```

use crate::error::{Error, Result};

/// The directory all generations are in.
pub(super) const GENERATIONS: &str = "generations";
/// Most digits of an offset: 64 bits.
const OFFSET_DIGITS: std::ops::RangeInclusive<usize> = 8..=16;

/// Whether this names a generation: 16 lower-case hex digits.
pub(super) fn is_generation(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(is_hex)
}

/// The index of a snapshot; `None` for names that are none.
///
/// # Errors
/// `Corrupt` for an index that no writer can have counted to.
pub(super) fn snapshot_index(name: &str) -> Result<Option<u32>> {
    match name.strip_suffix(".snapshot.lz4") {
        Some(digits) if digits.len() == 8 && digits.bytes().all(is_hex) => index(digits, "snapshot", name).map(Some),
        _ => Ok(None),
    }
}

/// Index and offset of a segment; `None` for names that are none.
///
/// # Errors
/// `Corrupt` for an index that no writer can have counted to.
pub(super) fn segment_position(name: &str) -> Result<Option<(u32, u64)>> {
    let Some((digits, offset)) = name.strip_suffix(".wal.lz4").and_then(|rest| rest.split_once('_')) else {
        return Ok(None);
    };
    let hex = digits.bytes().chain(offset.bytes()).all(is_hex);
    if !hex || digits.len() != 8 || !OFFSET_DIGITS.contains(&offset.len()) {
        return Ok(None);
    }
    let Ok(offset) = u64::from_str_radix(offset, 16) else { return Ok(None) };
    Ok(Some((index(digits, "wal segment", name)?, offset)))
}

/// Indexes are signed 32-bit numbers where they are written.
fn index(digits: &str, what: &str, name: &str) -> Result<u32> {
    match u32::from_str_radix(digits, 16) {
        Ok(index) if i32::try_from(index).is_ok() => Ok(index),
        _ => Err(Error::corrupt(format!("invalid {what} path: {name}"))),
    }
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_strictly() {
        assert!(is_generation("0123456789abcdef"));
        for name in ["0123456789abcdeF", "0123456789abcde", "0123456789abcdef0", "0123456789abcde/", ""] {
            assert!(!is_generation(name), "{name}");
        }
        assert_eq!(snapshot_index("0000000a.snapshot.lz4").unwrap(), Some(10));
        for name in ["a.snapshot.lz4", "0000000A.snapshot.lz4", "0000000a.snapshot", "000000000a.snapshot.lz4"] {
            assert_eq!(snapshot_index(name).unwrap(), None, "{name}");
        }
        assert_eq!(segment_position("00000001_00001038.wal.lz4").unwrap(), Some((1, 0x1038)));
        for name in
            ["00000001-00001038.wal.lz4", "1_00001038.wal.lz4", "00000001_1038.wal.lz4", "00000001_0000103G.wal.lz4"]
        {
            assert_eq!(segment_position(name).unwrap(), None, "{name}");
        }
    }

    #[test]
    fn offsets_beyond_four_gigabytes_have_more_digits() {
        assert_eq!(segment_position("00000001_100001038.wal.lz4").unwrap(), Some((1, 0x1_0000_1038)));
        assert_eq!(segment_position("00000001_0000000100001038.wal.lz4").unwrap(), Some((1, 0x1_0000_1038)));
        assert_eq!(segment_position("00000001_ffffffffffffffff.wal.lz4").unwrap(), Some((1, u64::MAX)));
        assert_eq!(segment_position("00000001_00000000100001038.wal.lz4").unwrap(), None);
    }

    #[test]
    fn an_index_that_no_writer_counts_to_is_an_error() {
        assert_eq!(snapshot_index("7fffffff.snapshot.lz4").unwrap(), Some(0x7fff_ffff));
        let err = snapshot_index("80000000.snapshot.lz4").unwrap_err();
        assert_eq!(err.to_string(), "invalid snapshot path: 80000000.snapshot.lz4");
        let err = segment_position("ffffffff_00000000.wal.lz4").unwrap_err();
        assert_eq!(err.to_string(), "invalid wal segment path: ffffffff_00000000.wal.lz4");
    }
}
