//! Servers one logs in to: SFTP, WebDAV, NATS (`spec: backends` §8–10).

use std::path::PathBuf;
use std::time::Duration;

use super::url::Url;
use super::{ReplicaKeys, Secret, Surroundings, defaults, first, first_secret, given, parsed_url};
use crate::error::{Error, Result};

/// A directory behind SSH.
#[derive(Debug, Clone)]
pub struct SftpSettings {
    /// `host` or `host:port`.
    pub host: String,
    /// Who logs in.
    pub user: String,
    /// Tried first.
    pub password: Option<Secret>,
    /// Private key file, verbatim.
    pub key_path: Option<String>,
    /// Whom we take for the server.
    pub host_key: HostKey,
    /// Files that name the keys of hosts.
    pub known_hosts: Vec<PathBuf>,
    /// Socket of the user's agent, for whom neither password nor key is given.
    pub agent: Option<PathBuf>,
    /// Directory; relative to the login directory without a leading slash.
    pub path: String,
    /// Several writes in flight.
    pub concurrent_writes: bool,
}

/// How the key that a server shows is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostKey {
    /// Only this one; one line of `authorized_keys`.
    Pinned(String),
    /// Only one that stands in `known_hosts`. Nothing was written, or `known_hosts`.
    Known,
    /// Any, with a warning. Written `any`.
    Any,
}

impl HostKey {
    fn of(text: &str) -> Self {
        match text {
            "" | "known_hosts" => Self::Known,
            "any" => Self::Any,
            key => Self::Pinned(key.to_owned()),
        }
    }
}

/// A WebDAV server.
#[derive(Debug, Clone)]
pub struct WebdavSettings {
    /// Base URL, without user and password.
    pub url: String,
    /// Who logs in.
    pub username: Option<String>,
    /// With what.
    pub password: Option<Secret>,
    /// Directory below the base.
    pub path: String,
    /// Where bodies of unknown length wait on this host.
    pub spool: PathBuf,
}

/// A NATS JetStream object store.
#[derive(Debug, Clone)]
pub struct NatsSettings {
    /// Server, without user and password.
    pub url: String,
    /// Name of the bucket, which must exist.
    pub bucket: String,
    /// What names of objects begin with; empty for the bucket's only database.
    pub prefix: String,
    /// How to log in.
    pub auth: NatsAuth,
    /// Encrypt the connection; certificates below switch it on as well.
    pub tls: bool,
    /// PEM files of authorities to trust instead of the system's.
    pub root_cas: Vec<String>,
    /// Certificate and key we show.
    pub client_certificate: Option<ClientCertificate>,
    /// Attempts before giving up; `None` = for ever.
    pub max_reconnects: Option<usize>,
    /// Pause between attempts.
    pub reconnect_wait: Duration,
    /// Of connecting.
    pub timeout: Duration,
}

/// How to log in to NATS; the first that is given counts.
#[derive(Debug, Clone)]
pub enum NatsAuth {
    /// Token of a user and the seed to sign with.
    Jwt {
        /// `jwt`
        jwt: Secret,
        /// `seed`
        seed: Secret,
    },
    /// File with both.
    CredentialsFile(String),
    /// A key pair; the public key alone is not enough.
    Nkey {
        /// `seed`, or `nkey` if that is one.
        seed: Option<Secret>,
    },
    /// User and password.
    Password {
        /// `username`
        username: String,
        /// `password`
        password: Secret,
    },
    /// A shared token.
    Token(Secret),
    /// Nothing.
    None,
}

/// PEM files, verbatim.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    /// `client-cert`
    pub certificate: String,
    /// `client-key`
    pub key: String,
}

pub(super) fn sftp(raw: &ReplicaKeys, around: Surroundings<'_>) -> Result<SftpSettings> {
    let keys = &raw.settings;
    let url = parsed_url(raw)?.unwrap_or_default();
    let host = first([&keys.host, &url.host]);
    if host.is_empty() {
        return Err(Error::invalid("host required for sftp replica"));
    }
    let user = first([&keys.user, &url.user]);
    if user.is_empty() {
        return Err(Error::invalid("user required for sftp replica"));
    }
    Ok(SftpSettings {
        host,
        user,
        password: first_secret([keys.password.clone(), Secret::new(url.password.as_str())]),
        key_path: given(&keys.key_path),
        host_key: HostKey::of(&keys.host_key),
        known_hosts: around
            .expand("~/.ssh/known_hosts")
            .into_iter()
            .chain([PathBuf::from("/etc/ssh/ssh_known_hosts")])
            .collect(),
        agent: around.env.get_nonempty("SSH_AUTH_SOCK").map(PathBuf::from),
        path: first([&raw.path, &url.path]),
        concurrent_writes: keys.concurrent_writes.unwrap_or(true),
    })
}

