//! `litestream sync`: replicate now.

use serde::Serialize;

use super::client::{Client, JSON, SOCKET, TIMEOUT_DO, one_path};
use super::flags::{CommandSpec, Flag, Matches};
use super::{App, Failure, output};
use crate::server::api::{SyncReply, SyncRequest};

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "sync",
    summary: "makes the running daemon sync a database now",
    about: "The sync command makes the running daemon read everything that was committed to a database until now.\n\
            With -wait it returns only after the replica has it too.",
    synopsis: &["[OPTIONS] DB_PATH"],
    flags: &[Flag::switch("wait", &["Also waits for the upload."]), TIMEOUT_DO, SOCKET, JSON],
    examples: &[(
        "Before a deployment: everything committed so far is on the replica.",
        "litestream sync -wait /path/to/db",
    )],
};

#[derive(Serialize)]
struct Output {
    db_path: String,
    txid: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    replica_txid: Option<u64>,
    duration_ms: u64,
}

pub(super) fn run(app: &mut App, matches: &Matches) -> Result<(), Failure> {
    let client = Client::new(SPEC.name, matches, 30);
    let path = one_path(matches, "litestream sync /path/to/db")?;
    client.check_timeout()?;
    let wait = matches.on("wait");
    let request = SyncRequest { path: path.to_owned(), wait, timeout: client.timeout };
    let began = app.world.clock.elapsed();
    let reply: SyncReply = client.post("/sync", &request)?;
    let took = app.world.clock.elapsed().saturating_sub(began);
    let done = Output {
        db_path: reply.path,
        txid: reply.txid,
        replica_txid: wait.then_some(reply.replicated_txid),
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    };
    if matches.on("json") {
        return output::print(&output::json(&done)?);
    }
    let Output { db_path, txid, replica_txid, duration_ms } = done;
    let replica = replica_txid.map_or_else(String::new, |txid| format!("replica_txid: {txid}\n"));
    output::print(&format!("db_path: {db_path}\ntxid: {txid}\n{replica}duration_ms: {duration_ms}\n"))
}
