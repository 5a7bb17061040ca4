//! Databases with their targets: who may write where, what happens to lost state, and the defects of
//! Litestream 0.5.17 that show only when everything plays together.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod defects;
mod emptied;
mod lost_state;
mod registry;
mod stopping;
mod support;
mod two_writers;
