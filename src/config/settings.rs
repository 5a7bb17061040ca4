//! The configuration's meaning: validated, with every default filled in.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::discover::DirSettings;
use super::finding::Finding;
use super::raw::RawDb;
use super::{Surroundings, defaults};
use crate::error::{Error, Result};
use crate::settings::{ReplicaKeys, ReplicaSettings, Secret, positive, unsigned};

/// A whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Listen address of the metrics server.
    pub addr: Option<String>,
    /// The MCP server, if it has an address.
    pub mcp: Option<McpSettings>,
    /// Command line of the child process.
    pub exec: Option<String>,
    /// Control socket.
    pub socket: SocketSettings,
    /// Log output.
    pub logging: LoggingSettings,
    /// Intervals of compaction levels 1, 2, …; the store accepts at most eight.
    pub levels: Vec<Duration>,
    /// Snapshots.
    pub snapshot: SnapshotSettings,
    /// Whether anything is ever deleted from replicas.
    pub retention_enabled: bool,
    /// Time between checks of the replica's contiguity.
    pub validation_interval: Option<Duration>,
    /// How long level-0 files stay after compaction; `None` = for ever.
    pub l0_retention: Option<Duration>,
    /// How often that is looked at.
    pub l0_retention_check_interval: Duration,
    /// Check contiguity after each compaction.
    pub verify_compaction: bool,
    /// Where to report that all is well.
    pub heartbeat: Option<HeartbeatSettings>,
    /// The final sync.
    pub shutdown: ShutdownSettings,
    /// Databases and directories of databases, in file order.
    pub dbs: Vec<DbEntry>,
    /// What is ignored in the file, or may not mean what was meant.
    pub warnings: Vec<Finding>,
}

impl Config {
    /// Builds every database, in file order, those in directories included.
    ///
    /// # Errors
    /// The first entry that cannot be built, a directory that cannot be read, and two databases with the
    /// same local state.
    pub fn build_all(&self, around: Surroundings<'_>) -> Result<Vec<DbSettings>> {
        let mut all = Vec::new();
        for entry in &self.dbs {
            all.extend(entry.build_all(around)?.databases);
        }
        check_meta_paths(&all)?;
        Ok(all)
    }

    /// The entry of a database file, by its expanded path.
    #[must_use]
    pub fn find(&self, path: &Path) -> Option<&DbEntry> {
        self.dbs.iter().find(|entry| entry.path() == Some(path))
    }
}

/// `socket:`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketSettings {
    /// Whether it is opened.
    pub enabled: bool,
    /// Verbatim; may be empty, which the server refuses.
    pub path: PathBuf,
    /// Permission bits.
    pub permissions: u32,
}

/// `mcp-addr` and `mcp:`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McpSettings {
    /// Where to listen.
    pub addr: String,
    /// What a client must know; empty = nothing, which only a loopback address allows.
    pub token: Secret,
    /// Whether tools may change anything.
    pub allow_changes: bool,
    /// Directories in which they may, absolute and clean.
    pub paths: Vec<PathBuf>,
}

/// `logging:`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoggingSettings {
    /// As written, or `LOG_LEVEL`.
    pub level: String,
    /// Shape of a line.
    pub format: LogFormat,
    /// To stderr instead of stdout.
    pub stderr: bool,
    /// With file and line of the statement.
    pub source: bool,
}

/// `logging.type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `key=value`
    #[default]
    Text,
    /// One object per line.
    Json,
    /// For people.
    Pretty,
}

/// `snapshot:`
#[derive(Debug, Clone, Copy)]
pub struct SnapshotSettings {
    /// Time between snapshots.
    pub interval: Duration,
    /// How long a snapshot and what follows it are kept.
    pub retention: Duration,
}

/// `heartbeat-url`, `heartbeat-interval`, global or of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatSettings {
    /// `http://` or `https://`; may hold a secret token.
    pub url: String,
    /// Time between pings.
    pub interval: Duration,
}

/// `shutdown-sync-*`
#[derive(Debug, Clone, Copy)]
pub struct ShutdownSettings {
    /// How long the final sync is retried; zero = one attempt.
    pub timeout: Duration,
    /// Pause between attempts.
    pub interval: Duration,
}

