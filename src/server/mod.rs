//! What operators and their tools talk to while the program runs: the control socket, and the HTTP
//! endpoint with metrics, health and the status page.
//!
//! Guarantees:
//! 1. Nobody who talks to a server can hold replication up: servers only read copies of the state,
//!    or ask the store for work that it does by itself (`http`).
//! 2. Whatever is sent is bounded in size, in time and in number of connections (`http`).
//! 3. A socket that somebody listens on is never taken over, and never removed (`socket`).

pub mod api;
mod control;
mod decode;
mod endpoint;
mod http;
mod mcp;
mod page;
mod socket;

use std::sync::Arc;

pub use control::ControlServer;
pub use decode::FromBody;
pub use endpoint::{EndpointServer, Readiness, check_address};
pub use http::Serving;
pub use mcp::{McpServer, TOOLS, Tool, ToolOutcome, Toolbox};

use crate::config::{Environment, Surroundings};
use crate::store::Store;
use crate::sys::World;
use crate::types::Timestamp;

/// What servers speak for.
#[derive(Debug, Clone)]
pub struct Context {
    /// The databases.
    pub store: Store,
    /// Clock and files.
    pub world: World,
    /// What paths in requests are resolved against.
    pub env: Arc<Environment>,
    /// Of this program.
    pub version: &'static str,
    /// When the program began.
    pub started_at: Timestamp,
}

impl Context {
    fn surroundings(&self) -> Surroundings<'_> {
        Surroundings { env: &self.env, fs: self.world.fs.as_ref() }
    }
}
