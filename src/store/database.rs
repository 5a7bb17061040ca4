//! One managed database: the engine, the targets, and the way from tasks to both.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore, watch};

use super::config::DatabaseConfig;
use super::recover;
use super::target::Target;
use crate::db::{Db, SyncReport};
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::LocalDir;
use crate::sqlite::Sqlite;
use crate::sys::{Modes, World, blocking};
use crate::types::Txid;

/// An engine with its targets.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) world: World,
    pub(super) config: Settings,
    /// The executor: one step at a time, first come first served.
    db: Arc<Mutex<Db>>,
    /// Bounds the steps that run at once in this process.
    pool: Arc<Semaphore>,
    targets: Vec<Target>,
    /// Whether local state was compared with the targets since start.
    recovered: AtomicBool,
    local: LocalDir,
    seen: watch::Sender<Seen>,
}

/// What the last sync left behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// TXID of the newest local file.
    pub(super) position: Option<Txid>,
    /// For what is created on behalf of the database.
    pub(super) modes: Option<Modes>,
}

/// What tasks need to know without waiting for the engine.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) db: crate::db::DbConfig,
    pub(super) monitor_interval: Option<std::time::Duration>,
}

impl Database {
    pub(super) fn new(world: World, sqlite: Arc<dyn Sqlite>, config: DatabaseConfig, pool: Arc<Semaphore>) -> Self {
        let settings =
            Settings { name: config.db.name(), db: config.db.clone(), monitor_interval: config.monitor_interval };
        let meta_path = config.db.meta_path.clone();
        let db = Db::new(world.clone(), sqlite, config.db);
        Self {
            local: LocalDir::new(&world, meta_path),
            world,
            config: settings,
            db: Arc::new(Mutex::new(db)),
            pool,
            targets: config.targets.into_iter().map(Target::new).collect(),
            recovered: AtomicBool::new(false),
            seen: watch::Sender::new(Seen::default()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.config.db.path
    }

    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    pub(super) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The local LTX directory.
    pub(super) fn local(&self) -> &LocalDir {
        &self.local
    }

    /// What the last sync left behind.
    pub(super) fn seen(&self) -> Seen {
        *self.seen.borrow()
    }

    /// Follows [`Database::seen`].
    pub(super) fn watch(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// The engine if nobody is using it, for a look that does not block.
    pub(super) fn try_db(&self) -> Option<OwnedMutexGuard<Db>> {
        Arc::clone(&self.db).try_lock_owned().ok()
    }

    /// Runs a step of the engine on a thread that may block.
    pub(super) async fn with_db<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Db) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut db = Arc::clone(&self.db).lock_owned().await;
        let permit = Arc::clone(&self.pool).acquire_owned().await;
        let permit = permit.map_err(|_| Error::new(ErrorKind::Cancelled, "the program is shutting down"))?;
        blocking(move || {
            let result = step(&mut db);
            drop(permit);
            result
        })
        .await
    }

    /// Brings the local files up to the last commit.
    pub(super) async fn sync_local(&self) -> Result<SyncReport> {
        if !self.recovered.load(Ordering::Acquire) {
            if !recover::run(self).await? {
                return Ok(SyncReport { no_database: true, ..SyncReport::default() });
            }
            self.recovered.store(true, Ordering::Release);
        }
        let (report, modes) = self.with_db(|db| Ok((db.sync()?, db.modes()))).await?;
        let now = Seen { position: report.position, modes };
        self.seen.send_if_modified(|seen| std::mem::replace(seen, now) != now);
        Ok(report)
    }

    /// New files were made by something else than a sync.
    pub(super) fn note_position(&self, position: Option<Txid>) {
        self.seen.send_if_modified(|seen| std::mem::replace(&mut seen.position, position) != position);
    }

    /// Ends the read transaction and closes all files.
    pub(super) async fn close(&self) -> Result<()> {
        self.with_db(|db| {
            db.close();
            Ok(())
        })
        .await
    }
}
