//! Telling somebody that all is well (`spec: control` §4): a ping while every open database is
//! replicated, so that its absence is the alarm.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::{DatabaseStatus, RunState, Store};
use crate::config::HeartbeatSettings;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::http_get;
use crate::telemetry::duration;
use crate::types::Timestamp;

/// How often it is looked at whether a ping is due.
const TICK: Duration = Duration::from_secs(15);
/// For one ping, redirects included.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Whether every open database, and at least one, was fully replicated within `interval`.
fn all_is_well(databases: &[DatabaseStatus], now: Timestamp, interval: Duration) -> bool {
    let mut open = databases.iter().filter(|db| db.state != RunState::Stopped).peekable();
    let oldest = now.minus(interval);
    open.peek().is_some() && open.all(|db| db.last_sync_at().is_some_and(|at| at >= oldest))
}

/// Whether enough time has passed since the last attempt, whatever became of it.
fn due(last_attempt: Option<Duration>, now: Duration, interval: Duration) -> bool {
    last_attempt.is_none_or(|last| now.saturating_sub(last) >= interval)
}

/// Pings until told to stop.
pub async fn run(store: Store, settings: HeartbeatSettings, stop: CancellationToken) {
    info!(system = "store", interval = duration(TICK), "starting heartbeat monitor");
    let clock = store.world().clock.clone();
    let HeartbeatSettings { url, interval } = &settings;
    let mut last_attempt = None;
    while stop.run_until_cancelled(tokio::time::sleep(TICK)).await.is_some() {
        let databases: Vec<DatabaseStatus> = store.databases().iter().map(super::Managed::status).collect();
        let now = clock.elapsed();
        if !due(last_attempt, now, *interval) || !all_is_well(&databases, clock.now(), *interval) {
            continue;
        }
        last_attempt = Some(now);
        match stop.run_until_cancelled(ping(url)).await {
            None => return,
            Some(Ok(())) => debug!(system = "store", url = %url, "heartbeat ping sent"),
            Some(Err(err)) => error!(system = "store", url = %url, error = %err, "heartbeat ping failed"),
        }
    }
}

async fn ping(url: &str) -> Result<()> {
    match http_get(url, TIMEOUT).await.map_err(|err| err.context("http request"))? {
        200..=299 => Ok(()),
        status => Err(Error::new(ErrorKind::Unavailable, format!("unexpected status code: {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{LocalStatus, TargetStatus};

    fn database(state: RunState, last_success: Option<i64>) -> DatabaseStatus {
        let target = TargetStatus {
            name: "file".to_owned(),
            position: None,
            pending: 0,
            last_success: last_success.map(|seconds| Timestamp::from_millis(seconds * 1000)),
            lag: Duration::ZERO,
            trouble: None,
        };
        DatabaseStatus {
            path: "/x".into(),
            wal_path: "/x-wal".into(),
            state,
            local: LocalStatus::default(),
            targets: vec![target],
        }
    }

    #[test]
    fn all_is_well_while_every_open_database_is_replicated() {
        let at = |databases: &[DatabaseStatus]| {
            all_is_well(databases, Timestamp::from_millis(1_000_000), Duration::from_secs(60))
        };
        let good = || database(RunState::Replicating, Some(950));
        let late = || database(RunState::Replicating, Some(939));
        let never = || database(RunState::Replicating, None);
        let stopped = || database(RunState::Stopped, Some(1));
        assert!(!at(&[]));
        assert!(!at(&[stopped()]));
        assert!(at(&[good()]));
        assert!(at(&[good(), stopped()]));
        assert!(!at(&[good(), late()]));
        assert!(!at(&[good(), never()]));
    }

    #[test]
    fn an_attempt_is_made_once_per_interval() {
        let seconds = Duration::from_secs;
        assert!(due(None, seconds(15), seconds(60)));
        assert!(!due(Some(seconds(15)), seconds(74), seconds(60)));
        assert!(due(Some(seconds(15)), seconds(75), seconds(60)));
    }
}
