//! Application Default Credentials: a key file, what `gcloud` left, workload identity, the metadata service. Tokens
//! are kept and renewed by Google's crate.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use google_cloud_auth::credentials::{Builder, CacheableResource, Credentials};
use google_cloud_auth::errors::CredentialsError;
use http::{Extensions, HeaderMap};

use super::super::requests::bounded_by_itself;
use super::super::web;
use crate::error::{Error, ErrorKind, Result};

/// Reading, writing and deleting objects, nothing else.
const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_write";

/// How long a token may take to come. Where there is no metadata service, asking it can mean silence.
const TOKEN: Duration = Duration::from_secs(20);

pub(super) struct Login {
    credentials: Credentials,
    /// There has been a token.
    worked: AtomicBool,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

/// Why there is no token.
pub(super) struct NoToken {
    pub(super) kind: ErrorKind,
    pub(super) text: String,
}

impl Login {
    /// Reads the credentials file, if there is one.
    pub(super) fn new(bucket: &str) -> Result<Self> {
        // The crate signs and connects with what the process has chosen; a choice that was made before stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let credentials = Builder::default().with_scopes([SCOPE]).build().map_err(|e| {
            Error::new(ErrorKind::PermissionDenied, format!("failed to create GCS client (bucket: {bucket})"))
                .caused_by(web::chain(&e))
                .hint("check the file GOOGLE_APPLICATION_CREDENTIALS names")
        })?;
        Ok(Self::with(credentials))
    }

    fn with(credentials: Credentials) -> Self {
        Self { credentials, worked: AtomicBool::new(false) }
    }

    /// Adds the headers that authorise a request.
    pub(super) async fn authorize(&self, headers: &mut HeaderMap) -> Result<(), NoToken> {
        let token = tokio::time::timeout(TOKEN, self.credentials.headers(Extensions::new()));
        let got = match bounded_by_itself(token).await {
            Ok(got) => got,
            Err(_) => {
                let text = format!("no access token within {}s", TOKEN.as_secs());
                return Err(NoToken { kind: self.kind(true), text });
            }
        };
        match got {
            Ok(CacheableResource::New { data, .. }) => headers.extend(data),
            // Only said to those who name what they have.
            Ok(CacheableResource::NotModified) => {}
            Err(err) => return Err(NoToken { kind: self.kind(err.is_transient()), text: no_token(&err) }),
        }
        self.worked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// What may pass is tried again at once only if there has been a token before: else it is most likely that there
    /// is no metadata service here, which must be said soon. A daemon asks again later in both cases.
    fn kind(&self, transient: bool) -> ErrorKind {
        match (transient, self.worked.load(Ordering::Relaxed)) {
            (false, _) => ErrorKind::PermissionDenied,
            (true, false) => ErrorKind::Io,
            (true, true) => ErrorKind::Unavailable,
        }
    }
}

/// The two causes closest to what went wrong; above them the crate explains at length what the hint says, too.
fn no_token(err: &CredentialsError) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(err);
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    let last = &causes[causes.len().saturating_sub(2)..];
    format!("cannot get an access token: {}", last.join(": "))
}

#[cfg(test)]
mod tests {
    use google_cloud_auth::credentials::user_account;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A token service that gives `answer` to everybody.
    async fn token_service(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buf = [0; 4096];
                let _ = stream.read(&mut buf).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        format!("http://{address}/token")
    }

    fn user(token_uri: &str) -> Login {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let file = serde_json::json!({
            "type": "authorized_user",
            "client_id": "id",
            "client_secret": "secret",
            "refresh_token": "refresh",
            "token_uri": token_uri,
        });
        Login::with(user_account::Builder::new(file).build().unwrap())
    }

    #[tokio::test]
    async fn a_token_goes_into_the_request() {
        let uri = token_service(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: \
             68\r\n\r\n{\"access_token\":\"the-token\",\"expires_in\":3600,\"token_type\":\"Bearer\"}",
        )
        .await;
        let mut headers = HeaderMap::new();
        assert!(user(&uri).authorize(&mut headers).await.is_ok());
        assert_eq!(headers.get("authorization").unwrap(), "Bearer the-token");
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_names_no_secret() {
        let uri = token_service(
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: \
             25\r\n\r\n{\"error\":\"invalid_grant\"}",
        )
        .await;
        let refused = user(&uri).authorize(&mut HeaderMap::new()).await.err().unwrap();
        assert_eq!(refused.kind, ErrorKind::PermissionDenied, "{}", refused.text);
        assert!(!refused.text.contains("refresh\"") && !refused.text.contains("secret\""), "{}", refused.text);
    }

    #[tokio::test]
    async fn a_service_that_is_not_there_is_said_at_once() {
        let login = user("http://127.0.0.1:1/token");
        let refused = login.authorize(&mut HeaderMap::new()).await.err().unwrap();
        assert!(matches!(refused.kind, ErrorKind::Io | ErrorKind::PermissionDenied), "{}", refused.text);
        assert_eq!(login.kind(true), ErrorKind::Io);
        login.worked.store(true, Ordering::Relaxed);
        assert_eq!(login.kind(true), ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn credentials_are_not_printed() {
        assert_eq!(format!("{:?}", user("http://127.0.0.1:1/token")), "Login");
    }
}
