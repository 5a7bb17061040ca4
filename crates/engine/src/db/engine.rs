//! The state of one database and its life: open, look, close.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::checkpoint::CheckpointState;
use super::config::DbConfig;
use super::foreign::LogEnd;
use super::plan::Reason;
use super::quiet::Places;
use super::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::{self, LocalDir};
use crate::sqlite::Sqlite;
use crate::sys::{Lock, Modes, OwnerMode, World, mutant};
use crate::types::{Level, PageSize, Txid, TxidRange};
use crate::wal::{Salts, WalChecksum};

/// Its lock says that somebody uses the metadata directory. Litestream 0.5 does not look at it.
pub(super) const LOCK_FILE: &str = "litestream.lock";

/// A replicated database. All methods block; one runs at a time.
#[derive(Debug)]
pub struct Db {
    pub(super) world: World,
    pub(super) sqlite: Arc<dyn Sqlite>,
    pub(super) config: DbConfig,
    pub(super) local: LocalDir,
    /// Highest TXID that some target holds; the next one lies above it.
    floor: Option<Txid>,
    /// The newest local L0 file. The outer `None`: not looked yet.
    pub(super) last: Option<Option<Last>>,
    pub(super) session: Option<Session>,
    /// The file was empty when it was opened last.
    opened_empty: bool,
    /// Keeps a second process from replicating this database with the same metadata directory. Behind
    /// `session`: given back last.
    lock: Option<Box<dyn Lock>>,
    /// Set when proof was lost in a way that the local state does not show.
    pub(super) force_full: Option<Reason>,
    /// Some writer does not keep the wal-index: see [`super::unindexed`].
    pub(super) unkept: bool,
    /// The log that was found not to be the database's, if any: see [`super::foreign`].
    pub(super) foreign: Option<LogEnd>,
    /// Whether it was said that another layer works on the pages.
    layer_told: bool,
    /// Whether it was asked what an earlier life has left of `unkept` and `foreign`.
    remembered: bool,
    modes: Option<Modes>,
    /// Whether the directories of local files, and the names an earlier life left in them, are known
    /// to survive a power cut.
    names_durable: bool,
    pub(super) checkpoints: CheckpointState,
    pub(super) counters: Counters,
}

/// What happened since the engine was made, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of log that became files.
    pub wal_bytes: u64,
    /// Checkpoints, complete or not.
    pub checkpoints: u64,
    /// Checkpoints that failed.
    pub checkpoint_errors: u64,
    /// Time they took.
    pub checkpoint_time: Duration,
    /// The log is above its threshold, and the last checkpoint was kept from bringing it down.
    pub alarm: bool,
}

/// The newest local L0 file.
#[derive(Debug, Clone)]
pub(super) struct Last {
    pub(super) txid: Txid,
    pub(super) page_size: PageSize,
    /// Database size in pages.
    pub(super) commit: u32,
    /// Where reading the log began.
    pub(super) start: u64,
    /// Where it ended.
    pub(super) end: u64,
    pub(super) salts: Salts,
    /// Checksum chain at `end`, if this process read the log up to there.
    pub(super) checksum: Option<WalChecksum>,
    /// Checksum chain at `end` as the file's header says; files of Litestream do not say.
    pub(super) chain: Option<WalChecksum>,
}

impl Last {
    /// Whether it holds the database file without the log, and so says nothing of the log.
    pub(super) fn is_of_file_alone(&self) -> bool {
        self.end == 0
    }
}

/// What is in the local L0 directory.
#[derive(Debug)]
pub enum LocalState {
    /// Nothing to continue from.
    Empty,
    /// The newest file is whole.
    At(Txid),
    /// The newest file cannot be used.
    Corrupt {
        /// Its name.
        txids: TxidRange,
        /// What is wrong with it.
        error: Error,
    },
}

impl Db {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(world: World, sqlite: Arc<dyn Sqlite>, config: DbConfig) -> Self {
        let local = LocalDir::new(&world, config.meta_path.clone());
        let checkpoints = CheckpointState::new(world.clock.elapsed());
        Self {
            world,
            sqlite,
            config,
            local,
            floor: None,
            last: None,
            session: None,
            opened_empty: false,
            lock: None,
            force_full: None,
            unkept: false,
            foreign: None,
            remembered: false,
            layer_told: false,
            modes: None,
            names_durable: false,
            checkpoints,
            counters: Counters::default(),
        }
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &DbConfig {
        &self.config
    }

    /// The local LTX directory.
    #[must_use]
    pub fn local(&self) -> &LocalDir {
        &self.local
    }

    /// Mode and owner for what is created on behalf of this database; known once its file was seen.
    #[must_use]
    pub fn modes(&self) -> Option<Modes> {
        self.modes
    }

    /// Mode and owner for a note in the metadata directory.
    pub(super) fn file_mode(&self) -> OwnerMode {
        self.modes.map_or(OwnerMode::PRIVATE_FILE, |modes| modes.file)
    }

