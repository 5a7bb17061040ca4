//! The built binary, as a user and a script see it: arguments in; stdout, stderr and exit code out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod application;
mod config;
mod daemon;
mod flags;
mod replicate;
mod restore;
mod support;
