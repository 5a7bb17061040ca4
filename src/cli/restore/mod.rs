//! `litestream restore`. Checks come in the order of `spec: cli` §8, because the order decides which
//! problem is reported.

mod all;
mod progress;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::flags::{CONFIG, CommandSpec, Flag, Kind, Matches, NO_EXPAND_ENV};
use super::process::Signals;
use super::source::{Source, refuse_config};
use super::{App, Failure, block_on, output};
use crate::config::is_replica_url;
use crate::error::{Error, ErrorKind};
use crate::ltx;
use crate::replica::{FileInfo, Replica, Stamps};
use crate::restore::{self, Check, Failed, Milestone, Overwrite, Point, Report, Request, Target};
use crate::sqlite::{self, Exclusive, SystemSqlite, Unchecked};
use crate::sys::fs::with_suffix;
use crate::sys::{OwnerMode, Publisher};
use crate::telemetry::LogStream;
use crate::types::{IntegrityCheck, Timestamp, Txid, parse_timestamp};

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "restore",
    summary: "restores a database from its replica",
    about: "The restore command restores a database from its replica.\n\n\
            A database named by its path is looked up in the configuration file and restored to that path\n\
            unless -o names another. A replica URL needs no configuration, but -o.",
    synopsis: &[
        "[arguments] DB_PATH",
        "[arguments] REPLICA_URL",
        "-all -output-dir DIR [arguments]",
        "-all -output-dir DIR [arguments] REPLICA_URL",
    ],
    flags: &[
        CONFIG,
        NO_EXPAND_ENV,
        Flag::value("txid", Kind::Txid, "TXID", &["Restores the state after this transaction (16 hex digits)."]),
        Flag::value(
            "timestamp",
            Kind::Text,
            "TIMESTAMP",
            &["Restores the last state before this time (e.g. 2000-01-01T00:00:00Z)."],
        ),
        Flag::value("o", Kind::Text, "PATH", &["Where to write the database.", "Defaults to DB_PATH"]),
        Flag::switch("if-db-not-exists", &["Exits with 0, doing nothing, if the output exists."]),
        Flag::switch("if-replica-exists", &["Exits with 0, doing nothing, if there is nothing to restore."]),
        Flag::switch("dry-run", &["Prints which files would be used, and writes nothing."]),
        Flag::switch("force", &["Replaces an existing database."]),
        Flag::switch("json", &["Prints a summary, or the plan, as JSON."]),
        Flag::switch("f", &["Keeps following the replica after the restore."]),
        Flag::value("follow-interval", Kind::Duration, "DURATION", &["How often -f looks for news.", "Defaults to 1s"]),
        Flag::value(
            "parallelism",
            Kind::Int,
            "NUM",
            &["How many files are fetched at once.", "Defaults to 8, or 32 for small files."],
        ),
        Flag::value(
            "integrity-check",
            Kind::Text,
            "MODE",
            &["Has SQLite check the restored database: none, quick or full.", "Defaults to none"],
        ),
        Flag::switch(
            "salvage",
            &[
                "From a damaged replica, restores the newest state that is whole. Writes what is lost to",
                "<output>.loss.json, and exits with 3 if anything is.",
            ],
        ),
        Flag::switch("all", &["Restores every database of the configuration, or every replica below REPLICA_URL."]),
        Flag::value(
            "output-dir",
            Kind::Text,
            "DIR",
            &["Where -all restores to: each database under its whole path, or under what follows the URL."],
        ),
    ],
    examples: &[
        ("Restore a database of the configuration to its own path.", "litestream restore /path/to/db"),
        ("Restore a replica to a new file.", "litestream restore -o /path/to/db file:///path/to/replica"),
        (
            "Restore all databases whose replicas are below a prefix.",
            "litestream restore -all -output-dir /restored s3://bucket/prefix",
        ),
        ("Restore an earlier state.", "litestream restore -o /tmp/db -timestamp 2020-01-01T00:00:00Z /path/to/db"),
    ],
};

/// What was asked for, checked.
struct Wanted<'a> {
    named: &'a str,
    txid: Option<Txid>,
    before: Option<Timestamp>,
    integrity: (IntegrityCheck, &'a str),
    json: bool,
}

