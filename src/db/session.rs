//! Everything that is held open while a database is being replicated.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::config::DbConfig;
use super::gate::{Gate, Pass};
use super::sidecars;
use crate::error::{Error, ErrorKind, Result};
use crate::sqlite::{Conn, Sqlite, WalIndex};
use crate::sys::{Clock, File, FileId, OpenMode, World, mutant};
use crate::types::PageSize;

/// Starting to read takes part in the log and fixes what it shows; the pragma is the cheapest
/// statement that reads.
const BEGIN_READ: &str = "BEGIN; PRAGMA schema_version";

/// Connections and descriptors of one database.
///
/// Fields are dropped in this order, and the order matters: closing `file` while a connection is
/// open would drop SQLite's locks.
#[derive(Debug)]
pub(super) struct Session {
    /// Holds the long-running read transaction.
    reader: Box<dyn Conn>,
    /// Takes the write lock; steps in for `reader` while that moves on. Opened when first needed.
    writer: Option<Box<dyn Conn>>,
    /// Runs checkpoints. Opened when first needed.
    checkpointer: Option<Box<dyn Conn>>,
    /// For direct page reads. Shared with those who are past `gate` only.
    file: Arc<dyn File>,
    pub(super) gate: Arc<Gate>,
    pub(super) file_id: FileId,
    pub(super) wal_id: Option<FileId>,
    pub(super) page_size: PageSize,
    /// Whether the read transaction is open.
    reading: bool,
    /// See [`super::plan()`].
    pub(super) protected: bool,
    /// The read mark was moved past frames that were not read yet. If others copied them all just then, it
    /// is read lock 0 that is held, which does not keep the log from being restarted over them.
    pub(super) mark_ahead: bool,
    sqlite: Arc<dyn Sqlite>,
    path: std::path::PathBuf,
    busy_timeout: Duration,
}

/// What somebody holds who reads beside the engine. Dropped in this order.
#[derive(Debug)]
pub(super) struct Beside {
    pub(super) conn: Box<dyn Conn>,
    pub(super) file: Arc<dyn File>,
    pub(super) pass: Pass,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.gate.close();
    }
}

impl Session {
    /// Opens the database, switches it to WAL mode and starts the read transaction. All or nothing.
    ///
    /// # Errors
    /// `NotFound` while there is no database; else SQLite's or the file system's.
    pub(super) fn open(world: &World, sqlite: &Arc<dyn Sqlite>, config: &DbConfig) -> Result<Self> {
        sidecars::check_rights(world.fs.as_ref(), &config.path)?;
        // Before the first connection: see the lock rule of `sqlite`.
        let file: Arc<dyn File> = world.fs.open(&config.path, OpenMode::Read)?.into();
        let stat = file.stat()?;
        if stat.kind != crate::sys::FileKind::File {
            return Err(Error::invalid("database is not a regular file").at(config.path.display()));
        }
        sidecars::prepare(world.fs.as_ref(), &config.path, file.as_ref())?;
        let mut reader = sqlite.open(&config.path, config.busy_timeout)?;
        let mut mode = reader.query("PRAGMA journal_mode")?;
        if mode != "wal" {
            mode = reader.query("PRAGMA journal_mode = wal")?;
        }
        if mode != "wal" {
            return Err(Error::invalid(format!("enable wal failed, mode={mode:?}")));
        }
        let page_size = reader.query("PRAGMA page_size")?;
        let page_size = page_size.parse().map_err(|_| Error::corrupt(format!("invalid page size: {page_size}")))?;
        let mut session = Self {
            reader,
            writer: None,
            checkpointer: None,
            file_id: stat.id,
            file,
            gate: Arc::default(),
            wal_id: None,
            page_size: PageSize::new(page_size)?,
            reading: false,
            protected: false,
            mark_ahead: false,
            sqlite: Arc::clone(sqlite),
            path: config.path.clone(),
            busy_timeout: config.busy_timeout,
        };
        session.start_reading()?;
        // Page size can only be trusted under the read transaction.
        let again = session.reader.query("PRAGMA page_size")?;
        session.page_size = PageSize::new(again.parse().map_err(|_| Error::corrupt("invalid page size"))?)?;
        Ok(session)
    }