    /// Opens the database and takes the read transaction, if there is a database. Returns whether
    /// there is. From here on the log cannot lose a frame, so do this before anything slow.
    ///
    /// # Errors
    /// `InUse` while another process replicates it; SQLite's or the file system's. Nothing stays open
    /// then.
    pub fn open(&mut self) -> Result<bool> {
        if self.session.is_some() {
            return Ok(true);
        }
        self.resolve_path();
        let Some(stat) = self.world.fs.stat_opt(&self.config.path)? else { return Ok(false) };
        let parent = self.config.path.parent().unwrap_or(Path::new("/"));
        let dir = self.world.fs.stat(parent)?;
        let modes = Modes { file: stat.owner_mode, dir: dir.owner_mode };
        self.modes = Some(modes);
        self.take_lock(modes)?;
        let mut session = match Session::open(&self.world, &self.sqlite, &self.config) {
            Ok(session) => session,
            Err(err) if err.kind() == ErrorKind::NotFound => return Ok(false),
            Err(err) => return Err(err),
        };
        if !self.remembered {
            self.unkept = self.world.fs.stat_opt(&self.unkept_mark())?.is_some();
            self.foreign = LogEnd::load(&self.world, &self.config.meta_path)?;
            self.remembered = true;
        }
        session.kept = !self.unkept;
        if session.layer.is_somebodys() && !self.layer_told {
            self.layer_told = true;
            warn!(system = "store", db = %self.config.name(), layer = ?session.layer,
                hint = "checkpoints are left to the application, whose own file system layer must run them",
                "database reserves bytes of each page for another layer");
        }
        self.session = Some(session);
        self.opened_empty = stat.len == 0;
        Ok(true)
    }

    /// Whether there was an empty file instead of a database when it was opened last.
    #[must_use]
    pub fn opened_empty(&self) -> bool {
        self.opened_empty
    }

    /// Finds the file that the configured path leads to.
    fn resolve_path(&mut self) {
        let path = self.world.fs.resolve(&self.config.configured);
        if path == self.config.path {
            return;
        }
        if path != self.config.configured {
            info!(
                system = "store",
                db = %self.config.name(),
                path = %self.config.configured.display(),
                target = %path.display(),
                "database path is a symbolic link, following the log beside its target"
            );
        }
        self.config.path = path;
    }

    /// What the configured path leads to; `None` if that is not what is open.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn places(&self, session: &Session) -> Result<Option<Places>> {
        let config = &self.config;
        // Only a link can lead elsewhere without another file taking the place of this one.
        let is_link = config.path != config.configured;
        if is_link && self.world.fs.resolve(&config.configured) != config.path {
            return Ok(None);
        }
        session.places(&self.world, &config.configured, &config.wal_path())
    }

    /// Makes the metadata directory ours. What is half-written in it is an earlier run's then, and goes.
    fn take_lock(&mut self, modes: Modes) -> Result<()> {
        if self.lock.is_some() {
            return Ok(());
        }
        let meta = &self.config.meta_path;
        self.world.fs.create_dir_all(meta, modes.dir)?;
        let owner = format!("process {}", std::process::id());
        let lock = self.world.fs.lock(&meta.join(LOCK_FILE), modes.file, &owner).map_err(|err| match err.kind() {
            ErrorKind::InUse => err
                .context("database is being replicated by another litestream")
                .hint("stop the other one; this one goes on as soon as the lock is free"),
            _ => err,
        })?;
        if let Some(known) = &self.last {
            // Somebody else may have had it since it was given back.
            let known = known.as_ref().map(|last| TxidRange::single(last.txid));
            if self.local.newest(Level::L0)? != known {
                self.reload_local();
            }
        }
        self.lock = Some(lock);
        self.local.remove_temp_files();
        Ok(())
    }

    /// Gives up the read transaction and closes everything. The next step opens again.
    pub fn close(&mut self) {
        self.session = None;
        self.lock = None;
    }