pub(super) fn run(app: &mut App, matches: &Matches) -> Result<(), Failure> {
    let named = match matches.positionals.as_slice() {
        [] => "",
        [named] => named,
        _ => return Err(Failure::new("too many arguments")),
    };
    if matches.on("all") {
        if is_replica_url(named) {
            refuse_config(matches)?;
        } else if !named.is_empty() {
            return Err(Failure::with_try(
                "too many arguments: -all takes databases from the configuration, or a replica URL",
                "litestream restore -all -output-dir /path/to/dir s3://bucket/prefix",
            ));
        }
        app.log_to(LogStream::Stderr);
        return all::run(app, matches, named);
    }
    if named.is_empty() {
        return Err(Failure::with_try(
            "database path or replica URL required",
            "litestream restore -o /path/to/db s3://bucket/prefix",
        ));
    }
    let json = matches.on("json");
    app.log_to(if json { LogStream::Stderr } else { LogStream::Stdout });
    let wanted = Wanted {
        named,
        integrity: integrity(matches)?,
        before: timestamp(matches)?,
        txid: matches.text("txid").parse().ok(),
        json,
    };

    let is_url = is_replica_url(named);
    if is_url {
        refuse_config(matches)?;
        if matches.text("o").is_empty() {
            return Err(Failure::with_try(
                "-o is required when restoring from a replica URL",
                format!("litestream restore -o /path/to/db {named}"),
            ));
        }
        if skip_existing(app, matches, Path::new(matches.text("o"))) {
            return Ok(());
        }
    }
    let source = if is_url { Source::of_url(app, named)? } else { Source::of_database(app, matches, named)? };
    let output = match (matches.text("o"), &source.db) {
        ("", Some(db)) => db.clone(),
        (path, _) => PathBuf::from(path),
    };
    if !is_url && skip_existing(app, matches, &output) {
        return Ok(());
    }
    block_on(restore_from(app, matches, &wanted, &source, output))
}

async fn restore_from(
    app: &App,
    matches: &Matches,
    wanted: &Wanted<'_>,
    source: &Source,
    output: PathBuf,
) -> Result<(), Failure> {
    let replica = &source.replica;
    replica.client().init().await?;
    if let (Some(time), None) = (wanted.before, &source.db) {
        restore::survey(replica, Target::Before(time)).await?.check_time(time)?;
    }
    if matches.on("dry-run") {
        return dry_run(matches, wanted, source, &output).await;
    }
    let target = target(wanted, "cannot specify index & timestamp to restore")?;
    if matches.on("f") {
        match target {
            Target::Txid(_) => return Err(Failure::new("cannot use follow mode with -txid")),
            Target::Before(_) => return Err(Failure::new("cannot use follow mode with -timestamp")),
            Target::Latest => {}
        }
    }
    let request = Request {
        target,
        overwrite: if matches.on("force") { Overwrite::Replace } else { Overwrite::Refuse },
        integrity: wanted.integrity.0,
        parallelism: parallelism(matches),
        ..Request::new(&output)
    };
    let started = app.world.clock.elapsed();
    if matches.on("f") {
        return match follow(app, matches, wanted, source, request).await {
            Ok(()) if wanted.json => summary(app, wanted, replica.kind(), &output, None, started),
            Err(Stopped::NothingThere) if may_find_nothing(app, matches, &output) => {
                info!("no matching backups found");
                Ok(())
            }
            Err(Stopped::NothingThere) => Err(Failure::new("no matching backup files available")),
            Err(Stopped::Failed(failure)) => Err(failure),
            Ok(()) => Ok(()),
        };
    }
    if matches.on("salvage") {
        return salvage(app, wanted, replica, &request, started).await;
    }
    let partly = Arc::<AtomicBool>::default();
    let work = restore::run_or_explain(&app.world, replica, &request, noting(Arc::clone(&partly)));
    let report = match progress::shown(work, &request.progress, app.world.clock.as_ref()).await {
        Ok(report) => report,
        Err(failed) if failed.error.kind() == ErrorKind::NotFound && may_find_nothing(app, matches, &output) => {
            // A file that vanished while we read is not "no backup": only an empty plan is.
            return match restore::plan_for(replica, target, false).await {
                Err(planning) if planning.kind() == ErrorKind::NotFound => {
                    info!("no matching backups found");
                    Ok(())
                }
                _ => Err(failed.error.into()),
            };
        }
        Err(failed) => return Err(explained(failed)),
    };
    if wanted.integrity.0 != IntegrityCheck::None && !partly.load(Ordering::Relaxed) {
        log_integrity_passed(source);
    }
    if !wanted.json {
        return Ok(());
    }
    summary(app, wanted, replica.kind(), &output, Some(&report), started)
}

