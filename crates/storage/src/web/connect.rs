//! Connections: hyper with rustls, the system's certificates (and more, or anybody's), proxies.

use std::future::Future;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::body::Body;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::error::{Error, ErrorKind, Result};
use crate::settings::Environment;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection is kept without work.
const IDLE: Duration = Duration::from_secs(60);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Whose certificates are accepted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Trust {
    /// Those of the system, or of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
    System,
    /// Those of the system, and those in a PEM file.
    #[cfg_attr(not(feature = "s3"), expect(dead_code, reason = "only S3 has a variable for it"))]
    SystemAnd(PathBuf),
    /// Anybody's.
    Everybody,
}

/// A pool of connections, driven by tasks of the runtime that opened them.
pub(crate) type Pool<B> = Client<HttpsConnector<Dial>, B>;

/// A pool for this trust. Certificates are read now.
///
/// # Errors
/// A certificate file that cannot be read.
pub(crate) fn pool<B>(trust: &Trust) -> Result<Pool<B>>
where
    B: Body + Send,
    B::Data: Send,
{
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(Duration::from_secs(30)));
    tcp.set_nodelay(true);
    let dial = Dial { tcp, proxies: Arc::new(Proxies::of(&Environment::capture())) };
    let tls =
        HttpsConnectorBuilder::new().with_tls_config(tls(trust)?).https_or_http().enable_http1().wrap_connector(dial);
    Ok(Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(64)
        .pool_timer(TokioTimer::new())
        .build(tls))
}

/// Which proxy a connection goes through, by Go's rules: `HTTPS_PROXY` and `HTTP_PROXY`, not `ALL_PROXY`; none for what
/// `NO_PROXY` names, and none for this host, whatever is set.
#[derive(Debug)]
struct Proxies(Matcher);

impl Proxies {
    fn of(env: &Environment) -> Self {
        let either = |name, small| env.get_nonempty(name).or_else(|| env.get_nonempty(small)).unwrap_or_default();
        // There it may be a header that somebody sent.
        let http = if env.get("REQUEST_METHOD").is_some() { "" } else { either("HTTP_PROXY", "http_proxy") };
        let rules = Matcher::builder().http(http).https(either("HTTPS_PROXY", "https_proxy"));
        Self(rules.no(either("NO_PROXY", "no_proxy")).build())
    }

    fn intercept(&self, to: &Uri) -> Option<Intercept> {
        let host = to.host()?.trim_start_matches('[').trim_end_matches(']');
        let loopback = |ip: std::net::IpAddr| ip.to_canonical().is_loopback();
        if host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(loopback) {
            return None;
        }
        self.0.intercept(to)
    }
}

/// Connects directly, or through a proxy.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    tcp: HttpConnector,
    proxies: Arc<Proxies>,
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.intercept(&to) else {
            let connecting = self.tcp.call(to);
            return Box::pin(async move { connecting.await.map_err(Into::into) });
        };
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp.clone());
        if let Some(auth) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(auth.clone());
        }
        let connecting = tunnel.call(to);
        Box::pin(async move { connecting.await.map_err(Into::into) })
    }
}

