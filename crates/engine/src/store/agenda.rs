//! When the keeper of a database does what. Pure: it is told the time.

use std::time::Duration;

use super::config::UpkeepConfig;
use crate::compaction::until_next;
use crate::types::{Level, Timestamp};

/// First wait after a failure; doubled up to [`MAX_RETRY`]. A failed pass would otherwise wait for
/// its next boundary, which for snapshots is a day away.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(300);
/// Time between two looks whether a replica still holds what was uploaded, where nothing else looks: two reads an hour.
const LOOK: Duration = Duration::from_secs(3600);
/// Pause before a job that could not begin yet is looked at again.
const NOT_READY: Duration = Duration::from_secs(1);

/// Something to be done again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    /// Fill a level from the one below.
    Compact(Level),
    /// Write a snapshot if one is due; delete what is expired.
    Snapshot,
    /// Delete L0 files that are compacted and old.
    RetainL0,
    /// List all levels and compare neighbours.
    Validate,
    /// See whether what was uploaded is still there.
    Look,
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Until the next time.
    Done,
    /// Nothing was uploaded yet.
    NotReady,
    /// To be tried again soon.
    Failed,
}

/// Jobs and when they are due.
#[derive(Debug)]
pub(super) struct Agenda {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    job: Job,
    interval: Duration,
    /// Whether it runs at multiples of the interval, or so long after the last time.
    aligned: bool,
    /// By the monotonic clock.
    due: Duration,
    failures: u32,
}

impl Agenda {
    /// All jobs the configuration asks for. Compactions and the snapshot are due at once.
    pub(super) fn new(config: &UpkeepConfig, elapsed: Duration) -> Self {
        let entry = |job, interval, aligned, due| Entry { job, interval, aligned, due, failures: 0 };
        let later = |job, interval| entry(job, interval, false, elapsed.saturating_add(interval));
        let mut entries: Vec<Entry> =
            config.levels.iter().map(|(level, interval)| entry(Job::Compact(level), interval, true, elapsed)).collect();
        entries.push(entry(Job::Snapshot, config.snapshot_interval, true, elapsed));
        if config.retention.l0.is_some() {
            entries.push(later(Job::RetainL0, config.l0_check_interval));
        }
        entries.extend(config.validation_interval.map(|interval| later(Job::Validate, interval)));
        entries.push(later(Job::Look, LOOK));
        Self { entries }
    }

    /// What to do now: of what is due the lowest level, so that the next one finds its file.
    pub(super) fn ready(&self, elapsed: Duration) -> Option<Job> {
        self.entries.iter().find(|entry| entry.due <= elapsed).map(|entry| entry.job)
    }

    /// How long there is nothing to do.
    pub(super) fn pause(&self, elapsed: Duration) -> Duration {
        let due = self.entries.iter().map(|entry| entry.due).min().unwrap_or(Duration::MAX);
        due.saturating_sub(elapsed)
    }

    /// Plans the next time.
    pub(super) fn ended(&mut self, job: Job, how: Ended, wall: Timestamp, elapsed: Duration) {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.job == job) else { return };
        let regular = if entry.aligned { until_next(wall, entry.interval) } else { entry.interval };
        let wait = match how {
            Ended::Done => regular,
            Ended::NotReady => regular.min(NOT_READY),
            Ended::Failed => {
                let factor = 1_u32.checked_shl(entry.failures).unwrap_or(u32::MAX);
                regular.min(FIRST_RETRY.saturating_mul(factor).min(MAX_RETRY))
            }
        };
        entry.failures = if how == Ended::Failed { entry.failures.saturating_add(1).min(16) } else { 0 };
        entry.due = elapsed.saturating_add(wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compaction::{Levels, RetentionPolicy};

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn agenda(validation: Option<u64>) -> Agenda {
        let retention = RetentionPolicy { enabled: true, snapshots: seconds(86_400), l0: Some(seconds(300)) };
        let config = UpkeepConfig {
            levels: Levels::new(vec![seconds(30), seconds(300)]).unwrap(),
            snapshot_interval: seconds(86_400),
            retention,
            l0_check_interval: seconds(15),
            verify_compaction: false,
            validation_interval: validation.map(seconds),
        };
        Agenda::new(&config, seconds(100))
    }

    fn level(n: u8) -> Job {
        Job::Compact(Level::new(n).unwrap())
    }

    #[test]
    fn lower_levels_come_first_and_all_at_once_at_the_start() {
        let mut agenda = agenda(Some(600));
        let mut done = Vec::new();
        while let Some(job) = agenda.ready(seconds(100)) {
            done.push(job);
            agenda.ended(job, Ended::Done, Timestamp::from_millis(65_000), seconds(100));
        }
        assert_eq!(done, [level(1), level(2), Job::Snapshot]);
        // 65 seconds after a boundary of both: 25 to the next half minute; L0 after 15.
        assert_eq!(agenda.pause(seconds(100)), seconds(15));
        assert_eq!(agenda.ready(seconds(115)), Some(Job::RetainL0));
        agenda.ended(Job::RetainL0, Ended::Done, Timestamp::from_millis(80_000), seconds(115));
        assert_eq!(agenda.ready(seconds(124)), None);
        assert_eq!(agenda.ready(seconds(125)), Some(level(1)));
    }

    #[test]
    fn what_fails_is_tried_again_sooner_but_not_ever_faster() {
        let mut agenda = agenda(None);
        let mut waits = Vec::new();
        for _ in 0..12 {
            agenda.ended(Job::Snapshot, Ended::Failed, Timestamp::from_millis(1000), seconds(100));
            waits.push(agenda.entries[2].due.as_secs() - 100);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        agenda.ended(Job::Snapshot, Ended::Done, Timestamp::from_millis(1000), seconds(100));
        assert_eq!(agenda.entries[2].due, seconds(100 + 86_399));
        // Never later than the next time it would run anyway.
        agenda.ended(level(1), Ended::Failed, Timestamp::from_millis(29_500), seconds(100));
        assert_eq!(agenda.entries[0].due, seconds(100) + Duration::from_millis(500));
    }

    #[test]
    fn what_is_not_ready_is_asked_every_second() {
        let mut agenda = agenda(None);
        for job in [level(1), level(2), Job::Snapshot] {
            agenda.ended(job, Ended::NotReady, Timestamp::from_millis(1000), seconds(100));
        }
        assert_eq!(agenda.pause(seconds(100)), seconds(1));
    }
}
