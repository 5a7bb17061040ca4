//! Checkpoints: when, and how without letting go of a frame that was not read.
//!
//! Protocol (proved by `tests/engine`; `docs/architecture.md` tells the experiments):
//!
//! 1. The log has been read to its end. No lock is held. A stand-in read transaction lets our
//!    read mark move to the end of the log; passive checkpoints copy the bulk. Then what came
//!    meanwhile is read into memory.
//! 2. Under the write lock: the last few frames are read into memory, the mark moves to the end
//!    again, one more passive checkpoint copies the rest. If now everything is
//!    copied, the read transaction is started once more: SQLite puts it on read lock 0, which
//!    lets the next writer restart the log but keeps every later frame from being copied and so
//!    from being overwritten.
//! 3. The write lock is given back, then the frames in memory become an L0 file. If that fails
//!    the frames may be gone, so protection is given up and the next step looks for proof.
//! 4. If the file had grown large, a commit of our own restarts the log at once, and SQLite cuts
//!    the file (`journal_size_limit`). Otherwise the application's next commit does.
//!
//! Nothing is ever written to a database just to checkpoint it, and a reader that blocks the
//! checkpoint makes us wait longer and longer, up to a minute.

use std::time::Duration;

use tracing::{debug, warn};

use super::config::wal_bytes;
use super::engine::Db;
use super::observe::LogView;
use super::session::{Beside, Session};
use super::sync::{Batch, not_open};
use crate::error::{Error, ErrorKind, Result};
use crate::sqlite::WalIndex;
use crate::sys::{Backoff, fault_point, mutant};
use crate::types::PageSize;
use crate::wal::{PageMap, Segment};

/// How often to read or copy on without the lock while more than that keeps coming in.
const ROUNDS: u32 = 8;
/// How often a log is flushed ahead of a checkpoint while more of it than is put up with is not durable.
const FLUSHES: u32 = 6;
/// The application checkpoints on its own after its commits, and only one can at a time.
const PATIENCE: Duration = Duration::from_millis(500);
/// The same while the application waits for the write lock.
const PATIENCE_LOCKED: Duration = Duration::from_millis(15);
/// Before another try after somebody was in the way for a moment.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// How long to get out of the way of one checkpoint at the most, and how often to try.
const GIVING_WAY: Duration = Duration::from_secs(2);
const GIVING_WAY_STEP: Duration = Duration::from_millis(2);
/// The file is cut when it is so many times longer than the checkpoint threshold.
const CUT_FACTOR: u64 = 4;

/// When checkpoints ran and how they went.
#[derive(Debug)]
pub(super) struct CheckpointState {
    /// Something was synced since the last complete one.
    changed: bool,
    /// Monotonic time of the last complete one.
    last: Duration,
    /// While somebody is in the way.
    blocked: Backoff,
    /// Not before this monotonic time.
    not_before: Duration,
}

impl CheckpointState {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            changed: false,
            last: now,
            blocked: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
            not_before: Duration::ZERO,
        }
    }

    pub(super) fn note_change(&mut self) {
        self.changed = true;
    }

    fn note_complete(&mut self, now: Duration) {
        self.changed = false;
        self.last = now;
        self.blocked.reset();
        self.not_before = Duration::ZERO;
    }

    /// Somebody reads an old state: that can take long.
    fn note_blocked(&mut self, now: Duration) {
        self.not_before = now + self.blocked.step();
    }

    /// The application may do it now. Nothing else is to be done before the next commit.
    fn note_left(&mut self, now: Duration) {
        self.changed = false;
        self.note_busy(now);
    }

    /// Somebody held a lock at the wrong moment.
    fn note_busy(&mut self, now: Duration) {
        self.not_before = now + BUSY_PAUSE;
    }
}

/// What the decision is made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct CheckpointFacts {
    /// Where the log ends.
    pub(super) end: u64,
    /// Every frame is in the database file already.
    pub(super) copied: bool,
    /// Something was synced since the last checkpoint.
    pub(super) changed: bool,
    /// Time since the last checkpoint.
    pub(super) since: Duration,
    /// Waiting after a blocked attempt.
    pub(super) held_off: bool,
}

