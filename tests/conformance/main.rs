//! One set of tests for every [`ReplicaClient`], wrappers included: what the layers above rely on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "abs")]
mod abs;
#[cfg(feature = "gs")]
mod gs;
#[cfg(feature = "oss")]
mod oss;
#[cfg(feature = "s3")]
mod s3;
mod suite;

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
#[cfg(any(feature = "abs", feature = "gs", feature = "oss"))]
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
