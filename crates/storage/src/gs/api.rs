//! One request to the service, and what its refusals mean. Decided by the reason the service names, then by the
//! HTTP status; never by message text.

use bytes::Bytes;
use http::request::Builder;
use http::{Method, Response};
use hyper::body::Incoming;
use serde::Deserialize;

use super::super::requests::{Call, Failure, Operation};
use super::super::web::{self, Trust, Web};
use super::login::Login;
use crate::error::{Error, ErrorKind, Result};
use crate::settings::GsSettings;

/// The code of a range that begins behind the end of its object.
pub(super) const BEHIND_END: &str = "HTTP416";

/// What was asked of the service.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) operation: Operation,
    /// In our words: `cannot list objects`.
    pub(super) doing: &'static str,
    /// `gs://bucket/object`
    pub(super) target: &'a str,
}

impl<'a> Asked<'a> {
    pub(super) fn call(self, objects: u64, bytes: u64) -> Call<'a> {
        Call { operation: self.operation, kind: "gs", target: self.target, objects, bytes }
    }

    fn failure(self, kind: ErrorKind, text: String, code: &str) -> Failure {
        let error = Error::new(kind, format!("gs: {}", self.doing)).at(self.target).caused_by(text);
        Failure { error, code: code.to_owned(), retry_after: None }
    }
}

/// Where requests go, and how they are authorised.
#[derive(Debug)]
pub(super) struct Api {
    web: Web,
    /// Scheme and authority: `https://storage.googleapis.com`.
    base: String,
    /// `None` for an emulator.
    login: Option<Login>,
}

impl Api {
    /// Makes no request.
    pub(super) fn new(settings: &GsSettings) -> Result<Self> {
        let web = Web::shared(&Trust::System)?;
        Ok(match &settings.emulator {
            Some(host) => Self { web, base: base(host), login: None },
            None => {
                let login = Login::new(&settings.bucket)?;
                let base = base(settings.endpoint.as_deref().unwrap_or("https://storage.googleapis.com"));
                Self { web, base, login: Some(login) }
            }
        })
    }

    /// A request for `path` (with its query), not authorised yet.
    pub(super) fn request(&self, method: Method, path: &str) -> Builder {
        http::Request::builder().method(method).uri(format!("{}{path}", self.base)).header("user-agent", "litestream")
    }

    /// Sends a request. Anything but a success is a failure, except 308, which resumable uploads answer with.
    pub(super) async fn send(
        &self,
        asked: Asked<'_>,
        request: Result<http::Request<Bytes>, http::Error>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = request.map_err(|e| asked.failure(ErrorKind::Invalid, e.to_string(), "Request"))?;
        if let Some(login) = &self.login {
            login.authorize(request.headers_mut()).await.map_err(|refused| {
                let mut failure = asked.failure(refused.kind, refused.text, "NoCredentials");
                failure.error = failure.error.hint(
                    "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or run `gcloud auth application-default login`, or \
                     give this host a service account",
                );
                failure
            })?;
        }
        let sent = self.web.send(request).await;
        let answer = sent.map_err(|err| web::unreachable(format!("gs: {}", asked.doing), asked.target, err))?;
        let status = answer.status().as_u16();
        if matches!(status, 200..=299 | 308) {
            return Ok(answer);
        }
        let retry_after = web::retry_after(answer.headers());
        // Half an answer is as good as none here.
        let body = web::answer(answer.into_body()).await.unwrap_or_default();
        Err(Failure { retry_after, ..refusal(asked, status, &body) })
    }

    /// A whole answer in JSON.
    pub(super) async fn json<T: serde::de::DeserializeOwned>(
        asked: Asked<'_>,
        answer: Response<Incoming>,
    ) -> Result<T, Failure> {
        let body = web::answer(answer.into_body()).await;
        let body = body.map_err(|e| asked.failure(ErrorKind::Unavailable, e.to_string(), "Response"))?;
        // A proxy's page, or an answer cut short.
        serde_json::from_slice(&body).map_err(|e| asked.failure(ErrorKind::Unavailable, e.to_string(), "Response"))
    }
}

