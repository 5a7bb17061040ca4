//! From the request to a running engine: the steps and log lines of `spec: cli` §7.1, in order.

use std::path::Path;
use std::sync::Arc;

use tracing::{error, info, warn};

use super::super::process::{Child, Reaper, Signals};
use super::super::restore::sqlite_check;
use super::super::service::Service;
use super::super::version::VERSION;
use super::super::{App, Failure, shellwords};
use super::Request;
use super::listeners::{Place, open_mcp};
use super::services::{Daemon, WatchedDir};
use super::supervise::{Until, signal_received, supervise};
use crate::config::{self, Config, DbEntry, DbSettings, Finding, ReplicaKind, Surroundings};
use crate::daemon;
use crate::error::{Error, ErrorKind, Result};
use crate::replica;
use crate::restore::{self, Target};
use crate::server::McpServer;
use crate::sqlite::SystemSqlite;
use crate::store::{Store, StoreConfig};
use crate::sys::TaskGroup;
use crate::telemetry::duration;

pub(super) async fn run(app: &App, request: &Request) -> std::result::Result<(), Failure> {
    // From here on a signal waits until there is something to shut down.
    let mut signals = Signals::catch()?;
    let config = &request.config;
    info!(version = VERSION, level = %config.logging.level, "litestream");
    warn_of_settings(config);
    // Nothing is followed yet, so there is nothing to end in good order: a restore is gone on with another time.
    let opened = tokio::select! {
        biased;
        opened = Box::pin(open(app, request)) => opened?,
        caught = signals.next() => {
            signal_received(caught);
            info!("litestream shut down");
            let early = Error::new(ErrorKind::Cancelled, "stopped before anything was replicated");
            return if config.dbs.is_empty() { Ok(()) } else { Err(early.into()) };
        }
    };
    let Opened { mcp, databases, directories, store } = opened;
    let mut daemon = Daemon::new(app, store.clone(), mcp, request);
    if request.once.is_none() {
        store.start();
    }
    if !config.retention_enabled {
        warn!(
            hint = "nothing is deleted from replicas; set up lifecycle rules at the storage provider",
            "retention disabled; cloud provider lifecycle policies must handle retention"
        );
    }
    daemon.open_socket(config).await;
    if request.once.is_none() {
        let heartbeats = daemon.beat(config, app.surroundings())?;
        daemon.watch(app, request, directories, heartbeats);
    }
    log_databases(&databases);
    daemon.open_endpoint(config).await?;

    let service = Service::new(&app.env);
    let (mut tasks, mut reaper) = (TaskGroup::default(), Reaper::new());
    let (until, failed) = match start_child(app, request, &mut reaper) {
        Ok(Some(child)) => (Until::Ended(child), None),
        Ok(None) => (request.once.map_or(Until::Signal, Until::Once), None),
        Err(err) => (Until::Nothing, Some(err)),
    };
    reaper.run()?;
    if failed.is_none() {
        service.ready(databases.len());
    }
    service.keep_alive(&mut tasks);
    let outcome = supervise(daemon, until, &mut signals, || service.stopping()).await;
    tasks.stop().await;
    reaper.stop().await;
    match failed {
        Some(err) => Err(err.into()),
        None => Ok(outcome?),
    }
}

/// What there is before anything is followed.
struct Opened {
    mcp: Place<McpServer>,
    databases: Vec<DbSettings>,
    directories: Vec<WatchedDir>,
    store: Store,
}

/// Steps 2 to 6, each of which may wait for a store.
async fn open(app: &App, request: &Request) -> std::result::Result<Opened, Failure> {
    let config = &request.config;
    let mcp = open_mcp(app, &request.config_path, config).await;
    if config.dbs.is_empty() {
        error!("no databases specified in configuration");
    }
    for entry in &config.dbs {
        restore_if_missing(app, entry).await?;
    }
    let (databases, directories) = build(config, app.surroundings())?;
    let store = open_store(app, config, &databases).await.map_err(|err| err.context("cannot open store"))?;
    Ok(Opened { mcp, databases, directories, store })
}

/// Step 12: the application, if one is asked for.
fn start_child(app: &App, request: &Request, reaper: &mut Reaper) -> Result<Option<Child>> {
    let Some(line) = &request.exec else { return Ok(None) };
    let words = shellwords::split(line).map_err(|err| Error::invalid("cannot parse exec command").caused_by(err))?;
    Child::start(&words, &app.env, reaper).map(Some)
}

/// Step 5: the databases, those found in directories included.
fn build(config: &Config, around: Surroundings<'_>) -> Result<(Vec<DbSettings>, Vec<WatchedDir>)> {
    let (mut all, mut directories) = (Vec::new(), Vec::new());
    for entry in &config.dbs {
        let built = entry.build_all(around)?;
        if let Some(directory) = built.directory {
            let (count, watch) = (built.databases.len(), directory.watch);
            info!(dir = %directory.written, count, watch, "found databases in directory");
            let found = built.databases.iter().map(|db| db.path.clone()).collect();
            directories.extend(directory.watch.then_some(WatchedDir { directory, found }));
        }
        all.extend(built.databases);
    }
    config::check_meta_paths(&all)?;
    Ok((all, directories))
}

