//! Settings → a connection, and the stream that is the bucket. The connection mends itself; a new one is made when it
//! gave up (`max-reconnects`).

use std::io::BufReader;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, ErrorKind, Result};
use crate::settings::{NatsAuth, NatsSettings};

/// How long an answer may take.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// The server is asked for a sign of life so often.
const PING: Duration = Duration::from_secs(20);

/// A bucket one can work with.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) stream: Stream,
    /// Longest message the server takes, in bytes.
    pub(super) max_payload: usize,
    news: Arc<News>,
}

/// What the connection tells between answers.
#[derive(Debug, Default)]
struct News {
    closed: AtomicBool,
    /// The server's last words about a missing permission. They come beside the answers: who asked hears nothing.
    violation: Mutex<Option<String>>,
}

impl Bucket {
    /// Whether the connection has not given up.
    pub(super) fn is_usable(&self) -> bool {
        !self.news.closed.load(Ordering::Relaxed)
    }

    /// Whether it works at this moment.
    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// What the server said about a missing permission since the last call.
    pub(super) fn take_violation(&self) -> Option<String> {
        self.news.violation.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Connects, logs in and finds the bucket.
pub(super) async fn connect(settings: &NatsSettings, bucket: &str) -> Result<Bucket> {
    if bucket.is_empty() || !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(Error::invalid("nats: invalid object-store name")
            .hint("a bucket's name has letters, digits, - and _ only: nats://HOST:PORT/BUCKET"));
    }
    let news = Arc::new(News::default());
    let options = log_in(settings).await?;
    let options = encrypt(options, settings)?;
    let (heard, wait) = (news.clone(), settings.reconnect_wait);
    let servers = settings.url.split(',').count();
    let options = options
        .name("litestream")
        .connection_timeout(settings.timeout)
        .request_timeout(Some(ANSWER))
        .ping_interval(PING)
        .max_reconnects(settings.max_reconnects)
        .reconnect_delay_callback(move |attempt| delay(attempt, servers, wait))
        .event_callback(move |event| {
            let heard = heard.clone();
            async move { heed(&heard, &event) }
        });
    let client = options.connect(&settings.url).await.map_err(|err| refused(settings, &err))?;
    let mut context = jetstream::new(client.clone());
    context.set_timeout(ANSWER);
    let stream = context.get_stream(format!("OBJ_{bucket}")).await.map_err(|err| {
        const WHAT: &str = "nats: failed to initialize object store: failed to access object store bucket";
        let (kind, text, hint) = match err.kind() {
            GetStreamErrorKind::JetStream(api) if api.error_code() == ErrorCode::STREAM_NOT_FOUND => (
                ErrorKind::Invalid,
                "nats: bucket not found".to_owned(),
                "create the bucket (nats object add BUCKET), or check its name: Litestream does not create buckets",
            ),
            GetStreamErrorKind::JetStream(api)
                if matches!(
                    api.error_code(),
                    ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
                ) =>
            {
                (ErrorKind::Invalid, api.to_string(), "the server, or this account, has no JetStream: enable it")
            }
            _ => match news.violation.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(violation) => (ErrorKind::PermissionDenied, violation, PERMISSIONS),
                None => (ErrorKind::Unavailable, err.to_string(), "is JetStream up and enabled on the server?"),
            },
        };
        Error::new(kind, format!("{WHAT} {bucket:?} (bucket must be created beforehand)")).caused_by(text).hint(hint)
    })?;
    let max_payload = client.max_payload();
    Ok(Bucket { client, context, stream, max_payload, news })
}

/// The wait before an attempt, counted from 1 anew after each connection: none before each server was tried once.
fn delay(attempt: usize, servers: usize, wait: Duration) -> Duration {
    if attempt <= servers { Duration::ZERO } else { wait }
}

/// What an account must be allowed to do.
pub(super) const PERMISSIONS: &str =
    "the user needs to publish to $JS.API.>, $JS.ACK.> and $O.<bucket>.>, and to subscribe to _INBOX.>";

fn heed(news: &News, event: &Event) {
    match event {
        Event::Closed => news.closed.store(true, Ordering::Relaxed),
        Event::Disconnected => tracing::warn!("nats connection lost"),
        Event::Connected => tracing::debug!("nats connected"),
        Event::ServerError(err) => {
            let text = err.to_string();
            tracing::debug!(error = text, "nats server error");
            // The protocol has no code for it, only words.
            if text.to_ascii_lowercase().contains("permissions violation") {
                *news.violation.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
            }
        }
        other => tracing::debug!(event = %other, "nats"),
    }
}

