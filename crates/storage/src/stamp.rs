//! How the creation time of a file is written into the metadata of its object.

use crate::types::{Timestamp, format_timestamp};

/// RFC 3339 in UTC, in the form of the reference: no trailing zeros in the fraction.
pub(crate) fn stamp_text(stamp: Timestamp) -> String {
    let text = format_timestamp(stamp, 3);
    let text = text.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
    // Only zeros of the fraction may go.
    if text.len() < 19 { format_timestamp(stamp, 0) } else { format!("{text}Z") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::parse_timestamp;

    #[test]
    fn stamps_are_written_as_the_reference_writes_them() {
        for (millis, want) in [
            (1_795_221_606_490, "2026-11-21T00:40:06.49Z"),
            (1_795_221_606_000, "2026-11-21T00:40:06Z"),
            (1_795_221_600_000, "2026-11-21T00:40:00Z"),
            (1_795_221_606_001, "2026-11-21T00:40:06.001Z"),
        ] {
            let stamp = Timestamp::from_millis(millis);
            assert_eq!(stamp_text(stamp), want);
            assert_eq!(parse_timestamp(want).unwrap(), stamp);
        }
    }
}
