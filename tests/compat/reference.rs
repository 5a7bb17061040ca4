//! The real program.

use std::path::PathBuf;
use std::process::{Command, Output};

/// Path of the reference binary: `$LITESTREAM_REFERENCE`, else `target/reference/bin/litestream`.
pub(crate) fn binary() -> PathBuf {
    let path = std::env::var_os("LITESTREAM_REFERENCE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/reference/bin/litestream"),
        PathBuf::from,
    );
    assert!(
        path.is_file(),
        "Litestream 0.5.17 is needed for this test, and {} is not there. Download it from \
         https://github.com/benbjohnson/litestream/releases/tag/v0.5.17 and put it there, or set \
         LITESTREAM_REFERENCE to where it is.",
        path.display()
    );
    path
}

/// Runs it to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    let output = Command::new(binary()).args(args).output();
    output.unwrap_or_else(|e| panic!("cannot run {}: {e}", binary().display()))
}
