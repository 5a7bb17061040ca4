//! A clock that can be trusted to delete by. Pure.
//!
//! Ages are differences of wall-clock stamps. When the wall clock is set forward, everything seems
//! to be old at once; so a step forward is believed only after as much time as the age in question
//! has passed by the monotonic clock. By then a whole window of files stamped by the new time
//! exists. Steps back are believed at once: they only keep files longer.

use std::time::Duration;

use crate::types::Timestamp;

/// Differences of the clocks below this are no steps. They are measured from a fixed anchor, so
/// many small ones add up to one.
const SLACK_MILLIS: i64 = 1000;
/// Steps remembered: a laptop that sleeps makes some every day. Of more the oldest two become one.
const MAX_STEPS: usize = 256;

/// Wall-clock time without recent steps forward.
#[derive(Debug, Clone)]
pub struct TrustedTime {
    /// Both clocks at the same moment.
    anchor: (Timestamp, Duration),
    wall: Timestamp,
    elapsed: Duration,
    /// Steps forward: when, by the monotonic clock, and by how many milliseconds. Ascending.
    steps: Vec<(Duration, i64)>,
}

impl TrustedTime {
    /// Begins to watch. The first wall-clock time is believed.
    #[must_use]
    pub fn new(wall: Timestamp, elapsed: Duration) -> Self {
        Self { anchor: (wall, elapsed), wall, elapsed, steps: Vec::new() }
    }

    /// Reads both clocks.
    pub fn observe(&mut self, wall: Timestamp, elapsed: Duration) {
        let (anchor_wall, anchor_elapsed) = self.anchor;
        let passed = i64::try_from(elapsed.saturating_sub(anchor_elapsed).as_millis()).unwrap_or(i64::MAX);
        let ahead = wall.millis().saturating_sub(anchor_wall.millis().saturating_add(passed));
        if ahead.saturating_abs() > SLACK_MILLIS {
            self.anchor = (wall, elapsed);
        }
        if ahead > SLACK_MILLIS {
            self.steps.push((elapsed, ahead));
            if self.steps.len() > MAX_STEPS {
                let (_, oldest) = self.steps.remove(0);
                self.steps[0].1 = self.steps[0].1.saturating_add(oldest);
            }
        }
        (self.wall, self.elapsed) = (wall, elapsed);
    }

    /// The time by which something of this age may be judged.
    #[must_use]
    pub fn now(&self, age: Duration) -> Timestamp {
        let recent = self.steps.iter().rev().take_while(|(when, _)| self.elapsed.saturating_sub(*when) < age);
        let ahead = recent.fold(0, |sum: i64, (_, step)| sum.saturating_add(*step));
        Timestamp::from_millis(self.wall.millis().saturating_sub(ahead))
    }

    /// The oldest stamp that is not older than `age`.
    #[must_use]
    pub fn cutoff(&self, age: Duration) -> Timestamp {
        self.now(age).minus(age)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn seconds(n: i64) -> Timestamp {
        Timestamp::from_millis(n * 1000)
    }

    #[test]
    fn a_step_forward_is_believed_after_as_long_as_the_age() {
        let mut time = TrustedTime::new(seconds(1000), Duration::ZERO);
        time.observe(seconds(1010), Duration::from_secs(10));
        assert_eq!(time.now(MINUTE), seconds(1010));
        // Ten days ahead.
        time.observe(seconds(865_020), Duration::from_secs(20));
        assert_eq!(time.now(MINUTE), seconds(1020));
        assert_eq!(time.cutoff(MINUTE), seconds(960));
        time.observe(seconds(865_079), Duration::from_secs(79));
        assert_eq!(time.now(MINUTE), seconds(1079));
        time.observe(seconds(865_080), Duration::from_secs(80));
        assert_eq!(time.now(MINUTE), seconds(865_080));
        assert_eq!(time.now(10 * MINUTE), seconds(1080));
    }

    #[test]
    fn a_step_back_is_believed_at_once() {
        let mut time = TrustedTime::new(seconds(1000), Duration::ZERO);
        time.observe(seconds(400), Duration::from_secs(1));
        assert_eq!(time.now(MINUTE), seconds(400));
        time.observe(seconds(500), Duration::from_secs(101));
        assert_eq!(time.now(MINUTE), seconds(500));
    }

    #[test]
    fn the_longest_steps_do_not_overflow() {
        let mut time = TrustedTime::new(Timestamp::from_millis(i64::MIN), Duration::ZERO);
        for n in 0..1000 {
            let wall = if n % 2 == 0 { i64::MAX } else { i64::MIN };
            time.observe(Timestamp::from_millis(wall), Duration::from_secs(n));
        }
        assert!(time.steps.len() <= MAX_STEPS);
        assert!(time.now(Duration::MAX) <= time.wall);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is done to the wall clock: something stamped while we watch seems no older than
        /// it is by the monotonic clock, but for the slack.
        #[test]
        fn nothing_ages_faster_than_time_passes(moves in proptest::collection::vec((0..100_000_u64, prop_oneof![
            3 => Just(0_i64), 1 => -2_000_000..2_000_000_i64, 1 => -900..900_i64
        ]), 1..40), stamped in 0..40_usize) {
            let (mut wall, mut elapsed) = (1_000_000_000_i64, 0_u64);
            let mut time = TrustedTime::new(Timestamp::from_millis(wall), Duration::ZERO);
            let mut stamp = None;
            for (n, (pass, step)) in moves.iter().enumerate() {
                elapsed += pass;
                wall += i64::try_from(*pass).unwrap() + step;
                time.observe(Timestamp::from_millis(wall), Duration::from_millis(elapsed));
                if n == stamped {
                    stamp = Some((wall, elapsed));
                }
                if let Some((stamped, since)) = stamp {
                    let age = Duration::from_millis(200_000);
                    let seems = time.now(age).millis() - stamped;
                    let is = i64::try_from(elapsed - since).unwrap();
                    let old = i64::try_from(age.as_millis()).unwrap();
                    prop_assert!(seems <= is + 2 * SLACK_MILLIS || is >= old, "{seems} {is}");
                }
            }
        }
    }
}
