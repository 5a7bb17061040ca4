//! `litestream`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(litestream::cli::run(std::env::args_os()))
}
