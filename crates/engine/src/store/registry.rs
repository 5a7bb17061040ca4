//! The databases of a store, which may come, go, stop and start while it runs.
//!
//! Guarantees:
//! 1. At any time at most one engine works on a path: who comes back waits until who left has closed.
//! 2. A started database is a new one: nothing is believed of its log, its local state or its
//!    targets that was known before it was stopped.
//! 3. What was begun is ended, even if who asked for it stops waiting.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::config::DatabaseConfig;
use super::database::Database;
use super::health::Health;
use crate::sys::{FileId, TaskGroup};

/// All databases, in the order they came.
#[derive(Debug, Default)]
pub(super) struct Registry {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<Arc<Entry>>,
    by_path: HashMap<PathBuf, Arc<Entry>>,
    /// Which database writes to which replica.
    by_replica: HashMap<String, PathBuf>,
    /// Where each file was when it was added.
    by_file: HashMap<FileId, PathBuf>,
    /// Of paths that were taken out: what is cancelled once the last engine there has closed.
    leaving: HashMap<PathBuf, CancellationToken>,
    closing: bool,
}

/// One database.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) config: DatabaseConfig,
    pub(super) health: Arc<Health>,
    /// Held while it is started or stopped.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Cancelled once an earlier database of its path has closed.
    free: CancellationToken,
    /// Cancelled once it was taken out and has closed, and everybody before it.
    left: CancellationToken,
    running: Mutex<Option<Running>>,
}

/// An open database.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) database: Arc<Database>,
    pub(super) tasks: TaskGroup,
    /// Whether its log is followed, or it is only synced on request.
    pub(super) followed: bool,
}

/// Whether a database is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Its log is followed.
    Replicating,
    /// It is synced on request only.
    Open,
    /// It was stopped.
    Stopped,
}

impl RunState {
    /// As `litestream list` says it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Replicating => "replicating",
            Self::Open => "open",
            Self::Stopped => "stopped",
        }
    }
}

/// Why a database was not added.
#[derive(Debug)]
pub(super) enum Refused {
    /// Its path is there already.
    Known,
    /// Another database keeps its local state in the same place.
    MetaPath(PathBuf),
    /// Its path leads to the file of another database: a link, or a second name.
    SameFile(PathBuf),
    /// This replica is another database's: they would overwrite each other's files.
    Replica(String, PathBuf),
    /// The program is shutting down.
    Closing,
}

