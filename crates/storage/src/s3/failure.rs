//! An SDK error → what callers branch on, what an operator reads, what to do about it. Decided by the
//! service's code, then by the HTTP status; never by message text.

use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::{RequestId as _, RequestIdExt as _};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::super::requests::Failure;
use crate::error::{Error, ErrorKind};

/// What was asked of the service when it failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The operation's name in the protocol: `PutObject`.
    pub(super) api: &'static str,
    /// In our words: `write object`.
    pub(super) doing: &'static str,
    /// `s3://bucket/key`
    pub(super) target: &'a str,
}

/// Classifies one failed attempt.
pub(super) fn failure<E>(asked: Asked<'_>, err: SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let (status, retry_after) = match err.raw_response() {
        Some(raw) => (Some(raw.status().as_u16()), raw.headers().get("retry-after").and_then(parse_retry_after)),
        None => (None, None),
    };
    let meta = err.as_service_error().map(ProvideErrorMetadata::meta);
    let code = meta.and_then(|m| m.code()).map(str::to_owned);
    let request_id = err.request_id().unwrap_or_default().to_owned();
    let host_id = err.extended_request_id().unwrap_or_default().to_owned();
    let message = meta.and_then(|m| m.message()).unwrap_or_default().to_owned();
    // AWS names the region it wants.
    let home = err.raw_response().and_then(|raw| raw.headers().get("x-amz-bucket-region"));
    let home = home.map(|region| format!(", the bucket is in region {region}")).unwrap_or_default();
    let (kind, text, word) = match status {
        // The head of an answer came, but not the rest.
        Some(_) if matches!(err, SdkError::ResponseError(_)) => without_answer(asked, err),
        Some(status) => {
            let word = code.clone().unwrap_or_else(|| format!("HTTP{status}"));
            let what = match (&code, message.as_str()) {
                (Some(code), "") => format!("api error {code}"),
                (Some(code), message) => format!("api error {code}: {message}"),
                (None, _) => format!("api error {}", status_text(status)),
            };
            let text = format!(
                "operation error S3: {}, https response error StatusCode: {status}, RequestID: {request_id}, \
                 HostID: {host_id}, {what}{home}",
                asked.api
            );
            (kind_of(code.as_deref(), status), text, word)
        }
        None => without_answer(asked, err),
    };
    let hint = hint(code.as_deref(), status, asked.api, &word).map(|hint| refused_for(kind, &message).unwrap_or(hint));
    let mut error = Error::new(kind, format!("s3: {}", asked.doing)).at(asked.target).caused_by(text);
    if let Some(hint) = hint {
        error = error.hint(hint);
    }
    Failure { error, code: word, retry_after }
}

/// No HTTP answer: credentials, network, or our own request.
fn without_answer<E>(asked: Asked<'_>, err: SdkError<E, HttpResponse>) -> (ErrorKind, String, String)
where
    E: std::error::Error + Send + Sync + 'static,
{
    let (mut kind, mut word) = match &err {
        SdkError::ConstructionFailure(_) => (ErrorKind::Invalid, "Construction"),
        SdkError::TimeoutError(_) => (ErrorKind::Unavailable, "Timeout"),
        SdkError::DispatchFailure(e) if e.is_user() => (ErrorKind::Invalid, "Request"),
        SdkError::DispatchFailure(_) => (ErrorKind::Unavailable, "Connection"),
        SdkError::ResponseError(_) => (ErrorKind::Unavailable, "Response"),
        _ => (ErrorKind::Unavailable, "Unknown"),
    };
    let mut chain = Vec::new();
    let mut next: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(&err);
    while let Some(cause) = next {
        if let Some(credentials) = cause.downcast_ref::<aws_credential_types::provider::error::CredentialsError>() {
            use aws_credential_types::provider::error::CredentialsError as C;
            (kind, word) = match credentials {
                C::CredentialsNotLoaded(_) | C::InvalidConfiguration(_) => {
                    (ErrorKind::PermissionDenied, "NoCredentials")
                }
                _ => (ErrorKind::Unavailable, "Credentials"),
            };
        }
        match tls_failure(cause) {
            Some(rustls::Error::InvalidCertificate(_)) => (kind, word) = (ErrorKind::Invalid, "Certificate"),
            Some(rustls::Error::InvalidMessage(_)) => (kind, word) = (ErrorKind::Invalid, "NotTls"),
            _ => {}
        }
        let text = cause.to_string();
        // Layers of the client often repeat what lies below them.
        if chain.last().is_none_or(|last: &String| !last.contains(&text)) {
            chain.push(text);
        }
        next = cause.source();
    }
    if chain.is_empty() {
        chain.push(err.to_string());
    }
    if word == "NoCredentials" {
        chain.insert(0, "get identity: get credentials".to_owned());
    }
    (kind, format!("operation error S3: {}, {}", asked.api, chain.join(": ")), word.to_owned())
}

/// An I/O error does not name what it carries as its source, and may carry another one.
fn tls_failure<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = cause.downcast_ref() {
        return Some(found);
    }
    let carried = cause.downcast_ref::<std::io::Error>()?.get_ref()?;
    tls_failure(carried)
}

