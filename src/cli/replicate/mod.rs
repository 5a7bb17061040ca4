//! `litestream replicate`: the daemon, and one-shot replication.
//!
//! [`Request`] is what the command line asks for, checked before anything is logged; `startup` turns
//! it into databases; `supervise` runs the engine until it is done or a signal ends it.

mod listeners;
mod mcp;
mod reload;
mod services;
mod startup;
mod supervise;

use std::time::Duration;

use super::flags::{CONFIG, CommandSpec, Flag, Kind, Matches, NO_EXPAND_ENV};
use super::source::refuse_config;
use super::{App, Failure, block_on_within};
use crate::config::{self, Config, ExpandEnv};

/// How long steps that were given up may go on at the end. The program may be killed at any of them, so it need not
/// wait for one that hangs.
const ABANDONED: Duration = Duration::from_millis(250);

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "replicate",
    summary: "replicates databases until it is stopped",
    about: "The replicate command follows databases and replicates every commit until it is stopped.\n\n\
            Databases come from the configuration file, or one database and its replica from the command line.",
    synopsis: &["[arguments]", "[arguments] DB_PATH REPLICA_URL"],
    flags: &[
        CONFIG,
        Flag::value("exec", Kind::Text, "CMD", &["Runs a command and ends with it."]),
        Flag::switch("once", &["Replicates everything once and exits."]),
        Flag::switch("force-snapshot", &["Also takes a snapshot. Needs -once."]),
        Flag::switch("enforce-retention", &["Also deletes what retention allows. Needs -once."]),
        Flag::value(
            "log-level",
            Kind::Text,
            "LEVEL",
            &[
                "Logs from this level on: trace, debug, info, warn or error.",
                "Overrides LOG_LEVEL and the configuration.",
            ],
        ),
        NO_EXPAND_ENV,
        Flag::switch("restore-if-db-not-exists", &["Restores databases that are missing before replicating."]),
    ],
    examples: &[
        ("Replicate the databases of the configuration file.", "litestream replicate"),
        (
            "Replicate one database without a configuration file.",
            "litestream replicate /path/to/db file:///path/to/replica",
        ),
    ],
};

/// What `-once` does beyond one sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Once {
    force_snapshot: bool,
    enforce_retention: bool,
}

/// What the command line asks for.
#[derive(Debug)]
struct Request {
    config: Config,
    /// Where it was read from, as typed; empty for the default.
    config_path: String,
    /// Whether it was read from a file at all.
    from_file: bool,
    expand: ExpandEnv,
    /// `-restore-if-db-not-exists`
    restore_missing: bool,
    /// Command line of the application to run beside.
    exec: Option<String>,
    /// `None`: until a signal.
    once: Option<Once>,
}

pub(super) fn run(app: &mut App, matches: &Matches) -> Result<(), Failure> {
    let request = Request::check(app, matches)?;
    block_on_within(ABANDONED, startup::run(app, &request))
}

impl Request {
    /// The checks of `spec: cli` §7, in their order. Nothing is logged yet.
    fn check(app: &mut App, matches: &Matches) -> Result<Self, Failure> {
        if let level @ [_, ..] = matches.text("log-level").as_bytes() {
            // Also for a child process.
            app.env.set("LOG_LEVEL", String::from_utf8_lossy(level));
        }
        let mut config = match matches.positionals.as_slice() {
            [] => app.load_config(matches)?,
            [db] => return Err(Failure::new(format!("must specify at least one replica URL for {db}"))),
            [db, urls @ ..] => {
                refuse_config(matches)?;
                if let Some(flag) = urls.iter().find(|url| url.starts_with('-')) {
                    return Err(Failure::new(format!(
                        "flag \"{flag}\" must be positioned before DB_PATH and REPLICA_URL arguments"
                    )));
                }
                let config = config::ad_hoc(db, urls, app.surroundings())?;
                app.log_as(&config.logging);
                config
            }
        };
        let exec = matches.text_opt("exec").filter(|c| !c.is_empty()).map(str::to_owned).or(config.exec.take());
        let (once, force_snapshot) = (matches.on("once"), matches.on("force-snapshot"));
        let enforce_retention = matches.on("enforce-retention");
        if once && exec.is_some() {
            return Err(Failure::new("cannot specify -once flag with -exec"));
        }
        if force_snapshot && !once {
            return Err(Failure::new("cannot specify -force-snapshot flag without -once"));
        }
        if enforce_retention && !once {
            return Err(Failure::new("cannot specify -enforce-retention flag without -once"));
        }
        if matches.on("restore-if-db-not-exists") {
            for db in &mut config.dbs {
                db.restore_if_missing();
            }
        }
        Ok(Self {
            config,
            exec,
            config_path: matches.text("config").to_owned(),
            restore_missing: matches.on("restore-if-db-not-exists"),
            from_file: matches.positionals.is_empty(),
            expand: if matches.on("no-expand-env") { ExpandEnv::No } else { ExpandEnv::Yes },
            once: once.then_some(Once { force_snapshot, enforce_retention }),
        })
    }
}