fn tls(trust: &Trust) -> Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(ErrorKind::Internal, "set up TLS").caused_by(e))?;
    if *trust == Trust::Everybody {
        let anybody = Arc::new(Anybody(provider));
        return Ok(config.dangerous().with_custom_certificate_verifier(anybody).with_no_client_auth());
    }
    let mut roots = rustls::RootCertStore::empty();
    // What the system cannot parse is left out, as everywhere; without any root every connection says why.
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "cannot load system certificates");
    }
    roots.add_parsable_certificates(found.certs);
    if let Trust::SystemAnd(file) = trust {
        roots.add_parsable_certificates(read_bundle(file)?);
    }
    if roots.is_empty() {
        // Plain HTTP does not need any.
        return Ok(config.with_root_certificates(roots).with_no_client_auth());
    }
    let roots = Arc::new(roots);
    let usual = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), provider)
        .build()
        .map_err(|e| Error::new(ErrorKind::Internal, "set up TLS").caused_by(e))?;
    let verifier = Arc::new(OrTheRootItself { usual, roots });
    Ok(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn read_bundle(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    const OP: &str = "s3: read AWS_CA_BUNDLE";
    let hint = "AWS_CA_BUNDLE must name a file with certificates in PEM form, or be unset";
    let bytes = std::fs::read(file).map_err(|e| Error::io(OP, e).at(file.display()).hint(hint))?;
    let certs: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(BufReader::new(bytes.as_slice())).collect();
    match certs {
        Ok(certs) if !certs.is_empty() => Ok(certs),
        Ok(_) => Err(Error::invalid(OP).at(file.display()).caused_by("no certificate in PEM form found").hint(hint)),
        Err(e) => Err(Error::invalid(OP).at(file.display()).caused_by(format!("{e:?}")).hint(hint)),
    }
}

/// The usual rules, and a server may show a root itself. `openssl req -x509` makes certificates that are authorities;
/// people give such a one to their store and name it as trusted, which Litestream accepts and rustls does not.
#[derive(Debug)]
struct OrTheRootItself {
    usual: Arc<WebPkiServerVerifier>,
    roots: Arc<rustls::RootCertStore>,
}

impl OrTheRootItself {
    /// By name and key: who holds the key of a root could sign what he likes anyway.
    fn is_root(&self, cert: &CertificateDer<'_>) -> bool {
        let Ok(shown) = webpki::anchor_from_trusted_cert(cert) else { return false };
        let same = |root: &rustls::pki_types::TrustAnchor<'_>| {
            root.subject == shown.subject && root.subject_public_key_info == shown.subject_public_key_info
        };
        self.roots.roots.iter().any(same)
    }
}

/// The one thing wrong with it. Its dates were found right before this was looked at.
fn shows_an_authority(err: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) = err else { return false };
    other.0.downcast_ref::<webpki::Error>() == Some(&webpki::Error::CaUsedAsEndEntity)
}

impl ServerCertVerifier for OrTheRootItself {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &rustls::pki_types::ServerName<'_>,
        ocsp_response: &[u8],
        now: rustls::pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(err) if shows_an_authority(&err) && self.is_root(end_entity) => {
                let cert = rustls::server::ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&cert, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// `skip-verify: true`. Signatures of the handshake are still checked: there is no reason not to.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &rustls::pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_those_of_go_and_never_for_this_host() {
        let via = |vars: &[(&str, &str)], to: &str| {
            let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let proxies = Proxies::of(&Environment::new(vars, PathBuf::from("/")));
            proxies.intercept(&to.parse().unwrap()).map(|proxy| proxy.uri().to_string())
        };
        let both = [("HTTP_PROXY", "http://p:1"), ("https_proxy", "http://s:2"), ("NO_PROXY", "no.test,10.0.0.0/8")];
        assert_eq!(via(&both, "http://store.test/x").as_deref(), Some("http://p:1/"));
        assert_eq!(via(&both, "https://store.test/x").as_deref(), Some("http://s:2/"));
        for here in ["localhost", "LOCALHOST:9000", "127.0.0.1:9000", "127.9.9.9", "[::1]:9000", "[::ffff:127.0.0.1]"] {
            assert_eq!(via(&both, &format!("http://{here}/x")), None, "{here}");
        }
        for excepted in ["no.test", "sub.no.test", "10.1.2.3:9000"] {
            assert_eq!(via(&both, &format!("http://{excepted}/x")), None, "{excepted}");
        }
        assert_eq!(via(&[("ALL_PROXY", "http://a:3"), ("all_proxy", "http://a:3")], "http://store.test/x"), None);
        assert_eq!(via(&[("HTTP_PROXY", "http://p:1"), ("REQUEST_METHOD", "GET")], "http://store.test/x"), None);
    }
}
