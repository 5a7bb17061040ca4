//! The control socket's routes (`spec: control` §1.4).

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::StatusCode;

use super::Context;
use super::api::{
    ChangeReply, ErrorReply, Info, Lag, Lags, List, ListEntry, PathRequest, RegisterReply, RegisterRequest, SyncReply,
    SyncRequest, SyncStatus, SyncStatusReply, TxidReply, UNGUARDED, line, local_time,
};
use super::decode::FromBody;
use super::http::{
    Handler, JSON, Limits, Request, Response, Serving, clean_path, method_not_allowed, moved, not_found, respond, serve,
};
use super::socket::{ControlSocket, Name};
use crate::config::{self, SocketSettings};
use crate::daemon;
use crate::error::{Error, Result};
use crate::store::{Changed, DatabaseConfig, DatabaseStatus, Managed, RunState, Trouble};
use crate::types::Txid;

/// How long a request that stops something may take if it does not say.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// The control socket, being listened on.
#[derive(Debug)]
pub struct ControlServer {
    serving: Serving,
    /// Removes the path when dropped.
    _name: Name,
}

impl ControlServer {
    /// Makes the socket and answers from then on. Must be called inside the runtime.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(context: Context, settings: &SocketSettings) -> Result<Self> {
        let (owners, name) = ControlSocket::bind(&settings.path, settings.permissions)?.split();
        tracing::info!(system = "server", path = %settings.path.display(), "control socket listening");
        let serving = serve(owners, Control { context }, Limits::default());
        Ok(Self { serving, _name: name })
    }

    /// Waits a few seconds for requests in flight, then removes the socket.
    pub async fn stop(self) {
        self.serving.stop().await;
    }
}

#[derive(Debug)]
struct Control {
    context: Context,
}

/// An error with the status it is reported with.
type Refusal = (StatusCode, ErrorReply);
type Answer<T> = std::result::Result<T, Refusal>;

fn refusal(status: StatusCode, error: impl Into<String>) -> Refusal {
    (status, ErrorReply { error: error.into(), details: None })
}

fn failed(err: &Error) -> Refusal {
    refusal(StatusCode::INTERNAL_SERVER_ERROR, err.to_string())
}

fn answer<T: serde::Serialize>(result: Answer<T>) -> Response {
    match result {
        Ok(reply) => respond(StatusCode::OK, JSON, line(&reply)),
        Err((status, reply)) => respond(status, JSON, line(&reply)),
    }
}

