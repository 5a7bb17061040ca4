//! What runs beside the engine: the control socket, the HTTP endpoint. They are opened after the
//! databases; those through which work comes in are closed before them.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::super::App;
use super::super::version::VERSION;
use super::Once;
use super::supervise::Engine;
use crate::config::Config;
use crate::error::Result;
use crate::server::{Context, ControlServer, EndpointServer};
use crate::store::Store;

/// The engine with all that runs beside it.
#[derive(Debug)]
pub(super) struct Daemon {
    context: Context,
    control: Option<ControlServer>,
    endpoint: Option<EndpointServer>,
}

impl Daemon {
    /// Nothing runs beside the engine yet.
    pub(super) fn new(app: &App, store: Store) -> Self {
        let context = Context {
            store,
            world: app.world.clone(),
            env: Arc::new(app.env.clone()),
            version: VERSION,
            started_at: app.world.clock.now(),
        };
        Self { context, control: None, endpoint: None }
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
        if let Some(control) = self.control.take() {
            control.stop().await;
        }
        self.context.store.close(skip).await;
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.stop().await;
        }
    }
}
