//! What configuration files mean: the recorded behaviour of the reference on 318 files, and ours beyond it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod check;
mod fixtures;
mod place;
mod replicating;
mod secrets;
mod warnings;