impl Registry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a database at the end. It is not running yet.
    pub(super) fn add(
        &self,
        config: DatabaseConfig,
        id_of: impl Fn(&Path) -> Option<FileId>,
        health: impl FnOnce(&DatabaseConfig) -> Health,
    ) -> Result<Arc<Entry>, Refused> {
        let mut state = self.state();
        if state.closing {
            return Err(Refused::Closing);
        }
        if state.by_path.contains_key(&config.db.path) {
            return Err(Refused::Known);
        }
        if let Some(other) = state.entries.iter().find(|e| e.config.db.meta_path == config.db.meta_path) {
            return Err(Refused::MetaPath(other.path().to_owned()));
        }
        let path = config.db.path.clone();
        let id = id_of(&path);
        // Where it was last seen, another file may be by now.
        if let Some(other) = id.and_then(|id| state.by_file.get(&id))
            && id_of(other) == id
        {
            return Err(Refused::SameFile(other.clone()));
        }
        for location in locations(&config) {
            if let Some(other) = state.by_replica.insert(location.clone(), path.clone()) {
                state.by_replica.retain(|_, of| *of != path);
                state.by_replica.insert(location.clone(), other.clone());
                return Err(Refused::Replica(location, other));
            }
        }
        state.leaving.retain(|_, left| !left.is_cancelled());
        let free = state.leaving.get(&path).cloned().unwrap_or_else(nobody_before);
        let health = Arc::new(health(&config));
        let entry = Arc::new(Entry {
            config,
            health,
            turn: tokio::sync::Mutex::default(),
            free,
            left: CancellationToken::new(),
            running: Mutex::new(None),
        });
        state.entries.push(Arc::clone(&entry));
        state.by_file.extend(id.map(|id| (id, path.clone())));
        state.by_path.insert(path, Arc::clone(&entry));
        Ok(entry)
    }

    /// Takes a database out. It is still running, and whoever comes next on its path waits until
    /// [`Entry::leave`] has ended.
    pub(super) fn remove(&self, path: &Path) -> Option<Arc<Entry>> {
        let mut state = self.state();
        let entry = state.by_path.remove(path)?;
        state.leaving.insert(path.to_owned(), entry.left.clone());
        state.entries.retain(|other| !Arc::ptr_eq(other, &entry));
        state.by_replica.retain(|_, of| of != path);
        state.by_file.retain(|_, of| of != path);
        Some(entry)
    }

    /// Whether any database has this file name.
    pub(super) fn has_file_name(&self, name: &str) -> bool {
        self.state().entries.iter().any(|entry| entry.config.db.name() == name)
    }

    pub(super) fn find(&self, path: &Path) -> Option<Arc<Entry>> {
        self.state().by_path.get(path).cloned()
    }

    /// Whether this very database is still there.
    pub(super) fn holds(&self, entry: &Arc<Entry>) -> bool {
        self.state().by_path.get(entry.path()).is_some_and(|held| Arc::ptr_eq(held, entry))
    }

    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        self.state().entries.clone()
    }

    pub(super) fn len(&self) -> usize {
        self.state().entries.len()
    }

    /// From now on nothing is added or started.
    pub(super) fn close(&self) -> Vec<Arc<Entry>> {
        let mut state = self.state();
        state.closing = true;
        state.entries.clone()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.state().closing
    }
}

/// What a database waits for that is the first one of its path.
fn nobody_before() -> CancellationToken {
    let free = CancellationToken::new();
    free.cancel();
    free
}

fn locations(config: &DatabaseConfig) -> Vec<String> {
    config.targets.iter().map(|target| target.replica.client().location()).collect()
}

impl Entry {
    pub(super) fn path(&self) -> &Path {
        &self.config.db.path
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database, if it is open.
    pub(super) fn database(&self) -> Option<Arc<Database>> {
        self.running().as_ref().map(|running| Arc::clone(&running.database))
    }

    pub(super) fn state(&self) -> RunState {
        match self.running().as_ref() {
            Some(Running { followed: true, .. }) => RunState::Replicating,
            Some(_) => RunState::Open,
            None => RunState::Stopped,
        }
    }

    /// Puts a database in, for whoever holds the turn.
    pub(super) fn put(&self, running: Running) {
        *self.running() = Some(running);
    }

    /// Takes the database out, for whoever holds the turn.
    pub(super) fn take(&self) -> Option<Running> {
        self.running().take()
    }

    /// Starts the tasks of an open database that is not followed yet.
    pub(super) fn follow(&self, start: impl FnOnce(&Arc<Database>, &mut TaskGroup)) {
        if let Some(running) = self.running().as_mut()
            && !running.followed
        {
            running.followed = true;
            start(&running.database, &mut running.tasks);
        }
    }

    /// Tells its tasks to end soon.
    pub(super) fn cancel(&self) {
        if let Some(running) = self.running().as_ref() {
            running.tasks.cancel();
        }
    }
}

impl Entry {
    /// Waits until nobody else is on its path, then for the turn to start or stop this database, until `give_up`.
    pub(super) async fn turn(&self, give_up: &CancellationToken) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let turn = async {
            self.free.cancelled().await;
            self.turn.lock().await
        };
        give_up.run_until_cancelled(turn).await
    }

    /// Closes a database that was taken out, with `close`, and lets the next one of its path begin: also if this is
    /// dropped.
    pub(super) fn leave<T>(self: Arc<Self>, close: impl Future<Output = T>) -> impl Future<Output = T> {
        let gone = self.left.clone().drop_guard();
        async move {
            let closed = close.await;
            self.free.cancelled().await;
            drop(gone);
            closed
        }
    }
}