fn log_integrity_passed(source: &Source) {
    let replica = source.replica.kind();
    match source.db.as_deref().and_then(Path::file_name) {
        Some(db) => info!(db = %db.display(), replica, "post-restore integrity check passed"),
        None => info!(replica, "post-restore integrity check passed"),
    }
}

/// `report` is missing where a follower ended: then the state is that of the last update.
fn summary(
    app: &App,
    wanted: &Wanted<'_>,
    replica: &str,
    output: &Path,
    report: Option<&Report>,
    started: Duration,
) -> Result<(), Failure> {
    let duration = app.world.clock.elapsed().saturating_sub(started);
    // Backups of 0.3.x have no TXIDs; the reference shows the one of an LTX file it did not use.
    let txid = report.and_then(|report| report.txid).map_or_else(String::new, |txid| txid.to_string());
    output::print(&output::json(&Summary {
        db_path: output.display().to_string(),
        replica,
        txid,
        duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        integrity_check: wanted.integrity.1,
        restored: report.map(Restored::from),
    })?)
}

/// A damaged replica: with what can be had of it.
fn explained(failed: Failed) -> Failure {
    let Failed { error, restorable } = failed;
    match restorable {
        None => error.into(),
        Some(Point { txid, created }) => Failure::Said {
            message: error.to_string(),
            advice: Some(format!("Hint: TXID {txid} ({created}) can be restored with -txid, or with -salvage")),
        },
    }
}

/// So many things that could not be checked are named.
const MOST_UNCHECKED: usize = 20;

/// Exit code of a salvage that lost something.
const LOST: u8 = 3;

#[derive(Serialize)]
struct LossReport {
    restored_txid: String,
    restored_timestamp: String,
    lost_first_txid: String,
    lost_last_txid: String,
    lost_last_timestamp: String,
    damaged: Vec<DamagedFile>,
}

#[derive(Serialize)]
struct DamagedFile {
    level: u8,
    name: String,
    min_txid: String,
    max_txid: String,
    size: u64,
    error: String,
}

/// Restores what is whole. Succeeds only if that is all there was.
async fn salvage(
    app: &App,
    wanted: &Wanted<'_>,
    replica: &Replica,
    request: &Request,
    started: Duration,
) -> Result<(), Failure> {
    let work = restore::salvage(&app.world, replica, request, sqlite_check());
    let salvaged = progress::shown(work, &request.progress, app.world.clock.as_ref()).await?;
    let txid = salvaged.report.txid;
    let text = |txid: Option<Txid>| txid.map_or_else(String::new, |txid| txid.to_string());
    if wanted.json {
        summary(app, wanted, replica.kind(), &request.output, Some(&salvaged.report), started)?;
    }
    if salvaged.lost_up_to.is_none() && salvaged.damaged.is_empty() {
        return Ok(());
    }
    let lost = salvaged.lost_up_to;
    let report = LossReport {
        restored_txid: text(txid),
        restored_timestamp: salvaged.report.timestamp.to_string(),
        lost_first_txid: text(lost.map(|_| Txid::after(txid))),
        lost_last_txid: text(lost.map(|lost| lost.txid)),
        lost_last_timestamp: lost.map_or_else(String::new, |lost| lost.created.to_string()),
        damaged: salvaged
            .damaged
            .into_iter()
            .map(|(file, error)| DamagedFile {
                level: file.level.get(),
                name: ltx::file_name(file.txids),
                min_txid: file.txids.min().to_string(),
                max_txid: file.txids.max().to_string(),
                size: file.size,
                error,
            })
            .collect(),
    };
    let path = with_suffix(&request.output, ".loss.json");
    let publisher = Publisher::create(app.world.fs.as_ref(), &path, OwnerMode::DEFAULT_FILE)?;
    publisher.file().write_all_at(output::json(&report)?.as_bytes(), 0)?;
    publisher.publish(None)?;
    let Some(lost) = lost else {
        // Damaged files that others made up for: the state is the one that was asked for.
        tracing::warn!(damaged = report.damaged.len(), report = %path.display(), "replica is damaged, nothing is lost");
        return Ok(());
    };
    let message = format!(
        "restored TXID {} only: transactions up to {} ({}) are lost; see {}",
        report.restored_txid,
        lost.txid,
        lost.created,
        path.display()
    );
    Err(Failure::Partly { message, code: LOST })
}

/// Why following did not begin, or ended.
enum Stopped {
    NothingThere,
    Failed(Failure),
}

impl From<Error> for Stopped {
    fn from(err: Error) -> Self {
        Self::Failed(err.into())
    }
}

