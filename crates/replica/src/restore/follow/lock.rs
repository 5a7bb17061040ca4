//! Having the output to ourselves.
//!
//! SQLite's exclusive transaction keeps readers out only in rollback-journal mode. A reader may turn the
//! output to WAL mode: with the pragma, or just by opening it, as Turso's library does without moving the
//! change counter. So the mode is looked at under the lock, before each batch, and set right:
//!
//! 1. A fresh connection in exclusive locking mode begins a transaction. In WAL mode it gets it only when
//!    no other connection is open at all; those who read are waited for.
//! 2. Under this lock: a log with frames is somebody's writing, and so is another length, or a change
//!    counter that one change of the mode does not explain. Then following ends.
//! 3. SQLite changes the mode; `-wal`, which is empty, and `-shm` are removed before the lock is given
//!    back. Else the next reader would take the `-wal` for a sign that there is a log.
//!
//! What others wrote in WAL mode and brought into the database between two looks, without changing its
//! first page, leaves no trace that tells it from a mere change of the mode.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::exclusive::ExclusiveConn;
use super::live::{HEADER, Live, change_counter};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::fs::with_suffix;
use crate::sys::{mutant, read_full_at};

/// How long one attempt to get the database for ourselves may take.
pub(super) const LOCK_ATTEMPT: Duration = Duration::from_millis(250);
/// Between attempts readers that wait may come in.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// A round gives up after this: readers hold the database all the time.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// A log of this length has a header and no frame.
const LOG_HEADER: u64 = 32;

/// What an attempt found.
enum Found {
    /// In rollback-journal mode; the connection holds the lock.
    Locked(Box<dyn ExclusiveConn>),
    /// In WAL mode. The lock is given back.
    WalMode,
}