    /// Every frame up to the end of the log was read, under the read transaction that is still held.
    pub(super) fn read_to_the_end(&mut self) {
        self.protected = true;
        self.mark_ahead = false;
    }

    /// The log is another one than the one that was read: was all of that read?
    pub(super) fn log_was_restarted(&mut self) {
        if self.mark_ahead && !mutant("mark-ahead-forgotten") {
            self.protected = false;
        }
    }

    /// The database file, for pages that are not in the log.
    pub(super) fn file(&self) -> &dyn File {
        self.file.as_ref()
    }

    /// A read transaction of its own at the present end of the log, and the database file, for
    /// reading beside the engine.
    pub(super) fn begin_beside(&self) -> Result<Beside> {
        let pass = self.gate.enter();
        let mut conn = self.sqlite.open(&self.path, Duration::ZERO)?;
        begin_read(conn.as_mut())?;
        Ok(Beside { conn, file: Arc::clone(&self.file), pass })
    }

    /// Pages in the database file.
    pub(super) fn file_pages(&self) -> Result<u64> {
        Ok(self.file.stat()?.len / u64::from(self.page_size.get()))
    }

    /// Takes the read transaction if it is not held. Without it nothing is protected.
    pub(super) fn ensure_reading(&mut self) -> Result<()> {
        if self.reading {
            return Ok(());
        }
        self.protected = mutant("lost-transaction-keeps-protection") && self.protected;
        self.mark_ahead &= !mutant("lost-transaction-keeps-protection");
        self.start_reading()
    }

    fn start_reading(&mut self) -> Result<()> {
        begin_read(self.reader.as_mut()).map_err(|e| e.context("acquire read lock"))?;
        self.reading = true;
        Ok(())
    }

    /// What SQLite believes about the log.
    pub(super) fn wal_index(&self) -> Result<WalIndex> {
        if !self.reading {
            return Err(Error::new(ErrorKind::Internal, "wal-index read without a read transaction"));
        }
        self.reader.wal_index()
    }

    /// Makes SQLite look at the wal-index with a fresh eye. A writer that was killed between its
    /// two copies leaves them unequal; the next transaction to begin repairs them from the log.
    pub(super) fn repair_wal_index(&mut self) -> Result<()> {
        let other = self.writer()?;
        begin_read(other)?;
        other.execute("ROLLBACK")
    }

    /// Ends the read transaction and starts a new one at the present end of the log. The caller
    /// makes sure that the log cannot be restarted in between: another read transaction of ours,
    /// or the write lock.
    fn restart_reading(&mut self) -> Result<()> {
        self.reading = false;
        let ended = self.reader.execute("ROLLBACK");
        let begun = ended.and_then(|()| self.start_reading());
        if begun.is_err() && !mutant("lost-transaction-keeps-protection") {
            self.protected = false;
        }
        begun
    }

    /// Moves the read mark to the end of the log, so that a checkpoint may copy up to there.
    /// Another connection holds a mark meanwhile. Protection holds on only if the log is still the same
    /// one when it is next read: see `mark_ahead`.
    pub(super) fn advance_mark(&mut self) -> Result<()> {
        self.mark_ahead = !mutant("no-stand-in");
        let stand_in = self.writer()?;
        if mutant("no-stand-in") {
            return self.restart_reading();
        }
        begin_read(stand_in)?;
        let moved = self.restart_reading();
        let released = self.writer()?.execute("ROLLBACK");
        moved.and(released)
    }

