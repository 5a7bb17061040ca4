//! One signed request to the service, and what its refusals mean. Decided by the service's code, then by the HTTP
//! status; never by message text.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Response};
use hyper::body::Incoming;

use super::super::requests::{Call, Failure, Operation};
use super::super::web::{self, Trust, Web};
use super::sign::{self, Facts};
use super::xml;
use crate::error::{Error, ErrorKind, Result};
use crate::settings::{AwsKeys, OssSettings};
use crate::sys::Clock;

/// The region where none is set, as in the reference.
const REGION: &str = "cn-hangzhou";
/// The code of a range that begins behind the end of its object.
pub(super) const BEHIND_END: &str = "InvalidRange";

/// What was asked of the service.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) operation: Operation,
    /// In our words: `list objects`.
    pub(super) doing: &'static str,
    /// `oss://bucket/object`
    pub(super) target: &'a str,
}

impl<'a> Asked<'a> {
    pub(super) fn call(self, objects: u64, bytes: u64) -> Call<'a> {
        Call { operation: self.operation, kind: "oss", target: self.target, objects, bytes }
    }

    fn failure(self, kind: ErrorKind, text: String, code: &str) -> Failure {
        let error = Error::new(kind, format!("oss: {}", self.doing)).at(self.target).caused_by(text);
        Failure { error, code: code.to_owned(), retry_after: None }
    }

    /// An answer that is not one: cut short, or a proxy's page.
    pub(super) fn broken(self, text: String) -> Failure {
        self.failure(ErrorKind::Unavailable, text, "Response")
    }
}

/// A request before it is signed.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    method: Method,
    object: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Ask {
    /// About `object`, or about the bucket if that is empty.
    pub(super) fn new(method: Method, object: &str) -> Self {
        Self { method, object: object.to_owned(), query: Vec::new(), headers: Vec::new(), body: Bytes::new() }
    }

    pub(super) fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `name` in lower case.
    pub(super) fn header(mut self, name: &str, value: String) -> Self {
        self.headers.push((name.to_owned(), value));
        self
    }

    pub(super) fn body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }
}