pub(super) fn webdav(raw: &ReplicaKeys, around: Surroundings<'_>) -> Result<WebdavSettings> {
    let keys = &raw.settings;
    let url = parsed_url(raw)?;
    let (base, user, password, path) = match &url {
        Some(url) if !url.host.is_empty() => {
            let scheme = if url.scheme == "webdavs" { "https" } else { "http" };
            (format!("{scheme}://{}", url.host), url.user.as_str(), url.password.as_str(), url.path.as_str())
        }
        _ => (keys.webdav_url.clone(), "", "", raw.path.as_str()),
    };
    if base.is_empty() {
        return Err(Error::invalid("webdav-url required for webdav replica"));
    }
    Ok(WebdavSettings {
        url: base,
        username: given(&first([&keys.webdav_username, user])),
        password: first_secret([keys.webdav_password.clone(), Secret::new(password)]),
        path: path.to_owned(),
        spool: PathBuf::from(around.env.get_nonempty("TMPDIR").unwrap_or("/tmp")),
    })
}

pub(super) fn nats(raw: &ReplicaKeys) -> Result<NatsSettings> {
    let keys = &raw.settings;
    let url = nats_url(raw)?;
    if keys.client_cert.is_empty() != keys.client_key.is_empty() {
        return Err(Error::invalid("client-cert and client-key must both be specified for mutual TLS authentication"));
    }
    // An empty path still names the bucket `.`; only `/` leaves it to the key.
    let bucket = first([url.as_ref().map(Url::object_path).unwrap_or_default().as_str(), &keys.bucket]);
    if bucket.is_empty() {
        return Err(Error::invalid("bucket required for NATS replica"));
    }
    // The reference knows no more than one component: `nats://host/bucket/prefix` is ours.
    let (bucket, prefix) = match bucket.split_once('/') {
        Some((bucket, prefix)) => (bucket.to_owned(), prefix.trim_matches('/').to_owned()),
        None => (bucket, String::new()),
    };
    let server = url.filter(|url| !url.host.is_empty()).map(|url| format!("nats://{}", url.host));
    let auth = if !keys.jwt.is_empty() && !keys.seed.is_empty() {
        NatsAuth::Jwt { jwt: keys.jwt.clone(), seed: keys.seed.clone() }
    } else if !keys.creds.is_empty() {
        NatsAuth::CredentialsFile(keys.creds.clone())
    } else if !keys.nkey.is_empty() {
        let is_seed = keys.nkey.expose().starts_with('S');
        let seed = if is_seed { keys.nkey.clone() } else { keys.seed.clone() };
        NatsAuth::Nkey { seed: Some(seed).filter(|seed| !seed.is_empty()) }
    } else if !keys.username.is_empty() && !keys.password.is_empty() {
        NatsAuth::Password { username: keys.username.clone(), password: keys.password.clone() }
    } else if !keys.token.is_empty() {
        NatsAuth::Token(keys.token.clone())
    } else {
        NatsAuth::None
    };
    let certificate =
        given(&keys.client_cert).map(|certificate| ClientCertificate { certificate, key: keys.client_key.clone() });
    let positive = |d, default| defaults::positive(d).unwrap_or(defaults::unsigned(default));
    Ok(NatsSettings {
        url: server.unwrap_or_else(|| defaults::NATS_URL.to_owned()),
        bucket,
        prefix,
        auth,
        tls: keys.tls.unwrap_or(false) || !keys.root_cas.is_empty() || certificate.is_some(),
        root_cas: keys.root_cas.clone(),
        client_certificate: certificate,
        max_reconnects: keys.max_reconnects.and_then(|n| usize::try_from(n).ok()),
        reconnect_wait: positive(keys.reconnect_wait.unwrap_or_default(), defaults::NATS_RECONNECT_WAIT),
        timeout: positive(keys.timeout.unwrap_or_default(), defaults::NATS_TIMEOUT),
    })
}

/// Unlike the other backends this one complains about schemes in its own words.
fn nats_url(raw: &ReplicaKeys) -> Result<Option<Url>> {
    if raw.url.is_empty() {
        return Ok(None);
    }
    let url = Url::parse(&raw.url).map_err(|err| Error::invalid(format!("invalid NATS URL: {err}")))?;
    if url.scheme != "nats" {
        return Err(Error::invalid(format!("invalid scheme for NATS replica: {}", url.scheme)));
    }
    Ok(Some(url))
}
