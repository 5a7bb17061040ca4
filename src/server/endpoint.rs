//! The HTTP endpoint at `addr`: metrics, health for supervisors, and the status page.
//!
//! | Path | Answer |
//! |---|---|
//! | `/metrics` | Prometheus text |
//! | `/healthz` | 200 while the program answers at all |
//! | `/readyz` | 200 if every database is replicated in time, else 503 and the reasons, one a line |
//! | `/status` | the page, for people |
//! | `/status.json` | what it shows, for programs |
//! | `/` | the page, for browsers; for others 404 as in Litestream |

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use hyper::StatusCode;
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::Context;
use super::http::{Handler, JSON, Limits, Request, Response, Serving, TEXT, not_found, respond, serve};
use super::page;
use crate::error::{Error, Result};
use crate::store::{DatabaseStatus, RunState};
use crate::sys::blocking;

const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// When a database counts as replicated in time.
#[derive(Debug, Clone, Copy)]
pub struct Readiness {
    /// No commit may lack on a replica for longer.
    pub max_lag: Duration,
}

impl Default for Readiness {
    /// Twice a generous upload, so that a single slow one alarms nobody.
    fn default() -> Self {
        Self { max_lag: Duration::from_secs(30) }
    }
}

/// The endpoint, being listened on.
#[derive(Debug)]
pub struct EndpointServer {
    serving: Serving,
}

impl EndpointServer {
    /// Answers at an address from then on.
    ///
    /// # Errors
    /// It cannot be listened on.
    pub async fn start(context: Context, addr: &str) -> Result<Self> {
        let listener = listen(addr).await?;
        // What is said of it is the reference's line, and says less than what is so.
        if let Some(at) = listener.local_addr().ok().filter(|at| at.ip().is_unspecified()) {
            warn!(
                address = %at,
                hint = "whoever reaches this host can read them; addr: \"127.0.0.1:PORT\" keeps them on it",
                "metrics and status page are served on all interfaces"
            );
        }
        let limits = Limits { connections: 256, ..Limits::default() };
        let endpoint = Endpoint { context, readiness: Readiness::default() };
        Ok(Self { serving: serve(listener, endpoint, limits) })
    }

    /// Says where metrics are to be found.
    ///
    /// # Errors
    /// The address has no port.
    pub fn announce(addr: &str) -> Result<()> {
        let (host, port) = check_address(addr)?;
        let shown = if host.is_empty() { "localhost" } else { host };
        info!(url = %format_args!("http://{shown}:{port}/metrics"), "serving metrics on");
        Ok(())
    }

    /// Accepts nobody any more.
    pub async fn stop(self) {
        self.serving.stop().await;
    }
}

/// Host and port of an address to listen on.
///
/// # Errors
/// There is no port.
pub fn check_address(addr: &str) -> Result<(&str, &str)> {
    split_address(addr).ok_or_else(|| Error::invalid(format!("must specify port for bind address: {addr:?}")))
}

/// Host and port of `host:port`; the host may be empty or in brackets.
pub(super) fn split_address(addr: &str) -> Option<(&str, &str)> {
    let (host, port) = addr.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if port.is_empty() || (bare.is_none() && host.contains(':')) {
        return None;
    }
    Some((host, port))
}

/// Listens on an address as written in the configuration; without a host on all interfaces.
pub(super) async fn listen(addr: &str) -> Result<TcpListener> {
    let (host, port) = split_address(addr).unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let wanted = (if host.is_empty() { "::" } else { host }.to_owned(), port.to_owned());
    let all = host.is_empty();
    let failed = |what: &str, err| Error::io(format!("listen tcp {addr}: {what}"), err);
    let addresses = blocking(move || {
        let port = wanted.1.parse::<u16>().map_err(|_| Error::invalid(format!("unknown port tcp/{}", wanted.1)))?;
        let found = (wanted.0.as_str(), port).to_socket_addrs();
        Ok(found.map_err(|err| Error::io("lookup", err).at(&wanted.0))?.collect::<Vec<SocketAddr>>())
    });
    let addresses = addresses.await.map_err(|err| err.context(format!("listen tcp {addr}")))?;
    match TcpListener::bind(addresses.as_slice()).await {
        // A machine without IPv6.
        Err(_) if all => {
            let port = addresses.first().map_or(0, SocketAddr::port);
            TcpListener::bind(("0.0.0.0", port)).await.map_err(|err| failed("bind", err))
        }
        other => other.map_err(|err| failed("bind", err)),
    }
}

