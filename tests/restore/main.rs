//! Restores of replicas that Litestream wrote, of damaged ones, and onto destinations that are not empty.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod destination;
mod fixtures;
mod follow;
mod follow_readers;
mod hostile;
mod replica;
mod resume;
mod salvage;
mod support;
mod v3;