fn txid(txid: Option<Txid>) -> u64 {
    txid.map_or(0, Txid::get)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Seconds as requests give them: nothing and zero mean `default`, less means that time is up.
fn limit(seconds: i64, default: Duration) -> Duration {
    match u64::try_from(seconds) {
        Ok(0) => default,
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => Duration::ZERO,
    }
}

fn positive(seconds: i64) -> Option<Duration> {
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

impl Handler for Control {
    async fn handle(&self, request: Request) -> Response {
        if let Some(clean) = clean_path(&request.path) {
            return moved(&clean);
        }
        let get = request.is_get();
        let post = request.method == hyper::Method::POST;
        match request.path.as_str() {
            "/info" if get => answer(Ok(self.info())),
            "/list" if get => answer(Ok(self.list())),
            "/txid" if get => answer(self.txid(&request).await),
            "/lag" if get => answer(Ok(self.lags())),
            "/debug/sync-status" if get => answer(self.sync_status(&request)),
            "/start" if post => answer(self.start(&request).await),
            "/stop" if post => answer(self.stop(&request).await),
            "/sync" if post => answer(self.sync(&request).await),
            "/register" if post => answer(self.register(&request).await),
            "/unregister" if post => answer(self.unregister(&request).await),
            "/info" | "/list" | "/lag" | "/txid" | "/debug/sync-status" => method_not_allowed("GET, HEAD"),
            "/start" | "/stop" | "/sync" | "/register" | "/unregister" => method_not_allowed("POST"),
            _ => not_found(),
        }
    }
}

impl Control {
    fn info(&self) -> Info {
        let Context { store, world, version, started_at, .. } = &self.context;
        let up = world.clock.now().millis().saturating_sub(started_at.millis());
        Info {
            version: (*version).to_owned(),
            pid: i64::from(std::process::id()),
            uptime_seconds: up.max(0) / 1000,
            started_at: local_time(*started_at),
            database_count: i64::try_from(store.len()).unwrap_or(i64::MAX),
        }
    }

    fn list(&self) -> List {
        let entry = |managed: &Managed| {
            let status = managed.status();
            ListEntry {
                path: text(&status.path),
                status: status.state.name().to_owned(),
                last_sync_at: status.last_sync_at().map(local_time),
            }
        };
        List { databases: self.context.store.databases().iter().map(entry).collect() }
    }

    fn lags(&self) -> Lags {
        let mut replicas = Vec::new();
        for status in self.context.store.databases().iter().map(Managed::status) {
            if status.state == RunState::Stopped {
                continue;
            }
            for target in &status.targets {
                let trouble = status.local.trouble.as_ref().or(target.trouble.as_ref());
                replicas.push(Lag {
                    path: text(&status.path),
                    replica: target.name.clone(),
                    status: status.state.name().to_owned(),
                    txid: txid(status.local.position),
                    replica_txid: txid(target.position),
                    lag_seconds: target.lag.as_secs_f64(),
                    lost: target.lost,
                    error: trouble.map(|trouble| trouble.error.clone()),
                    retry_in_seconds: trouble.map(|trouble| self.until_retry(trouble)),
                    last_sync_at: target.last_success.map(local_time),
                    warning: target.unguarded.then(|| UNGUARDED.to_owned()),
                });
            }
        }
        Lags { replicas }
    }

    fn until_retry(&self, trouble: &Trouble) -> f64 {
        let since = self.context.world.clock.now().millis().saturating_sub(trouble.at.millis());
        let since = Duration::from_millis(u64::try_from(since).unwrap_or(0));
        trouble.retry_in.saturating_sub(since).as_secs_f64()
    }

    async fn txid(&self, request: &Request) -> Answer<TxidReply> {
        let path = self.expand(&request.parameter("path").unwrap_or_default())?;
        let managed = self.context.store.find(&path);
        let managed = managed.ok_or_else(|| refusal(StatusCode::NOT_FOUND, "database not found"))?;
        let position = managed.position().await.map_err(|err| failed(&err))?;
        Ok(TxidReply { txid: txid(position) })
    }

    fn sync_status(&self, request: &Request) -> Answer<SyncStatusReply> {
        let databases = match request.parameter("path").filter(|path| !path.is_empty()) {
            None => self.context.store.databases(),
            Some(path) => {
                let managed = self.context.store.find(&self.expand(&path)?);
                vec![managed.ok_or_else(|| refusal(StatusCode::NOT_FOUND, "database not found"))?]
            }
        };
        Ok(SyncStatusReply { databases: databases.iter().map(|managed| sync_status(&managed.status())).collect() })
    }

    async fn start(&self, request: &Request) -> Answer<ChangeReply> {
        let (path, request) = self.path_request("StartRequest", request)?;
        let managed = self.managed(&path, StatusCode::INTERNAL_SERVER_ERROR)?;
        let started = managed.start(positive(request.timeout)).await;
        let started = started.map_err(|err| failed(&err.context("enable database")))?;
        Ok(change(&path, started, ["started", "already_running"]))
    }

    async fn stop(&self, request: &Request) -> Answer<ChangeReply> {
        let (path, request) = self.path_request("StopRequest", request)?;
        let managed = self.managed(&path, StatusCode::INTERNAL_SERVER_ERROR)?;
        let stopped = managed.stop(limit(request.timeout, STOP_TIMEOUT)).await;
        let stopped = stopped.map_err(|err| failed(&err.context("close database")))?;
        Ok(change(&path, stopped, ["stopped", "already_stopped"]))
    }

    async fn unregister(&self, request: &Request) -> Answer<ChangeReply> {
        let (path, request) = self.path_request("UnregisterDatabaseRequest", request)?;
        let limit = positive(request.timeout).unwrap_or(STOP_TIMEOUT);
        let removed = self.context.store.unregister(&path, limit).await;
        let removed = removed.map_err(|err| failed(&err.context("failed to unregister database")))?;
        let status = if removed.is_some() { "unregistered" } else { "already_unregistered" };
        let txid = txid(removed.and_then(|removed| removed.txid));
        Ok(ChangeReply { status: status.to_owned(), path: text(&path), txid })
    }

    async fn sync(&self, request: &Request) -> Answer<SyncReply> {
        let (request, path) = self.body::<SyncRequest>("SyncRequest", request, |request| &request.path)?;
        let managed = self.managed(&path, StatusCode::NOT_FOUND)?;
        let limit = if request.wait && request.timeout == 0 { Some(STOP_TIMEOUT) } else { positive(request.timeout) };
        let synced = managed.sync(request.wait, limit).await;
        let synced = synced.map_err(|err| failed(&err.context("sync database")))?;
        let not_open = || refusal(StatusCode::CONFLICT, format!("database not open: {}", path.display()));
        let synced = synced.ok_or_else(not_open)?;
        let status = match (synced.txid > synced.before, request.wait) {
            (false, _) => "no_change",
            (true, true) => "synced",
            (true, false) => "synced_local",
        };
        Ok(SyncReply {
            status: status.to_owned(),
            path: text(&path),
            txid: txid(synced.txid),
            replicated_txid: txid(synced.replicated),
        })
    }

    async fn register(&self, request: &Request) -> Answer<RegisterReply> {
        let (request, path) =
            self.body::<RegisterRequest>("RegisterDatabaseRequest", request, |request| &request.path)?;
        if request.replica_url.is_empty() {
            return Err(refusal(StatusCode::BAD_REQUEST, "replica_url required"));
        }
        let reply = |status: &str| RegisterReply { status: status.to_owned(), path: text(&path) };
        if self.context.store.find(&path).is_some() {
            return Ok(reply("already_registered"));
        }
        let database = self.database(&path, &request.replica_url)?;
        let added = self.context.store.register(database).await;
        let added = added.map_err(|err| failed(&err.context("failed to register database")))?;
        Ok(reply(if added { "registered" } else { "already_registered" }))
    }

    /// A database as a URL alone describes it: every other setting is a default.
    fn database(&self, path: &Path, url: &str) -> Answer<DatabaseConfig> {
        let around = self.context.surroundings();
        let bad = |err: &Error| refusal(StatusCode::BAD_REQUEST, format!("invalid replica url: {}", for_url(err, url)));
        let settings = config::database_from_url(path, url, around).map_err(|err| bad(&err))?;
        daemon::database(&settings, &self.context.world).map_err(|err| bad(&err))
    }

    fn path_request(&self, of: &'static str, request: &Request) -> Answer<(PathBuf, PathRequest)> {
        let (request, path) = self.body::<PathRequest>(of, request, |request| &request.path)?;
        Ok((path, request))
    }

    /// The body, and its path expanded.
    fn body<T: FromBody>(
        &self,
        of: &'static str,
        request: &Request,
        path: impl Fn(&T) -> &str,
    ) -> Answer<(T, PathBuf)> {
        let body = T::from_body(of, &request.body).map_err(|why| {
            let details = Some(serde_json::Value::String(why));
            (StatusCode::BAD_REQUEST, ErrorReply { error: "invalid request body".to_owned(), details })
        })?;
        let path = self.expand(path(&body))?;
        Ok((body, path))
    }

    fn expand(&self, path: &str) -> Answer<PathBuf> {
        if path.is_empty() {
            return Err(refusal(StatusCode::BAD_REQUEST, "path required"));
        }
        let invalid = |err: Error| refusal(StatusCode::BAD_REQUEST, format!("invalid path: {err}"));
        self.context.surroundings().expand(path).map_err(invalid)
    }

    fn managed(&self, path: &Path, missing: StatusCode) -> Answer<Managed> {
        let not_found = || refusal(missing, format!("database not found: {}", path.display()));
        self.context.store.find(path).ok_or_else(not_found)
    }
}

fn change(path: &Path, changed: Changed, [now, already]: [&str; 2]) -> ChangeReply {
    let status = if changed.now { now } else { already };
    ChangeReply { status: status.to_owned(), path: text(path), txid: txid(changed.txid) }
}

/// What is wrong with a URL, in the words this request has always had for it.
fn for_url(err: &Error, url: &str) -> String {
    let said = err.to_string();
    if said.starts_with("unknown replica type in config") {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        return format!("unsupported replica URL scheme: {scheme:?}");
    }
    if said.contains(" required for ") && said.ends_with(" replica") {
        return format!("{} URL", said.replace("NATS", "nats").replace("webdav-url required", "host required"));
    }
    said
}

fn sync_status(status: &DatabaseStatus) -> SyncStatus {
    let local = &status.local;
    let begun = local.began.is_some();
    let some = |n: u64| Some(n).filter(|n| *n > 0);
    SyncStatus {
        path: text(&status.path),
        active: local.active,
        operation: begun.then_some("sync"),
        phase: begun.then_some(match local {
            _ if local.active => "verify_and_sync",
            _ if local.missing => "starting",
            _ => "update_metrics",
        }),
        started_at: local.began.map(local_time),
        updated_at: local.updated.map(local_time),
        elapsed_seconds: begun.then_some(local.took.as_secs_f64()).filter(|seconds| *seconds > 0.0),
        txid: some(txid(local.position)),
        wal_size: some(local.figures.wal_bytes),
        last_synced_wal_offset: some(local.figures.wal_synced),
        error: local.error.clone(),
    }
}
