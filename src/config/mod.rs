//! What the user asked for, as plain data: the configuration file, replica URLs, and the environment
//! (which only this module reads). Nothing here touches a database or a replica.
//!
//! Work happens in the order of `spec: config` §1.1: text → environment expansion → YAML tree
//! (`yaml`) → sections as written (`raw`, by the rules of `decode`) → validated [`Config`]
//! (`validate`) → per database, on demand, [`DbSettings`] ([`DbEntry::build`]).

mod decode;
pub mod defaults;
mod discover;
mod env;
mod path;
mod pattern;
mod raw;
mod replica;
mod settings;
mod units;
mod url;
mod validate;
mod yaml;

use std::path::{Path, PathBuf};

pub use discover::{DirSettings, is_database};
pub use env::Environment;
pub use path::clean;
pub use raw::{ByteSize, Secret};
pub use replica::{
    AbsAuth, AbsSettings, AwsKeys, ClientCertificate, CustomerKey, Encryption, FileSettings, GsSettings, NatsAuth,
    NatsSettings, OssSettings, PathStyle, ReplicaKind, ReplicaSettings, S3Settings, SftpSettings, SseSettings,
    WebdavSettings, replica_from_url,
};
pub use settings::{
    Built, Config, DbEntry, DbSettings, HeartbeatSettings, LogFormat, LoggingSettings, ShutdownSettings,
    SnapshotSettings, SocketSettings, check_meta_paths,
};
pub use url::is_replica_url;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::Fs;
use decode::{Decode, Decoder};
use raw::{RawConfig, RawDb, RawReplica, SnapshotOnly};

/// What paths and variables in a configuration are resolved against.
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

    /// The file to load when `-config` says nothing, as shown in help texts.
    #[must_use]
    pub fn default_config_path(&self) -> &str {
        self.env.get_nonempty("LITESTREAM_CONFIG").unwrap_or(defaults::CONFIG_PATH)
    }
}

/// Whether `$NAME` in the file is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpandEnv {
    /// The default.
    Yes,
    /// `-no-expand-env`
    No,
}

/// Finds, reads and validates the configuration file. An empty `flag` means the default path.
///
/// # Errors
/// The file cannot be read, is not YAML, or says something that cannot be.
pub fn load(flag: &str, expand: ExpandEnv, around: Surroundings<'_>) -> Result<Config> {
    let wanted = if flag.is_empty() { around.default_config_path() } else { flag };
    let path = around.expand(wanted)?;
    let text = read(&path, around.fs)?;
    let text = match expand {
        ExpandEnv::Yes => around.env.expand(&text),
        ExpandEnv::No => text,
    };
    parse(&text, around)
}

fn read(path: &Path, fs: &dyn Fs) -> Result<String> {
    path::read_text(fs, path).map_err(|err| match err.kind() {
        ErrorKind::NotFound => Error::new(ErrorKind::NotFound, format!("config file not found: {}", path.display())),
        _ => err,
    })
}

/// Decodes and validates the text of a configuration, already expanded.
///
/// # Errors
/// See [`load`].
pub fn parse(text: &str, around: Surroundings<'_>) -> Result<Config> {
    let mut raw = RawConfig::default();
    if let Some(root) = yaml::parse(text)? {
        decode_into(&mut SnapshotOnly::default(), &root)?;
        decode_into(&mut raw, &root)?;
    }
    validate::resolve(raw, around)
}

fn decode_into<T: Decode>(value: &mut T, root: &yaml::Node) -> Result<()> {
    let mut decoder = Decoder::default();
    value.decode(root, &mut decoder);
    if let Some(fatal) = decoder.fatal {
        return Err(Error::invalid(fatal));
    }
    if decoder.errors.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!("yaml: unmarshal errors:\n  {}", decoder.errors.join("\n  "))))
}

/// The configuration of `replicate DB_PATH REPLICA_URL…`: defaults, and one database.
///
/// # Errors
/// The path cannot be expanded.
pub fn ad_hoc(path: &str, urls: &[String], around: Surroundings<'_>) -> Result<Config> {
    let replica = |url: &String| Some(RawReplica { url: url.clone(), ..RawReplica::default() });
    let mut raw = RawConfig::default();
    raw.dbs.push(Some(RawDb {
        path: path.to_owned(),
        replicas: urls.iter().map(replica).collect(),
        ..RawDb::default()
    }));
    raw.logging.level = "INFO".to_owned();
    validate::resolve(raw, around)
}

#[cfg(test)]
mod tests;
