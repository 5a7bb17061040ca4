//! Settings → replica.

use std::sync::Arc;

use super::client::ReplicaClient;
use super::file::FileClient;
use super::layout::Layout;
use super::replica::Replica;
#[cfg(feature = "s3")]
use super::s3::S3Client;
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
        #[cfg(feature = "s3")]
        ReplicaKind::S3(s3) => (Arc::new(S3Client::new((**s3).clone(), world.clone())), Layout::Hex4),
        other => return Err(other.not_built()),
    };
    Ok(Replica::new(client, layout))
}