/// Restores, then follows until a signal comes. One during the restore is a failure: there is no
/// database yet.
async fn follow(
    app: &App,
    matches: &Matches,
    wanted: &Wanted<'_>,
    source: &Source,
    request: Request,
) -> Result<(), Stopped> {
    let replica = &source.replica;
    let mut signals = Signals::catch()?;
    if restore::holds_no_database(app.world.fs.as_ref(), &request.output) {
        let files = replica.list_all(Stamps::Cheap).await?;
        if restore::plan(&files, Target::Latest).is_err_and(|err| err.kind() == ErrorKind::NotFound) {
            return Err(Stopped::NothingThere);
        }
    }
    let interval = matches.duration("follow-interval").filter(|interval| !interval.is_zero());
    let following = restore::Following { request, interval: interval.unwrap_or(Duration::from_secs(1)) };
    let stop = CancellationToken::new();
    let begun = Cell::new(false);
    let partly = Arc::<AtomicBool>::default();
    let whole = || wanted.integrity.0 != IntegrityCheck::None && !partly.load(Ordering::Relaxed);
    let reached = |milestone| match milestone {
        Milestone::Restored if whole() => log_integrity_passed(source),
        Milestone::Restored => {}
        Milestone::Following => begun.set(true),
    };
    let sqlite = Arc::new(Exclusive(SystemSqlite));
    let work = restore::follow(&app.world, replica, &following, noting(Arc::clone(&partly)), sqlite, &stop, reached);
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            ended = &mut work => return Ok(ended?),
            caught = signals.next() => {
                if !begun.get() {
                    return Err(Stopped::Failed(Failure::new(format!("restore was stopped: {}", caught.name()))));
                }
                stop.cancel();
            }
        }
    }
}

/// SQLite's own check, for the restore to call on the finished file. What it cannot look at is said on stderr.
pub(super) fn sqlite_check() -> Check {
    noting(Arc::default())
}

/// The same, which notes whether there was anything that it could not look at.
fn noting(partly: Arc<AtomicBool>) -> Check {
    Arc::new(move |path, check| {
        let unchecked = sqlite::integrity_check(path, check)?;
        partly.store(!unchecked.is_empty(), Ordering::Relaxed);
        let said = unchecked.iter().take(MOST_UNCHECKED).map(|Unchecked { name, why, read }| {
            let read = if *read { "; its rows were read to the end" } else { "" };
            format!("Warning: {name} could not be checked without its application: {why}{read}\n")
        });
        let rest = unchecked.len().saturating_sub(MOST_UNCHECKED);
        let rest = (rest > 0).then(|| format!("Warning: and {rest} more\n"));
        let beside = (!unchecked.is_empty()).then(|| "Warning: everything else was checked and is sound\n".to_owned());
        output::print_err(&said.chain(rest).chain(beside).collect::<String>());
        Ok(())
    })
}

fn integrity(matches: &Matches) -> Result<(IntegrityCheck, &str), Failure> {
    let name = matches.text_opt("integrity-check").unwrap_or("none");
    let mode = match name {
        "none" => IntegrityCheck::None,
        "quick" => IntegrityCheck::Quick,
        "full" => IntegrityCheck::Full,
        other => return Err(Failure::new(format!("invalid -integrity-check value: {other}"))),
    };
    Ok((mode, name))
}

/// Any number is accepted, as in the reference; the restore keeps to its own bounds.
fn parallelism(matches: &Matches) -> Option<usize> {
    matches.int("parallelism").map(|n| usize::try_from(n).unwrap_or(1))
}

fn timestamp(matches: &Matches) -> Result<Option<Timestamp>, Failure> {
    match matches.text("timestamp") {
        "" => Ok(None),
        // The reference has a no-break space after "8601"; people search for this line.
        text => parse_timestamp(text).map(Some).map_err(|_| {
            Failure::new("invalid -timestamp, must specify in ISO 8601\u{a0}format (e.g. 2000-01-01T00:00:00Z)")
        }),
    }
}

fn target(wanted: &Wanted<'_>, both: &str) -> Result<Target, Failure> {
    match (wanted.txid, wanted.before) {
        (Some(_), Some(_)) => Err(Failure::new(both)),
        (Some(txid), None) => Ok(Target::Txid(txid)),
        (None, Some(time)) => Ok(Target::Before(time)),
        (None, None) => Ok(Target::Latest),
    }
}

