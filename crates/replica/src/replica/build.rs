//! Settings → replica.

use super::client;
use super::layout::Layout;
use super::replica::Replica;
use crate::error::Result;
use crate::settings::{ReplicaKind, ReplicaSettings};
use crate::sys::World;

/// Makes the replica that settings describe. Nothing is connected to yet.
///
/// # Errors
/// A backend that is not part of this build.
pub fn build(settings: &ReplicaSettings, world: &World) -> Result<Replica> {
    Ok(Replica::new(client(&settings.kind, world)?, layout(&settings.kind)))
}

/// How the reference names levels there.
fn layout(kind: &ReplicaKind) -> Layout {
    match kind {
        ReplicaKind::S3(_) | ReplicaKind::Oss(_) => Layout::Hex4,
        ReplicaKind::File(_)
        | ReplicaKind::Gs(_)
        | ReplicaKind::Abs(_)
        | ReplicaKind::Sftp(_)
        | ReplicaKind::Webdav(_)
        | ReplicaKind::Nats(_) => Layout::Decimal,
    }
}