fn kind_of(code: Option<&str>, status: u16) -> ErrorKind {
    match code.unwrap_or_default() {
        "NoSuchKey" | "NotFound" => return ErrorKind::NotFound,
        "PreconditionFailed" => return ErrorKind::Exists,
        // Two conditional writes at once: the next attempt sees who won.
        "ConditionalRequestConflict" | "OperationAborted" => return ErrorKind::Busy,
        "SlowDown"
        | "RequestTimeout"
        | "RequestTimeoutException"
        | "InternalError"
        | "ServiceUnavailable"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "TooManyRequests"
        | "BandwidthLimitExceeded"
        | "RequestLimitExceeded"
        | "LimitExceededException"
        | "PriorRequestNotComplete"
        | "RequestCanceled" => {
            return ErrorKind::Unavailable;
        }
        "QuotaExceeded" | "EntityTooLarge" => return ErrorKind::DiskFull,
        "ExpiredToken" | "InvalidToken" | "RequestTimeTooSkewed" | "RequestExpired" => {
            return ErrorKind::PermissionDenied;
        }
        _ => {}
    }
    match status {
        401 | 403 => ErrorKind::PermissionDenied,
        // Without a code it is not said that the object is missing: a proxy, or an answer cut short.
        404 if code.is_none() => ErrorKind::Unavailable,
        404 => ErrorKind::Invalid,
        412 => ErrorKind::Exists,
        408 | 425 | 429 | 500 | 502 | 503 | 504 | 509 | 520..=530 => ErrorKind::Unavailable,
        409 => ErrorKind::Busy,
        507 => ErrorKind::DiskFull,
        200..=299 => ErrorKind::Unavailable,
        _ => ErrorKind::Invalid,
    }
}

const UNKNOWN_KEY: &str = "the service does not know this access key id: check access-key-id";
const WRONG_SECRET: &str = "the secret access key does not belong to this access key id: check secret-access-key (quotes, \
                            and `$` which is expanded in the configuration)";

/// What is wrong with the credentials, of services (Garage) that have one code for that and for a lack of rights. Only
/// for the hint: the kind of the error is the same.
fn of_credentials(message: &str) -> Option<&'static str> {
    let message = message.to_ascii_lowercase();
    if message.contains("invalid signature") {
        return Some(WRONG_SECRET);
    }
    message.contains("no such key:").then_some(UNKNOWN_KEY)
}

fn refused_for(kind: ErrorKind, message: &str) -> Option<&'static str> {
    if kind == ErrorKind::PermissionDenied { of_credentials(message) } else { None }
}

