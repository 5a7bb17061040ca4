//! Compaction and retention: whatever happens in whatever order, what could be restored can be.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod histories;
mod merging;
mod rng;
mod store;
