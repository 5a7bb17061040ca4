//! Replica settings: one variant per backend, and the rules of `spec: config` §9 B.

use std::path::PathBuf;
use std::time::Duration;

use super::Surroundings;
use super::defaults;
use super::raw::RawReplica;
use super::url;
use crate::error::{Error, Result};

/// Where and how often one database is replicated.
#[derive(Debug, Clone)]
pub struct ReplicaSettings {
    /// Time between uploads.
    pub sync_interval: Duration,
    /// Level-0 uploads per background pass; `None` = all.
    pub max_sync_ltx_files: Option<usize>,
    /// Reset local state when the local LTX files cannot be continued.
    pub auto_recover: bool,
    /// The backend.
    pub kind: ReplicaKind,
}

/// One variant per backend.
#[derive(Debug, Clone)]
pub enum ReplicaKind {
    /// A directory.
    File(FileSettings),
    /// A backend that is known and configured, but not part of this build.
    NotBuilt(&'static str),
}

impl ReplicaKind {
    /// The name printed by `databases` and in logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::NotBuilt(name) => name,
        }
    }

    /// The error of whoever needs a client for a backend this build does not have.
    #[must_use]
    pub fn not_built(name: &str) -> Error {
        Error::invalid(format!("replica type {name:?} is not available in this build yet"))
    }
}

/// The file backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSettings {
    /// Absolute and clean.
    pub path: PathBuf,
}

const TYPES: [&str; 8] = ["file", "s3", "gs", "abs", "oss", "sftp", "webdav", "nats"];

/// The replica a URL alone describes, with default settings.
///
/// # Errors
/// See [`super::DbEntry::build`].
pub fn replica_from_url(url: &str, around: Surroundings<'_>) -> Result<ReplicaSettings> {
    build(&RawReplica { url: url.to_owned(), ..RawReplica::default() }, around)
}

/// Checks and resolves one replica.
pub(super) fn build(raw: &RawReplica, around: Surroundings<'_>) -> Result<ReplicaSettings> {
    if url::is_replica_url(&raw.path) {
        return Err(Error::invalid(format!(
            "replica path cannot be a url, please use the 'url' field instead: {}",
            raw.path
        )));
    }
    let settings = &raw.settings;
    if !settings.age.identities.is_empty() || !settings.age.recipients.is_empty() {
        return Err(Error::invalid(
            "age encryption is not currently supported, if you need encryption please revert back to Litestream v0.3.x",
        ));
    }
    let wanted = url::backend_of(&raw.url)
        .or_else(|| Some(raw.kind.clone()).filter(|k| !k.is_empty()))
        .unwrap_or_else(|| "file".to_owned());
    let Some(backend) = TYPES.into_iter().find(|t| *t == wanted) else {
        return Err(Error::invalid(format!("unknown replica type in config: {wanted:?}")));
    };
    check_conflicts(raw, backend)?;
    let kind = match backend {
        "file" => ReplicaKind::File(file(raw, around)?),
        other => {
            check_required(raw, other)?;
            ReplicaKind::NotBuilt(other)
        }
    };
    Ok(ReplicaSettings {
        sync_interval: defaults::unsigned(settings.sync_interval.unwrap_or(defaults::SYNC_INTERVAL)),
        max_sync_ltx_files: match settings.max_sync_ltx_files {
            None => usize::try_from(defaults::MAX_SYNC_LTX_FILES).ok(),
            Some(n) => usize::try_from(n).ok().filter(|n| *n > 0),
        },
        auto_recover: settings.auto_recover.unwrap_or(false),
        kind,
    })
}

fn file(raw: &RawReplica, around: Surroundings<'_>) -> Result<FileSettings> {
    let path = if raw.url.is_empty() {
        if raw.path.is_empty() {
            return Err(Error::invalid("file replica path required"));
        }
        raw.path.clone()
    } else {
        url::file_path(&raw.url)?
    };
    Ok(FileSettings { path: around.expand(&path)? })
}

/// A place is given either by `url` or by the keys, never by both.
fn check_conflicts(raw: &RawReplica, backend: &str) -> Result<()> {
    if raw.url.is_empty() || backend == "nats" {
        return Ok(());
    }
    let objects = matches!(backend, "s3" | "gs" | "abs" | "oss");
    let rules = [
        ("path", !raw.path.is_empty()),
        ("bucket", objects && !raw.settings.bucket.is_empty()),
        ("host", backend == "sftp" && !raw.settings.host.is_empty()),
        ("webdav-url", backend == "webdav" && !raw.settings.webdav_url.is_empty()),
    ];
    match rules.into_iter().find(|(_, broken)| *broken) {
        Some((key, _)) => Err(Error::invalid(format!("cannot specify url & {key} for {backend} replica"))),
        None => Ok(()),
    }
}

/// What a backend cannot do without.
fn check_required(raw: &RawReplica, backend: &str) -> Result<()> {
    let parts = if raw.url.is_empty() { None } else { Some(url::split(&raw.url)?) };
    let (userinfo, host) = match parts.as_ref().map(|p| p.host) {
        Some(authority) => authority.rsplit_once('@').unwrap_or(("", authority)),
        None => ("", ""),
    };
    let given = |key: &str, from_url: &str| !key.is_empty() || !from_url.is_empty();
    let settings = &raw.settings;
    let complete = match backend {
        "sftp" if !given(&settings.host, host) => Err("host required for sftp replica".to_owned()),
        "sftp" if !given(&settings.user, userinfo) => Err("user required for sftp replica".to_owned()),
        "webdav" if !given(&settings.webdav_url, host) => Err("webdav-url required for webdav replica".to_owned()),
        "nats" if settings.client_cert.is_empty() != settings.client_key.is_empty() => {
            Err("client-cert and client-key must both be specified for mutual TLS authentication".to_owned())
        }
        // An empty path still names the bucket `.`; only `/` leaves it to the key.
        "nats" if settings.bucket.is_empty() && parts.as_ref().is_none_or(|p| p.path == "/") => {
            Err("bucket required for NATS replica".to_owned())
        }
        "s3" | "gs" | "oss" if !given(&settings.bucket, host) => Err(format!("bucket required for {backend} replica")),
        // The container is the host, or the first part of the path when the host names the account.
        "abs" if !given(&settings.bucket, host) => Err("bucket required for abs replica".to_owned()),
        _ => Ok(()),
    };
    complete.map_err(Error::invalid)
}
