//! `litestream version`

use super::flags::{CommandSpec, Flag, Matches};
use super::{App, Failure, output};

/// The version of this program, without decoration.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "version",
    summary: "prints the version of this program",
    about: "The version command prints the version of this program.",
    synopsis: &["[arguments]"],
    flags: &[Flag::switch("verbose", &["Also prints what it was built with and for."])],
    examples: &[],
};

pub(super) fn run(_app: &mut App, matches: &Matches) -> Result<(), Failure> {
    if !matches.on("verbose") {
        return output::print(&format!("{VERSION}\n"));
    }
    let rust = env!("CARGO_PKG_RUST_VERSION");
    let (os, arch) = (std::env::consts::OS, go_arch(std::env::consts::ARCH));
    output::print(&format!("Version:     {VERSION}\nRust Version: {rust} or later\nOS/Arch:     {os}/{arch}\n"))
}

/// Architecture names as in the reference's downloads.
fn go_arch(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
