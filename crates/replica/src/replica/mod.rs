//! Copies of databases on storage: LTX files by level, on any backend.
//!
//! [`Replica`] speaks of levels and TXIDs, over the keys and bytes of a [`ReplicaClient`].

mod bridge;
mod build;
mod find;
mod layout;
mod reader;
#[expect(clippy::module_inception, reason = "the type of that name lives there")]
mod replica;

pub(crate) use bridge::{FedReader, bridge};
pub use build::build;
pub use find::find_replicas;
pub use layout::Layout;
// So that who works with a replica needs one import.
#[doc(no_inline)]
pub use litestream_storage::*;
pub use replica::{FileInfo, Replica};