fn hint(code: Option<&str>, status: Option<u16>, api: &str, word: &str) -> Option<&'static str> {
    match (code.unwrap_or(word), status) {
        ("SignatureDoesNotMatch", _) => Some(WRONG_SECRET),
        ("InvalidAccessKeyId" | "NotSignedUp", _) => Some(UNKNOWN_KEY),
        ("NoCredentials", _) => Some(
            "set access-key-id and secret-access-key, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this \
             host a role",
        ),
        ("NoSuchBucket", _) => {
            Some("create the bucket, or check bucket and endpoint: Litestream does not create buckets")
        }
        ("RequestTimeTooSkewed" | "RequestExpired", _) => {
            Some("the clock of this host is wrong: set it (requests are signed with the time)")
        }
        ("ExpiredToken" | "InvalidToken", _) => Some("the session token is no longer valid: get new credentials"),
        ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "TemporaryRedirect", _) | (_, Some(301 | 307)) => {
            Some("the bucket is in another region or behind another endpoint: set region and endpoint")
        }
        ("AccessDenied" | "Forbidden", _) | (_, Some(401 | 403)) => Some(match api {
            "ListObjectsV2" => "the credentials need s3:ListBucket on the bucket",
            "GetObject" | "HeadObject" => {
                "the credentials need s3:GetObject on the objects below the path (and s3:ListBucket, or an object that \
                 is gone is refused too)"
            }
            "DeleteObjects" => "the credentials need s3:DeleteObject on the objects below the path",
            "GetBucketLocation" => "set region, or allow s3:GetBucketLocation",
            _ => "the credentials need s3:PutObject on the objects below the path",
        }),
        ("Certificate", _) => Some(
            "this host does not trust the endpoint's certificate: check the endpoint's name, and name the file of its \
             authority in AWS_CA_BUNDLE or SSL_CERT_FILE (skip-verify: true trusts anybody)",
        ),
        ("NotTls", _) => Some("the endpoint does not answer with TLS: if it speaks plain HTTP, write http://"),
        ("Connection", _) => Some("check endpoint and network"),
        _ => None,
    }
}

fn status_text(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("unknown")
}

/// Seconds. The form with a date is not used by stores.
fn parse_retry_after(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_more_than_the_status() {
        for (code, status, want) in [
            (Some("NoSuchKey"), 404, ErrorKind::NotFound),
            (Some("NoSuchBucket"), 404, ErrorKind::Invalid),
            (None, 404, ErrorKind::Unavailable),
            (Some("SlowDown"), 503, ErrorKind::Unavailable),
            (None, 429, ErrorKind::Unavailable),
            (Some("RequestTimeout"), 400, ErrorKind::Unavailable),
            (Some("SignatureDoesNotMatch"), 403, ErrorKind::PermissionDenied),
            (Some("RequestTimeTooSkewed"), 403, ErrorKind::PermissionDenied),
            (Some("PreconditionFailed"), 412, ErrorKind::Exists),
            (Some("ConditionalRequestConflict"), 409, ErrorKind::Busy),
            (Some("InvalidArgument"), 400, ErrorKind::Invalid),
            (Some("InternalError"), 200, ErrorKind::Unavailable),
        ] {
            assert_eq!(kind_of(code, status), want, "{code:?} {status}");
        }
    }

    #[test]
    fn what_is_wrong_with_tls_is_found_inside_of_io_errors() {
        let tls = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let io = std::io::Error::other(std::io::Error::new(std::io::ErrorKind::InvalidData, tls()));
        assert_eq!(tls_failure(&io), Some(&tls()));
        assert_eq!(tls_failure(&std::io::Error::from_raw_os_error(111)), None);
    }

    #[test]
    fn a_hint_names_the_permission_of_the_operation() {
        assert!(hint(Some("AccessDenied"), Some(403), "ListObjectsV2", "").unwrap().contains("s3:ListBucket"));
        assert!(hint(Some("AccessDenied"), Some(403), "PutObject", "").unwrap().contains("s3:PutObject"));
        assert!(hint(None, Some(500), "PutObject", "HTTP500").is_none());
        assert_eq!(hint(Some("NotSignedUp"), Some(403), "ListObjectsV2", ""), Some(UNKNOWN_KEY));
        assert_eq!(of_credentials("Forbidden: Invalid signature"), Some(WRONG_SECRET));
        assert_eq!(of_credentials("Forbidden: No such key: GK0123"), Some(UNKNOWN_KEY));
        assert_eq!(of_credentials("Access Denied"), None);
    }
}
