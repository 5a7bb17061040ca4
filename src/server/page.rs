//! The status page: one HTML file that asks for `/status.json` every two seconds. No resource comes
//! from elsewhere, and the policy forbids it.

use serde::Serialize;

use super::Context;
use super::api::escape;
use super::endpoint::{Readiness, lacking};
use crate::store::{DatabaseStatus, RemoteLevel, TargetStatus, Trouble};
use crate::types::Txid;

pub(super) const HTML: &str = include_str!("page.html");
pub(super) const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";

#[derive(Serialize)]
struct Status {
    version: &'static str,
    now_ms: i64,
    started_ms: i64,
    max_lag_seconds: u64,
    databases: Vec<Database>,
}

#[derive(Serialize)]
struct Database {
    path: String,
    state: &'static str,
    txid: String,
    db_bytes: u64,
    wal_bytes: u64,
    wal_alarm: bool,
    missing: bool,
    late: Vec<String>,
    error: Option<Problem>,
    targets: Vec<Target>,
}

#[derive(Serialize)]
struct Target {
    name: String,
    txid: String,
    pending: u64,
    lag_seconds: f64,
    last_success_ms: Option<i64>,
    error: Option<Problem>,
    unguarded: bool,
    levels: Vec<Level>,
}

#[derive(Serialize)]
struct Level {
    level: u8,
    count: usize,
    bytes: u64,
    oldest_ms: i64,
    /// When its newest files were made.
    points_ms: Vec<i64>,
}

impl From<&RemoteLevel> for Level {
    fn from(level: &RemoteLevel) -> Self {
        Self {
            level: level.level.get(),
            count: level.count,
            bytes: level.bytes,
            oldest_ms: level.oldest.millis(),
            points_ms: level.newest.iter().map(|at| at.millis()).collect(),
        }
    }
}

#[derive(Serialize)]
struct Problem {
    text: String,
    hint: Option<&'static str>,
    at_ms: i64,
    failures: u32,
    retry_ms: u64,
}

impl From<&Trouble> for Problem {
    fn from(trouble: &Trouble) -> Self {
        Self {
            text: trouble.error.clone(),
            hint: trouble.hint,
            at_ms: trouble.at.millis(),
            failures: trouble.failures,
            retry_ms: u64::try_from(trouble.retry_in.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Restore points of one level that are drawn; of more the newest.
const MAX_POINTS: usize = 200;

/// What the page shows.
pub(super) fn json(context: &Context, readiness: Readiness) -> String {
    let databases = context.store.databases();
    let status = Status {
        version: context.version,
        now_ms: context.world.clock.now().millis(),
        started_ms: context.started_at.millis(),
        max_lag_seconds: readiness.max_lag.as_secs(),
        databases: databases
            .iter()
            .map(|managed| {
                let status = managed.status();
                database(&status, readiness, managed.remote_levels(MAX_POINTS))
            })
            .collect(),
    };
    escape(&serde_json::to_string(&status).unwrap_or_else(|_| "{}".to_owned()))
}

fn database(status: &DatabaseStatus, readiness: Readiness, levels: Vec<Vec<RemoteLevel>>) -> Database {
    let mut levels = levels.into_iter();
    Database {
        path: status.path.to_string_lossy().into_owned(),
        state: status.state.name(),
        txid: hex(status.local.position),
        db_bytes: status.local.figures.db_bytes,
        wal_bytes: status.local.figures.wal_bytes,
        wal_alarm: status.local.figures.alarm,
        missing: status.local.missing,
        late: lacking(status, readiness),
        error: status.local.trouble.as_ref().map(Problem::from),
        targets: status.targets.iter().map(|one| target(one, levels.next().unwrap_or_default())).collect(),
    }
}

fn target(target: &TargetStatus, levels: Vec<RemoteLevel>) -> Target {
    Target {
        name: target.name.clone(),
        txid: hex(target.position),
        pending: target.pending,
        lag_seconds: target.lag.as_secs_f64(),
        last_success_ms: target.last_success.map(|at| at.millis()),
        error: target.trouble.as_ref().map(Problem::from),
        unguarded: target.unguarded,
        levels: levels.iter().map(Level::from).collect(),
    }
}

fn hex(txid: Option<Txid>) -> String {
    txid.map_or_else(|| "–".to_owned(), |txid| txid.to_string())
}