/// Thresholds (`spec: replication` §8).
#[derive(Debug, Clone, Copy)]
pub(super) struct CheckpointPolicy {
    pub(super) min_pages: u32,
    pub(super) interval: Option<Duration>,
    pub(super) page_size: PageSize,
}

/// Pure: whether to checkpoint now.
pub(super) fn decide(facts: CheckpointFacts, policy: CheckpointPolicy) -> bool {
    if facts.copied || facts.held_off {
        return false;
    }
    if facts.end >= wal_bytes(policy.min_pages, policy.page_size) {
        return true;
    }
    let due = policy.interval.is_some_and(|interval| facts.since > interval);
    due && facts.changed && facts.end > wal_bytes(1, policy.page_size)
}

/// What happened under the write lock.
struct Locked {
    view: LogView,
    outcome: Outcome,
}

/// Frames behind the newest file, read into memory.
struct Tail {
    map: PageMap,
    segment: Segment,
    from: u64,
}

/// How far a checkpoint got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The whole log was copied.
    Complete,
    /// Somebody reads an older state.
    Blocked,
    /// Somebody else was at it, or held the write lock.
    Busy,
}

impl Db {
    /// Whether a checkpoint is due for a log in this state.
    pub(super) fn checkpoint_due(&self, index: &WalIndex) -> bool {
        let Some(session) = &self.session else { return false };
        let now = self.world.clock.elapsed();
        let facts = CheckpointFacts {
            end: index.end(session.page_size),
            // A log that the application has copied can be restarted only when our mark has left it.
            copied: match session.layer.is_somebodys() {
                true => !self.checkpoints.changed && (session.begun_copied || !index.is_fully_backfilled()),
                false => index.is_fully_backfilled(),
            },
            changed: self.checkpoints.changed,
            since: now.saturating_sub(self.checkpoints.last),
            // It could not get past a snapshot that is being read.
            held_off: now < self.checkpoints.not_before || session.gate.is_occupied(),
        };
        let policy = CheckpointPolicy {
            min_pages: self.config.min_checkpoint_pages,
            interval: self.config.checkpoint_interval,
            page_size: session.page_size,
        };
        decide(facts, policy)
    }

    /// Runs a checkpoint if one is due. Returns whether the whole log was copied.
    ///
    /// # Errors
    /// I/O errors. Somebody being in the way is not an error.
    pub(super) fn run_due_checkpoint(&mut self) -> Result<bool> {
        let index = match &self.session {
            Some(session) if session.protected => session.wal_index()?,
            _ => return Ok(false),
        };
        if !self.checkpoint_due(&index) {
            return Ok(false);
        }
        if self.session.as_ref().is_some_and(|session| session.layer.is_somebodys()) {
            return self.leave_checkpoint_to_others(&index);
        }
        let began = self.world.clock.elapsed();
        let outcome = self.checkpoint();
        let now = self.world.clock.elapsed();
        self.counters.checkpoints += 1;
        self.counters.checkpoint_errors += u64::from(outcome.is_err());
        self.counters.checkpoint_time += now.saturating_sub(began);
        let outcome = match outcome {
            Err(err) if err.kind() == ErrorKind::Busy => {
                debug!(system = "store", db = %self.config.name(), error = %err, "checkpoint put off");
                Outcome::Busy
            }
            other => other?,
        };
        match outcome {
            Outcome::Complete => {
                self.counters.alarm = false;
                self.checkpoints.note_complete(now);
            }
            Outcome::Busy => self.checkpoints.note_busy(now),
            Outcome::Blocked => {
                self.checkpoints.note_blocked(now);
                self.warn_of_long_log(&index);
            }
        }
        debug!(system = "store", db = %self.config.name(), outcome = ?outcome, "checkpoint");
        if let Some(session) = &mut self.session
            && index.end(session.page_size) < wal_bytes(self.config.min_checkpoint_pages, session.page_size)
        {
            // A checkpoint for time's sake: the next one is long off.
            session.close_idle();
        }
        Ok(outcome == Outcome::Complete)
    }

