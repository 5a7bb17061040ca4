//! The built binary, as a user and a script see it: arguments in; stdout, stderr and exit code out.

mod config;
mod flags;
mod restore;
mod support;
