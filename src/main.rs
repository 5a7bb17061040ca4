//! `litestream`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    litestream::sys::give_memory_back();
    litestream::sys::allow_many_descriptors();
    ExitCode::from(litestream::cli::run(std::env::args_os()))
}
