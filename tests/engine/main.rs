//! The database engine against real SQLite: whatever the application and foreign checkpointers
//! do, the local L0 files put together are the database, page by page.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod checkpoint_protocol;
mod layers;
mod links;
mod long_reader;
mod moving_the_mark;
mod outrun;
mod random_histories;
mod restarts;
mod sidecars;
mod snapshots;
mod support;
mod unindexed;