/// Where requests go, and who signs them.
pub(super) struct Api {
    web: Web,
    place: Place,
    bucket: String,
    keys: AwsKeys,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Api {
    /// Makes no request.
    pub(super) fn new(settings: &OssSettings, clock: Arc<dyn Clock>) -> Result<Self> {
        let Some(keys) = settings.keys.clone() else {
            return Err(Error::new(ErrorKind::PermissionDenied, "access key id or access key secret is empty!")
                .hint("set access-key-id and secret-access-key, or OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET"));
        };
        let (place, bucket) = (Place::of(settings), settings.bucket.clone());
        Ok(Self { web: Web::shared(&Trust::System)?, place, bucket, keys, clock })
    }

    /// Scheme, host and bucket: what tells one bucket from another.
    pub(super) fn place(&self) -> String {
        format!("{} {}", self.place.base, self.bucket)
    }

    /// Sends a request. Anything but a success is a failure.
    pub(super) async fn send(&self, asked: Asked<'_>, ask: Ask) -> Result<Response<Incoming>, Failure> {
        let request = self.signed(ask).map_err(|e| asked.failure(ErrorKind::Invalid, e.to_string(), "Request"))?;
        let head = request.method() == Method::HEAD;
        let sent = self.web.send(request).await;
        let answer = sent.map_err(|err| web::unreachable(format!("oss: {}", asked.doing), asked.target, err))?;
        let status = answer.status().as_u16();
        if matches!(status, 200..=299) {
            return Ok(answer);
        }
        let retry_after = web::retry_after(answer.headers());
        let text = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        // An answer to HEAD has no body; the code is in a header, in base64 on the real service.
        let id = text("x-oss-request-id").unwrap_or_default();
        let body = web::answer(answer.into_body()).await.unwrap_or_default();
        let mut refused = xml::refusal(&body);
        if head && refused.code.is_empty() && status == 404 {
            "NoSuchKey".clone_into(&mut refused.code);
        }
        Err(Failure { retry_after, ..refusal(asked, status, refused, &id) })
    }

    fn signed(&self, mut ask: Ask) -> Result<http::Request<Bytes>, http::Error> {
        let now = jiff::Timestamp::from_millisecond(self.clock.now().millis()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        let date = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        ask.headers.push(("x-oss-content-sha256".to_owned(), sign::PAYLOAD.to_owned()));
        ask.headers.push(("x-oss-date".to_owned(), date.clone()));
        if let Some(token) = &self.keys.session_token {
            ask.headers.push(("x-oss-security-token".to_owned(), token.expose().to_owned()));
        }
        let facts = Facts {
            method: ask.method.as_str(),
            bucket: &self.bucket,
            object: &ask.object,
            query: &ask.query,
            headers: &ask.headers,
            region: &self.place.region,
            date: &date,
        };
        let (id, secret) = (self.keys.access_key_id.expose(), self.keys.secret_access_key.expose());
        let authorization = sign::authorization(&facts, id, secret);
        let query = sign::query(&ask.query);
        let mark = if query.is_empty() { "" } else { "?" };
        let url = format!("{}{}{mark}{query}", self.place.base, web::encode_path(&format!("/{}", ask.object)));
        let mut request = http::Request::builder()
            .method(ask.method)
            .uri(url)
            .header("user-agent", "litestream")
            .header("authorization", authorization);
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        request.body(ask.body)
    }
}

/// The address of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Scheme and host, and the bucket where it goes into the path.
    base: String,
    region: String,
}

impl Place {
    /// The bucket goes before the host, but not before an address in digits. A region's own host is the public one,
    /// whatever the URL said.
    pub(super) fn of(settings: &OssSettings) -> Self {
        let region = settings.region.clone().unwrap_or_else(|| REGION.to_owned());
        let endpoint = settings.endpoint.clone().unwrap_or_else(|| format!("oss-{region}.aliyuncs.com"));
        let (scheme, host) = endpoint.split_once("://").unwrap_or(("https", &endpoint));
        let host = host.trim_end_matches('/');
        let name = host.rsplit_once(':').map_or(host, |(name, port)| match port.parse::<u16>() {
            Ok(_) => name,
            Err(_) => host,
        });
        let numeric = name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
        let base = match numeric {
            true => format!("{scheme}://{host}/{}", settings.bucket),
            false => format!("{scheme}://{}.{host}", settings.bucket),
        };
        Self { base, region }
    }
}

fn refusal(asked: Asked<'_>, status: u16, refused: xml::Refusal, request_id: &str) -> Failure {
    let kind = kind_of(&refused.code, status);
    let code = if refused.code.is_empty() { format!("HTTP{status}") } else { refused.code };
    let message = refused.message.trim_end_matches('.');
    let text = format!("Error Code: {code}. Message: {message}. StatusCode: {status}, RequestID: {request_id}");
    let mut failure = asked.failure(kind, text, &code);
    if let Some(hint) = hint(&code, asked.operation, kind) {
        failure.error = failure.error.hint(hint);
    }
    failure
}

fn kind_of(code: &str, status: u16) -> ErrorKind {
    match code {
        "NoSuchKey" => ErrorKind::NotFound,
        "FileAlreadyExists" | "ObjectAlreadyExists" => ErrorKind::Exists,
        "RequestTimeTooSkewed" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "SecurityTokenExpired" => {
            ErrorKind::PermissionDenied
        }
        // The upload was aborted behind our back: only a new one helps.
        "NoSuchUpload" => ErrorKind::Io,
        // Without a code it is not said that the object is missing: a proxy, or an answer cut short.
        "" if status == 404 => ErrorKind::Unavailable,
        _ => web::kind_of_status(status),
    }
}

fn hint(code: &str, operation: Operation, kind: ErrorKind) -> Option<&'static str> {
    Some(match code {
        "SignatureDoesNotMatch" => {
            "the secret does not belong to this access key id: check secret-access-key (quotes, and `$` which is expanded \
             in the configuration)"
        }
        "InvalidAccessKeyId" => "the service does not know this access key id: check access-key-id",
        "NoSuchBucket" => "create the bucket, or check bucket and region: Litestream does not create buckets",
        "RequestTimeTooSkewed" => "the clock of this host is wrong: set it (requests are signed with the time)",
        "SecurityTokenExpired" | "InvalidSecurityToken" => "the session token is no longer valid: get new credentials",
        "InvalidArgument" | "SecondLevelDomainForbidden" => {
            "check region and endpoint: they must be those of the bucket"
        }
        _ if kind == ErrorKind::PermissionDenied => match operation {
            Operation::List => "the key needs oss:ListObjects on the bucket",
            Operation::Get => "the key needs oss:GetObject on the objects below the path",
            Operation::Delete => "the key needs oss:DeleteObject on the objects below the path",
            Operation::Put => "the key needs oss:PutObject and oss:AbortMultipartUpload on the objects below the path",
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(region: Option<&str>, endpoint: Option<&str>) -> OssSettings {
        OssSettings {
            bucket: "bkt".to_owned(),
            path: "p".to_owned(),
            region: region.map(str::to_owned),
            endpoint: endpoint.map(str::to_owned),
            keys: None,
            part_size_bytes: None,
            concurrency: None,
        }
    }

    /// The hosts of `tests/fixtures/config/valid/oss-forms`, and addresses.
    #[test]
    fn the_bucket_goes_before_a_name_and_behind_an_address() {
        for (region, endpoint, base, signed) in [
            (None, None, "https://bkt.oss-cn-hangzhou.aliyuncs.com", "cn-hangzhou"),
            (Some("cn-beijing"), None, "https://bkt.oss-cn-beijing.aliyuncs.com", "cn-beijing"),
            (None, Some("oss-cn-hongkong.aliyuncs.com"), "https://bkt.oss-cn-hongkong.aliyuncs.com", "cn-hangzhou"),
            (None, Some("http://127.0.0.1:8080/"), "http://127.0.0.1:8080/bkt", "cn-hangzhou"),
            (None, Some("http://[::1]:8080"), "http://[::1]:8080/bkt", "cn-hangzhou"),
            (None, Some("http://oss.test:8080"), "http://bkt.oss.test:8080", "cn-hangzhou"),
        ] {
            let want = Place { base: base.to_owned(), region: signed.to_owned() };
            assert_eq!(Place::of(&settings(region, endpoint)), want);
        }
    }

    #[test]
    fn codes_say_more_than_the_status() {
        for (code, status, want) in [
            ("NoSuchKey", 404, ErrorKind::NotFound),
            ("NoSuchBucket", 404, ErrorKind::Invalid),
            ("", 404, ErrorKind::Unavailable),
            ("FileAlreadyExists", 409, ErrorKind::Exists),
            ("SignatureDoesNotMatch", 403, ErrorKind::PermissionDenied),
            ("ServiceUnavailable", 503, ErrorKind::Unavailable),
        ] {
            assert_eq!(kind_of(code, status), want, "{code}");
        }
    }

    #[test]
    fn without_keys_nothing_is_sent() {
        let err = Api::new(&settings(None, None), Arc::new(crate::sys::SystemClock::new())).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::PermissionDenied);
    }
}
