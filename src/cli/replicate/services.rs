//! What runs beside the engine: the control socket, the HTTP endpoint. They are opened after the
//! databases; those through which work comes in are closed before them. SIGHUP may change them
//! ([`super::reload`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::App;
use super::super::version::VERSION;
use super::listeners::{Listeners, Place};
use super::reload::Reloader;
use super::supervise::Engine;
use super::{Once, Request};
use crate::config::{Config, DirSettings, Environment, Surroundings};
use crate::daemon::DirWatcher;
use crate::daemon::heartbeat::{self, Heartbeat, Scope};
use crate::error::{Error, ErrorKind, Result};
use crate::server::{Context, McpServer};
use crate::store::Store;
use crate::sys::TaskGroup;

/// A directory that is watched, and what is known to be in it.
#[derive(Debug)]
pub(super) struct WatchedDir {
    pub(super) directory: DirSettings,
    pub(super) found: Vec<PathBuf>,
}

/// The watchers of directories, by directory.
#[derive(Debug)]
pub(super) struct Directories {
    store: Store,
    env: Arc<Environment>,
    watched: Vec<(PathBuf, TaskGroup)>,
}

impl Directories {
    fn new(context: &Context) -> Self {
        Self { store: context.store.clone(), env: Arc::clone(&context.env), watched: Vec::new() }
    }

    /// Watches one more.
    pub(super) fn watch(&mut self, WatchedDir { directory, found }: WatchedDir) {
        let path = directory.path.clone();
        let watcher = DirWatcher::new(self.store.clone(), Arc::clone(&self.env), directory, found);
        let mut tasks = TaskGroup::default();
        tasks.spawn("directory watcher", |stop| watcher.run(stop));
        self.watched.push((path, tasks));
    }

    /// Watches one less. Its databases stay.
    pub(super) async fn stop(&mut self, path: &Path) {
        for (_, tasks) in self.watched.iter_mut().filter(|(watched, _)| watched == path) {
            tasks.stop().await;
        }
        self.watched.retain(|(watched, _)| watched != path);
    }

    /// Watches nothing any more.
    pub(super) async fn stop_all(&mut self) {
        self.watched.iter().for_each(|(_, tasks)| tasks.cancel());
        for (_, tasks) in &mut self.watched {
            tasks.stop().await;
        }
    }
}

/// The engine with all that runs beside it.
#[derive(Debug)]
pub(super) struct Daemon {
    context: Context,
    listeners: Arc<Mutex<Listeners>>,
    /// Directory watchers, the heartbeat, reloading.
    tasks: TaskGroup,
}

/// Whom the configuration says to tell that all is well.
///
/// # Errors
/// The path of a directory cannot be expanded.
pub(super) fn heartbeats(config: &Config, around: Surroundings<'_>) -> Result<Vec<Heartbeat>> {
    let all = config.heartbeat.clone().map(|settings| Heartbeat { scope: Scope::All, settings });
    let mut heartbeats: Vec<Heartbeat> = all.into_iter().collect();
    for entry in &config.dbs {
        let Some(settings) = entry.heartbeat() else { continue };
        let scope = match (entry.path(), entry.directory(around)?) {
            (Some(path), _) => Scope::Database(path.to_owned()),
            (None, Some(directory)) => Scope::Directory(Box::new(directory)),
            (None, None) => continue,
        };
        heartbeats.push(Heartbeat { scope, settings });
    }
    Ok(heartbeats)
}

impl Daemon {
    /// Nothing runs beside the engine yet.
    pub(super) fn new(app: &App, store: Store, mcp: Place<McpServer>, request: &Request) -> Self {
        let context = Context {
            store,
            world: app.world.clone(),
            env: Arc::new(app.env.clone()),
            version: VERSION,
            started_at: app.world.clock.now(),
        };
        let listeners = Listeners::new(app, &request.config_path, &request.config, mcp);
        Self { context, listeners, tasks: TaskGroup::default() }
    }

