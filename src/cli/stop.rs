//! `litestream stop`

use super::client::{JSON, SOCKET, TIMEOUT_DO};
use super::flags::{CommandSpec, Matches};
use super::start::change;
use super::{App, Failure};

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "stop",
    summary: "stops replicating a database of the running daemon",
    about: "The stop command makes the running daemon sync a database for the last time and leave it alone.",
    synopsis: &["[OPTIONS] DB_PATH"],
    flags: &[TIMEOUT_DO, SOCKET, JSON],
    examples: &[("Stop a database, for example before replacing it.", "litestream stop /path/to/db")],
};

pub(super) fn run(_app: &mut App, matches: &Matches) -> Result<(), Failure> {
    change(matches, SPEC.name, "stopped")
}