async fn log_in(settings: &NatsSettings) -> Result<ConnectOptions> {
    let options = ConnectOptions::new();
    let unusable = |what: &'static str| {
        move |err: std::io::Error| {
            // Its text may quote what it could not read.
            Error::new(ErrorKind::PermissionDenied, what).caused_by(err.kind().to_string())
        }
    };
    Ok(match &settings.auth {
        NatsAuth::None => options,
        NatsAuth::Token(token) => options.token(token.expose().to_owned()),
        NatsAuth::Password { username, password } => {
            options.user_and_password(username.clone(), password.expose().to_owned())
        }
        NatsAuth::Nkey { seed: Some(seed) } => options.nkey(seed.expose().to_owned()),
        NatsAuth::Nkey { seed: None } => {
            return Err(Error::new(ErrorKind::PermissionDenied, "nats: nkey defined without a signature handler")
                .hint("set seed to the seed of that nkey (SU…): the public key alone cannot log in"));
        }
        NatsAuth::Jwt { jwt, seed } => {
            let text = format!(
                "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{}\n\
                 ------END USER NKEY SEED------\n",
                jwt.expose().trim(),
                seed.expose().trim()
            );
            options.credentials(&text).map_err(unusable("nats: jwt and seed cannot be used"))?
        }
        NatsAuth::CredentialsFile(path) => {
            let text = tokio::task::spawn_blocking({
                let path = path.clone();
                move || std::fs::read_to_string(path)
            })
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, "nats: read creds").caused_by(e))?
            .map_err(|e| {
                // Never "not found": that is said of objects.
                let text = Error::new(ErrorKind::PermissionDenied, "nats: open").at(path);
                text.caused_by(e).hint("creds names a file this user can read")
            })?;
            options.credentials(&text).map_err(unusable("nats: the creds file has no user JWT and seed"))?
        }
    })
}

fn encrypt(options: ConnectOptions, settings: &NatsSettings) -> Result<ConnectOptions> {
    if !settings.tls && !settings.url.starts_with("tls://") {
        return Ok(options);
    }
    let internal = |e: rustls::Error| Error::new(ErrorKind::Internal, "set up TLS").caused_by(e);
    let mut roots = rustls::RootCertStore::empty();
    if settings.root_cas.is_empty() {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    for file in &settings.root_cas {
        roots.add_parsable_certificates(certificates(file, "nats: error loading or parsing rootCA file:")?);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(internal)?
        .with_root_certificates(roots);
    let config = match &settings.client_certificate {
        None => config.with_no_client_auth(),
        Some(ours) => {
            const WHAT: &str = "nats: error loading client certificate:";
            let key = std::fs::read(&ours.key)
                .map_err(|e| Error::new(ErrorKind::PermissionDenied, WHAT).at(&ours.key).caused_by(e))?;
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| {
                Error::new(ErrorKind::PermissionDenied, WHAT)
                    .at(&ours.key)
                    .caused_by("no private key in PEM form found")
            })?;
            config
                .with_client_auth_cert(certificates(&ours.certificate, WHAT)?, key)
                .map_err(|e| Error::new(ErrorKind::PermissionDenied, WHAT).at(&ours.certificate).caused_by(e))?
        }
    };
    Ok(options.require_tls(true).tls_client_config(config))
}

fn certificates(file: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>> {
    let unusable = || Error::new(ErrorKind::PermissionDenied, what).at(file);
    let bytes = std::fs::read(file).map_err(|e| unusable().caused_by(e))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(BufReader::new(bytes.as_slice())).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(unusable().caused_by("no certificate in PEM form found")),
    }
}

fn refused(settings: &NatsSettings, err: &async_nats::ConnectError) -> Error {
    let mut text = err.to_string();
    let mut next = std::error::Error::source(err);
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    let says = |word: &str| text.to_ascii_lowercase().contains(word);
    let certificate = says("certificate") || says("unknownissuer");
    let (kind, said, hint) = match err.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => (
            ErrorKind::PermissionDenied,
            "nats: Authorization Violation",
            "check username and password, token, creds, jwt or nkey with seed; a user in the URL is not used",
        ),
        // Trying again does not make a certificate better.
        ConnectErrorKind::Tls | ConnectErrorKind::Io if certificate => (
            ErrorKind::PermissionDenied,
            "nats: the certificate was refused",
            "set root-cas to the authority of the server's certificate, client-cert and client-key if it wants one",
        ),
        ConnectErrorKind::Tls => (
            ErrorKind::PermissionDenied,
            "nats: secure connection not available",
            "the server speaks no TLS, or another kind of it: check tls and root-cas",
        ),
        ConnectErrorKind::ServerParse => (ErrorKind::Invalid, "nats: invalid server", "write nats://HOST:PORT/BUCKET"),
        _ => (ErrorKind::Unavailable, "nats: no servers available for connection", "check url, port and network"),
    };
    Error::new(kind, "nats: failed to connect: failed to connect to NATS server")
        .at(&settings.url)
        .caused_by(format!("{said}: {text}"))
        .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_before_the_first_attempt() {
        let wait = Duration::from_secs(2);
        let waits = |servers| [1, 2, 3].map(|attempt| delay(attempt, servers, wait).as_secs());
        assert_eq!(waits(1), [0, 2, 2]);
        assert_eq!(waits(2), [0, 0, 2]);
    }
}
