//! `litestream list`: the databases of the running daemon.

use super::client::{Client, JSON, SOCKET, TIMEOUT_ASK, no_arguments};
use super::flags::{CommandSpec, Matches};
use super::info::whole_seconds;
use super::{App, Failure, output};
use crate::server::api::List;

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "list",
    summary: "lists the databases of the running daemon",
    about: "The list command lists the databases of the running daemon, with their state and last sync.",
    synopsis: &["[OPTIONS]"],
    flags: &[JSON, SOCKET, TIMEOUT_ASK],
    examples: &[("List what is replicated now.", "litestream list"), ("For programs.", "litestream list -json")],
};

pub(super) fn run(_app: &mut App, matches: &Matches) -> Result<(), Failure> {
    let client = Client::new(SPEC.name, matches, 10);
    no_arguments(matches)?;
    client.check_timeout()?;
    let list: List = client.get("/list")?;
    if matches.on("json") {
        return output::print(&output::json(&list)?);
    }
    if list.databases.is_empty() {
        return output::print("No databases configured\n");
    }
    let mut text = String::new();
    for db in &list.databases {
        let last = db.last_sync_at.as_deref().map_or_else(|| "never".to_owned(), whole_seconds);
        text.push_str(&format!("{} [{}] (last sync: {last})\n", db.path, db.status));
    }
    output::print(&text)
}
