//! Points in time and Go-style duration text.

use std::fmt;
use std::time::Duration;

use jiff::SignedDuration;

use crate::error::{Error, Result};

/// Milliseconds since the Unix epoch, UTC: the precision of LTX files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the epoch.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// This point moved back by `by`.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }

    /// From the file system's clock; finer parts are cut off.
    #[must_use]
    pub fn from_system(time: std::time::SystemTime) -> Self {
        match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(after) => Self(i64::try_from(after.as_millis()).unwrap_or(i64::MAX)),
            Err(before) => {
                // Round towards the past, as for times after the epoch.
                let nanos = before.duration().as_nanos();
                Self(-i64::try_from(nanos.div_ceil(1_000_000)).unwrap_or(i64::MAX))
            }
        }
    }

    /// For the file system.
    #[must_use]
    pub fn to_system(self) -> std::time::SystemTime {
        let millis = Duration::from_millis(self.0.unsigned_abs());
        let epoch = std::time::UNIX_EPOCH;
        let moved = if self.0 >= 0 { epoch.checked_add(millis) } else { epoch.checked_sub(millis) };
        moved.unwrap_or(epoch)
    }
}

/// RFC 3339 in UTC with whole seconds: the form of tables and JSON.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_timestamp(*self, 0))
    }
}

/// RFC 3339 in UTC with `decimals` (0…9) digits after the second.
#[must_use]
pub fn format_timestamp(at: Timestamp, decimals: usize) -> String {
    match jiff::Timestamp::from_millisecond(at.0) {
        Ok(t) if decimals == 0 => format!("{}", t.strftime("%Y-%m-%dT%H:%M:%SZ")),
        Ok(t) => {
            let fraction = format!("{:09}", t.subsec_nanosecond().rem_euclid(1_000_000_000));
            format!("{}.{}Z", t.strftime("%Y-%m-%dT%H:%M:%S"), &fraction[..decimals.min(9)])
        }
        Err(_) => format!("{}ms", at.0),
    }
}

/// Parses RFC 3339 (`2000-01-01T00:00:00Z`, offsets and fractions allowed).
///
/// # Errors
/// Anything else. Parts finer than a millisecond are rounded **up**, so that a strict
/// "before this time" keeps its meaning for objects stamped in milliseconds.
pub fn parse_timestamp(text: &str) -> Result<Timestamp> {
    let bad = || Error::invalid(format!("invalid timestamp: {text:?}"));
    let strict = text.len() >= 20
        && text.as_bytes()[10] == b'T'
        && text.is_ascii()
        && (text.ends_with('Z') || matches!(text.as_bytes()[text.len() - 6], b'+' | b'-'));
    if !strict {
        return Err(bad());
    }
    let t: jiff::Timestamp = text.parse().map_err(|_| bad())?;
    let nanos = t.as_nanosecond();
    let millis = nanos.div_euclid(1_000_000) + i128::from(nanos.rem_euclid(1_000_000) != 0);
    i64::try_from(millis).map(Timestamp).map_err(|_| bad())
}

/// Go duration text: optional sign, then `number unit` pairs without blanks (`1h30m`, `1.5s`, `0`).
///
/// # Errors
/// Missing or unknown unit, empty text, or more than about 292 years.
pub fn parse_duration(text: &str) -> Result<SignedDuration> {
    let bad = || Error::invalid(format!("time: invalid duration {text:?}"));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (whole, after) = rest.split_at(digits);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(tail) => tail.split_at(tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len())),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(bad());
        }
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(Error::invalid(format!("time: missing unit in duration {text:?}"))),
            _ => return Err(Error::invalid(format!("time: unknown unit {unit:?} in duration {text:?}"))),
        };
        let number: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
        nanos = number.checked_mul(scale).and_then(|n| nanos.checked_add(n)).ok_or_else(bad)?;
        let mut weight = scale;
        for digit in fraction.bytes() {
            weight /= 10;
            nanos += i128::from(digit - b'0') * weight;
        }
        rest = after;
    }
    let nanos = i64::try_from(if negative { -nanos } else { nanos }).map_err(|_| bad())?;
    Ok(SignedDuration::from_nanos(nanos))
}

/// Go's `Duration.String`: `1h0m0s`, `1m0s`, `1.5s`, `250ms`, `42.049µs`, `10ns`, `0s`.
#[must_use]
pub fn format_duration(duration: SignedDuration) -> String {
    let nanos = duration.as_nanos();
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let decimal = |value: u128, unit: u128, suffix: &str| {
        let fraction = format!("{:0width$}", value % unit, width = unit.ilog10() as usize);
        let fraction = fraction.trim_end_matches('0');
        let whole = value / unit;
        if unit == 1 || fraction.is_empty() {
            format!("{whole}{suffix}")
        } else {
            format!("{whole}.{fraction}{suffix}")
        }
    };
    let text = match n {
        0 => return "0s".to_owned(),
        1..1_000 => decimal(n, 1, "ns"),
        1_000..1_000_000 => decimal(n, 1_000, "µs"),
        1_000_000..1_000_000_000 => decimal(n, 1_000_000, "ms"),
        _ => {
            let minutes = n / 60_000_000_000;
            let seconds = decimal(n % 60_000_000_000, 1_000_000_000, "s");
            match minutes {
                0 => seconds,
                1..60 => format!("{minutes}m{seconds}"),
                _ => format!("{}h{}m{seconds}", minutes / 60, minutes % 60),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip_in_go_form() {
        for text in ["1h30m0s", "1m0s", "59s", "1.5s", "250ms", "42.049µs", "10ns", "0s", "-1h0m0s", "24h0m0s"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(parse_duration(".5s").unwrap().as_millis(), 500);
        assert_eq!(parse_duration("1h30m").unwrap().as_secs(), 5400);
        for bad in ["", "5", "1d", "5 minutes", "s", "-", "1.s.", "99999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn timestamps_are_rfc_3339() {
        let at = parse_timestamp("2000-01-01T00:00:00Z").unwrap();
        assert_eq!(at.to_string(), "2000-01-01T00:00:00Z");
        assert_eq!(parse_timestamp("2000-01-01T01:00:00.25+01:00").unwrap().millis(), at.millis() + 250);
        assert_eq!(format_timestamp(Timestamp::from_millis(1), 3), "1970-01-01T00:00:00.001Z");
        for bad in ["2000-01-01", "2000-01-01 00:00:00Z", "2000-01-01T00:00:00", "now", ""] {
            assert!(parse_timestamp(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_time_finer_than_a_millisecond_rounds_up() {
        let whole = parse_timestamp("2000-01-01T00:00:00.001Z").unwrap();
        let finer = parse_timestamp("2000-01-01T00:00:00.001000001Z").unwrap();
        assert_eq!(finer.millis(), whole.millis() + 1);
    }
}
