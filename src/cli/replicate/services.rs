//! What runs beside the engine: the control socket, the HTTP endpoint. They are opened after the
//! databases; those through which work comes in are closed before them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::super::App;
use super::super::version::VERSION;
use super::mcp::Commands;
use super::reload::Reloader;
use super::supervise::Engine;
use super::{Once, Request};
use crate::config::{Config, DirSettings, Environment};
use crate::error::Result;
use crate::server::{Context, ControlServer, EndpointServer, McpServer};
use crate::store::{DirWatcher, Store, heartbeat};
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
    control: Option<ControlServer>,
    endpoint: Option<EndpointServer>,
    mcp: Option<McpServer>,
    /// Directory watchers and the heartbeat.
    tasks: TaskGroup,
}

/// Step 2: the MCP server, before anything slow.
pub(super) async fn open_mcp(app: &App, request: &Request) -> Option<McpServer> {
    let settings = request.config.mcp.as_ref()?;
    let commands = Commands::new(app, &request.config_path, settings);
    McpServer::start(app.world.clone(), settings, Arc::new(commands)).await
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
        Self { context, control: None, endpoint: None, mcp, tasks: TaskGroup::default() }
    }

    /// Step 8: the control socket. Without it the program still does its work.
    pub(super) fn open_socket(&mut self, config: &Config) {
        if !config.socket.enabled {
            return;
        }
        match ControlServer::start(self.context.clone(), &config.socket) {
            Ok(server) => self.control = Some(server),
            Err(err) => warn!(error = %err, hint = err.hint_text(), "failed to start control server"),
        }
    }

    /// Step 9: directories whose databases come and go, and a configuration that may change.
    pub(super) fn watch(&mut self, app: &App, request: &Request, watched: Vec<WatchedDir>) {
        let mut directories = Directories::new(&self.context);
        watched.into_iter().for_each(|dir| directories.watch(dir));
        let reloader = Reloader {
            app: app.embedded(),
            config_path: request.config_path.clone(),
            expand: request.expand,
            restore_missing: request.restore_missing,
            config: request.config.clone(),
            store: self.context.store.clone(),
            directories,
        };
        match request.from_file {
            true => self.tasks.spawn("reload", |stop| reloader.run(stop)),
            false => drop(reloader),
        }
    }

    /// Tells whoever the configuration names that all is well.
    pub(super) fn beat(&mut self, config: &Config) {
        if let Some(settings) = config.heartbeat.clone() {
            let store = self.context.store.clone();
            self.tasks.spawn("heartbeat", |stop| heartbeat::run(store, settings, stop));
        }
    }

    /// Step 11: metrics and health.
    ///
    /// # Errors
    /// The address has no port.
    pub(super) async fn open_endpoint(&mut self, config: &Config) -> Result<()> {
        if let Some(addr) = &config.addr {
            self.endpoint = EndpointServer::start(self.context.clone(), addr).await?;
        }
        Ok(())
    }
}

impl Engine for Daemon {
    async fn once(&self, once: Once) -> Result<()> {
        self.context.store.run_once(once.force_snapshot, once.enforce_retention).await
    }

    async fn close(mut self, skip: CancellationToken) {
        skip.run_until_cancelled(self.tasks.stop()).await;
        if let Some(control) = self.control.take() {
            control.stop().await;
        }
        self.context.store.close(skip).await;
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.stop().await;
        }
        if let Some(mcp) = self.mcp.take() {
            mcp.stop().await;
        }
    }
}
