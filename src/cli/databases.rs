//! `litestream databases`: what the configuration names, without looking at any of it.

use serde::Serialize;

use super::flags::{CONFIG, CommandSpec, Flag, Matches, NO_EXPAND_ENV};
use super::{App, Failure, output};

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "databases",
    summary: "lists the databases of the configuration file",
    about: "The databases command lists the databases of the configuration file and where they are replicated.",
    synopsis: &["[arguments]"],
    flags: &[CONFIG, Flag::switch("json", &["Prints JSON instead of a table."]), NO_EXPAND_ENV],
    examples: &[
        ("List the databases of the default configuration file.", "litestream databases"),
        ("The same for another file, for programs to read.", "litestream databases -config ./litestream.yml -json"),
    ],
};

#[derive(Serialize)]
struct Row {
    path: String,
    replica: &'static str,
}

pub(super) fn run(app: &mut App, matches: &Matches) -> Result<(), Failure> {
    if !matches.positionals.is_empty() {
        return Err(Failure::new("too many arguments"));
    }
    let config = app.load_config(matches)?;
    let around = app.surroundings();
    let mut rows = Vec::with_capacity(config.dbs.len());
    for entry in &config.dbs {
        // A directory is one row: nothing is looked at on disk.
        let (path, replica) = match entry.directory(around)? {
            Some(directory) => (directory.path.join(&directory.pattern), entry.replica(around)?),
            None => {
                let db = entry.build(around)?;
                (db.path, db.replica)
            }
        };
        rows.push(Row { path: path.display().to_string(), replica: replica.kind.name() });
    }
    if matches.on("json") {
        return output::print(&output::json(&rows)?);
    }
    let mut table = output::Table::new(&["path", "replica"]);
    for row in rows {
        table.row([row.path, row.replica.to_owned()]);
    }
    output::print(&table.render())
}
