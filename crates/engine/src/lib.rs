//! The engine of Litestream: one database observed through SQLite's own library, its commits written as LTX files, and
//! the store that brings them to replicas. Part of the program; not a library to build on.

pub mod db;
pub mod sqlite;
pub mod store;
pub mod telemetry;

use litestream_core::{error, ltx, sys, types, wal};
use litestream_replica::{compaction, replica, restore};
