//! Serving HTTP/1 to those who may be slow, many or hostile. hyper parses; this bounds.
//!
//! * At most [`Limits::connections`] at a time. One more takes the place of the oldest that is not
//!   being answered, so that idle connections keep nobody out.
//! * A head must come within [`Limits::head`], a body within [`Limits::body`] and within its size.
//! * A request is handled to its end even if its sender is gone: what it began, the store ends.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

/// How long requests in flight are waited for at the end.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after a failed `accept`, which is mostly a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that are being closed while others are let in, at most.
const LEAVING: usize = 16;
/// Bytes of a request's head, at most.
const MAX_HEAD: usize = 16 * 1024;

/// Bounds of one server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) head: Duration,
    pub(super) body: Duration,
    pub(super) body_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 128, head: Duration::from_secs(10), body: Duration::from_secs(10), body_bytes: 64 * 1024 }
    }
}

/// A request, read completely.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Request {
    /// The first value of a query parameter, decoded.
    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode_query(key) == name).then(|| decode_query(value))
        })
    }

    /// The text of a header, empty if there is none.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// HEAD is answered like GET, without the body (hyper leaves it out).
    pub(super) fn is_get(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }
}

/// `%XX` and `+`; what is not valid stays as it is.
fn decode_query(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What answers.
pub(super) trait Handler: Send + Sync + 'static {
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send;
}

/// An answer.
pub(super) type Response = hyper::Response<ResponseBody>;

/// Bytes, or a stream that stays open and silent.
#[derive(Debug)]
pub(super) enum ResponseBody {
    Bytes(Full<Bytes>),
    Silence,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Bytes(bytes) => Pin::new(bytes).poll_frame(cx),
            // Ends with the connection.
            Self::Silence => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.is_end_stream(),
            Self::Silence => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Bytes(bytes) => bytes.size_hint(),
            Self::Silence => SizeHint::default(),
        }
    }
}

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";

/// An answer of a given type.
pub(super) fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(ResponseBody::Bytes(Full::new(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if content_type == TEXT {
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    response
}

pub(super) fn not_found() -> Response {
    respond(StatusCode::NOT_FOUND, TEXT, "404 page not found\n")
}

pub(super) fn method_not_allowed(allow: &'static str) -> Response {
    let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

/// Where a path with doubled slashes or dots leads; `None` if it is clean.
pub(super) fn clean_path(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    if clean.len() > 1 && path.ends_with('/') {
        clean.push('/');
    }
    (clean != path).then_some(clean)
}

pub(super) fn moved(to: &str) -> Response {
    let mut response = respond(StatusCode::MOVED_PERMANENTLY, TEXT, "Moved Permanently\n");
    if let Ok(to) = HeaderValue::from_str(to) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response
}

/// Where connections come from.
pub(super) trait Listener: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection; `None` for one that must not be answered.
    fn accept(&self) -> impl Future<Output = std::io::Result<Option<Self::Stream>>> + Send;
}

impl Listener for tokio::net::TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> std::io::Result<Option<Self::Stream>> {
        Self::accept(self).await.map(|(stream, _)| Some(stream))
    }
}

/// A server that runs.
#[derive(Debug)]
pub struct Serving {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Serving {
    /// Accepts nobody any more, and waits a few seconds for requests in flight.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            error!(error = "context deadline exceeded", "http server shutdown error");
        }
    }
}

/// Starts serving.
pub(super) fn serve<L: Listener, H: Handler>(listener: L, handler: H, limits: Limits) -> Serving {
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let connections = Arc::new(Connections::default());
    let handler = Arc::new(handler);
    let (token, tracker) = (stop.clone(), tasks.clone());
    tasks.spawn(async move {
        loop {
            let accepted = tokio::select! {
                biased;
                () = token.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(Some(stream)) => {
                    let Some(place) = Connections::enter(&connections, limits.connections) else { continue };
                    tracker.spawn(connection(stream, Arc::clone(&handler), limits, place, token.clone()));
                    // Those who lost their place close their connections first, or a crowd would use up descriptors.
                    while tracker.len() > limits.connections + LEAVING {
                        tokio::task::yield_now().await;
                    }
                }
                Ok(None) => {}
                Err(err) => {
                    debug!(error = %err, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    Serving { stop, tasks }
}

async fn connection<S, H>(stream: S, handler: Arc<H>, limits: Limits, place: Place, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Handler,
{
    let seat = Arc::clone(&place.seat);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (handler, seat) = (Arc::clone(&handler), Arc::clone(&seat));
        async move {
            let request = match read(request, limits).await {
                Ok(request) => request,
                Err(response) => return Ok::<_, Infallible>(response),
            };
            seat.busy.store(true, Ordering::Relaxed);
            let response = handler.handle(request).await;
            seat.busy.store(false, Ordering::Relaxed);
            Ok(response)
        }
    });
    let mut served = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service)
    );
    let evicted = place.seat.evicted.clone();
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            () = evicted.cancelled() => return,
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                served.as_mut().graceful_shutdown();
            }
            ended = served.as_mut() => {
                if let Err(err) = ended {
                    debug!(error = %err, "connection ended");
                }
                return;
            }
        }
    }
}

/// Reads the body of a request, or says why not.
async fn read(request: hyper::Request<Incoming>, limits: Limits) -> Result<Request, Response> {
    let (head, body) = request.into_parts();
    let refuse = |status: StatusCode, text: &'static str| {
        let mut response = respond(status, TEXT, text);
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    };
    let too_large = || refuse(StatusCode::PAYLOAD_TOO_LARGE, "request body too large\n");
    if body.size_hint().lower() > limits.body_bytes as u64 {
        return Err(too_large());
    }
    let collected = tokio::time::timeout(limits.body, Limited::new(body, limits.body_bytes).collect()).await;
    let body = match collected {
        Err(_) => return Err(refuse(StatusCode::REQUEST_TIMEOUT, "request body did not arrive in time\n")),
        Ok(Err(err)) if err.is::<http_body_util::LengthLimitError>() => return Err(too_large()),
        Ok(Err(_)) => return Err(refuse(StatusCode::BAD_REQUEST, "request body is broken\n")),
        Ok(Ok(body)) => body.to_bytes(),
    };
    Ok(Request {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body,
    })
}

