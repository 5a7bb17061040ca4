//! What is known about one database without asking anybody: for status, metrics, heartbeat.
//!
//! Tasks report what they did; whoever asks gets a copy. Nothing here waits: a lock is held for a
//! few assignments. Outlives stopping and starting the database.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::turns::Turns;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::World;
use crate::telemetry::{DatabaseMetrics, SyncFigures};
use crate::types::{Timestamp, Txid};

/// Beginnings of unsent work that are told apart.
const MAX_PENDING: usize = 128;

/// Something that fails, and what is being done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What went wrong.
    pub error: String,
    /// What the operator can do, if we know.
    pub hint: Option<&'static str>,
    /// When it last went wrong.
    pub at: Timestamp,
    /// How often in a row.
    pub failures: u32,
    /// Time from `at` to the next attempt.
    pub retry_in: Duration,
}

/// Where the local side stands.
#[derive(Debug, Clone, Default)]
pub struct LocalStatus {
    /// TXID of the newest local file.
    pub position: Option<Txid>,
    /// When every commit was last known to be in a local file.
    pub current_at: Option<Timestamp>,
    /// There is no database file.
    pub missing: bool,
    /// What the last pass measured.
    pub figures: SyncFigures,
    /// Why the log is not followed, if it is not.
    pub trouble: Option<Trouble>,
    /// Whether a pass is running.
    pub active: bool,
    /// When the running or the last pass began.
    pub began: Option<Timestamp>,
    /// When it last got on.
    pub updated: Option<Timestamp>,
    /// How long the running pass has taken, or the last one took.
    pub took: Duration,
    /// Error of the last pass.
    pub error: Option<String>,
}

/// Where one target stands.
#[derive(Debug, Clone)]
pub struct TargetStatus {
    /// Unique among the targets of the database: the backend's name, numbered from the second on.
    pub name: String,
    /// Newest TXID there, if known.
    pub position: Option<Txid>,
    /// TXIDs that are still to be sent.
    pub pending: u64,
    /// When it was last known to have every commit.
    pub last_success: Option<Timestamp>,
    /// Age of the oldest commit it lacks; zero if it lacks none.
    pub lag: Duration,
    /// Something that a restore needs is known to be gone from it.
    pub lost: bool,
    /// Why it is not written to, or cannot be restored or seen, if so.
    pub trouble: Option<Trouble>,
    /// It replaces what is there whatever it is told: a second writer is not noticed.
    pub unguarded: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Health {
    local: Mutex<Local>,
    targets: Vec<(String, Mutex<Remote>)>,
    pub(super) metrics: DatabaseMetrics,
}

#[derive(Debug, Default)]
struct Local {
    status: LocalStatus,
    /// Monotonic times that go with `status`.
    current: Duration,
    began: Duration,
    /// Passes that failed since the last one that did not. While there are any, no look at the log can tell that all of
    /// it was read.
    failures: u32,
    /// Of what kind the last of them was.
    kind: Option<ErrorKind>,
    /// How many wait until the database may be open.
    waiting: usize,
}

/// Somebody waits until the database may be open.
pub(super) struct Waits<'a>(&'a Health);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        lock(&self.0.local).waiting -= 1;
    }
}

#[derive(Debug, Default)]
struct Remote {
    /// `None`: not asked yet.
    known: Option<Option<Txid>>,
    last_success: Option<Timestamp>,
    trouble: Option<Trouble>,
    /// Why it may not be possible to restore it.
    doubt: Option<Doubt>,
    /// Since when what is not known has been unknown.
    unknown_since: Duration,
    pending: Pending,
    unguarded: bool,
}

/// A target that was looked at in vain.
#[derive(Debug)]
struct Doubt {
    since: Duration,
    /// Something is gone; else it could not be seen.
    lost: bool,
    trouble: Trouble,
}

impl Remote {
    /// Whether nothing of what is known locally is missing there.
    fn has(&self, position: Option<Txid>) -> bool {
        self.doubt.is_none()
            && self.pending.oldest().is_none()
            && self.known.flatten() >= position
            && position.is_some()
    }
}

/// Unsent TXIDs by when they came into being. An entry stands for all TXIDs up to the next one.
#[derive(Debug, Default)]
struct Pending {
    queue: VecDeque<(Txid, Duration)>,
    last: Option<Txid>,
}