    /// Takes the write lock. Nobody can append to the log or restart it until [`Session::unlock`].
    ///
    /// SQLite's own waiting sleeps up to 100 ms between looks, which a writer that commits without
    /// pause nearly always wins; so look often, for at most the busy timeout.
    pub(super) fn lock(&mut self, clock: &dyn Clock) -> Result<()> {
        let until = clock.elapsed() + self.busy_timeout;
        let writer = self.writer()?;
        loop {
            match writer.execute("BEGIN IMMEDIATE") {
                Err(err) if err.kind() == ErrorKind::Busy && clock.elapsed() < until => {
                    clock.pause(Duration::from_micros(200));
                }
                other => return other,
            }
        }
    }

    /// Moves the read mark under the write lock, which protects in place of the mark.
    pub(super) fn advance_mark_locked(&mut self) -> Result<()> {
        self.restart_reading()
    }

    /// Gives the write lock back.
    pub(super) fn unlock(&mut self) -> Result<()> {
        self.writer()?.execute("ROLLBACK")
    }

    /// Copies what can be copied from the log into the database file.
    fn checkpoint(&mut self) -> Result<()> {
        if self.checkpointer.is_none() {
            self.checkpointer = Some(self.sqlite.open(&self.path, self.busy_timeout)?);
        }
        let result = match &mut self.checkpointer {
            Some(conn) => conn.checkpoint()?,
            None => unreachable!("opened above"),
        };
        // Without numbers it did not even start: somebody else is checkpointing.
        if result.busy && result.log.is_none() {
            return Err(Error::new(ErrorKind::Busy, "another checkpoint is running"));
        }
        Ok(())
    }

    /// Like [`Session::checkpoint`]; if somebody else is checkpointing, waits for them so long.
    pub(super) fn checkpoint_past_others(&mut self, clock: &dyn Clock, patience: Duration) -> Result<()> {
        let until = clock.elapsed() + patience;
        loop {
            match self.checkpoint() {
                Err(err) if err.kind() == ErrorKind::Busy && clock.elapsed() < until => {
                    clock.pause(Duration::from_millis(1));
                }
                other => return other,
            }
        }
    }

    /// Commits one page that changes nothing: `user_version` is set to what it is. If the log is
    /// fully copied and nobody reads it, this restarts it, and the file is cut to `keep_bytes`.
    pub(super) fn touch(&mut self, clock: &dyn Clock, keep_bytes: Option<u64>) -> Result<()> {
        let writer = self.writer()?;
        if let Some(bytes) = keep_bytes {
            writer.query(&format!("PRAGMA journal_size_limit = {bytes}"))?;
        }
        self.lock(clock)?;
        let writer = self.writer()?;
        let touched = writer
            .query("PRAGMA user_version")
            .and_then(|version| writer.execute(&format!("PRAGMA user_version = {version}; COMMIT")));
        if touched.is_err() {
            let _ = writer.execute("ROLLBACK");
        }
        touched
    }

    /// Closes the connections that only checkpoints need.
    pub(super) fn close_idle(&mut self) {
        self.writer = None;
        self.checkpointer = None;
    }

    fn writer(&mut self) -> Result<&mut dyn Conn> {
        if self.writer.is_none() {
            self.writer = Some(self.sqlite.open(&self.path, Duration::ZERO)?);
        }
        match &mut self.writer {
            Some(conn) => Ok(conn.as_mut()),
            None => unreachable!("opened above"),
        }
    }

    /// Whether the paths still name the files that are open here.
    pub(super) fn still_in_place(&self, world: &World, db: &Path, wal: &Path) -> Result<bool> {
        let db_id = world.fs.stat_opt(db)?.map(|s| s.id);
        if db_id != Some(self.file_id) {
            return Ok(false);
        }
        let wal_id = world.fs.stat_opt(wal)?.map(|s| s.id);
        Ok(self.wal_id.is_none() || self.wal_id == wal_id)
    }
}

fn begin_read(conn: &mut dyn Conn) -> Result<()> {
    let begun = conn.execute(BEGIN_READ);
    if begun.is_err() {
        // Fails too if BEGIN itself failed.
        let _ = conn.execute("ROLLBACK");
    }
    begun
}
