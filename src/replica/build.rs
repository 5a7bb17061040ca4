//! Settings → replica.

use std::sync::Arc;

#[cfg(feature = "abs")]
use super::abs::AbsClient;
use super::client::ReplicaClient;
use super::file::FileClient;
#[cfg(feature = "gs")]
use super::gs::GsClient;
use super::layout::Layout;
#[cfg(feature = "nats")]
use super::nats::NatsClient;
#[cfg(feature = "oss")]
use super::oss::OssClient;
use super::replica::Replica;
#[cfg(feature = "s3")]
use super::s3::S3Client;
#[cfg(feature = "sftp")]
use super::sftp::SftpClient;
#[cfg(feature = "webdav")]
use super::webdav::WebdavClient;
use crate::error::Result;
use crate::settings::{ReplicaKind, ReplicaSettings};
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
        #[cfg(feature = "sftp")]
        ReplicaKind::Sftp(sftp) => (Arc::new(SftpClient::new(sftp.clone(), world.clone())), Layout::Decimal),
        #[cfg(feature = "webdav")]
        ReplicaKind::Webdav(webdav) => (Arc::new(WebdavClient::new(webdav.clone(), world.clone())), Layout::Decimal),
        #[cfg(feature = "nats")]
        ReplicaKind::Nats(nats) => (Arc::new(NatsClient::new((**nats).clone(), world.clone())), Layout::Decimal),
        #[cfg(feature = "abs")]
        ReplicaKind::Abs(abs) => (Arc::new(AbsClient::new(abs.clone(), world.clone())), Layout::Decimal),
        #[cfg(feature = "gs")]
        ReplicaKind::Gs(gs) => (Arc::new(GsClient::new(gs.clone(), world.clone())), Layout::Decimal),
        #[cfg(feature = "oss")]
        ReplicaKind::Oss(oss) => (Arc::new(OssClient::new(oss.clone(), world.clone())), Layout::Hex4),
        #[allow(unreachable_patterns, reason = "where every backend is part of the build")]
        other => return Err(other.not_built()),
    };
    Ok(Replica::new(client, layout))
}
