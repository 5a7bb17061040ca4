//! What is listened on: the control socket, the HTTP endpoint, the MCP server. The program does its work without any of
//! them. An address that somebody else has is tried again in the background: most often it is the process before us,
//! which still ends.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Mutex;
use tracing::{error, info, warn};

use super::super::App;
use super::mcp::Commands;
use crate::config::{Config, McpSettings, SocketSettings};
use crate::error::{Error, Result};
use crate::server::{Context, ControlServer, EndpointServer, McpServer};
use crate::sys::{Backoff, TaskGroup, World};

/// The first wait before an address is tried again, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// What came of listening somewhere.
#[derive(Debug)]
pub(super) enum Place<T> {
    Taken(T),
    /// Somebody else has it, for now.
    Busy,
    /// Not wanted, or not possible.
    Nowhere,
}

impl<T> Place<T> {
    /// The server if there is one; whether it is worth another try.
    fn of(started: Result<T>, say: impl FnOnce(&Error)) -> Self {
        match started {
            Ok(server) => Self::Taken(server),
            Err(err) => {
                say(&err);
                if err.is_transient() { Self::Busy } else { Self::Nowhere }
            }
        }
    }

    fn taken(self) -> Option<T> {
        match self {
            Self::Taken(server) => Some(server),
            Self::Busy | Self::Nowhere => None,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Listeners {
    control: Option<ControlServer>,
    endpoint: Option<EndpointServer>,
    mcp: Option<McpServer>,
    /// Those that wait for their addresses. Dropped, they wait no longer.
    waiting: Waiting,
    this: Weak<Mutex<Self>>,
}

#[derive(Debug, Default)]
struct Waiting {
    control: TaskGroup,
    endpoint: TaskGroup,
    mcp: TaskGroup,
}

/// What is left to be stopped.
type Servers = (Option<ControlServer>, Option<EndpointServer>, Option<McpServer>);

impl Listeners {
    /// With the MCP server, which is started before all others.
    pub(super) fn new(app: &App, config_path: &str, config: &Config, mcp: Place<McpServer>) -> Arc<Mutex<Self>> {
        Arc::new_cyclic(|this| {
            let (control, endpoint, waiting) = (None, None, Waiting::default());
            let mut listeners = Self { control, endpoint, mcp: None, waiting, this: this.clone() };
            listeners.put_mcp(app, config_path, config, mcp);
            Mutex::new(listeners)
        })
    }

    /// The control socket.
    pub(super) fn open_socket(&mut self, context: &Context, settings: &SocketSettings) {
        if !settings.enabled {
            return;
        }
        let say = |err: &Error| warn!(error = %err, hint = err.hint_text(), "failed to start control server");
        let place = Place::of(ControlServer::start(context.clone(), settings), say);
        if matches!(place, Place::Busy) {
            let (context, settings) = (context.clone(), settings.clone());
            let start = move || {
                let (context, settings) = (context.clone(), settings.clone());
                async move { ControlServer::start(context, &settings) }
            };
            self.waiting.control = keep_trying(&self.this, start, |listeners, server| listeners.control = Some(server));
        }
        self.control = place.taken();
    }

    /// Closes the control socket, and opens it as the settings now say.
    pub(super) async fn change_socket(&mut self, context: &Context, settings: &SocketSettings) {
        self.waiting.control = TaskGroup::default();
        if let Some(old) = self.control.take() {
            old.stop().await;
        }
        self.open_socket(context, settings);
    }

    /// Metrics and health.
    ///
    /// # Errors
    /// The address has no port.
    pub(super) async fn open_endpoint(&mut self, context: &Context, addr: &str) -> Result<()> {
        EndpointServer::announce(addr)?;
        let place = Place::of(EndpointServer::start(context.clone(), addr).await, say_no_endpoint);
        if matches!(place, Place::Busy) {
            let (context, addr) = (context.clone(), addr.to_owned());
            let start = move || {
                let (context, addr) = (context.clone(), addr.clone());
                async move { EndpointServer::start(context, &addr).await.inspect(|_| drop(EndpointServer::announce(&addr))) }
            };
            self.waiting.endpoint =
                keep_trying(&self.this, start, |listeners, server| listeners.endpoint = Some(server));
        }
        self.endpoint = place.taken();
        Ok(())
    }

    /// Moves metrics and health to another address. If that cannot be listened on, they stay where they are, and
    /// `false` is returned.
    ///
    /// # Errors
    /// The address has no port.
    pub(super) async fn change_endpoint(&mut self, context: &Context, addr: Option<&str>) -> Result<bool> {
        let new = match addr {
            Some(addr) => {
                EndpointServer::announce(addr)?;
                match Place::of(EndpointServer::start(context.clone(), addr).await, say_no_endpoint).taken() {
                    Some(new) => Some(new),
                    None => return Ok(false),
                }
            }
            None => None,
        };
        self.waiting.endpoint = TaskGroup::default();
        if let Some(old) = std::mem::replace(&mut self.endpoint, new) {
            old.stop().await;
        }
        Ok(true)
    }

    /// Ends the MCP server, and starts it as the settings now say.
    pub(super) async fn change_mcp(&mut self, app: &App, config_path: &str, config: &Config) {
        self.waiting.mcp = TaskGroup::default();
        if let Some(old) = self.mcp.take() {
            old.stop().await;
        }
        let place = open_mcp(app, config_path, config).await;
        self.put_mcp(app, config_path, config, place);
    }

    fn put_mcp(&mut self, app: &App, config_path: &str, config: &Config, place: Place<McpServer>) {
        if let (Place::Busy, Some(settings)) = (&place, &config.mcp) {
            let (world, settings) = (app.world.clone(), settings.clone());
            let commands = Arc::new(Commands::new(app, config_path, &settings));
            let start = move || start_mcp(world.clone(), settings.clone(), Arc::clone(&commands));
            self.waiting.mcp = keep_trying(&self.this, start, |listeners, server| listeners.mcp = Some(server));
        }
        self.mcp = place.taken();
    }

    /// Nobody waits for an address any more; those who are there are to be stopped.
    pub(super) fn leave(&mut self) -> Servers {
        self.waiting = Waiting::default();
        (self.control.take(), self.endpoint.take(), self.mcp.take())
    }
}

fn say_no_endpoint(err: &Error) {
    error!(error = %err, "cannot start metrics server");
}

/// Step 2: the MCP server, before anything slow.
pub(super) async fn open_mcp(app: &App, config_path: &str, config: &Config) -> Place<McpServer> {
    let Some(settings) = &config.mcp else { return Place::Nowhere };
    info!(addr = %settings.addr, "Starting MCP Streamable HTTP server");
    let commands = Arc::new(Commands::new(app, config_path, settings));
    let started = start_mcp(app.world.clone(), settings.clone(), commands).await;
    Place::of(started, |err| error!(error = %err, hint = err.hint_text(), "MCP server error"))
}

async fn start_mcp(world: World, settings: McpSettings, commands: Arc<Commands>) -> Result<McpServer> {
    McpServer::start(world, &settings, commands).await
}

/// Tries to start a server until that succeeds, then `put`s it among the others. Says only that: the failure was told.
fn keep_trying<S, F>(
    listeners: &Weak<Mutex<Listeners>>,
    start: impl Fn() -> F + Send + 'static,
    put: impl FnOnce(&mut Listeners, S) + Send + 'static,
) -> TaskGroup
where
    S: Send + 'static,
    F: Future<Output = Result<S>> + Send + 'static,
{
    let mut tasks = TaskGroup::default();
    let listeners = listeners.clone();
    tasks.spawn("waits for an address", move |stop| async move {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        while stop.run_until_cancelled(tokio::time::sleep(backoff.step())).await.is_some() {
            let Ok(server) = start().await else { continue };
            let attempts = backoff.failures();
            info!(attempts, "the address is free now");
            if let Some(listeners) = listeners.upgrade() {
                put(&mut *listeners.lock().await, server);
            }
            return;
        }
    });
    tasks
}