#[derive(Debug)]
struct Endpoint {
    context: Context,
    readiness: Readiness,
}

impl Handler for Endpoint {
    async fn handle(&self, request: Request) -> Response {
        let get = request.is_get();
        let for_people = request.header("accept").contains("text/html");
        match request.path.as_str() {
            "/metrics" => self.metrics(),
            "/healthz" if get => respond(StatusCode::OK, TEXT, "ok\n"),
            "/readyz" if get => self.readyz(),
            "/status.json" if get => respond(StatusCode::OK, JSON, page::json(&self.context, self.readiness)),
            "/status" if get => page(),
            "/" if get && for_people => page(),
            _ => not_found(),
        }
    }
}

fn page() -> Response {
    let mut response = respond(StatusCode::OK, HTML, page::HTML);
    let policy = hyper::header::HeaderValue::from_static(page::POLICY);
    response.headers_mut().insert(hyper::header::CONTENT_SECURITY_POLICY, policy);
    response
}

impl Endpoint {
    fn metrics(&self) -> Response {
        let metrics = self.context.store.metrics();
        let scrape = metrics.scrape();
        self.context.store.refresh_metrics();
        let limit = rustix::process::getrlimit(rustix::process::Resource::As);
        metrics.set_virtual_memory_max(limit.current);
        match scrape.render() {
            Ok(text) => respond(StatusCode::OK, METRICS, text),
            Err(why) => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{why}\n")),
        }
    }

    fn readyz(&self) -> Response {
        let databases = self.context.store.databases();
        let mut reasons = String::new();
        for managed in &databases {
            let status = managed.status();
            for reason in lacking(&status, self.readiness) {
                reasons.push_str(&format!("{}: {reason}\n", status.path.display()));
            }
        }
        if reasons.is_empty() {
            return respond(StatusCode::OK, TEXT, format!("ok: {} databases replicated\n", databases.len()));
        }
        respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, reasons)
    }
}

/// Why a database is not replicated in time, one reason per target. Stopped ones are nobody's fault.
pub(super) fn lacking(status: &DatabaseStatus, readiness: Readiness) -> Vec<String> {
    if status.state == RunState::Stopped {
        return Vec::new();
    }
    let late = status.targets.iter().filter(|target| target.lost || target.lag > readiness.max_lag);
    late.map(|target| {
        let trouble = status.local.trouble.as_ref().or(target.trouble.as_ref());
        let why = trouble.map_or_else(String::new, |trouble| format!(": {}", trouble.error));
        if target.lost {
            return format!("{} cannot be restored{why}", target.name);
        }
        format!("{} lacks commits of the last {} s{why}", target.name, target.lag.as_secs())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port() {
        assert_eq!(split_address("127.0.0.1:9090"), Some(("127.0.0.1", "9090")));
        assert_eq!(split_address(":9090"), Some(("", "9090")));
        assert_eq!(split_address("[::1]:9090"), Some(("[::1]", "9090")));
        for bad in ["foo", "foo:", "::1", "::1:9090", ""] {
            assert_eq!(split_address(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_said_as_litestream_says_it() {
        let taken = listen("127.0.0.1:0").await.unwrap();
        let addr = taken.local_addr().unwrap().to_string();
        let err = listen(&addr).await.unwrap_err().to_string();
        assert_eq!(err, format!("listen tcp {addr}: bind: address already in use"));
    }
}
