//! Where replicas of Litestream are kept: one trait for every store, its implementations, and the settings that
//! name one.
//!
//! [`ReplicaClient`] is the seam: keys and bytes. Backends live in one file or folder each, and are parts of the build
//! by feature (`abs`, `gs`, `nats`, `oss`, `s3`, `sftp`, `webdav`; directories are always there). Faults for tests are
//! a wrapper over the same trait ([`faulty`]). [`settings`] say what URLs, keys and the environment mean; [`client`]
//! makes a client of them.
//!
//! ```
//! use futures::TryStreamExt;
//! use litestream_core::sys::World;
//! use litestream_core::types::Timestamp;
//! use litestream_storage::settings::{Environment, Surroundings, replica_from_url};
//! use litestream_storage::{Key, PutOptions, Stamps, client, once};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> litestream_core::error::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let url = format!("file://{}", dir.path().display());
//! let (world, env) = (World::system(), Environment::capture());
//! let around = Surroundings { env: &env, fs: world.fs.as_ref() };
//! let client = client(&replica_from_url(&url, around)?.kind, &world)?;
//! client.init().await?;
//!
//! let key = Key::new("notes/first")?;
//! let stamp = Timestamp::from_millis(1_700_000_000_000);
//! client.put(&key, once("hello"), PutOptions { stamp, size: None, modes: None, exclusive: false }).await?;
//!
//! let found: Vec<_> = client.list(&Key::new("notes")?, None, Stamps::Cheap).try_collect().await?;
//! assert_eq!((found[0].key.as_str(), found[0].size), ("notes/first", 5));
//! let bytes: Vec<_> = client.get(&key, Some(1..3)).await?.try_collect().await?;
//! assert_eq!(bytes.concat(), b"el");
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

#[cfg(feature = "abs")]
pub mod abs;
mod client;
mod exclusion;
pub mod faulty;
pub mod file;
#[cfg(any(feature = "sftp", feature = "webdav"))]
mod from_header;
#[cfg(feature = "gs")]
pub mod gs;
mod hurry;
mod location;
pub mod memory;
#[cfg(feature = "nats")]
pub mod nats;
mod open;
#[cfg(feature = "oss")]
pub mod oss;
#[cfg(any(feature = "sftp", feature = "nats"))]
mod refusal;
#[cfg(any(feature = "web", feature = "nats", feature = "sftp"))]
pub mod requests;
#[cfg(feature = "s3")]
pub mod s3;
pub mod settings;
#[cfg(feature = "sftp")]
pub mod sftp;
#[cfg(any(feature = "abs", feature = "gs", feature = "nats", feature = "oss", feature = "s3"))]
mod stamp;
mod stats;
mod stream;
#[cfg(any(feature = "sftp", feature = "webdav"))]
mod tree;
#[cfg(feature = "web")]
#[cfg_attr(
    not(all(feature = "abs", feature = "gs", feature = "oss", feature = "webdav")),
    allow(dead_code, reason = "a build with few backends does not need all of it")
)]
mod web;
#[cfg(feature = "webdav")]
pub mod webdav;

pub use client::{ByteStream, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
pub use exclusion::Exclusion;
#[doc(hidden)]
pub use hurry::hurried;
#[doc(hidden)]
pub use location::store_of;
pub use open::client;
pub use stats::{Operation, Request, RequestStats};
pub use stream::once;
#[doc(hidden)]
pub use stream::{of_file, read_chunk};

#[cfg(any(feature = "sftp", feature = "webdav"))]
use litestream_core::ltx;
use litestream_core::{error, sys, types};
