//! What the backends over HTTP share: connections, bodies, names in URLs, what a status means.
//!
//! One pool of connections, with the parsed root certificates, serves all replicas that ask for the same trust: a
//! thousand databases on one endpoint share connections. Deadlines and retries are `replica/requests`.

mod connect;
#[cfg(any(feature = "abs", feature = "gs", feature = "oss"))]
mod paging;
mod watched;

use std::collections::HashMap;
use std::fmt;
#[cfg(any(feature = "abs", feature = "gs"))]
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::client::ByteStream;
use super::requests::{Failure, progress};
use crate::error::{Error, ErrorKind, Result};

pub(crate) use connect::{Pool, Trust, pool};
#[cfg(any(feature = "abs", feature = "gs", feature = "oss"))]
pub(crate) use paging::pages;
pub(crate) use watched::Watched;

/// How long a body may be silent.
pub(crate) const BODY_IDLE: Duration = Duration::from_secs(30);

/// Longest answer that is taken into memory: a page of a listing is far below.
const ANSWER_BYTES: usize = 32 << 20;

/// All but the unreserved letters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The same, for names whose slashes stay.
const RESERVED_BUT_SLASH: &AsciiSet = &RESERVED.remove(b'/');

/// `text` as one component of a path, or as a name or value of a query.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// `text` as a path.
pub(crate) fn encode_path(text: &str) -> String {
    utf8_percent_encode(text, RESERVED_BUT_SLASH).to_string()
}

/// A replica's path and a key as one name, joined as Litestream joins them on GCS and Azure: the path is cleaned, but a
/// leading slash stays, and becomes part of the name.
#[cfg(any(feature = "abs", feature = "gs"))]
pub(crate) fn joined(path: &str, key: &str) -> String {
    match crate::settings::clean(Path::new(path)).to_string_lossy().as_ref() {
        _ if path.is_empty() => key.to_owned(),
        "." => key.to_owned(),
        "/" => format!("/{key}"),
        root => format!("{root}/{key}"),
    }
}

/// Sends requests whose bodies are in memory.
#[derive(Debug, Clone)]
pub(crate) struct Web(Pool<Watched<Full<Bytes>>>);

/// No answer came.
#[derive(Debug)]
pub(crate) struct Unreachable {
    /// The request was not sent.
    pub(crate) connecting: bool,
    /// The server's certificate is what is wrong.
    pub(crate) untrusted: bool,
    /// The chain of causes in one line.
    pub(crate) text: String,
}

impl Unreachable {
    fn of(err: &hyper_util::client::legacy::Error) -> Self {
        Self { connecting: err.is_connect(), untrusted: is_untrusted(err), text: chain(err) }
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Unreachable {}

impl Web {
    /// The client for this trust and the current runtime: connections are driven by tasks of the runtime that opened
    /// them and die with it, so each runtime (a test has its own) gets a pool of its own.
    ///
    /// # Errors
    /// A certificate file that cannot be read.
    pub(crate) fn shared(trust: &Trust) -> Result<Self> {
        static CLIENTS: LazyLock<Mutex<HashMap<(Trust, tokio::runtime::Id), Web>>> = LazyLock::new(Mutex::default);
        let key = (trust.clone(), tokio::runtime::Handle::current().id());
        let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = Self(pool(trust)?);
        clients.insert(key, client.clone());
        Ok(client)
    }

    /// One request, one answer; redirects are answers.
    pub(crate) async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Incoming>, Unreachable> {
        self.0.request(request.map(|body| Watched::new(Full::new(body)))).await.map_err(|err| Unreachable::of(&err))
    }
}

/// Whether the server's certificate is what is wrong. Trying again does not make it better.
pub(crate) fn is_untrusted(err: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(tls) = err.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    // An I/O error does not name what it wraps as its source, but the source of that.
    if let Some(inner) = err.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        return is_untrusted(inner);
    }
    err.source().is_some_and(is_untrusted)
}

/// What to do about a certificate.
pub(crate) const UNTRUSTED: &str = "this host does not trust the server's certificate: check the name in the endpoint, and \
                                    name the file of its authority in SSL_CERT_FILE (an image without /etc/ssl/certs \
                                    trusts nobody)";

/// An error and its causes; layers that only repeat what lies below them are left out.
pub(crate) fn chain(err: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(err);
    while let Some(cause) = next {
        let text = cause.to_string();
        if parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
        next = cause.source();
    }
    parts.join(": ")
}

/// The pieces of a body. One that falls silent is an error like one that breaks.
pub(crate) fn pieces(
    body: Incoming,
) -> impl stream::Stream<Item = Result<Bytes, Box<dyn std::error::Error + Send + Sync>>> + Send {
    stream::try_unfold(body, |mut body| async move {
        loop {
            return match tokio::time::timeout(BODY_IDLE, body.frame()).await {
                Err(_) => Err(format!("nothing came for {}s", BODY_IDLE.as_secs()).into()),
                Ok(None) => Ok(None),
                Ok(Some(Err(err))) => Err(chain(&err).into()),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => {
                        progress();
                        Ok(Some((bytes, body)))
                    }
                    // Trailers.
                    Err(_) => continue,
                },
            };
        }
    })
}

