//! Copies of databases on storage: LTX files by level, on any backend.
//!
//! [`ReplicaClient`] is the seam: keys and bytes. Backends
//! live in one file each; retries, limits and faults are wrappers over the same trait.

mod client;
pub mod faulty;
pub mod file;
pub mod memory;
#[allow(dead_code)]
mod reader;
mod stream;

pub use client::{ByteStream, Key, Modes, ObjectMeta, PutOptions, ReplicaClient, Stamps};
pub use stream::once;