    /// Whether somebody's checkpoint waits for us. Does not block.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_waited_for)
    }

    /// Whether a checkpoint of somebody else would have to wait for our read mark: there are frames behind which it
    /// stands. With everything copied we are on read lock 0, which keeps nobody waiting. One frame is our own, of the start.
    #[must_use]
    pub fn holds_a_mark(&self) -> bool {
        let index = self.session.as_ref().and_then(|session| session.wal_index().ok());
        index.is_some_and(|index| !index.is_fully_backfilled() && index.last_frame > 1)
    }

    /// Gets out of the way of a checkpoint that waits for readers (FULL, RESTART, TRUNCATE). It has the write lock, so
    /// nobody commits: first it waits for our mark to reach the end of the log, then for us to leave the log, which
    /// SQLite does for a transaction that begins when everything is copied.
    ///
    /// # Errors
    /// Those of [`Db::sync_log`].
    pub(super) fn give_way(&mut self) -> Result<()> {
        let until = self.world.clock.elapsed() + GIVING_WAY;
        while self.is_waited_for() && self.world.clock.elapsed() < until {
            self.sync_log()?;
            let (Some(session), Some(last)) = (&mut self.session, self.last.as_ref().and_then(Option::as_ref)) else {
                return Ok(());
            };
            let index = session.wal_index()?;
            let read = index.is_empty() || (index.salts == last.salts && index.end(session.page_size) == last.end);
            if session.protected && read {
                session.renew_mark(&index)?;
            }
            self.world.clock.pause(GIVING_WAY_STEP);
        }
        Ok(())
    }

    /// Lets the application's own checkpoints copy everything that was read, and its next commit restart the log.
    fn leave_checkpoint_to_others(&mut self, index: &WalIndex) -> Result<bool> {
        self.session.as_mut().ok_or_else(not_open)?.advance_mark()?;
        self.warn_of_long_log(index);
        // What came before the mark was moved is read now, or protection ends.
        self.sync_log()?;
        self.checkpoints.note_left(self.world.clock.elapsed());
        Ok(index.is_fully_backfilled())
    }

    fn warn_of_long_log(&mut self, index: &WalIndex) {
        let (Some(session), Some(pages)) = (&self.session, self.config.truncate_pages) else { return };
        let (end, threshold) = (index.end(session.page_size), wal_bytes(pages, session.page_size));
        self.counters.alarm = end >= threshold;
        if end >= threshold {
            warn!(system = "store", db = %self.config.name(), wal_size = end, threshold,
                hint = "a reader of the application keeps the wal from being checkpointed",
                "wal is above its threshold and cannot be checkpointed");
        }
    }

    fn checkpoint(&mut self) -> Result<Outcome> {
        fault_point("checkpoint.start")?;
        for _ in 0..ROUNDS {
            match self.copy_bulk()? {
                Outcome::Complete => {}
                other => return Ok(other),
            }
            fault_point("checkpoint.after_bulk")?;
            if let Some(outcome) = self.finish_locked()? {
                return Ok(outcome);
            }
            // More came in while we waited for the lock than we keep in memory.
            self.sync_log()?;
        }
        Err(Error::new(ErrorKind::Busy, "the application writes faster than the log can be read"))
    }

    /// Steps 2 to 4 of the module head. `None` if too much came in to keep it in memory.
    fn finish_locked(&mut self) -> Result<Option<Outcome>> {
        let Some(mut tail) = self.start_tail() else { return Ok(None) };
        for _ in 0..ROUNDS {
            let (_, gap) = self.read_tail(&mut tail)?;
            if gap <= self.config.bounds.locked {
                break;
            }
        }
        self.session.as_mut().ok_or_else(not_open)?.lock(self.world.clock.as_ref())?;
        let done = self.locked_part(&mut tail);
        // The lock goes back whatever happened.
        let unlocked = self.session.as_mut().ok_or_else(not_open)?.unlock();
        if done.is_err() && !mutant("failed-checkpoint-keeps-protection") {
            // Our mark may have moved past frames that were read into memory only.
            self.unprotect();
        }
        let Some(Locked { view, outcome }) = done? else {
            unlocked?;
            return Ok(None);
        };
        if !mutant("tail-not-published") {
            self.publish_tail(&view, tail)?;
        }
        unlocked?;
        if outcome == Outcome::Complete {
            self.cut_log(&view)?;
        }
        Ok(Some(outcome))
    }

    /// Makes the frames in memory an L0 file, if there are any.
    fn publish_tail(&mut self, view: &LogView, tail: Tail) -> Result<()> {
        let Tail { mut map, segment, from } = tail;
        if segment.end <= from {
            return Ok(());
        }
        map.drop_beyond_commit();
        let batch = Batch { map, segment, from, full: None, unwritten: None, detached: true };
        let published = fault_point("checkpoint.unlocked").and_then(|()| self.publish(view, &batch));
        if published.is_err() && !mutant("lost-tail-keeps-protection") {
            // The frames may be gone with the memory they were in.
            self.unprotect();
        }
        published
    }

    /// Makes a long log durable before anybody has to wait for that: a checkpoint begins with it,
    /// and once our mark has moved it may be the application's own that does. `false` if the
    /// application writes faster than the disk takes it.
    fn flush_log(&mut self) -> Result<bool> {
        let session = self.session.as_ref().ok_or_else(not_open)?;
        let mut flushed = 0;
        for _ in 0..FLUSHES {
            let view = LogView::take(&self.world, &self.config, session)?;
            if view.end.saturating_sub(flushed) < self.config.bounds.flushed {
                return Ok(true);
            }
            flushed = view.end;
            view.log()?.file.sync()?;
        }
        let threshold = self.config.truncate_pages.map(|pages| wal_bytes(pages, session.page_size));
        // Beyond the threshold the log must be brought down, even if somebody has to wait.
        Ok(threshold.is_some_and(|threshold| flushed >= threshold))
    }

    /// Copies frames without holding anybody up, until little is left. A reader of an old state
    /// shows in that a further try gets no further; one that is merely a commit behind does not
    /// matter.
    fn copy_bulk(&mut self) -> Result<Outcome> {
        if !self.flush_log()? {
            return Err(Error::new(ErrorKind::Busy, "the application writes faster than the log can be flushed"));
        }
        let session = self.session.as_mut().ok_or_else(not_open)?;
        let mut before = session.wal_index()?;
        for _ in 0..ROUNDS {
            session.advance_mark()?;
            session.checkpoint_past_others(self.world.clock.as_ref(), PATIENCE)?;
            let now = session.wal_index()?;
            let left = u64::from(now.last_frame.saturating_sub(now.backfilled)) * session.page_size.frame_size();
            if left <= self.config.bounds.locked {
                return Ok(Outcome::Complete);
            }
            if now.salts == before.salts && now.backfilled == before.backfilled {
                return Ok(Outcome::Blocked);
            }
            before = now;
        }
        Err(Error::new(ErrorKind::Busy, "the application writes faster than the log can be copied"))
    }

    /// A read transaction beside the engine whose state is that of the newest L0 file exactly. The
    /// write lock is held while it begins; what had come meanwhile becomes an L0 file. With it, the log as
    /// it was then.
    pub(super) fn begin_beside_locked(&mut self) -> Result<(Beside, WalIndex)> {
        let full = || Error::new(ErrorKind::Busy, "the application writes faster than the log can be read");
        let mut tail = self.start_tail().ok_or_else(full)?;
        for _ in 0..ROUNDS {
            if self.read_tail(&mut tail)?.1 <= self.config.bounds.locked {
                break;
            }
        }
        self.session.as_mut().ok_or_else(not_open)?.lock(self.world.clock.as_ref())?;
        let begun = self.read_tail(&mut tail).and_then(|(view, _)| {
            let session = self.session.as_ref().ok_or_else(not_open)?;
            if tail.map.is_in_memory() { Ok((view, session.begin_beside()?)) } else { Err(full()) }
        });
        self.session.as_mut().ok_or_else(not_open)?.unlock()?;
        let (view, beside) = begun?;
        self.publish_tail(&view, tail)?;
        Ok((beside, view.index))
    }

    /// Nothing read yet behind the newest file.
    fn start_tail(&self) -> Option<Tail> {
        let last = self.last()?;
        let segment = Segment { end: last.end, checksum: last.checksum?, commits: 0, limited: false, stop: None };
        Some(Tail { map: PageMap::caching(self.config.bounds.tail), segment, from: last.end })
    }

    /// Reads on to the end of the log, into memory. Says how far it got behind while reading:
    /// bytes that were new this time.
    fn read_tail(&mut self, tail: &mut Tail) -> Result<(LogView, u64)> {
        let session = self.session.as_ref().ok_or_else(not_open)?;
        let view = LogView::take(&self.world, &self.config, session)?;
        let salts = self.last().map(|l| l.salts);
        if salts != Some(view.index.salts) {
            if let Some(session) = &mut self.session {
                session.log_was_restarted();
            }
            return Err(Error::new(ErrorKind::Busy, "wal was restarted before it was read"));
        }
        let gap = view.end.saturating_sub(tail.segment.end);
        if gap > 0 {
            let (from, chain) = (tail.segment.end, tail.segment.checksum);
            tail.segment = self.read_log(&mut tail.map, &view, from, chain, None, false)?;
        }
        Ok((view, gap))
    }

    /// Everything that needs the write lock. Keep it short: the application waits. `None` if too
    /// much came in to keep it in memory.
    fn locked_part(&mut self, tail: &mut Tail) -> Result<Option<Locked>> {
        let (view, _) = self.read_tail(tail)?;
        if !tail.map.is_in_memory() {
            return Ok(None);
        }
        let session = self.session.as_mut().ok_or_else(not_open)?;
        // Nobody can append now, and all there is was read.
        session.mark_ahead = false;
        session.advance_mark_locked()?;
        let mut outcome = match session.checkpoint_past_others(self.world.clock.as_ref(), PATIENCE_LOCKED) {
            Err(err) if err.kind() == ErrorKind::Busy => Outcome::Busy,
            other => other.map(|()| Outcome::Blocked)?,
        };
        if session.wal_index()?.is_fully_backfilled() {
            session.advance_mark_locked()?;
            outcome = Outcome::Complete;
        }
        Ok(Some(Locked { view, outcome }))
    }

    /// Restarts a log whose file has grown large, so that SQLite cuts it.
    fn cut_log(&mut self, view: &LogView) -> Result<()> {
        let session = self.session.as_mut().ok_or_else(not_open)?;
        let keep = wal_bytes(self.config.min_checkpoint_pages, session.page_size);
        let len = view.log()?.len;
        // A log that fills its file will soon need the space again, and allocating it anew is slow.
        if len < keep.saturating_mul(CUT_FACTOR) || view.end > len / CUT_FACTOR {
            return Ok(());
        }
        match session.touch(self.world.clock.as_ref(), Some(keep)) {
            // A writer was faster: it restarted the log, only the file stays long for now.
            Err(err) if err.kind() == ErrorKind::Busy => Ok(()),
            other => other.map_err(|e: Error| e.context("restart wal")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> CheckpointFacts {
        CheckpointFacts {
            end: wal_bytes(40, PageSize::new(4096).unwrap()),
            copied: false,
            changed: true,
            since: Duration::from_secs(1),
            held_off: false,
        }
    }

    fn policy() -> CheckpointPolicy {
        CheckpointPolicy {
            min_pages: 1000,
            interval: Some(Duration::from_secs(60)),
            page_size: PageSize::new(4096).unwrap(),
        }
    }

    #[test]
    fn a_long_log_is_checkpointed_at_once_and_a_short_one_after_the_interval() {
        let (f, p) = (facts(), policy());
        let long = CheckpointFacts { end: wal_bytes(1000, p.page_size), ..f };
        let old = CheckpointFacts { since: Duration::from_secs(61), ..f };
        assert!(!decide(f, p));
        assert!(decide(long, p));
        assert!(decide(old, p));
        assert!(!decide(old, CheckpointPolicy { interval: None, ..p }));
    }

    #[test]
    fn an_idle_database_is_not_checkpointed_on_a_timer() {
        let old = CheckpointFacts { since: Duration::from_secs(3600), ..facts() };
        assert!(!decide(CheckpointFacts { changed: false, ..old }, policy()));
        let one_frame = CheckpointFacts { end: wal_bytes(1, policy().page_size), ..old };
        assert!(!decide(one_frame, policy()));
    }

    #[test]
    fn a_log_that_is_copied_or_blocked_is_left_alone() {
        let long = CheckpointFacts { end: wal_bytes(5000, policy().page_size), ..facts() };
        assert!(!decide(CheckpointFacts { copied: true, ..long }, policy()));
        assert!(!decide(CheckpointFacts { held_off: true, ..long }, policy()));
    }
}