/// The bytes of an object. `op`: `gs: read object`.
pub(crate) fn object(body: Incoming, op: &'static str, target: String) -> ByteStream {
    pieces(body)
        .map(move |piece| piece.map_err(|cause| Error::new(ErrorKind::Unavailable, op).at(&target).caused_by(cause)))
        .boxed()
}

/// A whole answer, in memory.
pub(crate) async fn answer(body: Incoming) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let mut pieces = std::pin::pin!(pieces(body));
    let mut whole = BytesMut::new();
    while let Some(piece) = pieces.next().await {
        whole.extend_from_slice(&piece?);
        if whole.len() > ANSWER_BYTES {
            return Err(format!("the answer is longer than {ANSWER_BYTES} bytes").into());
        }
    }
    Ok(whole.freeze())
}

/// How long the service asks us to wait: seconds. The form with a date is not used by stores.
pub(crate) fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// What a status means where the service gave no code that says more.
pub(crate) fn kind_of_status(status: u16) -> ErrorKind {
    match status {
        401 | 403 => ErrorKind::PermissionDenied,
        412 => ErrorKind::Exists,
        409 => ErrorKind::Busy,
        507 => ErrorKind::DiskFull,
        408 | 425 | 429 | 500 | 502..=504 | 509 | 520..=530 => ErrorKind::Unavailable,
        // A success that is not one, or an answer cut short.
        200..=299 => ErrorKind::Unavailable,
        _ => ErrorKind::Invalid,
    }
}

/// What is wrong when no answer came, and what to do about it.
pub(crate) fn unreachable(op: String, target: &str, err: Unreachable) -> Failure {
    let (kind, code, hint) = match err {
        Unreachable { untrusted: true, .. } => (ErrorKind::PermissionDenied, "Certificate", UNTRUSTED),
        Unreachable { connecting: true, .. } => (ErrorKind::Unavailable, "Connection", "check endpoint and network"),
        Unreachable { .. } => (ErrorKind::Unavailable, "Response", "check endpoint and network"),
    };
    let error = Error::new(kind, op).at(target).caused_by(err.text).hint(hint);
    Failure { error, code: code.to_owned(), retry_after: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unreserved_letters_stay() {
        assert_eq!(encode("a-_.~/ +é&="), "a-_.~%2F%20%2B%C3%A9%26%3D");
        assert_eq!(encode_path("/x y/%2e"), "/x%20y/%252e");
    }

    /// As seen with the reference.
    #[cfg(any(feature = "abs", feature = "gs"))]
    #[test]
    fn a_path_is_cleaned_but_for_its_leading_slash() {
        for (path, want) in [
            ("", "ltx/0"),
            (".", "ltx/0"),
            ("/", "/ltx/0"),
            ("/x", "/x/ltx/0"),
            ("/x//y/../z/", "/x/z/ltx/0"),
            ("./q", "q/ltx/0"),
            ("a/./b/", "a/b/ltx/0"),
            ("../up", "../up/ltx/0"),
        ] {
            assert_eq!(joined(path, "ltx/0"), want, "{path}");
        }
    }

    #[test]
    fn what_a_status_means() {
        for (status, kind) in [
            (429, ErrorKind::Unavailable),
            (503, ErrorKind::Unavailable),
            (401, ErrorKind::PermissionDenied),
            (403, ErrorKind::PermissionDenied),
            (412, ErrorKind::Exists),
            (404, ErrorKind::Invalid),
            (400, ErrorKind::Invalid),
            (200, ErrorKind::Unavailable),
        ] {
            assert_eq!(kind_of_status(status), kind, "{status}");
        }
    }

    #[test]
    fn the_wait_that_was_asked_for_is_read() {
        let mut headers = http::HeaderMap::new();
        assert_eq!(retry_after(&headers), None);
        headers.insert("retry-after", " 7 ".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        headers.insert("retry-after", "soon".parse().unwrap());
        assert_eq!(retry_after(&headers), None);
    }
}
