//! `litestream start` and, but for its words, `litestream stop`.

use serde::Serialize;

use super::client::{Client, JSON, SOCKET, TIMEOUT_DO, one_path};
use super::flags::{CommandSpec, Matches};
use super::{App, Failure, output};
use crate::server::api::{ChangeReply, PathRequest};

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "start",
    summary: "starts replicating a database of the running daemon",
    about: "The start command makes the running daemon replicate a database again that was stopped.",
    synopsis: &["[OPTIONS] DB_PATH"],
    flags: &[TIMEOUT_DO, SOCKET, JSON],
    examples: &[("Start a database.", "litestream start /path/to/db")],
};

#[derive(Serialize)]
struct Output {
    status: String,
    db_path: String,
    state: &'static str,
    txid: u64,
    socket: String,
}

pub(super) fn run(_app: &mut App, matches: &Matches) -> Result<(), Failure> {
    change(matches, SPEC.name, "running")
}

/// Asks for a change of state, and prints it as done.
pub(super) fn change(matches: &Matches, command: &'static str, state: &'static str) -> Result<(), Failure> {
    let client = Client::new(command, matches, 30);
    let path = one_path(matches, &format!("litestream {command} /path/to/db"))?;
    let request = PathRequest { path: path.to_owned(), timeout: client.timeout };
    let reply: ChangeReply = client.post(&format!("/{command}"), &request)?;
    let done = Output { status: reply.status, db_path: reply.path, state, txid: reply.txid, socket: client.socket };
    if matches.on("json") {
        return output::print(&output::json(&done)?);
    }
    let Output { status, db_path, state, txid, socket } = done;
    output::print(&format!("status: {status}\ndb_path: {db_path}\nstate: {state}\ntxid: {txid}\nsocket: {socket}\n"))
}