impl Pending {
    fn push(&mut self, first: Txid, last: Txid, since: Duration) {
        if self.queue.len() >= MAX_PENDING {
            // Coarser, and never younger than it is.
            let mut keep = false;
            self.queue.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.queue.push_back((first, since));
        self.last = Some(last);
    }

    fn sent(&mut self, up_to: Txid) {
        if self.last <= Some(up_to) {
            self.queue.clear();
            return;
        }
        while self.queue.get(1).is_some_and(|(first, _)| first.get() <= up_to.get().saturating_add(1)) {
            self.queue.pop_front();
        }
    }

    fn oldest(&self) -> Option<Duration> {
        self.queue.front().map(|(_, since)| *since)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Health {
    pub(super) fn new(world: &World, kinds: impl Iterator<Item = &'static str>, metrics: DatabaseMetrics) -> Self {
        let now = world.clock.elapsed();
        let mut targets: Vec<(String, Mutex<Remote>)> = Vec::new();
        for kind in kinds {
            let same = targets.iter().filter(|(name, _)| name.split('-').next() == Some(kind)).count();
            let name = if same == 0 { kind.to_owned() } else { format!("{kind}-{}", same + 1) };
            targets.push((name, Mutex::new(Remote { unknown_since: now, ..Remote::default() })));
        }
        let local = Local { current: now, began: now, ..Local::default() };
        Self { local: Mutex::new(local), targets, metrics }
    }

    /// Names of the targets.
    pub(super) fn target_names(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().map(|(name, _)| name.as_str())
    }

    /// The database is started: whatever was known of the targets may be out of date.
    pub(super) fn started(&self, world: &World) {
        let now = world.clock.elapsed();
        let mut local = lock(&self.local);
        (local.current, local.began, local.failures) = (now, now, 0);
        local.status.trouble = None;
        drop(local);
        for (_, remote) in &self.targets {
            let mut remote = lock(remote);
            remote.known = None;
            remote.unknown_since = now;
            remote.trouble = None;
            remote.doubt = None;
            remote.pending = Pending::default();
        }
    }

    /// A look found every commit in local files already.
    pub(super) fn looked(&self, world: &World, began: Duration) {
        let now = world.clock.elapsed();
        let at = Some(world.clock.now());
        let mut local = lock(&self.local);
        if local.failures > 0 {
            return;
        }
        local.current = now;
        local.status.current_at = at;
        let position = local.status.position;
        drop(local);
        for (_, remote) in &self.targets {
            let mut remote = lock(remote);
            if remote.has(position) {
                remote.last_success = remote.last_success.max(at);
            }
        }
        self.metrics.looked(now.saturating_sub(began));
    }

    /// A pass begins.
    pub(super) fn sync_begins(&self, world: &World) {
        let mut local = lock(&self.local);
        local.began = world.clock.elapsed();
        local.status.active = true;
        local.status.began = Some(world.clock.now());
        local.status.updated = local.status.began;
    }

    /// A pass ended. `Ok(None)`: there is no database.
    pub(super) fn sync_ended(&self, world: &World, outcome: Result<Option<(Option<Txid>, SyncFigures)>, &Error>) {
        let (now, wall) = (world.clock.elapsed(), world.clock.now());
        let mut local = lock(&self.local);
        let (began, began_wall) = (local.began, local.status.began);
        let took = now.saturating_sub(began);
        local.status.active = false;
        local.status.updated = Some(wall);
        local.status.took = took;
        match outcome {
            Ok(found) => {
                let before = local.status.position;
                local.current = began;
                local.failures = 0;
                local.status.current_at = began_wall;
                local.status.trouble = None;
                local.status.error = None;
                local.status.missing = found.is_none();
                if let Some((position, figures)) = found {
                    local.status.position = position;
                    local.status.figures = figures;
                }
                let after = local.status.position;
                drop(local);
                match found {
                    Some((_, figures)) => self.metrics.synced(took, &figures),
                    None => self.metrics.no_database(took),
                }
                if let (true, Some(last)) = (after > before, after) {
                    for (_, remote) in &self.targets {
                        lock(remote).pending.push(Txid::after(before), last, began);
                    }
                }
            }
            Err(err) => {
                local.status.error = Some(err.to_string());
                // A pass that was called off says nothing about the log.
                if err.kind() != ErrorKind::Cancelled {
                    local.failures = local.failures.saturating_add(1);
                    // Whoever tries again says when.
                    local.status.trouble = Some(trouble(world, err, local.failures, Duration::ZERO));
                }
                drop(local);
                self.metrics.failed(took, err.kind() == ErrorKind::DiskFull);
            }
        }
    }

    /// Somebody waits until the database may be open, for as long as the result lives.
    pub(super) fn waits(&self) -> Waits<'_> {
        lock(&self.local).waiting += 1;
        Waits(self)
    }

    /// The log cannot be followed for now.
    pub(super) fn local_trouble(&self, world: &World, err: &Error, failures: u32, retry_in: Duration) {
        let mut local = lock(&self.local);
        local.status.trouble = Some(trouble(world, err, failures, retry_in));
        local.kind = Some(err.kind());
    }

    /// A target was found to hold, or was brought to, this position; `complete` if nothing is left to send.
    pub(super) fn reached(&self, n: usize, position: Option<Txid>, complete: bool) {
        let current_at = lock(&self.local).status.current_at;
        let Some((_, remote)) = self.targets.get(n) else { return };
        let mut remote = lock(remote);
        remote.known = Some(position);
        if let Some(position) = position {
            remote.pending.sent(position);
        }
        if complete {
            remote.trouble = None;
            remote.last_success = remote.last_success.max(current_at);
        }
    }

    /// Whether a target refuses a second writer.
    pub(super) fn guarded(&self, n: usize, guarded: bool) {
        if let Some((_, remote)) = self.targets.get(n) {
            lock(remote).unguarded = !guarded;
        }
    }

    /// A target could not be written to.
    pub(super) fn lost_track(&self, world: &World, n: usize) {
        let Some((_, remote)) = self.targets.get(n) else { return };
        let mut remote = lock(remote);
        if remote.known.take().is_some() {
            remote.unknown_since = world.clock.elapsed();
        }
    }

    /// A target will be tried again.
    pub(super) fn target_trouble(&self, world: &World, n: usize, err: &Error, failures: u32, retry_in: Duration) {
        let Some((_, remote)) = self.targets.get(n) else { return };
        lock(remote).trouble = Some(trouble(world, err, failures, retry_in));
    }

    /// What is wrong with the log, if anything is.
    pub(super) fn local_error(&self) -> Option<Error> {
        let local = lock(&self.local);
        let trouble = local.status.trouble.as_ref()?;
        let error = Error::new(local.kind.unwrap_or(ErrorKind::Unavailable), trouble.error.clone());
        Some(trouble.hint.into_iter().fold(error, Error::hint))
    }

    /// A target was looked at in vain, or (`lost`) lacks what a restore needs. Returns whether that is news.
    pub(super) fn unseen(&self, world: &World, n: usize, err: &Error, lost: bool) -> bool {
        let Some((_, remote)) = self.targets.get(n) else { return false };
        let mut remote = lock(remote);
        let before = remote.doubt.take();
        let since = before.as_ref().map_or_else(|| world.clock.elapsed(), |doubt| doubt.since);
        let was_lost = before.is_some_and(|doubt| doubt.lost);
        if lost && remote.known.take().is_some() {
            remote.unknown_since = world.clock.elapsed();
        }
        remote.doubt = Some(Doubt { since, lost: lost || was_lost, trouble: trouble(world, err, 1, Duration::ZERO) });
        lost && !was_lost
    }

    /// A target holds what a restore needs. Returns whether it was known to lack something.
    pub(super) fn seen(&self, n: usize) -> bool {
        let Some((_, remote)) = self.targets.get(n) else { return false };
        lock(remote).doubt.take().is_some_and(|doubt| doubt.lost)
    }

    /// Where the local side stands.
    pub(super) fn local(&self, world: &World) -> LocalStatus {
        let local = lock(&self.local);
        let mut status = local.status.clone();
        if local.waiting > 0 && status.trouble.is_none() {
            status.trouble = Some(trouble(world, &Turns::why(), 0, Duration::ZERO));
        }
        if status.active {
            status.took = world.clock.elapsed().saturating_sub(local.began);
        }
        status
    }

    /// Where the targets stand.
    pub(super) fn targets(&self, world: &World) -> Vec<TargetStatus> {
        let now = world.clock.elapsed();
        let local = lock(&self.local);
        let unread = match &local.status {
            // Whatever was committed since may not have been read.
            status if status.trouble.is_some() || local.failures > 0 || local.waiting > 0 => Some(local.current),
            status if status.active => Some(local.began),
            _ => None,
        };
        let position = local.status.position;
        drop(local);
        let one = |(name, remote): &(String, Mutex<Remote>)| {
            let remote = lock(remote);
            let unsent = remote.pending.oldest();
            let unknown = remote.known.is_none().then_some(remote.unknown_since).filter(|_| position.is_some());
            let doubtful = remote.doubt.as_ref().map(|doubt| doubt.since);
            let since = [unread, unsent, unknown, doubtful].into_iter().flatten().min();
            TargetStatus {
                name: name.clone(),
                position: remote.known.flatten(),
                pending: position.map_or(0, |p| p.get().saturating_sub(remote.known.flatten().map_or(0, Txid::get))),
                last_success: remote.last_success,
                lag: since.map_or(Duration::ZERO, |since| now.saturating_sub(since)),
                lost: remote.doubt.as_ref().is_some_and(|doubt| doubt.lost),
                trouble: remote.trouble.clone().or_else(|| remote.doubt.as_ref().map(|doubt| doubt.trouble.clone())),
                unguarded: remote.unguarded,
            }
        };
        self.targets.iter().map(one).collect()
    }
}

fn trouble(world: &World, err: &Error, failures: u32, retry_in: Duration) -> Trouble {
    Trouble { error: err.to_string(), hint: err.hint_text(), at: world.clock.now(), failures, retry_in }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sys::{ManualClock, OsFs, OsRandom};
    use crate::telemetry::Metrics;

    struct Bench {
        clock: Arc<ManualClock>,
        world: World,
        health: Health,
    }

    impl Bench {
        fn new() -> Self {
            let clock = Arc::new(ManualClock::starting_at(Timestamp::from_millis(1_000_000)));
            let world = World { fs: Arc::new(OsFs), clock: clock.clone(), random: Arc::new(OsRandom) };
            let metrics = Metrics::new().database("/x/app.db", "app.db");
            let health = Health::new(&world, ["file", "s3", "file"].into_iter(), metrics);
            Self { clock, world, health }
        }

        fn advance(&self, seconds: u64) {
            self.clock.advance(Duration::from_secs(seconds));
        }

        fn sync(&self, txid: u64) {
            self.health.sync_begins(&self.world);
            self.health.sync_ended(&self.world, Ok(Some((Txid::new(txid), SyncFigures::default()))));
        }

        fn lag(&self) -> u64 {
            self.health.targets(&self.world)[0].lag.as_secs()
        }
    }

    fn txid(n: u64) -> Option<Txid> {
        Txid::new(n)
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_commit_that_is_not_there() {
        let bench = Bench::new();
        bench.health.reached(0, None, true);
        assert_eq!(bench.lag(), 0);
        bench.sync(1);
        bench.advance(5);
        bench.sync(3);
        bench.advance(5);
        assert_eq!(bench.lag(), 10);
        bench.health.reached(0, txid(1), false);
        assert_eq!(bench.lag(), 5);
        bench.health.reached(0, txid(2), false);
        assert_eq!(bench.lag(), 5);
        bench.health.reached(0, txid(3), true);
        assert_eq!(bench.lag(), 0);
        bench.advance(100);
        assert_eq!(bench.lag(), 0);
    }

    #[test]
    fn a_target_that_was_never_reached_lags_since_the_start() {
        let bench = Bench::new();
        bench.advance(7);
        assert_eq!(bench.lag(), 0, "there is nothing to send");
        bench.sync(1);
        assert_eq!(bench.lag(), 7);
        bench.health.reached(0, txid(1), true);
        assert_eq!(bench.lag(), 0);
        bench.health.lost_track(&bench.world, 0);
        bench.advance(2);
        assert_eq!(bench.lag(), 2);
    }

    #[test]
    fn a_log_that_cannot_be_read_makes_every_target_lag() {
        let bench = Bench::new();
        bench.sync(1);
        for n in 0..3 {
            bench.health.reached(n, txid(1), true);
        }
        bench.advance(9);
        let err = Error::new(ErrorKind::DiskFull, "no space");
        bench.health.sync_begins(&bench.world);
        bench.health.sync_ended(&bench.world, Err(&err));
        bench.health.local_trouble(&bench.world, &err, 1, Duration::from_secs(1));
        assert_eq!(bench.lag(), 9);
        bench.sync(1);
        assert_eq!(bench.lag(), 0);
        assert_eq!(bench.health.local(&bench.world).trouble, None);
    }

    /// Whoever ran it, the monitor or somebody who asked: no look at a log that seems untouched makes up for it.
    #[test]
    fn a_sync_that_failed_counts_until_one_succeeds() {
        let bench = Bench::new();
        bench.sync(1);
        for n in 0..3 {
            bench.health.reached(n, txid(1), true);
        }
        let last_success = |bench: &Bench| bench.health.targets(&bench.world)[0].last_success;
        let before = last_success(&bench);
        for round in 1..=3 {
            let err = Error::new(ErrorKind::Changed, "wal was restarted while it was looked at");
            bench.health.sync_begins(&bench.world);
            bench.health.sync_ended(&bench.world, Err(&err));
            for _ in 0..60 {
                bench.advance(1);
                bench.health.looked(&bench.world, bench.world.clock.elapsed());
            }
            assert_eq!(bench.lag(), 60 * round);
            assert_eq!(last_success(&bench), before);
            let trouble = bench.health.local(&bench.world).trouble.unwrap();
            assert_eq!((trouble.error, trouble.failures), (err.to_string(), round as u32));
        }
        bench.health.sync_begins(&bench.world);
        let called_off = Error::new(ErrorKind::Cancelled, "database was stopped");
        bench.health.sync_ended(&bench.world, Err(&called_off));
        assert_eq!(bench.lag(), 180);
        bench.sync(1);
        assert_eq!(bench.lag(), 0);
        assert_eq!(bench.health.local(&bench.world).trouble, None);
    }

    #[test]
    fn last_success_moves_on_while_idle_and_stops_while_something_is_unsent() {
        let bench = Bench::new();
        let last = |bench: &Bench| bench.health.targets(&bench.world)[0].last_success.map(Timestamp::millis);
        bench.sync(1);
        assert_eq!(last(&bench), None);
        bench.health.reached(0, txid(1), true);
        assert_eq!(last(&bench), Some(1_000_000));
        bench.advance(3);
        bench.health.looked(&bench.world, Duration::ZERO);
        assert_eq!(last(&bench), Some(1_003_000));
        bench.advance(3);
        bench.sync(2);
        assert_eq!(last(&bench), Some(1_003_000), "what was told before stays true");
    }

    #[test]
    fn a_target_that_lacks_something_is_lost_until_it_is_whole_again() {
        let bench = Bench::new();
        let status = |bench: &Bench| bench.health.targets(&bench.world)[0].clone();
        bench.sync(1);
        bench.health.reached(0, txid(1), true);
        let (unseen, gone) = (Error::new(ErrorKind::Unavailable, "out"), Error::new(ErrorKind::NotFound, "gone"));
        assert!(!bench.health.unseen(&bench.world, 0, &unseen, false));
        bench.advance(2);
        assert_eq!((status(&bench).lost, status(&bench).lag.as_secs()), (false, 2));
        assert!(bench.health.unseen(&bench.world, 0, &gone, true), "news");
        assert!(!bench.health.unseen(&bench.world, 0, &gone, true), "known");
        // Uploads go on, and it is not seen again: that makes nothing better.
        bench.health.reached(0, txid(1), true);
        assert!(!bench.health.unseen(&bench.world, 0, &unseen, false));
        bench.advance(1);
        bench.health.looked(&bench.world, Duration::ZERO);
        let now = status(&bench);
        assert_eq!((now.lost, now.lag.as_secs(), now.trouble.map(|t| t.error)), (true, 3, Some("out".to_owned())));
        assert_eq!(now.last_success, Some(Timestamp::from_millis(1_000_000)));
        assert!(bench.health.seen(0));
        assert!(!bench.health.seen(0));
        assert_eq!((status(&bench).lost, status(&bench).lag, status(&bench).trouble), (false, Duration::ZERO, None));
    }

    #[test]
    fn targets_of_one_kind_are_told_apart() {
        let bench = Bench::new();
        assert_eq!(bench.health.target_names().collect::<Vec<_>>(), ["file", "s3", "file-2"]);
    }

    #[test]
    fn a_long_queue_becomes_coarse_but_never_younger() {
        let mut pending = Pending::default();
        for n in 1..=10_000_u64 {
            let txid = Txid::new(n).unwrap();
            pending.push(txid, txid, Duration::from_secs(n));
        }
        assert!(pending.queue.len() <= MAX_PENDING);
        for sent in [1, 50, 4_999, 9_998] {
            pending.sent(Txid::new(sent).unwrap());
            assert!(pending.oldest().unwrap() <= Duration::from_secs(sent + 1), "{sent}");
        }
        pending.sent(Txid::new(10_000).unwrap());
        assert_eq!(pending.oldest(), None);
    }
}
