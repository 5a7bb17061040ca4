//! `litestream status`: the local state of configured databases, and with `-max-lag` an answer for
//! monitoring from the running daemon.

use std::path::Path;
use std::time::Duration;

use jiff::SignedDuration;
use serde::Serialize;

use super::client::{Client, SOCKET, TIMEOUT_ASK};
use super::flags::{CONFIG, CommandSpec, Flag, Kind, Matches, NO_EXPAND_ENV};
use super::{App, Failure, output};
use crate::config::DbSettings;
use crate::error::ErrorKind;
use crate::ltx::LocalDir;
use crate::server::api::{Lag, Lags, UNGUARDED};
use crate::store::unguarded;
use crate::sys::fs::with_suffix;
use crate::types::{Level, format_duration};

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "status",
    summary: "shows the local state of databases",
    about: "The status command shows the local state of the databases of the configuration file.\n\n\
            With -max-lag it asks the running daemon instead how far replicas are behind, and fails if any of them\n\
            lacks a commit that is older, or is known to lack what a restore needs.",
    synopsis: &["[arguments] [database path]"],
    flags: &[
        CONFIG,
        Flag::switch("json", &["Prints JSON instead of a table."]),
        NO_EXPAND_ENV,
        Flag::value(
            "max-lag",
            Kind::Duration,
            "DURATION",
            &["Fails if a replica of the running daemon is further behind, such as 30s."],
        ),
        SOCKET,
        TIMEOUT_ASK,
    ],
    examples: &[
        ("Show all databases.", "litestream status"),
        ("For monitoring: exit code 1 if anything is more than a minute behind.", "litestream status -max-lag 1m"),
    ],
};

#[derive(Serialize)]
struct Row {
    database: String,
    status: &'static str,
    local_txid: String,
    wal_size: String,
    /// Replicas that do not refuse a second writer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

const UNKNOWN: &str = "-";

pub(super) fn run(app: &mut App, matches: &Matches) -> Result<(), Failure> {
    if let Some(limit) = matches.duration("max-lag") {
        return max_lag(matches, limit);
    }
    let config = app.load_config(matches)?;
    let only = matches.positionals.first().filter(|path| !path.is_empty());
    let wanted = |db: &DbSettings| only.is_none_or(|only| db.path.as_os_str() == only.as_str());
    let databases = config.build_all(app.surroundings())?;
    let rows: Vec<Row> = databases.iter().filter(|db| wanted(db)).map(|db| row(app, db)).collect();
    if matches.on("json") {
        return output::print(&output::json(&rows)?);
    }
    let mut table = output::Table::new(&["database", "status", "local txid", "wal size"]);
    let mut warnings = String::new();
    for row in rows {
        warnings.extend(row.warnings.iter().map(|warning| format!("warning: {}: {warning}\n", row.database)));
        table.row([row.database, row.status.to_owned(), row.local_txid, row.wal_size]);
    }
    output::print(&table.render())?;
    output::print_err(&warnings);
    Ok(())
}

fn row(app: &App, db: &DbSettings) -> Row {
    let fs = &app.world.fs;
    let row = |status, local_txid: String, wal_size: String| Row {
        database: db.path.display().to_string(),
        status,
        local_txid,
        wal_size,
        warnings: unguarded(fs.as_ref(), &db.meta_path).iter().map(|at| format!("{at}: {UNGUARDED}")).collect(),
    };
    if matches!(fs.stat_opt(&db.path), Ok(None)) {
        return row("no database", UNKNOWN.to_owned(), UNKNOWN.to_owned());
    }
    let wal = match fs.stat_opt(&with_suffix(&fs.resolve(&db.path), "-wal")) {
        Ok(stat) => byte_size(stat.map_or(0, |stat| stat.len)),
        Err(_) => UNKNOWN.to_owned(),
    };
    match LocalDir::new(&app.world, db.meta_path.clone()).newest(Level::L0) {
        Ok(Some(txids)) => row("ok", txids.max().to_string(), wal),
        Ok(None) => row("not initialized", UNKNOWN.to_owned(), wal),
        Err(err) if err.kind() == ErrorKind::NotFound => row("not initialized", UNKNOWN.to_owned(), wal),
        Err(_) => row("error", UNKNOWN.to_owned(), wal),
    }
}

/// SI units as the reference rounds them (`spec: cli` §4).
fn byte_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut divisor: u64 = 1;
    while bytes / divisor >= 1000 {
        divisor *= 1000;
        unit += 1;
    }
    // Tenths, half up; whole numbers from them, half to even.
    let tenths = (u128::from(bytes) * 20 / u128::from(divisor)).div_ceil(2);
    if tenths < 100 && unit > 0 {
        return format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]);
    }
    let (whole, rest) = (tenths / 10, tenths % 10);
    let whole = if rest > 5 || (rest == 5 && whole % 2 == 1) { whole + 1 } else { whole };
    format!("{whole} {}", UNITS[unit])
}

/// Asks the daemon, and says which replicas are late.
fn max_lag(matches: &Matches, limit: Duration) -> Result<(), Failure> {
    let client = Client::new(SPEC.name, matches, 10);
    client.check_timeout()?;
    let lags: Lags = client.get("/lag")?;
    let only = matches.positionals.first().map(Path::new);
    let asked: Vec<_> =
        lags.replicas.iter().filter(|replica| only.is_none_or(|only| Path::new(&replica.path) == only)).collect();
    if let (Some(only), true) = (only, asked.is_empty()) {
        return Err(Failure::new(format!("database not found: {}", only.display())));
    }
    let late = |replica: &Lag| replica.lag_seconds > limit.as_secs_f64();
    if matches.on("json") {
        output::print(&output::json(&asked)?)?;
    } else {
        let mut table = output::Table::new(&["database", "replica", "status", "lag", "error"]);
        for replica in &asked {
            let lag = SignedDuration::from_millis((replica.lag_seconds * 1000.0) as i64);
            let status = match replica.lost {
                true => "lost",
                false if late(replica) => "late",
                false => replica.status.as_str(),
            };
            table.row([
                replica.path.clone(),
                replica.replica.clone(),
                status.to_owned(),
                format_duration(lag),
                replica.error.clone().unwrap_or_default(),
            ]);
        }
        output::print(&table.render())?;
        for replica in &asked {
            if let Some(warning) = &replica.warning {
                output::print_err(&format!("warning: {}: {}: {warning}\n", replica.path, replica.replica));
            }
        }
    }
    let lost = asked.iter().filter(|replica| replica.lost).count();
    if lost > 0 {
        return Err(Failure::new(format!("{lost} of {} replicas cannot be restored", asked.len())));
    }
    match asked.iter().filter(|replica| late(replica)).count() {
        0 => Ok(()),
        n => Err(Failure::new(format!(
            "{n} of {} replicas are further behind than {}",
            asked.len(),
            format_duration(SignedDuration::try_from(limit).unwrap_or(SignedDuration::MAX))
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_as_the_reference_does() {
        for (bytes, want) in [
            (0, "0 B"),
            (9, "9 B"),
            (10, "10 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (9949, "9.9 kB"),
            (9950, "10 kB"),
            (9999, "10 kB"),
            (16_500, "16 kB"),
            (16_512, "16 kB"),
            (17_500, "18 kB"),
            (999_950, "1000 kB"),
            (1_000_000, "1.0 MB"),
            (12_345_678, "12 MB"),
            (1_200_000_000, "1.2 GB"),
            (u64::MAX, "18 EB"),
        ] {
            assert_eq!(byte_size(bytes), want, "{bytes}");
        }
    }
}