async fn open_store(app: &App, config: &Config, databases: &[DbSettings]) -> Result<Store> {
    let databases = databases.iter().map(|db| daemon::database(db, &app.world));
    let store = StoreConfig {
        databases: databases.collect::<Result<_>>()?,
        shutdown: daemon::shutdown(config),
        upkeep: daemon::upkeep(config)?,
    };
    Store::open(app.world.clone(), Arc::new(SystemSqlite), store).await
}

/// What the file says in vain.
fn warn_of_settings(config: &Config) {
    for Finding { line, setting, message, hint, .. } in &config.warnings {
        let setting = Some(setting.as_str()).filter(|s| !s.is_empty());
        warn!(line, setting, problem = %message, hint = hint.as_deref(), "configuration warning");
    }
}

/// What there is to do about files of a database that is gone, but for the path.
const IN_THE_WAY: &str = "remove that file, which belongs to a database that is gone, or run this once, which restores \
                          without it: litestream restore -force";

/// Step 4: brings back a database that is missing, before anything is written in its place.
async fn restore_if_missing(app: &App, entry: &DbEntry) -> std::result::Result<(), Failure> {
    let Some(path) = entry.path().filter(|_| entry.restores_if_missing()) else { return Ok(()) };
    // The application's SQLite makes the file that a link leads to, so that is what has to be there.
    let output = app.world.fs.resolve(path);
    if !restore::holds_no_database(app.world.fs.as_ref(), &output) {
        info!(path = %path.display(), "database exists, skipping restore");
        return Ok(());
    }
    if !entry.has_replica() {
        return Err(Failure::new(format!("no replica configured for database: {}", path.display())));
    }
    info!(path = %path.display(), "attempting restore before replication");
    let replica = entry
        .build(app.surroundings())
        .and_then(|db| replica::build(&db.replica, &app.world))
        .map_err(|err| err.context("cannot create replica for restore"))?;
    let restored = async {
        replica.client().init().await?;
        restore_newest(app, &replica, &output).await
    };
    let restored = restored.await.map_err(|err| {
        let in_the_way = err.kind() == ErrorKind::Exists;
        let failure = Failure::from(err.context("restore failed"));
        // The text speaks of a flag that `replicate` does not have.
        if in_the_way { failure.advise(format!("{IN_THE_WAY} {}", output.display())) } else { failure }
    });
    match restored? {
        true => info!(path = %path.display(), "restore completed"),
        false => info!(path = %path.display(), "no backup found, starting fresh"),
    }
    Ok(())
}

/// Whether there was something to restore.
async fn restore_newest(app: &App, replica: &replica::Replica, path: &Path) -> Result<bool> {
    // Looked at before, so that a file that vanishes during the restore is not taken for "no backup".
    match restore::plan_for(replica, Target::Latest, false).await {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(false),
        planned => planned?,
    };
    restore::run(&app.world, replica, &restore::Request::new(path), sqlite_check()).await?;
    Ok(true)
}

/// Step 10: what is replicated where.
fn log_databases(databases: &[DbSettings]) {
    for db in databases {
        info!(path = %db.path.display(), "initialized db");
        log_target(&db.replica.kind, duration(db.replica.sync_interval));
    }
}

fn log_target(kind: &ReplicaKind, every: i128) {
    const SAID: &str = "replicating to";
    let name = kind.name();
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    match kind {
        ReplicaKind::File(s) => info!("type" = name, "sync-interval" = every, path = %s.path.display(), "{SAID}"),
        ReplicaKind::S3(s) => info!(
            "type" = name, "sync-interval" = every, bucket = %s.bucket, path = %s.path, region = text(&s.region),
            endpoint = text(&s.endpoint), "{SAID}"
        ),
        ReplicaKind::Gs(s) => {
            info!("type" = name, "sync-interval" = every, bucket = %s.bucket, path = %s.path, "{SAID}");
        }
        ReplicaKind::Abs(s) => info!(
            "type" = name, "sync-interval" = every, bucket = %s.bucket, path = %s.path,
            endpoint = text(&s.endpoint), "{SAID}"
        ),
        ReplicaKind::Oss(s) => info!(
            "type" = name, "sync-interval" = every, bucket = %s.bucket, path = %s.path, region = text(&s.region), "{SAID}"
        ),
        ReplicaKind::Sftp(s) => info!(
            "type" = name, "sync-interval" = every, host = %s.host, user = %s.user, path = %s.path, "{SAID}"
        ),
        ReplicaKind::Webdav(_) => info!("type" = name, "sync-interval" = every, "{SAID}"),
        ReplicaKind::Nats(s) => {
            info!("type" = name, "sync-interval" = every, bucket = %s.bucket, url = %s.url, "{SAID}")
        }
    }
}
