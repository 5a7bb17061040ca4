//! One set of tests for every [`ReplicaClient`], wrappers included: what the layers above rely on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "abs")]
mod abs;
#[cfg(feature = "gs")]
mod gs;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "oss")]
mod oss;
#[cfg(any(feature = "nats", feature = "sftp", feature = "webdav"))]
mod proxy;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "s3")]
mod s3_wire;
#[cfg(any(feature = "nats", feature = "sftp", feature = "webdav"))]
mod settings;
#[cfg(feature = "sftp")]
mod sftp;
mod suite;
#[cfg(feature = "webdav")]
mod webdav;
#[cfg(feature = "webdav")]
mod webdav_fake;

use std::sync::Arc;

use litestream::replica::faulty::Faulty;
use litestream::replica::file::FileClient;
use litestream::replica::memory::MemoryClient;
use litestream::sys::World;

/// Runs the suite once per implementation. `$make` yields the client and whatever must outlive it.
macro_rules! conformance {
    ($name:ident, $make:expr) => {
        mod $name {
            use super::*;

            macro_rules! case {
                ($case:ident) => {
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn $case() {
                        let (client, _guard) = $make;
                        suite::$case(client).await;
                    }
                };
            }
            suite::for_each_case!(case);
        }
    };
}

conformance!(memory, (Arc::new(MemoryClient::new()), ()));

conformance!(file, {
    let dir = tempfile::tempdir().unwrap();
    (Arc::new(FileClient::new(World::system(), dir.path().join("deep/er/replica"))), dir)
});

conformance!(faulty_over_file, {
    let dir = tempfile::tempdir().unwrap();
    let inner = Arc::new(FileClient::new(World::system(), dir.path().to_owned()));
    (Arc::new(Faulty::new(inner)), dir)
});

/// As above, against services that `tests/servers/s3.sh` starts: `tests/servers/s3.sh cargo test -- --ignored`.
#[cfg(feature = "s3")]
macro_rules! s3_conformance {
    ($name:ident, $service:literal) => {
        mod $name {
            use super::*;

            macro_rules! case {
                ($case:ident) => {
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    #[ignore = "needs the services of tests/servers/s3.sh"]
                    async fn $case() {
                        suite::$case(Arc::new(s3::Service::named($service).client(stringify!($case), ""))).await;
                    }
                };
            }
            suite::for_each_case!(case);
        }
    };
}

#[cfg(feature = "s3")]
s3_conformance!(s3_moto, "moto");
#[cfg(feature = "s3")]
s3_conformance!(s3_ceph, "ceph");

/// As above, against a server that a script of `tests/servers` starts. `$make` is given the case's name.
#[cfg(any(feature = "abs", feature = "gs", feature = "nats", feature = "oss", feature = "sftp", feature = "webdav"))]
macro_rules! served_conformance {
    ($name:ident, $needs:literal, $make:expr) => {
        mod $name {
            use super::*;

            macro_rules! case {
                ($case:ident) => {
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    #[ignore = $needs]
                    async fn $case() {
                        suite::$case(Arc::new($make(stringify!($case)))).await;
                    }
                };
            }
            suite::for_each_case!(case);
        }
    };
}

#[cfg(feature = "abs")]
served_conformance!(abs_azurite, "needs the server of tests/servers/abs.sh", abs::client);
#[cfg(feature = "gs")]
served_conformance!(gs_fake, "needs the server of tests/servers/gs.sh", gs::client);
#[cfg(feature = "oss")]
served_conformance!(oss_fake, "needs the server of tests/servers/oss.sh", oss::client);
#[cfg(feature = "sftp")]
served_conformance!(sftp_openssh, "needs the server of tests/servers/sftp.sh", |case: &str| sftp::Server::get()
    .client(case));
#[cfg(feature = "webdav")]
served_conformance!(webdav_apache, "needs the servers of tests/servers/webdav.sh", |case: &str| {
    webdav::Server::named("basic").client(case)
});
#[cfg(feature = "webdav")]
served_conformance!(webdav_apache_digest, "needs the servers of tests/servers/webdav.sh", |case: &str| {
    webdav::Server::named("digest").client(case)
});
#[cfg(feature = "webdav")]
served_conformance!(webdav_nginx, "needs the servers of tests/servers/webdav.sh", |case: &str| {
    webdav::Server::named("nginx").client(case)
});
#[cfg(feature = "webdav")]
served_conformance!(webdav_rclone, "needs the servers of tests/servers/webdav.sh", |case: &str| {
    webdav::Server::named("rclone").client(case)
});
#[cfg(feature = "nats")]
served_conformance!(nats_server, "needs the servers of tests/servers/nats.sh", nats::client);

/// The time in an LTX file's header is what `Stamps::Exact` gives, whatever the store says.
#[cfg(any(feature = "sftp", feature = "webdav"))]
async fn stamps_from_headers(client: Arc<dyn litestream::replica::ReplicaClient>) {
    use futures::TryStreamExt as _;
    use litestream::ltx::Header;
    use litestream::replica::{Key, ObjectMeta, PutOptions, Stamps, once};
    use litestream::types::Timestamp;

    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/transcripts/data/ltx-basic/ltx/0/0000000000000001-0000000000000001.ltx");
    let bytes = std::fs::read(file).unwrap();
    let header = Header::decode(bytes[..Header::SIZE].try_into().unwrap()).unwrap();
    assert_ne!(header.timestamp.millis() % 1000, 0, "a test of milliseconds needs some");
    let dir = Key::new("ltx/0").unwrap();
    let other = Timestamp::from_millis(1_000_000_000_000);
    let opts = PutOptions { stamp: other, size: None, modes: None, exclusive: false };
    client.put(&dir.join("0000000000000001-0000000000000001.ltx").unwrap(), once(bytes), opts).await.unwrap();
    client.put(&dir.join("no-header.ltx").unwrap(), once(vec![7; 200]), opts).await.unwrap();
    let listed: Vec<ObjectMeta> = client.list(&dir, None, Stamps::Exact).try_collect().await.unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0].modified, header.timestamp);
    assert_ne!(listed[1].modified, header.timestamp);
}