/// Who is connected, the oldest first.
#[derive(Debug, Default)]
struct Connections {
    seats: Mutex<VecDeque<Arc<Seat>>>,
}

#[derive(Debug, Default)]
struct Seat {
    /// Its request is being handled.
    busy: AtomicBool,
    evicted: CancellationToken,
}

/// Holds a seat until dropped.
#[derive(Debug)]
struct Place {
    connections: Arc<Connections>,
    seat: Arc<Seat>,
}

impl Connections {
    /// A seat for a new connection, if need be that of the oldest idle one.
    fn enter(connections: &Arc<Self>, most: usize) -> Option<Place> {
        let mut seats = connections.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if seats.len() >= most {
            let idle = seats.iter().position(|seat| !seat.busy.load(Ordering::Relaxed))?;
            if let Some(seat) = seats.remove(idle) {
                seat.evicted.cancel();
            }
        }
        let seat = Arc::new(Seat::default());
        seats.push_back(Arc::clone(&seat));
        Some(Place { connections: Arc::clone(connections), seat })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut seats = self.connections.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|seat| !Arc::ptr_eq(seat, &self.seat));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unclean_paths_lead_to_clean_ones() {
        for (path, want) in [
            ("/list", None),
            ("/", None),
            ("//list", Some("/list")),
            ("/a/../list", Some("/list")),
            ("/./list/", Some("/list/")),
            ("/debug/pprof/", None),
        ] {
            assert_eq!(clean_path(path).as_deref(), want, "{path}");
        }
    }

    #[test]
    fn query_values_are_decoded() {
        let request = Request {
            method: Method::GET,
            path: "/txid".to_owned(),
            query: "x=1&path=%2Ftmp%2Fa+b%C3%A9&path=second&flag".to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        assert_eq!(request.parameter("path").as_deref(), Some("/tmp/a bé"));
        assert_eq!(request.parameter("flag").as_deref(), Some(""));
        assert_eq!(request.parameter("Path"), None);
        assert_eq!(decode_query("100%"), "100%");
        assert_eq!(decode_query("%zz%é"), "%zz%é");
    }

    #[test]
    fn one_more_takes_the_place_of_the_oldest_that_is_idle() {
        let connections = Arc::new(Connections::default());
        let places: Vec<Place> = (0..3).filter_map(|_| Connections::enter(&connections, 3)).collect();
        places[0].seat.busy.store(true, Ordering::Relaxed);
        let fourth = Connections::enter(&connections, 3).unwrap();
        assert!(!places[0].seat.evicted.is_cancelled());
        assert!(places[1].seat.evicted.is_cancelled());
        assert!(!places[2].seat.evicted.is_cancelled());
        drop(places);
        drop(fourth);
        assert!(connections.seats.lock().unwrap().is_empty());
    }

    #[test]
    fn when_all_are_busy_nobody_gets_in() {
        let connections = Arc::new(Connections::default());
        let place = Connections::enter(&connections, 1).unwrap();
        place.seat.busy.store(true, Ordering::Relaxed);
        assert!(Connections::enter(&connections, 1).is_none());
    }
}
