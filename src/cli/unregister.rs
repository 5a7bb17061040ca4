//! `litestream unregister`: one database less for the running daemon.

use serde::Serialize;

use super::client::{Client, JSON, SOCKET, TIMEOUT_DO, one_path};
use super::flags::{CommandSpec, Flag, Matches};
use super::{App, Failure, output};
use crate::server::api::{ChangeReply, PathRequest};

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "unregister",
    summary: "removes a database from the running daemon",
    about: "The unregister command makes the running daemon sync a database for the last time and forget it.\n\
            Neither the database nor its replica is touched.",
    synopsis: &["[OPTIONS] DB_PATH"],
    flags: &[TIMEOUT_DO, SOCKET, Flag::switch("dry-run", &["Shows what would be asked for, without asking."]), JSON],
    examples: &[("Remove a database.", "litestream unregister /path/to/db")],
};

#[derive(Serialize)]
struct Output {
    status: String,
    db_path: String,
    final_txid: u64,
    socket: String,
}

pub(super) fn run(_app: &mut App, matches: &Matches) -> Result<(), Failure> {
    let client = Client::new(SPEC.name, matches, 30);
    let path = one_path(matches, "litestream unregister /path/to/db")?;
    client.check_timeout()?;
    if matches.on("dry-run") {
        return output::print(&format!(
            "Dry run: unregister request preview\n  database: {path}\n  socket: {}\n  \
             replicas: daemon-managed replica for this database\n  \
             final sync: daemon close will sync the database and replica before the command completes\n  \
             timeout: {}s\nNo unregister request was sent.\n",
            client.socket, client.timeout
        ));
    }
    let request = PathRequest { path: path.to_owned(), timeout: client.timeout };
    let reply: ChangeReply = client.post("/unregister", &request)?;
    let done = Output { status: reply.status, db_path: reply.path, final_txid: reply.txid, socket: client.socket };
    if matches.on("json") {
        return output::print(&output::json(&done)?);
    }
    let Output { status, db_path, final_txid, socket } = done;
    output::print(&format!("status: {status}\ndb_path: {db_path}\nfinal_txid: {final_txid}\nsocket: {socket}\n"))
}