/// `STORAGE_EMULATOR_HOST`, or another endpoint → scheme and authority.
fn base(host: &str) -> String {
    let host = host.trim_end_matches('/');
    if host.contains("://") { host.to_owned() } else { format!("http://{host}") }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refused {
    error: Body,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    message: String,
    errors: Vec<Reason>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reason {
    reason: String,
}

fn refusal(asked: Asked<'_>, status: u16, body: &[u8]) -> Failure {
    let refused: Refused = serde_json::from_slice(body).unwrap_or_default();
    let reason = refused.error.errors.into_iter().next().map(|first| first.reason).filter(|reason| !reason.is_empty());
    let message = match refused.error.message {
        text if !text.is_empty() => text,
        // Media downloads are refused in plain text.
        _ => String::from_utf8_lossy(&body[..body.len().min(200)]).trim().to_owned(),
    };
    let kind = kind_of(asked.operation, status, reason.as_deref());
    let text = match &reason {
        Some(reason) => format!("googleapi: Error {status}: {message}, {reason}"),
        None => format!("googleapi: Error {status}: {message}"),
    };
    let code = match (status, reason) {
        (416, _) => BEHIND_END.to_owned(),
        (_, Some(reason)) => reason,
        (status, None) => format!("HTTP{status}"),
    };
    let mut failure = asked.failure(kind, text, &code);
    if let Some(hint) = hint(asked.operation, status, kind) {
        failure.error = failure.error.hint(hint);
    }
    failure
}

fn kind_of(operation: Operation, status: u16, reason: Option<&str>) -> ErrorKind {
    match (status, reason) {
        (_, Some("rateLimitExceeded" | "userRateLimitExceeded" | "backendError" | "internalError")) => {
            ErrorKind::Unavailable
        }
        (_, Some("quotaExceeded" | "storageQuotaExceeded")) => ErrorKind::DiskFull,
        // An absent bucket and an absent object have the same reason; what was asked tells them apart.
        (404, _) => match operation {
            Operation::Get | Operation::Delete => ErrorKind::NotFound,
            Operation::List | Operation::Put => ErrorKind::Invalid,
        },
        // The session of a resumable upload is gone: only a new upload helps.
        (410, _) => ErrorKind::Io,
        (416, _) => ErrorKind::Invalid,
        (status, _) => web::kind_of_status(status),
    }
}

fn hint(operation: Operation, status: u16, kind: ErrorKind) -> Option<&'static str> {
    match (status, operation) {
        (404, Operation::List | Operation::Put) => {
            Some("create the bucket, or check its name: Litestream does not create buckets")
        }
        (401, _) => {
            Some("the credentials were refused: check GOOGLE_APPLICATION_CREDENTIALS and the clock of this host")
        }
        (403, _) if kind == ErrorKind::PermissionDenied => Some(match operation {
            Operation::List => "the account needs storage.objects.list on the bucket (role Storage Object User)",
            Operation::Get => "the account needs storage.objects.get on the bucket (role Storage Object User)",
            Operation::Delete => "the account needs storage.objects.delete on the bucket (role Storage Object User)",
            Operation::Put => {
                "the account needs storage.objects.create and storage.objects.delete on the bucket (role Storage Object \
                 User)"
            }
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(operation: Operation) -> Asked<'static> {
        Asked { operation, doing: "cannot do it", target: "gs://b/o" }
    }

    #[test]
    fn what_was_asked_tells_a_missing_bucket_from_a_missing_object() {
        let body = br#"{"error":{"code":404,"message":"Not here.","errors":[{"reason":"notFound"}]}}"#;
        let of = |operation| refusal(asked(operation), 404, body).error;
        assert_eq!(of(Operation::Get).kind(), ErrorKind::NotFound);
        assert_eq!(of(Operation::Delete).kind(), ErrorKind::NotFound);
        let err = of(Operation::List);
        assert_eq!(err.kind(), ErrorKind::Invalid);
        assert!(err.hint_text().unwrap().contains("create the bucket"));
        assert_eq!(err.to_string(), "gs: cannot do it gs://b/o: googleapi: Error 404: Not here., notFound");
    }

    #[test]
    fn reasons_say_more_than_the_status() {
        for (status, reason, want) in [
            (403, Some("rateLimitExceeded"), ErrorKind::Unavailable),
            (403, Some("forbidden"), ErrorKind::PermissionDenied),
            (401, Some("authError"), ErrorKind::PermissionDenied),
            (412, Some("conditionNotMet"), ErrorKind::Exists),
            (429, None, ErrorKind::Unavailable),
            (410, None, ErrorKind::Io),
            (503, None, ErrorKind::Unavailable),
            (400, Some("invalid"), ErrorKind::Invalid),
        ] {
            assert_eq!(kind_of(Operation::Put, status, reason), want, "{status} {reason:?}");
        }
    }

    #[test]
    fn an_emulator_needs_no_scheme() {
        assert_eq!(base("127.0.0.1:4443"), "http://127.0.0.1:4443");
        assert_eq!(base("https://x.test/"), "https://x.test");
    }
}