/// One entry of `dbs:`, validated but not yet built: a command may need only one of them, and an
/// error in another must not stand in its way.
#[derive(Debug, Clone, PartialEq)]
pub struct DbEntry {
    pub(super) place: Place,
    pub(super) raw: RawDb,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Place {
    File(PathBuf),
    Dir,
}

/// One database.
#[derive(Debug, Clone)]
pub struct DbSettings {
    /// Absolute and clean.
    pub path: PathBuf,
    /// Local state.
    pub meta_path: PathBuf,
    /// How often the WAL is looked at; `None` = never.
    pub monitor_interval: Option<Duration>,
    /// Time between passive checkpoints; `None` = off.
    pub checkpoint_interval: Option<Duration>,
    /// SQLite's busy timeout.
    pub busy_timeout: Duration,
    /// WAL pages from which a passive checkpoint is tried. Zero is refused when the store opens.
    pub min_checkpoint_page_count: u64,
    /// WAL pages from which a truncating checkpoint is forced; `None` = off.
    pub truncate_page_n: Option<u64>,
    /// WAL bytes taken per sync pass; `None` = no limit.
    pub max_sync_wal_bytes: Option<u64>,
    /// Restore at start when the file is absent.
    pub restore_if_db_not_exists: bool,
    /// Where it goes.
    pub replica: ReplicaSettings,
}

impl DbEntry {
    /// The database file; `None` for a directory of databases.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::File(path) => Some(path),
            Place::Dir => None,
        }
    }

    /// The directory of databases, if this entry is one.
    ///
    /// # Errors
    /// Its path cannot be expanded.
    pub fn directory(&self, around: Surroundings<'_>) -> Result<Option<DirSettings>> {
        match self.place {
            Place::File(_) => Ok(None),
            Place::Dir => DirSettings::new(&self.raw, around).map(Some),
        }
    }

    /// Whether any replica is given.
    #[must_use]
    pub fn has_replica(&self) -> bool {
        self.raw.replica.is_some() || !self.raw.replicas.is_empty()
    }

    /// `restore-if-db-not-exists`, which directories of databases ignore.
    #[must_use]
    pub fn restores_if_missing(&self) -> bool {
        self.raw.restore_if_db_not_exists && self.path().is_some()
    }

    /// Whom to tell that the databases of this entry are well.
    #[must_use]
    pub fn heartbeat(&self) -> Option<HeartbeatSettings> {
        let interval = self.raw.heartbeat_interval.unwrap_or(defaults::HEARTBEAT_INTERVAL);
        let settings = HeartbeatSettings { url: self.raw.heartbeat_url.clone(), interval: unsigned(interval) };
        Some(settings).filter(|settings| !settings.url.is_empty())
    }

    /// Whether two entries say the same about what is replicated, where to and how.
    #[must_use]
    pub fn replicates_as(&self, other: &Self) -> bool {
        let only = |entry: &Self| {
            let mut entry = entry.clone();
            (entry.raw.heartbeat_url, entry.raw.heartbeat_interval) = (String::new(), None);
            entry
        };
        only(self) == only(other)
    }

    /// Sets `restore-if-db-not-exists`, which a flag can do for all databases.
    pub fn restore_if_missing(&mut self) {
        self.raw.restore_if_db_not_exists = true;
    }

    /// Resolves the entry's replica (`spec: config` §9 B). For a directory this is where its databases'
    /// own places are.
    ///
    /// # Errors
    /// Whatever is missing or contradictory.
    pub fn replica(&self, around: Surroundings<'_>) -> Result<ReplicaSettings> {
        one_replica(&self.raw)?.resolve(around)
    }

    /// Resolves one database and its replica (`spec: config` §9 B).
    ///
    /// # Errors
    /// Whatever is missing or contradictory; the entry is a directory.
    pub fn build(&self, around: Surroundings<'_>) -> Result<DbSettings> {
        let Some(path) = self.path() else {
            return Err(Error::invalid(format!("a directory of databases is not one database: {}", self.raw.dir)));
        };
        let meta_path = match &self.raw.meta_path {
            Some(meta) => around.expand(meta)?,
            None => default_meta_path(path),
        };
        build_database(&self.raw, path, meta_path, around)
    }

    /// Resolves every database of this entry; a directory is scanned.
    ///
    /// # Errors
    /// As [`DbEntry::build`] and [`DirSettings::scan`]; a directory without databases that is not watched.
    pub fn build_all(&self, around: Surroundings<'_>) -> Result<Built> {
        let Some(directory) = self.directory(around)? else {
            return Ok(Built { databases: vec![self.build(around)?], directory: None });
        };
        let found = directory.scan(around.fs)?;
        if found.is_empty() && !directory.watch {
            return Err(Error::invalid(format!(
                "no SQLite databases found in directory {} with pattern {}",
                directory.path.display(),
                directory.pattern
            )));
        }
        let databases = found.iter().map(|path| directory.database(path, around)).collect::<Result<_>>()?;
        Ok(Built { databases, directory: Some(directory) })
    }
}

