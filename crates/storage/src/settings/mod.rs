//! Settings of a replica: one variant per backend, and the rules of `spec: config` §9 B. What a URL and
//! the keys of one backend mean is in its file; nothing here connects to anything.
//!
//! [`ReplicaKeys`] are the keys as written, a URL among them; with the [`Surroundings`] (the only place that reads
//! the environment) they become [`ReplicaSettings`].

mod defaults;
mod env;
mod keys;
mod objects;
mod path;
mod s3;
mod servers;
pub mod url;

use std::path::PathBuf;
use std::time::Duration;

pub use defaults::{positive, unsigned};
pub use env::{Environment, references};
pub use keys::{AgeKeys, ByteSize, ReplicaKeys, Secret, SharedKeys};
pub use objects::{AbsAuth, AbsSettings, AzureLogin, GsSettings, OssSettings};
pub use path::{clean, read_text};
pub use s3::PARAMETERS as S3_PARAMETERS;
pub use s3::{AwsKeys, CustomerKey, Encryption, PathStyle, S3Settings, SseSettings};
pub use servers::{ClientCertificate, HostKey, NatsAuth, NatsSettings, SftpSettings, WebdavSettings};
pub use url::is_replica_url;

use crate::error::{Error, Result};
use crate::sys::Fs;
use url::Url;

/// What paths and variables in settings are resolved against.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Variables, user, working directory.
    pub env: &'a Environment,
    /// For the user database and the file itself.
    pub fs: &'a dyn Fs,
}

impl Surroundings<'_> {
    /// Makes a path as users write them absolute (`spec: config` §4).
    ///
    /// # Errors
    /// A home directory is asked for and there is none.
    pub fn expand(&self, path: &str) -> Result<PathBuf> {
        path::expand_path(path, self.env, self.fs)
    }
}

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
    /// S3 and everything that speaks it.
    S3(Box<S3Settings>),
    /// Google Cloud Storage.
    Gs(GsSettings),
    /// Azure Blob Storage.
    Abs(AbsSettings),
    /// Alibaba Cloud OSS.
    Oss(OssSettings),
    /// A directory behind SSH.
    Sftp(SftpSettings),
    /// A WebDAV server.
    Webdav(WebdavSettings),
    /// A NATS JetStream object store.
    Nats(Box<NatsSettings>),
}

impl ReplicaSettings {
    /// The same place, further down: `names` are separated by slashes. `None` where there are no paths.
    #[must_use]
    pub fn below(&self, names: &str) -> Option<Self> {
        let mut below = self.clone();
        let join = |path: &mut String| {
            if !path.is_empty() && !path.ends_with('/') {
                path.push('/');
            }
            path.push_str(names);
        };
        match &mut below.kind {
            ReplicaKind::File(f) => f.path.push(names),
            ReplicaKind::S3(s) => join(&mut s.path),
            ReplicaKind::Gs(s) => join(&mut s.path),
            ReplicaKind::Abs(s) => join(&mut s.path),
            ReplicaKind::Oss(s) => join(&mut s.path),
            ReplicaKind::Sftp(s) => join(&mut s.path),
            ReplicaKind::Webdav(s) => join(&mut s.path),
            ReplicaKind::Nats(_) => return None,
        }
        Some(below)
    }
}

