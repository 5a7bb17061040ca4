//! Telling somebody that all is well (`spec: control` §4): a ping while every open database that is
//! covered is replicated, so that its absence is the alarm.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::http_get::http_get;
use crate::config::{DirSettings, HeartbeatSettings};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{DatabaseStatus, Managed, RunState, Store};
use crate::telemetry::duration;
use crate::types::Timestamp;

/// How often it is looked at whether a ping is due.
const TICK: Duration = Duration::from_secs(15);
/// For one ping, redirects included.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Pings at once.
const AT_ONCE: usize = 8;

/// Somebody who is told, and of what.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    /// The databases it is about.
    pub scope: Scope,
    /// Whom to tell, and how often.
    pub settings: HeartbeatSettings,
}

/// Which databases a heartbeat is about.
#[derive(Debug, Clone)]
pub enum Scope {
    /// All of the process.
    All,
    /// One.
    Database(PathBuf),
    /// Those of a directory.
    Directory(Box<DirSettings>),
}

impl Scope {
    fn covers(&self, path: &Path) -> bool {
        match self {
            Self::All => true,
            Self::Database(only) => only == path,
            Self::Directory(directory) => directory.covers(path),
        }
    }

    /// What two heartbeats differ in.
    fn place(&self) -> Option<&Path> {
        match self {
            Self::All => None,
            Self::Database(path) => Some(path),
            Self::Directory(directory) => Some(&directory.path),
        }
    }
}

/// One heartbeat and when it was last tried.
#[derive(Debug, Clone)]
struct Beating {
    heartbeat: Heartbeat,
    last_attempt: Option<Duration>,
}

/// Takes new settings over. Who is told the same as before is not told sooner because of that.
fn renew(old: &[Beating], new: &[Heartbeat]) -> Vec<Beating> {
    let last_attempt = |new: &Heartbeat| {
        let same = |old: &&Beating| {
            old.heartbeat.settings.url == new.settings.url && old.heartbeat.scope.place() == new.scope.place()
        };
        old.iter().find(same).and_then(|old| old.last_attempt)
    };
    new.iter().map(|new| Beating { heartbeat: new.clone(), last_attempt: last_attempt(new) }).collect()
}

/// Whether every open database that is covered, and at least one, was fully replicated within the interval.
fn all_is_well(databases: &[DatabaseStatus], now: Timestamp, Heartbeat { scope, settings }: &Heartbeat) -> bool {
    let covered = databases.iter().filter(|db| db.state != RunState::Stopped && scope.covers(&db.path));
    let oldest = now.minus(settings.interval);
    let mut covered = covered.peekable();
    covered.peek().is_some() && covered.all(|db| db.last_sync_at().is_some_and(|at| at >= oldest))
}

/// Whether enough time has passed since the last attempt, whatever became of it.
fn due(last_attempt: Option<Duration>, now: Duration, interval: Duration) -> bool {
    last_attempt.is_none_or(|last| now.saturating_sub(last) >= interval)
}

/// Pings until told to stop. The heartbeats may change meanwhile.
pub async fn run(store: Store, mut heartbeats: watch::Receiver<Vec<Heartbeat>>, stop: CancellationToken) {
    let mut beating: Vec<Beating> = Vec::new();
    let mut announced = false;
    loop {
        beating = renew(&beating, &heartbeats.borrow_and_update());
        if beating.is_empty() {
            match stop.run_until_cancelled(heartbeats.changed()).await {
                Some(Ok(())) => continue,
                _ => return,
            }
        }
        if !std::mem::replace(&mut announced, true) {
            info!(system = "store", interval = duration(TICK), "starting heartbeat monitor");
        }
        let ticked = stop.run_until_cancelled(async {
            tokio::time::sleep(TICK).await;
            tick(&store, &mut beating).await;
        });
        if ticked.await.is_none() {
            return;
        }
    }
}

async fn tick(store: &Store, beating: &mut [Beating]) {
    let clock = &store.world().clock;
    let databases: Vec<DatabaseStatus> = store.databases().iter().map(Managed::status).collect();
    let (now, wall) = (clock.elapsed(), clock.now());
    let mut urls = Vec::new();
    for Beating { heartbeat, last_attempt } in beating {
        if due(*last_attempt, now, heartbeat.settings.interval) && all_is_well(&databases, wall, heartbeat) {
            *last_attempt = Some(now);
            urls.push(heartbeat.settings.url.as_str());
        }
    }
    let pings = futures::stream::iter(urls).for_each_concurrent(AT_ONCE, |url| async move {
        match ping(url).await {
            Ok(()) => debug!(system = "store", url = %url, "heartbeat ping sent"),
            Err(err) => error!(system = "store", url = %url, error = %err, "heartbeat ping failed"),
        }
    });
    pings.await;
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
        named("/x", state, last_success)
    }

    fn named(path: &str, state: RunState, last_success: Option<i64>) -> DatabaseStatus {
        let target = TargetStatus {
            name: "file".to_owned(),
            position: None,
            pending: 0,
            last_success: last_success.map(|seconds| Timestamp::from_millis(seconds * 1000)),
            lag: Duration::ZERO,
            lost: false,
            trouble: None,
            unguarded: false,
        };
        DatabaseStatus {
            path: path.into(),
            wal_path: format!("{path}-wal").into(),
            state,
            local: LocalStatus::default(),
            targets: vec![target],
        }
    }

    fn heartbeat(scope: Scope) -> Heartbeat {
        let settings = HeartbeatSettings { url: "http://x".to_owned(), interval: Duration::from_secs(60) };
        Heartbeat { scope, settings }
    }

    fn well(databases: &[DatabaseStatus], scope: Scope) -> bool {
        all_is_well(databases, Timestamp::from_millis(1_000_000), &heartbeat(scope))
    }

    #[test]
    fn all_is_well_while_every_open_database_is_replicated() {
        let at = |databases: &[DatabaseStatus]| well(databases, Scope::All);
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
    fn a_heartbeat_of_one_database_says_nothing_about_others() {
        let all = [named("/a", RunState::Replicating, Some(950)), named("/b", RunState::Replicating, Some(1))];
        assert!(!well(&all, Scope::All));
        assert!(well(&all, Scope::Database("/a".into())));
        assert!(!well(&all, Scope::Database("/b".into())));
        assert!(!well(&all, Scope::Database("/c".into())));
    }

    #[test]
    fn an_attempt_is_made_once_per_interval() {
        let seconds = Duration::from_secs;
        assert!(due(None, seconds(15), seconds(60)));
        assert!(!due(Some(seconds(15)), seconds(74), seconds(60)));
        assert!(due(Some(seconds(15)), seconds(75), seconds(60)));
    }

    #[test]
    fn new_settings_keep_the_time_of_the_last_attempt_of_those_who_stay() {
        let at = Some(Duration::from_secs(7));
        let old = [Beating { heartbeat: heartbeat(Scope::All), last_attempt: at }];
        let renewed = renew(&old, &[heartbeat(Scope::Database("/a".into())), heartbeat(Scope::All)]);
        let attempts: Vec<_> = renewed.iter().map(|beating| beating.last_attempt).collect();
        assert_eq!(attempts, [None, at]);
    }
}