/// Whether it is no error if there is nothing to restore. An empty file passes for a database then: it was
/// there before, as `-if-db-not-exists` demands.
fn may_find_nothing(app: &App, matches: &Matches, output: &Path) -> bool {
    let there = || matches!(app.world.fs.stat_opt(output), Ok(Some(_)));
    matches.on("if-replica-exists") || (matches.on("if-db-not-exists") && there())
}

/// `-if-db-not-exists`: whether there is nothing to do. A path we cannot look at counts as existing, an
/// empty file does not.
fn skip_existing(app: &App, matches: &Matches, output: &Path) -> bool {
    let fs = app.world.fs.as_ref();
    let skip = matches.on("if-db-not-exists") && !restore::holds_no_database(fs, output);
    if skip {
        info!("database already exists, skipping");
    }
    skip
}

/// The reference's fields, then what it does not tell.
#[derive(Serialize)]
struct Summary<'a> {
    db_path: String,
    replica: &'a str,
    txid: String,
    duration_ms: u64,
    integrity_check: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    restored: Option<Restored>,
}

/// What there is now, and from what it was made.
#[derive(Serialize)]
struct Restored {
    timestamp: String,
    page_size: u32,
    pages: u32,
    bytes: u64,
    /// Bytes of the objects below.
    replica_bytes: u64,
    /// Of these, bytes that an interrupted restore had read before.
    resumed_bytes: u64,
    /// LTX files, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<PlannedFile>,
    /// Objects of a 0.3.x backup, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    objects: Vec<String>,
}

impl From<&Report> for Restored {
    fn from(report: &Report) -> Self {
        let objects = match &report.plan {
            restore::Plan::Ltx(_) => Vec::new(),
            restore::Plan::V3(plan) => plan.pieces().map(|piece| piece.key().to_string()).collect(),
        };
        Self {
            timestamp: report.timestamp.to_string(),
            page_size: report.page_size.get(),
            pages: report.pages,
            bytes: report.bytes,
            replica_bytes: report.plan.size().1,
            resumed_bytes: report.resumed,
            files: report.plan.files().iter().map(PlannedFile::from).collect(),
            objects,
        }
    }
}

#[derive(Serialize)]
struct Plan<'a> {
    source: &'a str,
    target_path: String,
    replica: &'a str,
    min_txid: String,
    max_txid: String,
    files: Vec<PlannedFile>,
}

#[derive(Serialize)]
struct PlannedFile {
    level: u8,
    name: String,
    min_txid: String,
    max_txid: String,
    size: u64,
    timestamp: String,
}

impl From<&FileInfo> for PlannedFile {
    fn from(file: &FileInfo) -> Self {
        Self {
            level: file.level.get(),
            name: ltx::file_name(file.txids),
            min_txid: file.txids.min().to_string(),
            max_txid: file.txids.max().to_string(),
            size: file.size,
            timestamp: file.created.to_string(),
        }
    }
}

/// Shows the plan; the output path is not looked at.
async fn dry_run(matches: &Matches, wanted: &Wanted<'_>, source: &Source, output: &Path) -> Result<(), Failure> {
    if matches.on("f") {
        return Err(Failure::new("cannot use -dry-run with -f"));
    }
    let target = target(wanted, "cannot specify both TXID & timestamp to restore")?;
    // As in the reference, only LTX files are planned: a backup of 0.3.x is not shown.
    let stamps = if matches!(target, Target::Before(_)) { Stamps::Exact } else { Stamps::Cheap };
    let files = restore::plan(&source.replica.list_all(stamps).await?, target)?;
    let (Some(first), Some(last)) = (files.first(), files.last()) else {
        return Err(Failure::new("no matching backup files available"));
    };
    let plan = Plan {
        source: wanted.named,
        target_path: output.display().to_string(),
        replica: source.replica.kind(),
        min_txid: first.txids.min().to_string(),
        max_txid: last.txids.max().to_string(),
        files: files.iter().map(PlannedFile::from).collect(),
    };
    if wanted.json {
        return output::print(&output::json(&plan)?);
    }
    let mut table = output::Table::new(&["level", "file", "min_txid", "max_txid", "size", "timestamp"]);
    for file in plan.files {
        let size = file.size.to_string();
        table.row([file.level.to_string(), file.name, file.min_txid, file.max_txid, size, file.timestamp]);
    }
    output::print(&format!(
        "Restore plan:\n  source: {}\n  target: {}\n  replica: {}\n  txid range: {} - {}\n\nFiles to fetch:\n{}",
        plan.source,
        plan.target_path,
        plan.replica,
        plan.min_txid,
        plan.max_txid,
        table.render()
    ))
}
