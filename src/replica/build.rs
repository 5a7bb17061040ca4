//! Settings → replica.

use std::sync::Arc;

use super::client::ReplicaClient;
use super::file::FileClient;
use super::layout::Layout;
use super::replica::Replica;
use crate::config::{ReplicaKind, ReplicaSettings};
use crate::error::Result;
use crate::sys::World;

/// Makes the client a configuration asks for. Nothing is connected to yet.
///
/// # Errors
/// A backend that is not part of this build.
pub fn build(settings: &ReplicaSettings, world: &World) -> Result<Replica> {
    let (client, layout): (Arc<dyn ReplicaClient>, Layout) = match &settings.kind {
        ReplicaKind::File(file) => (Arc::new(FileClient::new(world.clone(), file.path.clone())), Layout::Decimal),
        other => return Err(other.not_built()),
    };
    Ok(Replica::new(client, layout))
}