/// What an entry comes to.
#[derive(Debug)]
pub struct Built {
    /// One, or those found in the directory.
    pub databases: Vec<DbSettings>,
    /// The directory, if the entry is one.
    pub directory: Option<DirSettings>,
}

/// Two databases must not write into one place of local state.
///
/// # Errors
/// `meta-path collision: …`
pub fn check_meta_paths(databases: &[DbSettings]) -> Result<()> {
    let mut seen: HashMap<&Path, &Path> = HashMap::new();
    for db in databases {
        if let Some(other) = seen.insert(&db.meta_path, &db.path) {
            return Err(Error::invalid(format!(
                "meta-path collision: databases {} and {} would share meta-path {}, causing replication state corruption",
                other.display(),
                db.path.display(),
                db.meta_path.display()
            )));
        }
    }
    Ok(())
}

/// A database has one replica, under either spelling.
fn one_replica(raw: &RawDb) -> Result<&ReplicaKeys> {
    match (&raw.replica, raw.replicas.as_slice()) {
        (Some(_), [_, ..]) => Err(Error::invalid("cannot specify 'replica' and 'replicas' on a database")),
        (Some(replica), []) | (None, [Some(replica)]) => Ok(replica),
        (None, [_, _, ..]) => Err(Error::invalid("multiple replicas on a single database are no longer supported")),
        (None, _) => Err(Error::invalid("must specify replica for database")),
    }
}

pub(super) fn build_database(
    raw: &RawDb,
    path: &Path,
    meta_path: PathBuf,
    around: Surroundings<'_>,
) -> Result<DbSettings> {
    Ok(DbSettings {
        path: path.to_owned(),
        meta_path,
        monitor_interval: positive(raw.monitor_interval.unwrap_or(defaults::MONITOR_INTERVAL)),
        checkpoint_interval: positive(raw.checkpoint_interval.unwrap_or(defaults::CHECKPOINT_INTERVAL)),
        busy_timeout: unsigned(raw.busy_timeout.unwrap_or(defaults::BUSY_TIMEOUT)),
        min_checkpoint_page_count: raw
            .min_checkpoint_page_count
            .map_or(defaults::MIN_CHECKPOINT_PAGE_COUNT, |n| n as i64)
            .try_into()
            .unwrap_or(0),
        truncate_page_n: match raw.truncate_page_n {
            None | Some(0) => u64::try_from(defaults::TRUNCATE_PAGE_N).ok(),
            Some(n) => u64::try_from(n).ok(),
        },
        max_sync_wal_bytes: u64::try_from(raw.max_sync_wal_bytes.unwrap_or(defaults::MAX_SYNC_WAL_BYTES))
            .ok()
            .filter(|n| *n > 0),
        restore_if_db_not_exists: raw.restore_if_db_not_exists,
        replica: one_replica(raw)?.resolve(around)?,
    })
}

/// A database as a path and a replica URL alone describe it: every other setting is a default.
///
/// # Errors
/// The URL's.
pub fn database_from_url(path: &Path, url: &str, around: Surroundings<'_>) -> Result<DbSettings> {
    let replica = ReplicaKeys { url: url.to_owned(), ..ReplicaKeys::default() };
    let raw = RawDb { replica: Some(replica), ..RawDb::default() };
    build_database(&raw, path, default_meta_path(path), around)
}

/// Where local state is kept unless the configuration says otherwise: `<dir>/.<file>-litestream`.
#[must_use]
pub fn default_meta_path(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push("-litestream");
    path.with_file_name(name)
}
