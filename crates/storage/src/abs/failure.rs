//! An SDK error → what callers branch on, what an operator reads, what to do about it. Decided by the service's
//! code, then by the HTTP status; never by message text.

use azure_core::error::{Error as SdkError, ErrorKind as SdkKind};
use azure_core::http::headers::{HeaderName, RETRY_AFTER};

use super::super::requests::Failure;
use super::super::web::{UNTRUSTED, Unreachable, chain, kind_of_status};
use crate::error::{Error, ErrorKind};

/// What was asked of the service when it failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// In our words: `cannot list blobs`.
    pub(super) doing: &'static str,
    /// `abs://container/blob`
    pub(super) target: &'a str,
}

/// Classifies one failed attempt.
pub(super) fn failure(asked: Asked<'_>, err: &SdkError) -> Failure {
    let (kind, text, code, retry_after) = match err.kind() {
        SdkKind::HttpResponse { status, error_code, raw_response } => {
            let status = u16::from(*status);
            let code = error_code.clone().unwrap_or_else(|| format!("HTTP{status}"));
            let header = |name: &HeaderName| raw_response.as_ref()?.headers().get_optional_str(name);
            let wait = header(&RETRY_AFTER).and_then(|text| text.trim().parse().ok());
            let id = header(&HeaderName::from_static("x-ms-request-id")).unwrap_or_default();
            let message = raw_response.as_ref().and_then(|raw| message(raw.body())).unwrap_or_default();
            let text = format!("RESPONSE {status} ERROR CODE: {code} {message} RequestId:{id}");
            (kind_of(&code, status), text, code, wait.map(std::time::Duration::from_secs))
        }
        SdkKind::Connection if is_untrusted(err) => {
            (ErrorKind::PermissionDenied, chain(err), "Certificate".to_owned(), None)
        }
        SdkKind::Connection => (ErrorKind::Unavailable, chain(err), "Connection".to_owned(), None),
        SdkKind::Credential => (ErrorKind::PermissionDenied, chain(err), "NoCredentials".to_owned(), None),
        SdkKind::Io => (ErrorKind::Unavailable, chain(err), "Response".to_owned(), None),
        // An answer that is not what the service sends: a proxy's page, or one cut short.
        SdkKind::DataConversion => (ErrorKind::Unavailable, chain(err), "Response".to_owned(), None),
        SdkKind::Other => (ErrorKind::Invalid, chain(err), "Request".to_owned(), None),
    };
    let mut error = Error::new(kind, format!("abs: {}", asked.doing)).at(asked.target).caused_by(text);
    if let Some(hint) = hint(&code, kind) {
        error = error.hint(hint);
    }
    Failure { error, code, retry_after }
}

/// What our transport said, below what the SDK makes of it.
fn is_untrusted(err: &(dyn std::error::Error + 'static)) -> bool {
    let found = err.downcast_ref::<Unreachable>().map(|unreachable| unreachable.untrusted);
    found.unwrap_or_else(|| err.source().is_some_and(is_untrusted))
}

/// The sentence for people in an XML answer; its first line, the rest is request id and time.
fn message(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("<Message>")?;
    let (message, _) = rest.split_once("</Message>")?;
    message.lines().next().map(str::to_owned)
}

fn kind_of(code: &str, status: u16) -> ErrorKind {
    match code {
        "BlobNotFound" => ErrorKind::NotFound,
        "BlobAlreadyExists" | "ConditionNotMet" | "TargetConditionNotMet" => ErrorKind::Exists,
        // Blocks of ours are gone: another upload of this blob was completed meanwhile. The next one may be luckier.
        "InvalidBlockList" | "InvalidBlobOrBlock" => ErrorKind::Changed,
        "ServerBusy" | "InternalError" | "OperationTimedOut" | "BlobBeingRehydrated" => ErrorKind::Unavailable,
        "ContainerBeingDeleted" | "AccountBeingCreated" => ErrorKind::Unavailable,
        "InsufficientAccountPermissions"
        | "AccountIsDisabled"
        | "AuthenticationFailed"
        | "InvalidAuthenticationInfo" => ErrorKind::PermissionDenied,
        // A HEAD has no body, and no code on some servers.
        "HTTP404" => ErrorKind::NotFound,
        _ if status == 404 => ErrorKind::Invalid,
        _ => kind_of_status(status),
    }
}

fn hint(code: &str, kind: ErrorKind) -> Option<&'static str> {
    Some(match code {
        "AuthenticationFailed" | "AuthorizationFailure" | "InvalidAuthenticationInfo" => {
            "the account key or SAS token was refused: check account-name, account-key, sas-token (expired?), and the \
             firewall of the storage account"
        }
        "AuthorizationPermissionMismatch" | "InsufficientAccountPermissions" => {
            "the identity needs the role Storage Blob Data Contributor on the container (a SAS token: read, add, create, \
             write, delete and list)"
        }
        "ContainerNotFound" => {
            "create the container, or check bucket and account-name: Litestream does not create containers"
        }
        "InvalidUri" | "ResourceNotFound" | "AccountIsDisabled" => "check account-name and endpoint",
        "NoCredentials" => {
            "set account-key or sas-token, or AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or give this host \
             an identity, or log in with `az login`"
        }
        "Certificate" => UNTRUSTED,
        "Connection" => "check account-name, endpoint and network",
        _ if kind == ErrorKind::PermissionDenied => "check the credentials and the roles of the identity",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_more_than_the_status() {
        for (code, status, want) in [
            ("BlobNotFound", 404, ErrorKind::NotFound),
            ("ContainerNotFound", 404, ErrorKind::Invalid),
            ("BlobAlreadyExists", 409, ErrorKind::Exists),
            ("ConditionNotMet", 412, ErrorKind::Exists),
            ("InvalidBlockList", 400, ErrorKind::Changed),
            ("ServerBusy", 503, ErrorKind::Unavailable),
            ("AuthorizationFailure", 403, ErrorKind::PermissionDenied),
            ("TooManyRequests", 429, ErrorKind::Unavailable),
            ("Unheard", 400, ErrorKind::Invalid),
        ] {
            assert_eq!(kind_of(code, status), want, "{code}");
        }
    }

    #[test]
    fn a_certificate_is_looked_at_once() {
        let asked = Asked { doing: "cannot list blobs", target: "abs://c/p" };
        for (untrusted, kind) in [(true, ErrorKind::PermissionDenied), (false, ErrorKind::Unavailable)] {
            let below = Unreachable { connecting: true, untrusted, text: "invalid peer certificate".to_owned() };
            let failure = failure(asked, &SdkError::new(SdkKind::Connection, below));
            assert_eq!(failure.error.kind(), kind);
            assert!(failure.error.to_string().contains("invalid peer certificate"), "{}", failure.error);
        }
    }

    #[test]
    fn the_sentence_of_an_answer_is_found() {
        let body =
            b"<?xml version=\"1.0\"?><Error><Code>X</Code><Message>Not so.\nRequestId:1\nTime:2</Message></Error>";
        assert_eq!(message(body).unwrap(), "Not so.");
        assert_eq!(message(b"<html>"), None);
    }
}
