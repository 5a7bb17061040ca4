//! Checkpoints: when, and how without letting go of a frame that was not read.
//!
//! Protocol (proved by `tests/engine`; `docs/architecture.md` tells the experiments):
//!
//! 1. The log has been read to its end. No lock is held. A stand-in read transaction lets our
//!    read mark move to the end of the log; a passive checkpoint copies the bulk.
//! 2. Under the write lock: the few frames that came meanwhile are read into memory, the mark
//!    moves to the end again, a second passive checkpoint copies the rest. If now everything is
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
use super::sync::{Batch, not_open};
use crate::error::{Error, ErrorKind, Result};
use crate::sqlite::WalIndex;
use crate::sys::{Backoff, fault_point};
use crate::types::PageSize;
use crate::wal::PageMap;

/// Frames that may be read under the write lock.
const LOCKED_BYTES: u64 = 2 * 1024 * 1024;
/// How often to read on when more than that came in between.
const ROUNDS: u32 = 4;
/// The application checkpoints on its own after its commits, and only one can at a time.
const PATIENCE: Duration = Duration::from_millis(100);
/// The same while the application waits for the write lock.
const PATIENCE_LOCKED: Duration = Duration::from_millis(15);
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

    /// Somebody held a lock at the wrong moment.
    fn note_busy(&mut self, now: Duration) {
        self.not_before = now + Duration::from_secs(1);
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
    /// Frames that were read into memory, if any came in.
    batch: Option<Batch>,
    outcome: Outcome,
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
            copied: index.is_fully_backfilled(),
            changed: self.checkpoints.changed,
            since: now.saturating_sub(self.checkpoints.last),
            held_off: now < self.checkpoints.not_before,
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
        let outcome = self.checkpoint();
        let now = self.world.clock.elapsed();
        let outcome = match outcome {
            Err(err) if err.kind() == ErrorKind::Busy => Outcome::Busy,
            other => other?,
        };
        match outcome {
            Outcome::Complete => self.checkpoints.note_complete(now),
            Outcome::Busy => self.checkpoints.note_busy(now),
            Outcome::Blocked => {
                self.checkpoints.note_blocked(now);
                self.warn_of_long_log(&index);
            }
        }
        debug!(system = "store", db = %self.config.name(), outcome = ?outcome, "checkpoint");
        Ok(outcome == Outcome::Complete)
    }

    fn warn_of_long_log(&self, index: &WalIndex) {
        let (Some(session), Some(pages)) = (&self.session, self.config.truncate_pages) else { return };
        let (end, threshold) = (index.end(session.page_size), wal_bytes(pages, session.page_size));
        if end >= threshold {
            warn!(system = "store", db = %self.config.name(), wal_size = end, threshold,
                hint = "a reader of the application keeps the wal from being checkpointed",
                "wal is above its threshold and cannot be checkpointed");
        }
    }

    fn checkpoint(&mut self) -> Result<Outcome> {
        fault_point("checkpoint.start")?;
        let session = self.session.as_mut().ok_or_else(not_open)?;
        let target = session.wal_index()?;
        session.advance_mark()?;
        session.checkpoint_past_others(self.world.clock.as_ref(), PATIENCE)?;
        fault_point("checkpoint.after_bulk")?;
        let now = session.wal_index()?;
        if now.salts == target.salts && now.backfilled < target.last_frame {
            return Ok(Outcome::Blocked);
        }
        for _ in 0..ROUNDS {
            let session = self.session.as_mut().ok_or_else(not_open)?;
            session.lock(self.world.clock.as_ref())?;
            let done = self.locked_part();
            // The lock goes back whatever happened.
            let unlocked = self.session.as_mut().ok_or_else(not_open)?.unlock();
            let Some(Locked { view, batch, outcome }) = done? else {
                unlocked?;
                self.sync_log()?;
                continue;
            };
            fault_point("checkpoint.unlocked")?;
            if let Some(batch) = batch
                && let Err(err) = self.publish(&view, &batch)
            {
                self.unprotect();
                return Err(err);
            }
            unlocked?;
            if outcome == Outcome::Complete {
                self.cut_log(&view)?;
            }
            return Ok(outcome);
        }
        Ok(Outcome::Busy)
    }

    /// Everything that needs the write lock. Keep it short: the application waits. `None` if too
    /// much came in, to be read without the lock first.
    fn locked_part(&mut self) -> Result<Option<Locked>> {
        let session = self.session.as_mut().ok_or_else(not_open)?;
        let view = LogView::take(&self.world, &self.config, session)?;
        let Some((salts, end, chain)) = self.last().and_then(|l| Some((l.salts, l.end, l.checksum?))) else {
            return Ok(None);
        };
        if view.index.salts != salts || view.end < end || view.end - end > LOCKED_BYTES {
            return Ok(None);
        }
        let mut batch = None;
        if view.end > end {
            let mut map = PageMap::default();
            let segment = self.read_log(&mut map, &view, end, chain, None, false)?;
            if !map.is_in_memory() {
                return Ok(None);
            }
            batch = Some(Batch { map, segment, from: end, full: None, detached: true });
        }
        let session = self.session.as_mut().ok_or_else(not_open)?;
        session.advance_mark_locked()?;
        let mut outcome = match session.checkpoint_past_others(self.world.clock.as_ref(), PATIENCE_LOCKED) {
            Err(err) if err.kind() == ErrorKind::Busy => Outcome::Busy,
            other => other.map(|()| Outcome::Blocked)?,
        };
        if session.wal_index()?.is_fully_backfilled() {
            session.advance_mark_locked()?;
            outcome = Outcome::Complete;
        }
        Ok(Some(Locked { view, batch, outcome }))
    }

    /// Restarts a log whose file has grown large, so that SQLite cuts it.
    fn cut_log(&mut self, view: &LogView) -> Result<()> {
        let session = self.session.as_mut().ok_or_else(not_open)?;
        let keep = wal_bytes(self.config.min_checkpoint_pages, session.page_size);
        if view.log()?.len < keep.saturating_mul(CUT_FACTOR) {
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
