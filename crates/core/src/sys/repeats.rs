//! Which of many like failures are worth a line.
//!
//! A store that is away fails hundreds of databases several times a second. All that fails alike is one *outage*: the
//! first failure is told, then how it stands once per spacing, then its end.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Outages that are known, by what fails alike.
#[derive(Debug)]
pub struct Repeats<K> {
    spacing: Duration,
    outages: Mutex<HashMap<K, Outage>>,
    /// Number of them: most successes come while there are none.
    count: AtomicUsize,
}

#[derive(Debug)]
struct Outage {
    /// Who fails.
    who: HashSet<String>,
    /// How many have failed since it began, those that are well again included.
    most: usize,
    failures: u64,
    since: Duration,
    told: Duration,
}

/// How an outage stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// How many fail; at the end, how many failed at a time.
    pub failing: usize,
    /// Failures since it began.
    pub failures: u64,
    /// How long it has lasted.
    pub lasted: Duration,
}

impl Standing {
    /// Whether this is its first failure.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.failures == 1
    }
}

impl Outage {
    fn standing(&self, failing: usize, now: Duration) -> Standing {
        Standing { failing, failures: self.failures, lasted: now.saturating_sub(self.since) }
    }
}

impl<K: Eq + Hash + Clone> Repeats<K> {
    /// One line per outage and `spacing`.
    #[must_use]
    pub fn new(spacing: Duration) -> Self {
        Self { spacing, outages: Mutex::default(), count: AtomicUsize::new(0) }
    }

    fn outages(&self) -> MutexGuard<'_, HashMap<K, Outage>> {
        self.outages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a failure of `who` at monotonic time `now`. What is to be told, if anything is.
    pub fn failed(&self, now: Duration, what: K, who: &str) -> Option<Standing> {
        let mut outages = self.outages();
        let new = || Outage { who: HashSet::new(), most: 0, failures: 0, since: now, told: now };
        let outage = outages.entry(what).or_insert_with(new);
        outage.failures += 1;
        if !outage.who.contains(who) {
            outage.who.insert(who.to_owned());
            outage.most = outage.most.max(outage.who.len());
        }
        let tell = outage.failures == 1 || now >= outage.told + self.spacing;
        if tell {
            outage.told = now;
        }
        let standing = outage.standing(outage.who.len(), now);
        self.count.store(outages.len(), Ordering::Release);
        tell.then_some(standing)
    }

    /// `who` is well again, as far as `concerned` goes. The outages that are over with that.
    pub fn succeeded(&self, now: Duration, who: &str, concerned: impl Fn(&K) -> bool) -> Vec<(K, Standing)> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut over = Vec::new();
        let mut outages = self.outages();
        outages.retain(|what, outage| {
            if !concerned(what) || !outage.who.remove(who) || !outage.who.is_empty() {
                return true;
            }
            over.push((what.clone(), outage.standing(outage.most, now)));
            false
        });
        self.count.store(outages.len(), Ordering::Release);
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn standing(failing: usize, failures: u64, lasted: u64) -> Standing {
        Standing { failing, failures, lasted: at(lasted) }
    }

    #[test]
    fn an_outage_of_many_is_told_once_then_counted_then_over() {
        let repeats = Repeats::new(at(30));
        let names: Vec<String> = (0..49).map(|n| format!("{n}.db")).collect();
        let told: Vec<Standing> = (0..60)
            .flat_map(|t| names.iter().filter_map(|who| repeats.failed(at(t), "s3", who)).collect::<Vec<_>>())
            .collect();
        assert_eq!(told, [standing(1, 1, 0), standing(49, 30 * 49 + 1, 30)]);
        assert!(told[0].is_first());
        let over: Vec<_> = names.iter().flat_map(|who| repeats.succeeded(at(61), who, |_| true)).collect();
        assert_eq!(over, [("s3", standing(49, 60 * 49, 61))]);
        assert_eq!(repeats.succeeded(at(62), "0.db", |_| true), []);
        assert_eq!(repeats.failed(at(63), "s3", "0.db"), Some(standing(1, 1, 0)), "the next one is news again");
    }

    #[test]
    fn what_fails_differently_is_told_apart() {
        let repeats = Repeats::new(at(30));
        assert!(repeats.failed(at(0), "one", "a").is_some());
        assert!(repeats.failed(at(0), "two", "a").is_some());
        assert!(repeats.failed(at(1), "two", "b").is_none());
        assert_eq!(repeats.succeeded(at(2), "a", |what| *what == "one"), [("one", standing(1, 1, 2))]);
        assert_eq!(repeats.succeeded(at(2), "a", |_| true), [], "b still fails");
    }
}