impl Live {
    /// Gets the output for ourselves, in rollback-journal mode.
    ///
    /// # Errors
    /// `Busy` if readers do not finish; `Cancelled`; `Changed` if the output is not ours any more.
    pub(super) fn lock(&mut self, stop: &CancellationToken) -> Result<()> {
        let began = self.world.clock.elapsed();
        let mut wal_mode = false;
        loop {
            if stop.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "follow mode was stopped"));
            }
            let attempt = match wal_mode {
                false => self.try_lock(),
                true => self.leave_wal_mode().and_then(|()| self.try_lock()),
            };
            match attempt {
                Ok(Found::Locked(conn)) => {
                    self.conn = Some(conn);
                    return Ok(());
                }
                Ok(Found::WalMode) => {
                    // A reader that does it each time it comes is worth one line.
                    if !std::mem::replace(&mut self.wal_mode_said, true) {
                        warn!(
                            output = %self.path.display(),
                            hint = "readers must open it read-only, and not set journal_mode",
                            "follow: another program has turned the output to WAL mode; it is turned back as soon as \
                             nobody has it open"
                        );
                    }
                    wal_mode = true;
                }
                Err(err) if err.kind() == ErrorKind::Busy => {
                    if self.world.clock.elapsed().saturating_sub(began) > LOCK_PATIENCE {
                        return Err(match wal_mode {
                            false => err.context("readers hold the database without a pause"),
                            true => err
                                .context("readers keep the database open in WAL mode")
                                .hint("they must close it; readers must open it read-only, and not set journal_mode"),
                        });
                    }
                    self.world.clock.pause(LOCK_PAUSE);
                }
                Err(err) => return Err(err),
            }
        }
    }

    /// Reads from the output, which makes SQLite look for a journal and play it back. Blocks; readers may be
    /// doing the same just now.
    pub(super) fn roll_back(&mut self) -> Result<()> {
        let began = self.world.clock.elapsed();
        let mut conn = self.sqlite.connect(&self.path, LOCK_ATTEMPT)?;
        loop {
            match conn.query("PRAGMA schema_version") {
                Err(err) if err.kind() == ErrorKind::Busy => {
                    if self.world.clock.elapsed().saturating_sub(began) > LOCK_PATIENCE {
                        return Err(err.context("readers hold the database without a pause"));
                    }
                    self.world.clock.pause(LOCK_PAUSE);
                }
                other => {
                    other?;
                    break;
                }
            }
        }
        // In WAL mode a connection keeps others from leaving that mode as long as it is open.
        self.conn = Some(conn).filter(|_| self.is_in_order().unwrap_or(false));
        Ok(())
    }

    fn try_lock(&mut self) -> Result<Found> {
        // Dropped, and its transaction with it, on every way out but the good one.
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => self.sqlite.connect(&self.path, LOCK_ATTEMPT)?,
        };
        if let Err(err) = conn.execute("BEGIN EXCLUSIVE") {
            self.conn = Some(conn).filter(|_| err.kind() == ErrorKind::Busy);
            return Err(err);
        }
        let excludes = conn.query("PRAGMA journal_mode")? == "delete" && self.is_in_order()?;
        if excludes || mutant("follow-trusts-mode") {
            return Ok(Found::Locked(conn));
        }
        // What was written need not wait for readers to be noticed.
        self.refuse_writing(1)?;
        Ok(Found::WalMode)
    }

    /// Whether whoever opens the output uses it in rollback-journal mode.
    pub(super) fn is_in_order(&self) -> Result<bool> {
        let mut head = [0; HEADER];
        read_full_at(self.file.as_ref(), &mut head, 0)?;
        let log = self.world.fs.stat_opt(&with_suffix(&self.path, "-wal"))?;
        Ok(head[18..20] == [1, 1] && log.is_none())
    }

    /// Turns the output back to rollback-journal mode.
    ///
    /// # Errors
    /// `Busy` while anybody has it open; `Changed` if others have written to it.
    pub(super) fn leave_wal_mode(&mut self) -> Result<()> {
        self.conn = None;
        let mut conn = self.sqlite.connect(&self.path, LOCK_ATTEMPT)?;
        conn.execute("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE")?;
        self.refuse_writing(1)?;
        conn.execute("COMMIT")?;
        let mode = conn.query("PRAGMA journal_mode = DELETE")?;
        if mode != "delete" {
            return Err(Error::new(ErrorKind::Busy, format!("the database stays in mode {mode}")));
        }
        // In this locking mode the lock is held on to after the change, so nobody can have opened these.
        let fs = self.world.fs.as_ref();
        fs.remove_file(&with_suffix(&self.path, "-wal"))?;
        fs.remove_file(&with_suffix(&self.path, "-shm"))?;
        // At the end of this transaction the lock is given back.
        conn.execute("PRAGMA locking_mode = NORMAL; BEGIN EXCLUSIVE")?;
        let mut head = [0; HEADER];
        read_full_at(self.file.as_ref(), &mut head, 0)?;
        if self.left.is_some() {
            self.left = Some((change_counter(&head), self.file.stat()?.len));
        }
        conn.execute("ROLLBACK")?;
        debug!(output = %self.path.display(), "follow: the output is in rollback-journal mode again");
        Ok(())
    }

    /// Refuses an output that is not as we left it, but for as many changes of its journal mode.
    ///
    /// # Errors
    /// `Changed`; the file system's.
    pub(super) fn refuse_writing(&self, changes_of_mode: u32) -> Result<()> {
        let fs = self.world.fs.as_ref();
        let mut head = [0; HEADER];
        read_full_at(self.file.as_ref(), &mut head, 0)?;
        let (counter, len) = (change_counter(&head), self.file.stat()?.len);
        let as_left =
            self.left.is_none_or(|(left, left_len)| len == left_len && counter.wrapping_sub(left) <= changes_of_mode);
        let same_file = fs.stat_opt(&self.path)?.is_some_and(|now| now.id == self.id);
        let log = fs.stat_opt(&with_suffix(&self.path, "-wal"))?;
        if !as_left || !same_file || log.is_some_and(|log| log.len > LOG_HEADER) {
            return Err(foreign().at(self.path.display()));
        }
        Ok(())
    }
}

fn foreign() -> Error {
    Error::new(ErrorKind::Changed, "another program has changed the output of follow mode")
        .hint("readers must open it read-only; delete it and its -txid file to restore it again")
}