    /// Looks at the newest local L0 file, reading all of it.
    ///
    /// # Errors
    /// I/O errors.
    pub fn local_state(&mut self) -> Result<LocalState> {
        if let Some(last) = &self.last {
            return Ok(last.as_ref().map_or(LocalState::Empty, |last| LocalState::At(last.txid)));
        }
        let Some(txids) = self.local.newest(Level::L0)? else {
            self.last = Some(None);
            return Ok(LocalState::Empty);
        };
        // We are about to build on it, so it must be there after a power cut too.
        self.make_names_durable()?;
        match self.read_last(txids) {
            Ok(last) => {
                let txid = last.txid;
                self.last = Some(Some(last));
                Ok(LocalState::At(txid))
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(LocalState::Corrupt { txids, error }),
            Err(err) => Err(err),
        }
    }

    /// Once per life and directory: see [`LocalDir::make_durable`].
    pub(super) fn make_names_durable(&mut self) -> Result<()> {
        if !self.names_durable && !mutant("names-left-volatile") {
            self.local.make_durable(Level::L0)?;
            self.names_durable = true;
        }
        Ok(())
    }

    /// Decodes and verifies one local L0 file.
    fn read_last(&self, txids: TxidRange) -> Result<Last> {
        let path = self.local.path(Level::L0, txids);
        let file = self.local.open(Level::L0, txids)?;
        let (header, ..) = ltx::verify(ltx::FileReader::new(file))
            .map_err(|e| e.context(format!("verify ltx file {}: ltx file corrupted", path.display())))?;
        if header.txids != txids || txids.min() != txids.max() {
            return Err(Error::corrupt(format!("ltx file names another range: {}", header.txids)).at(path.display()));
        }
        Ok(Last {
            txid: txids.max(),
            page_size: header.page_size,
            commit: header.commit,
            start: header.wal.offset,
            end: header.wal.offset.saturating_add(header.wal.size),
            salts: Salts { salt1: header.wal.salt1, salt2: header.wal.salt2 },
            checksum: None,
            chain: WalChecksum::from_node_id(header.node_id),
        })
    }

    /// Tells the engine the highest TXID that any target holds. Local files that lie behind it
    /// are of another time and are removed; the next file will be a full image unless the newest
    /// L0 file of the target is put into the local directory afterwards.
    ///
    /// # Errors
    /// I/O errors.
    pub fn set_floor(&mut self, floor: Option<Txid>) -> Result<()> {
        self.floor = floor;
        let Some(remote) = floor else { return Ok(()) };
        let local = match self.local_state()? {
            LocalState::At(local) if local >= remote => return Ok(()),
            LocalState::At(local) => local.get(),
            LocalState::Empty | LocalState::Corrupt { .. } => 0,
        };
        info!(system = "store", db = %self.config.name(), db_txid = format_args!("{local:016x}"), replica_txid = %remote,
            "detected database behind replica");
        if local > 0 {
            self.forget_local()?;
        }
        Ok(())
    }

    /// Removes all local LTX files. The next file will be a full image above everything known.
    ///
    /// # Errors
    /// I/O errors.
    pub fn forget_local(&mut self) -> Result<()> {
        let known = self.position();
        self.names_durable = false;
        self.local.clear()?;
        self.floor = self.floor.max(known);
        self.last = Some(None);
        self.unprotect();
        Ok(())
    }

    /// Looks at the local directory again: its newest file was replaced from outside.
    pub fn reload_local(&mut self) {
        self.last = None;
        self.unprotect();
    }

    /// Takes an unusable file out of the way.
    ///
    /// # Errors
    /// I/O errors.
    pub fn discard_local(&mut self, txids: TxidRange) -> Result<()> {
        warn!(system = "store", db = %self.config.name(), path = %self.local.path(Level::L0, txids).display(),
            "discarding unusable ltx file");
        self.local.remove(Level::L0, txids)?;
        self.reload_local();
        Ok(())
    }

    /// TXID of the newest local L0 file that was looked at.
    #[must_use]
    pub fn position(&self) -> Option<Txid> {
        self.last().map(|last| last.txid)
    }

    /// Page size, once the database is open.
    #[must_use]
    pub fn page_size(&self) -> Option<PageSize> {
        self.session.as_ref().map(|s| s.page_size)
    }

    pub(super) fn last(&self) -> Option<&Last> {
        self.last.as_ref().and_then(Option::as_ref)
    }

    pub(super) fn set_last(&mut self, last: Last) {
        self.last = Some(Some(last));
    }

    pub(super) fn next_txid(&self) -> Txid {
        if mutant("txid-reused")
            && let Some(txid) = self.position()
        {
            return txid;
        }
        Txid::after(self.position().max(self.floor))
    }

    pub(super) fn unprotect(&mut self) {
        if let Some(session) = &mut self.session {
            session.protected = mutant("protection-never-given-up") && session.protected;
            session.settled = None;
        }
    }

    /// Whether a step would find anything to do: whether the index moved, or either file was written. Never
    /// blocks on a lock; a handful of system calls and a look at shared memory.
    #[must_use]
    pub fn needs_step(&self) -> bool {
        let (Some(session), Some(_)) = (&self.session, self.last()) else { return true };
        if self.force_full.is_some() {
            return true;
        }
        // Before the index: what is written later shows the next time.
        let places = match self.places(session) {
            Ok(Some(places)) => places,
            _ => return true,
        };
        let Ok(index) = session.wal_index() else { return true };
        if !session.is_settled(&places, &index) {
            return true;
        }
        session.protected && self.checkpoint_due(&index)
    }

    /// Bytes of log that are not in a local file yet, and bytes of log altogether.
    #[must_use]
    pub fn log_bytes(&self) -> Option<(u64, u64)> {
        let (session, last) = (self.session.as_ref()?, self.last()?);
        let index = session.wal_index().ok()?;
        let end = index.end(session.page_size);
        let unread = match session.settled {
            _ if index.salts == last.salts => end.saturating_sub(last.end),
            // An image of the file alone says nothing of the log.
            Some(settled) if settled.is_at(&index) => 0,
            _ => end,
        };
        Some((unread, end))
    }
}
