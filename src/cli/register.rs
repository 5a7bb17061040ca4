//! `litestream register`: one more database for the running daemon.

use serde::Serialize;

use super::client::{Client, JSON, SOCKET, TIMEOUT_DO, one_path};
use super::flags::{CommandSpec, Flag, Kind, Matches};
use super::{App, Failure, output};
use crate::server::api::{RegisterReply, RegisterRequest};

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "register",
    summary: "adds a database to the running daemon",
    about: "The register command makes the running daemon replicate one more database, until the daemon ends.",
    synopsis: &["[OPTIONS] DB_PATH"],
    flags: &[
        Flag::value("replica", Kind::Text, "URL", &["Where to replicate to. Required."]),
        TIMEOUT_DO,
        SOCKET,
        JSON,
    ],
    examples: &[("Add a database.", EXAMPLE)],
};

const EXAMPLE: &str = "litestream register -replica s3://bucket/prefix /path/to/db";

#[derive(Serialize)]
struct Output {
    status: String,
    db_path: String,
    replica: String,
    socket: String,
}

pub(super) fn run(_app: &mut App, matches: &Matches) -> Result<(), Failure> {
    let client = Client::new(SPEC.name, matches, 30);
    let path = one_path(matches, EXAMPLE)?;
    let replica = matches.text("replica").to_owned();
    if replica.is_empty() {
        return Err(Failure::with_try("-replica is required", EXAMPLE));
    }
    client.check_timeout()?;
    let request = RegisterRequest { path: path.to_owned(), replica_url: replica.clone() };
    let reply: RegisterReply = client.post("/register", &request)?;
    let done = Output { status: reply.status, db_path: reply.path, replica, socket: client.socket };
    if matches.on("json") {
        return output::print(&output::json(&done)?);
    }
    let Output { status, db_path, replica, socket } = done;
    let status = status.replace('_', " ");
    output::print(&format!("status: {status}\ndb_path: {db_path}\nreplica: {replica}\nsocket: {socket}\n"))
}
