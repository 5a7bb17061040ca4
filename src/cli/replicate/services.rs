//! What runs beside the engine: the control socket, the HTTP endpoint. They are opened after the
//! databases; those through which work comes in are closed before them. SIGHUP may change them
//! ([`super::reload`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::super::App;
use super::super::version::VERSION;
use super::mcp::Commands;
use super::reload::Reloader;
use super::supervise::Engine;
use super::{Once, Request};
use crate::config::{Config, DirSettings, Environment, SocketSettings, Surroundings};
use crate::error::Result;
use crate::server::{Context, ControlServer, EndpointServer, McpServer};
use crate::store::heartbeat::{self, Heartbeat, Scope};
use crate::store::{DirWatcher, Store};
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

/// What is listened on.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    control: Option<ControlServer>,
    endpoint: Option<EndpointServer>,
    mcp: Option<McpServer>,
}

impl Listeners {
    /// The control socket. Without it the program still does its work.
    fn open_socket(&mut self, context: &Context, settings: &SocketSettings) {
        if !settings.enabled {
            return;
        }
        match ControlServer::start(context.clone(), settings) {
            Ok(server) => self.control = Some(server),
            Err(err) => warn!(error = %err, hint = err.hint_text(), "failed to start control server"),
        }
    }

    /// Closes the control socket, and opens it as the settings now say.
    pub(super) async fn change_socket(&mut self, context: &Context, settings: &SocketSettings) {
        if let Some(old) = self.control.take() {
            old.stop().await;
        }
        self.open_socket(context, settings);
    }

    /// Moves metrics and health to another address. If that cannot be listened on, they stay where they are, and
    /// `false` is returned.
    ///
    /// # Errors
    /// The address has no port.
    pub(super) async fn change_endpoint(&mut self, context: &Context, addr: Option<&str>) -> Result<bool> {
        let new = match addr {
            Some(addr) => match EndpointServer::start(context.clone(), addr).await? {
                Some(new) => Some(new),
                None => return Ok(false),
            },
            None => None,
        };
        if let Some(old) = std::mem::replace(&mut self.endpoint, new) {
            old.stop().await;
        }
        Ok(true)
    }

    /// Ends the MCP server, and starts it as the settings now say.
    pub(super) async fn change_mcp(&mut self, app: &App, config_path: &str, config: &Config) {
        if let Some(old) = self.mcp.take() {
            old.stop().await;
        }
        self.mcp = open_mcp(app, config_path, config).await;
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

/// Step 2: the MCP server, before anything slow.
pub(super) async fn open_mcp(app: &App, config_path: &str, config: &Config) -> Option<McpServer> {
    let settings = config.mcp.as_ref()?;
    let commands = Commands::new(app, config_path, settings);
    McpServer::start(app.world.clone(), settings, Arc::new(commands)).await
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
    pub(super) fn new(app: &App, store: Store, mcp: Option<McpServer>) -> Self {
        let context = Context {
            store,
            world: app.world.clone(),
            env: Arc::new(app.env.clone()),
            version: VERSION,
            started_at: app.world.clock.now(),
        };
        let listeners = Arc::new(Mutex::new(Listeners { mcp, ..Listeners::default() }));
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
        self.listeners.lock().await.change_endpoint(&self.context, config.addr.as_deref()).await?;
        Ok(())
    }
}

impl Engine for Daemon {
    async fn once(&self, once: Once) -> Result<()> {
        self.context.store.run_once(once.force_snapshot, once.enforce_retention).await
    }

    async fn close(mut self, skip: CancellationToken) {
        skip.run_until_cancelled(self.tasks.stop()).await;
        // A reload that is still at work opens nothing any more that we would not see.
        let mut listeners = self.listeners.lock().await;
        let Listeners { control, endpoint, mcp } = std::mem::take(&mut *listeners);
        if let Some(control) = control {
            control.stop().await;
        }
        self.context.store.close(skip).await;
        if let Some(endpoint) = endpoint {
            endpoint.stop().await;
        }
        if let Some(mcp) = mcp {
            mcp.stop().await;
        }
    }
}
