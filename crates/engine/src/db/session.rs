//! Everything that is held open while a database is being replicated.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::config::DbConfig;
use super::gate::{Gate, Pass};
use super::layer::{self, Layer};
use super::quiet::{Behind, DbSeen, Places, Settled};
use super::sidecars;
use crate::error::{Error, ErrorKind, Result};
use crate::sqlite::{Conn, Sqlite, WalIndex};
use crate::sys::{Clock, File, FileId, OpenMode, World, mutant, read_up_to};
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
    /// Whether everything in the log was copied when the read transaction began, so that it is on read lock 0.
    pub(super) begun_copied: bool,
    /// Whether all writers keep the wal-index, as far as we know. Beside one that does not, a read
    /// transaction protects nothing.
    pub(super) kept: bool,
    /// The index when the session began.
    pub(super) first_index: Option<WalIndex>,
    /// Who else works on its pages.
    pub(super) layer: Layer,
    /// How the database file was when it was last accounted for.
    pub(super) db_seen: Option<DbSeen>,
    /// When nothing was left to read.
    pub(super) settled: Option<Settled>,
    /// Frames behind the end of the log that were looked at already.
    pub(super) behind: Option<Behind>,
    sqlite: Arc<dyn Sqlite>,
    path: std::path::PathBuf,
    busy_timeout: Duration,
}

/// What somebody holds who reads beside the engine. Dropped in this order.
#[derive(Debug)]
pub(super) struct Beside {
    pub(super) conn: Box<dyn Conn>,
    pub(super) file: Arc<dyn File>,
    pub(super) layer: Layer,
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
        let page_1 = first_page(file.as_ref())?;
        if let Some(refused) = layer::refusal(&page_1) {
            return Err(refused);
        }
        let layer = Layer::of(&page_1);
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
            begun_copied: false,
            kept: true,
            first_index: None,
            layer,
            db_seen: None,
            settled: None,
            behind: None,
            sqlite: Arc::clone(sqlite),
            path: config.path.clone(),
            busy_timeout: config.busy_timeout,
        };
        session.start_reading()?;
        // Page size can only be trusted under the read transaction.
        let again = session.reader.query("PRAGMA page_size")?;
        session.page_size = PageSize::new(again.parse().map_err(|_| Error::corrupt("invalid page size"))?)?;
        session.first_index = session.wal_index().ok();
        Ok(session)
    }

    /// Every frame up to the end of the log was read, under the read transaction that is still held.
    pub(super) fn read_to_the_end(&mut self) {
        self.protected = self.kept;
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
        Ok(Beside { conn, file: Arc::clone(&self.file), layer: self.layer, pass })
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
        self.begun_copied = self.reader.wal_index().is_ok_and(|index| index.is_fully_backfilled());
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

    /// Whether somebody's checkpoint waits for our read mark.
    pub(super) fn is_waited_for(&self) -> bool {
        self.reading && self.reader.is_waited_for()
    }

    /// Moves the read mark when the log was read up to `read`, and all of that is in files. Protection holds on
    /// if nothing was committed meanwhile: the stand-in's state was that one, so was ours, and one of both was held
    /// throughout. Else [`Session::advance_mark`] has been done.
    pub(super) fn renew_mark(&mut self, read: &WalIndex) -> Result<()> {
        let was_ahead = std::mem::replace(&mut self.mark_ahead, true);
        let stand_in = self.writer()?;
        begin_read(stand_in)?;
        let first = stand_in.wal_index();
        let moved = self.restart_reading().and_then(|()| self.wal_index());
        let released = self.writer()?.execute("ROLLBACK");
        let (first, now) = (first?, moved?);
        self.mark_ahead = was_ahead || !first.is_at(read) || !(now.is_at(read) || now.is_empty());
        released
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

    /// Runs `look` while no writer that knows SQLite's locks is at work. `None` if one is.
    pub(super) fn without_writers<T>(&self, look: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        if !self.reading || !self.reader.keep_writers_out()? {
            return Ok(None);
        }
        let found = look();
        self.reader.let_writers();
        found.map(Some)
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

    /// What the paths name now; `None` if that is not what is open here.
    pub(super) fn places(&self, world: &World, db: &Path, wal: &Path) -> Result<Option<Places>> {
        let Some(db) = world.fs.stat_opt(db)?.filter(|stat| stat.id == self.file_id) else { return Ok(None) };
        let wal = world.fs.stat_opt(wal)?;
        let same = self.wal_id.is_none() || self.wal_id == wal.map(|stat| stat.id);
        Ok(same.then_some(Places { db, wal }))
    }
}

/// Page 1 as it is in the file, or what there is of it.
fn first_page(file: &dyn File) -> Result<Vec<u8>> {
    let mut page = vec![0; layer::HEADER];
    let head = read_up_to(file, &mut page, 0)?;
    let size = match page.get(16..18) {
        Some([0, 1]) => 65536,
        Some([high, low]) => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    page.truncate(head);
    // Only where another layer may own a part of it is the rest of interest.
    if head < layer::HEADER || page[20] == 0 || size <= head {
        return Ok(page);
    }
    page.resize(size, 0);
    let have = read_up_to(file, &mut page, 0)?;
    page.truncate(have);
    Ok(page)
}

fn begin_read(conn: &mut dyn Conn) -> Result<()> {
    let begun = conn.execute(BEGIN_READ);
    if begun.is_err() {
        // Fails too if BEGIN itself failed.
        let _ = conn.execute("ROLLBACK");
    }
    begun
}