    /// Step 8: the control socket.
    pub(super) async fn open_socket(&mut self, config: &Config) {
        self.listeners.lock().await.open_socket(&self.context, &config.socket);
    }

    /// Step 9: directories whose databases come and go, and a configuration that may change.
    pub(super) fn watch(
        &mut self,
        app: &App,
        request: &Request,
        watched: Vec<WatchedDir>,
        heartbeats: watch::Sender<Vec<Heartbeat>>,
    ) {
        let mut directories = Directories::new(&self.context);
        watched.into_iter().for_each(|dir| directories.watch(dir));
        let reloader = Reloader {
            app: app.embedded(),
            config_path: request.config_path.clone(),
            expand: request.expand,
            restore_missing: request.restore_missing,
            config: request.config.clone(),
            context: self.context.clone(),
            directories,
            listeners: Arc::clone(&self.listeners),
            heartbeats,
        };
        match request.from_file {
            true => self.tasks.spawn("reload", |stop| reloader.run(stop)),
            false => drop(reloader),
        }
    }

    /// Tells whoever the configuration names that all is well. Whom, can be changed through what comes back.
    ///
    /// # Errors
    /// See [`heartbeats`].
    pub(super) fn beat(&mut self, config: &Config, around: Surroundings<'_>) -> Result<watch::Sender<Vec<Heartbeat>>> {
        let (sender, receiver) = watch::channel(heartbeats(config, around)?);
        let store = self.context.store.clone();
        self.tasks.spawn("heartbeat", |stop| heartbeat::run(store, receiver, stop));
        Ok(sender)
    }

    /// Step 11: metrics and health.
    ///
    /// # Errors
    /// The address has no port.
    pub(super) async fn open_endpoint(&mut self, config: &Config) -> Result<()> {
        let Some(addr) = &config.addr else { return Ok(()) };
        self.listeners.lock().await.open_endpoint(&self.context, addr).await
    }
}

/// How long directory watchers, the heartbeat, a reload, and those who asked may take to end.
const HELPERS: Duration = Duration::from_millis(500);
/// How long those who look on may take to get their answers at the end.
const LAST_ANSWERS: Duration = Duration::from_millis(250);

/// Whether `work` ended in time.
async fn ends_within<T>(limit: Duration, skip: &CancellationToken, work: impl Future<Output = T>) -> bool {
    skip.run_until_cancelled(tokio::time::timeout(limit, work)).await.is_some_and(|ended| ended.is_ok())
}

fn behind_error(whose: String) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{whose} may lack commits: the final sync did not succeed"))
        .hint("nothing is lost while the database and its local state are there: the next start goes on")
}

impl Engine for Daemon {
    async fn once(&self, once: Once) -> Result<()> {
        self.context.store.run_once(once.force_snapshot, once.enforce_retention).await
    }

    async fn close(mut self, skip: CancellationToken) -> Result<()> {
        let began = Instant::now();
        if !ends_within(HELPERS, &skip, self.tasks.stop()).await {
            self.tasks.abandon().await;
        }
        // A reload that is still at work opens nothing any more that we would not see.
        let mut listeners = self.listeners.lock().await;
        let (control, endpoint, mcp) = listeners.leave();
        if let Some(control) = control {
            // A request that waits for a store is answered by the end.
            ends_within(HELPERS, &skip, control.stop()).await;
        }
        let behind = self.context.store.close_since(began, skip.clone()).await;
        let endpoint = async {
            if let Some(endpoint) = endpoint {
                endpoint.stop().await;
            }
        };
        let mcp = async {
            if let Some(mcp) = mcp {
                mcp.stop().await;
            }
        };
        ends_within(LAST_ANSWERS, &skip, futures::future::join(endpoint, mcp)).await;
        match behind.as_slice() {
            [] => Ok(()),
            [path] => Err(behind_error(format!("the replica of {}", path.display()))),
            [path, more @ ..] => {
                Err(behind_error(format!("the replicas of {} and {} other databases", path.display(), more.len())))
            }
        }
    }
}
