//! `litestream ltx`: the LTX files of a replica.

use serde::Serialize;

use super::flags::{CONFIG, CommandSpec, Flag, Kind, Matches, NO_EXPAND_ENV};
use super::source::{Source, refuse_config};
use super::{App, Failure, block_on, output};
use crate::config::is_replica_url;
use crate::replica::{FileInfo, Stamps};
use crate::telemetry::LogStream;
use crate::types::Level;

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "ltx",
    summary: "lists the LTX files of a replica",
    about: "The ltx command lists the LTX files of a replica.",
    synopsis: &["[arguments] DB_PATH", "[arguments] REPLICA_URL"],
    flags: &[
        CONFIG,
        NO_EXPAND_ENV,
        Flag::value(
            "level",
            Kind::Level,
            "LEVEL",
            &["Lists one level: 0 (one file per sync), 1-8 (compacted), 9 (snapshots), or \"all\".", "Defaults to 0"],
        ),
        Flag::switch("json", &["Prints JSON instead of a table."]),
    ],
    examples: &[
        ("List the newest files of a database in the configuration.", "litestream ltx /path/to/db"),
        ("List everything a replica holds.", "litestream ltx -level all file:///path/to/replica"),
    ],
};

#[derive(Serialize)]
struct Row {
    level: u8,
    min_txid: String,
    max_txid: String,
    size: u64,
    timestamp: String,
}

impl From<&FileInfo> for Row {
    fn from(file: &FileInfo) -> Self {
        Self {
            level: file.level.get(),
            min_txid: file.txids.min().to_string(),
            max_txid: file.txids.max().to_string(),
            size: file.size,
            timestamp: file.created.to_string(),
        }
    }
}

pub(super) fn run(app: &mut App, matches: &Matches) -> Result<(), Failure> {
    let named = match matches.positionals.as_slice() {
        [] => "",
        [named] => named,
        _ => return Err(Failure::new("too many arguments")),
    };
    if named.is_empty() {
        return Err(Failure::with_try("database path or replica URL required", "litestream ltx /path/to/db"));
    }
    let source = if is_replica_url(named) {
        refuse_config(matches)?;
        app.log_to(LogStream::Stdout);
        Source::of_url(app, named)?
    } else {
        Source::of_database(app, matches, named)?
    };
    let levels: Vec<Level> = match matches.text_opt("level") {
        None => vec![Level::L0],
        Some("") => Level::all().collect(),
        Some(one) => one.parse().ok().and_then(Level::new).into_iter().collect(),
    };
    let files = block_on(async {
        source.replica.client().init().await?;
        let mut files = Vec::new();
        for level in levels {
            files.extend(source.replica.list(level, None, Stamps::Cheap).await?);
        }
        Ok(files)
    })?;
    let rows: Vec<Row> = files.iter().map(Row::from).collect();
    if matches.on("json") {
        return output::print(&output::json(&rows)?);
    }
    let mut table = output::Table::new(&["level", "min_txid", "max_txid", "size", "created"]);
    for row in rows {
        table.row([row.level.to_string(), row.min_txid, row.max_txid, row.size.to_string(), row.timestamp]);
    }
    output::print(&table.render())
}
