//! A drop-in replacement for Litestream 0.5: follows the write-ahead log of SQLite databases and
//! streams every commit to storage as LTX files; restores them to any point in time.
//!
//! `docs/architecture.md` shows the house: who may import whom, and the guarantees by number.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod server;
pub mod telemetry;

pub use litestream_core::{error, ltx, sys, types, wal};
pub use litestream_engine::{db, sqlite, store};
pub use litestream_replica::{compaction, replica, restore, v3};
pub use litestream_storage::settings;