impl ReplicaKind {
    /// The name printed by `databases` and in logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::S3(_) => "s3",
            Self::Gs(_) => "gs",
            Self::Abs(_) => "abs",
            Self::Oss(_) => "oss",
            Self::Sftp(_) => "sftp",
            Self::Webdav(_) => "webdav",
            Self::Nats(_) => "nats",
        }
    }

    /// The error of whoever needs a client for a backend this build does not have.
    #[must_use]
    pub fn not_built(&self) -> Error {
        Error::invalid(format!("replica type {:?} is not available in this build", self.name()))
    }

    /// What tells this place apart from others: two databases must not share it. Two equal texts are the
    /// same place; different ones may still be (two names of one host).
    #[must_use]
    pub fn place(&self) -> String {
        let object = |scheme: &str, at: &str, bucket: &str, path: &str| {
            format!("{scheme} {at} {bucket}/{}", path.trim_matches('/'))
        };
        match self {
            Self::File(f) => format!("file {}", f.path.display()),
            Self::S3(s) => object("s3", s.endpoint.as_deref().unwrap_or("aws"), &s.bucket, &s.path),
            Self::Gs(s) => object("gs", s.endpoint.as_deref().unwrap_or(""), &s.bucket, &s.path),
            Self::Abs(s) => {
                object("abs", s.endpoint.as_deref().unwrap_or(s.account.as_deref().unwrap_or("")), &s.bucket, &s.path)
            }
            Self::Oss(s) => object("oss", s.endpoint.as_deref().unwrap_or(""), &s.bucket, &s.path),
            Self::Sftp(s) => object("sftp", &format!("{}@{}", s.user, s.host), "", &s.path),
            Self::Webdav(s) => object("webdav", &s.url, "", &s.path),
            Self::Nats(s) => object("nats", &s.url, &s.bucket, &s.prefix),
        }
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
/// See [`ReplicaKeys::resolve`].
pub fn replica_from_url(url: &str, around: Surroundings<'_>) -> Result<ReplicaSettings> {
    ReplicaKeys { url: url.to_owned(), ..ReplicaKeys::default() }.resolve(around)
}

impl ReplicaKeys {
    /// Which backend is meant: the URL's scheme beats `type`, and nothing at all is a directory.
    #[must_use]
    pub fn backend(&self) -> String {
        type_of(self)
    }

    /// Checks and resolves one replica.
    ///
    /// # Errors
    /// Whatever is missing or contradictory.
    pub fn resolve(&self, around: Surroundings<'_>) -> Result<ReplicaSettings> {
        build(self, around)
    }
}

fn type_of(raw: &ReplicaKeys) -> String {
    url::backend_of(&raw.url)
        .or_else(|| Some(raw.kind.clone()).filter(|k| !k.is_empty()))
        .unwrap_or_else(|| "file".to_owned())
}

fn build(raw: &ReplicaKeys, around: Surroundings<'_>) -> Result<ReplicaSettings> {
    if url::is_replica_url(&raw.path) {
        return Err(Error::invalid(format!(
            "replica path cannot be a url, please use the 'url' field instead: {}",
            url::without_password(&raw.path)
        )));
    }
    let settings = &raw.settings;
    if !settings.age.identities.is_empty() || !settings.age.recipients.is_empty() {
        return Err(Error::invalid(
            "age encryption is not currently supported, if you need encryption please revert back to Litestream v0.3.x",
        ));
    }
    let wanted = type_of(raw);
    let Some(backend) = TYPES.into_iter().find(|t| *t == wanted) else {
        return Err(Error::invalid(format!("unknown replica type in config: {wanted:?}")));
    };
    check_conflicts(raw, backend)?;
    let kind = match backend {
        "s3" => ReplicaKind::S3(Box::new(s3::build(raw, around)?)),
        "gs" => ReplicaKind::Gs(objects::gs(raw, around)?),
        "abs" => ReplicaKind::Abs(objects::abs(raw, around)?),
        "oss" => ReplicaKind::Oss(objects::oss(raw, around)?),
        "sftp" => ReplicaKind::Sftp(servers::sftp(raw, around)?),
        "webdav" => ReplicaKind::Webdav(servers::webdav(raw, around)?),
        "nats" => ReplicaKind::Nats(Box::new(servers::nats(raw)?)),
        _ => ReplicaKind::File(file(raw, around)?),
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

fn file(raw: &ReplicaKeys, around: Surroundings<'_>) -> Result<FileSettings> {
    let path = if raw.url.is_empty() {
        if raw.path.is_empty() {
            return Err(Error::invalid("file replica path required"));
        }
        raw.path.clone()
    } else {
        Url::parse(&raw.url)?.file_path()
    };
    Ok(FileSettings { path: around.expand(&path)? })
}

/// A place is given either by `url` or by the keys, never by both.
fn check_conflicts(raw: &ReplicaKeys, backend: &str) -> Result<()> {
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

/// The replica's URL, if it has one.
fn parsed_url(raw: &ReplicaKeys) -> Result<Option<Url>> {
    if raw.url.is_empty() { Ok(None) } else { Url::parse(&raw.url).map(Some) }
}

/// `None` for an empty text.
fn given(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|t| !t.is_empty())
}

/// The first that is not empty.
fn first(texts: [&str; 2]) -> String {
    texts.into_iter().find(|t| !t.is_empty()).unwrap_or_default().to_owned()
}

/// The first secret that is not empty.
fn first_secret(secrets: impl IntoIterator<Item = Secret>) -> Option<Secret> {
    secrets.into_iter().find(|s| !s.is_empty())
}

/// A count; zero and less mean the default.
fn count(n: Option<isize>) -> Option<usize> {
    n.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0)
}
