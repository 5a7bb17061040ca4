//! Copies of databases on storage: LTX files by level, on any backend.
//!
//! [`ReplicaClient`] is the seam: keys and bytes. [`Replica`] speaks of levels and TXIDs. Backends
//! live in one file each; retries, limits and faults are wrappers over the same trait.

mod bridge;
mod build;
mod client;
pub mod faulty;
pub mod file;
mod find;
mod layout;
pub mod memory;
mod reader;
#[expect(clippy::module_inception, reason = "the type of that name lives there")]
mod replica;
#[cfg(feature = "s3")]
pub mod requests;
#[cfg(feature = "s3")]
pub mod s3;
mod stats;
mod stream;

pub(crate) use bridge::{FedReader, bridge};
pub use build::build;
pub use client::{ByteStream, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
pub use find::find_replicas;
pub use layout::Layout;
pub use replica::{FileInfo, Replica};
pub use stats::{Operation, Request, RequestStats};
pub use stream::once;
