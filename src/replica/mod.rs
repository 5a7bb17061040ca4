//! Copies of databases on storage: LTX files by level, on any backend.
//!
//! [`ReplicaClient`] is the seam: keys and bytes. [`Replica`] speaks of levels and TXIDs. Backends
//! live in one file each; retries, limits and faults are wrappers over the same trait.

#[cfg(feature = "abs")]
pub mod abs;
mod bridge;
mod build;
mod client;
mod exclusion;
pub mod faulty;
pub mod file;
mod find;
#[cfg(any(feature = "sftp", feature = "webdav"))]
mod from_header;
#[cfg(feature = "gs")]
pub mod gs;
mod hurry;
mod layout;
mod location;
pub mod memory;
#[cfg(feature = "nats")]
pub mod nats;
mod open;
#[cfg(feature = "oss")]
pub mod oss;
mod reader;
#[cfg(any(feature = "sftp", feature = "nats"))]
mod refusal;
#[expect(clippy::module_inception, reason = "the type of that name lives there")]
mod replica;
#[cfg(any(feature = "web", feature = "nats", feature = "sftp"))]
pub mod requests;
#[cfg(feature = "s3")]
pub mod s3;
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

pub(crate) use bridge::{FedReader, bridge};
pub use build::build;
pub use client::{ByteStream, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
pub use exclusion::Exclusion;
pub use find::find_replicas;
pub(crate) use hurry::hurried;
pub use layout::Layout;
pub(crate) use location::store_of;
pub use open::client;
pub use replica::{FileInfo, Replica};
pub use stats::{Operation, Request, RequestStats};
pub use stream::once;
