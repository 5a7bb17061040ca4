//! When levels are due. Pure.
//!
//! Intervals are aligned absolutely: to multiples since 0001-01-01 00:00 UTC, as Go's
//! `Time.Truncate` does. So 24 hours end at midnight UTC, and 168 hours on Mondays.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::types::{Level, Timestamp};

/// From 0001-01-01 to 1970-01-01.
const YEAR_ONE_NANOS: i128 = 62_135_596_800 * 1_000_000_000;
const NANOS_PER_MILLI: i128 = 1_000_000;

/// The compacted levels, 1…n, each with its interval.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Levels {
    intervals: Vec<Duration>,
}

impl Levels {
    /// Intervals of levels 1, 2, …; none at all leaves only levels 0 and 9.
    ///
    /// # Errors
    /// More than eight, or an interval of zero.
    pub fn new(intervals: Vec<Duration>) -> Result<Self> {
        if intervals.len() > usize::from(Level::MAX_COMPACTED.get()) {
            return Err(Error::invalid(format!("compaction level cannot exceed {}", Level::MAX_COMPACTED)));
        }
        if let Some(i) = intervals.iter().position(Duration::is_zero) {
            return Err(Error::invalid(format!("interval required for level {}", i + 1)));
        }
        Ok(Self { intervals })
    }

    /// Levels and intervals, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (Level, Duration)> + '_ {
        Level::all().skip(1).zip(self.intervals.iter().copied())
    }

    /// Whether a level is compacted.
    #[must_use]
    pub fn contains(&self, level: Level) -> bool {
        (1..=self.intervals.len()).contains(&usize::from(level.get()))
    }
}

/// The last interval boundary at or before `now`. An interval of zero has one everywhere.
#[must_use]
pub fn truncate(now: Timestamp, interval: Duration) -> Timestamp {
    let nanos = i128::from(now.millis()) * NANOS_PER_MILLI;
    let Some(into) = (nanos + YEAR_ONE_NANOS).checked_rem_euclid(nanos_of(interval)) else { return now };
    let millis = (nanos - into).div_euclid(NANOS_PER_MILLI);
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MIN))
}

/// Time until the first interval boundary after `now`; at least a millisecond.
#[must_use]
pub fn until_next(now: Timestamp, interval: Duration) -> Duration {
    let nanos = i128::from(now.millis()) * NANOS_PER_MILLI + YEAR_ONE_NANOS;
    let left = match nanos.checked_rem_euclid(nanos_of(interval)) {
        Some(into) => nanos_of(interval) - into,
        None => 0,
    };
    Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX)).max(Duration::from_millis(1))
}

/// Whether the interval that `now` lies in has its file already: the newest one holds a
/// transaction of this interval.
///
/// A stamp from the future says only that the clock was set back. Litestream stops compacting then
/// until the time has come again, and keeps every L0 file meanwhile.
#[must_use]
pub fn too_early(newest: Option<Timestamp>, now: Timestamp, interval: Duration) -> bool {
    newest.is_some_and(|stamp| stamp > truncate(now, interval) && stamp <= now)
}

fn nanos_of(interval: Duration) -> i128 {
    i128::try_from(interval.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::parse_timestamp;

    fn at(text: &str) -> Timestamp {
        parse_timestamp(text).unwrap()
    }

    const HOUR: u64 = 3600;

    #[test]
    fn boundaries_are_absolute() {
        for (secs, now, boundary) in [
            (30, "2026-03-05T10:20:59.999Z", "2026-03-05T10:20:30Z"),
            (30, "2026-03-05T10:20:30Z", "2026-03-05T10:20:30Z"),
            (24 * HOUR, "2026-03-05T10:20:59Z", "2026-03-05T00:00:00Z"),
            // 2026-03-02 is a Monday.
            (168 * HOUR, "2026-03-05T10:20:59Z", "2026-03-02T00:00:00Z"),
            (168 * HOUR, "1969-12-31T23:59:59Z", "1969-12-29T00:00:00Z"),
            // Seven seconds do not divide a day: counted from year one, not from the epoch.
            (7, "1970-01-01T00:00:00Z", "1969-12-31T23:59:56Z"),
        ] {
            let interval = Duration::from_secs(secs);
            assert_eq!(truncate(at(now), interval), at(boundary), "{secs}s at {now}");
            let next = at(now).millis() + i64::try_from(until_next(at(now), interval).as_millis()).unwrap();
            assert_eq!(next, at(boundary).millis() + i64::try_from(secs * 1000).unwrap());
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        for millis in [i64::MIN, -1, 0, i64::MAX] {
            for interval in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(3), Duration::MAX] {
                let now = Timestamp::from_millis(millis);
                assert!(truncate(now, interval) <= now);
                assert!(until_next(now, interval) >= Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn an_interval_that_has_its_file_waits_for_the_next() {
        let (interval, now) = (Duration::from_secs(30), at("2026-03-05T10:20:45Z"));
        assert!(!too_early(None, now, interval));
        assert!(!too_early(Some(at("2026-03-05T10:20:30Z")), now, interval));
        assert!(too_early(Some(at("2026-03-05T10:20:31Z")), now, interval));
        assert!(too_early(Some(now), now, interval));
    }

    #[test]
    fn a_stamp_from_the_future_stops_nothing() {
        let now = at("2026-03-05T10:20:45Z");
        assert!(!too_early(Some(at("2027-01-01T00:00:00Z")), now, Duration::from_secs(30)));
    }

    #[test]
    fn eight_levels_are_the_most() {
        let seconds = |n: usize| Levels::new(vec![Duration::from_secs(1); n]);
        assert_eq!(seconds(0).unwrap().iter().count(), 0);
        assert_eq!(seconds(8).unwrap().iter().last(), Some((Level::MAX_COMPACTED, Duration::from_secs(1))));
        assert_eq!(seconds(9).unwrap_err().to_string(), "compaction level cannot exceed 8");
        let err = Levels::new(vec![Duration::from_secs(1), Duration::ZERO]).unwrap_err();
        assert_eq!(err.to_string(), "interval required for level 2");
        assert!(seconds(2).unwrap().contains(Level::new(2).unwrap()));
        assert!(!seconds(2).unwrap().contains(Level::new(3).unwrap()));
        assert!(!seconds(2).unwrap().contains(Level::L0));
    }
}
