//! Settings → client.

use std::sync::Arc;

#[cfg(feature = "abs")]
use super::abs::AbsClient;
use super::client::ReplicaClient;
use super::file::FileClient;
#[cfg(feature = "gs")]
use super::gs::GsClient;
#[cfg(feature = "nats")]
use super::nats::NatsClient;
#[cfg(feature = "oss")]
use super::oss::OssClient;
#[cfg(feature = "s3")]
use super::s3::S3Client;
#[cfg(feature = "sftp")]
use super::sftp::SftpClient;
#[cfg(feature = "webdav")]
use super::webdav::WebdavClient;
use crate::error::Result;
use crate::settings::ReplicaKind;
use crate::sys::World;

/// Makes the client that settings ask for. Nothing is connected to yet.
///
/// # Errors
/// A backend that is not part of this build.
pub fn client(settings: &ReplicaKind, world: &World) -> Result<Arc<dyn ReplicaClient>> {
    Ok(match settings {
        ReplicaKind::File(file) => Arc::new(FileClient::new(world.clone(), file.path.clone())),
        #[cfg(feature = "s3")]
        ReplicaKind::S3(s3) => Arc::new(S3Client::new((**s3).clone(), world.clone())),
        #[cfg(feature = "sftp")]
        ReplicaKind::Sftp(sftp) => Arc::new(SftpClient::new(sftp.clone(), world.clone())),
        #[cfg(feature = "webdav")]
        ReplicaKind::Webdav(webdav) => Arc::new(WebdavClient::new(webdav.clone(), world.clone())),
        #[cfg(feature = "nats")]
        ReplicaKind::Nats(nats) => Arc::new(NatsClient::new((**nats).clone(), world.clone())),
        #[cfg(feature = "abs")]
        ReplicaKind::Abs(abs) => Arc::new(AbsClient::new(abs.clone(), world.clone())),
        #[cfg(feature = "gs")]
        ReplicaKind::Gs(gs) => Arc::new(GsClient::new(gs.clone(), world.clone())),
        #[cfg(feature = "oss")]
        ReplicaKind::Oss(oss) => Arc::new(OssClient::new(oss.clone(), world.clone())),
        #[allow(unreachable_patterns, reason = "where every backend is part of the build")]
        other => return Err(other.not_built()),
    })
}
