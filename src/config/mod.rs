//! What the user asked for, as plain data: the configuration file. Nothing here touches a database or a replica;
//! what a replica's keys mean is said by `settings`.
//!
//! Work happens in the order of `spec: config` §1.1: text → environment expansion → YAML tree
//! (`yaml`) → sections as written (`raw`, by the rules of `decode`) → validated [`Config`]
//! (`validate`) → per database, on demand, [`DbSettings`] ([`DbEntry::build`]).

mod decode;
pub mod defaults;
mod discover;
mod finding;
mod pattern;
mod raw;
mod review;
mod settings;
mod units;
mod validate;
mod yaml;

use std::path::{Path, PathBuf};
use std::rc::Rc;

pub use crate::settings::{
    AbsAuth, AbsSettings, AwsKeys, AzureLogin, ByteSize, ClientCertificate, CustomerKey, Encryption, Environment,
    FileSettings, GsSettings, HostKey, NatsAuth, NatsSettings, OssSettings, PathStyle, ReplicaKind, ReplicaSettings,
    S3Settings, Secret, SftpSettings, SseSettings, Surroundings, WebdavSettings, clean, is_replica_url,
    replica_from_url,
};
pub use discover::{DirSettings, is_database};
pub use finding::{Finding, Severity};
pub use settings::{
    Built, Config, DbEntry, DbSettings, HeartbeatSettings, LogFormat, LoggingSettings, McpSettings, ShutdownSettings,
    SnapshotSettings, SocketSettings, check_meta_paths, database_from_url, default_meta_path,
};

use crate::error::{Error, ErrorKind, Result};
use crate::settings::{ReplicaKeys, read_text};
use crate::sys::Fs;
use decode::{Decode, Decoder, Oddity};
use raw::{RawConfig, RawDb, SnapshotOnly};
use validate::Faults;

/// The file to load when `-config` says nothing, as shown in help texts.
#[must_use]
pub fn default_path<'a>(around: &Surroundings<'a>) -> &'a str {
    around.env.get_nonempty("LITESTREAM_CONFIG").unwrap_or(defaults::CONFIG_PATH)
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
    let Source { text, warnings, .. } = Source::read(flag, expand, around)?;
    let mut config = parse(&text, around)?;
    config.warnings.extend(warnings);
    config.warnings.sort_by_key(|warning| warning.line);
    Ok(config)
}

/// A configuration file, found and read, variables replaced.
struct Source {
    path: PathBuf,
    text: String,
    /// About variables.
    warnings: Vec<Finding>,
}

impl Source {
    fn read(flag: &str, expand: ExpandEnv, around: Surroundings<'_>) -> Result<Self> {
        let wanted = if flag.is_empty() { default_path(&around) } else { flag };
        let path = around.expand(wanted)?;
        let text = read(&path, around.fs)?;
        Ok(match expand {
            ExpandEnv::Yes => {
                Self { path, text: around.env.expand(&text), warnings: review::review_variables(&text, around.env) }
            }
            ExpandEnv::No => Self { path, text, warnings: Vec::new() },
        })
    }
}

fn read(path: &Path, fs: &dyn Fs) -> Result<String> {
    read_text(fs, path).map_err(|err| match err.kind() {
        ErrorKind::NotFound => Error::new(ErrorKind::NotFound, format!("config file not found: {}", path.display())),
        _ => err,
    })
}

/// Decodes and validates the text of a configuration, already expanded.
///
/// # Errors
/// See [`load`].
pub fn parse(text: &str, around: Surroundings<'_>) -> Result<Config> {
    let (raw, warnings, _) = decode(text)?;
    let (config, faults) = validate::resolve(raw, around);
    let mut config = config.ok_or_else(|| one(faults))?;
    config.warnings = warnings;
    Ok(config)
}

fn one(faults: Faults) -> Error {
    Error::invalid(faults.first().map_or_else(|| "invalid configuration".to_owned(), |fault| fault.message))
}

/// The sections as written, what is odd about them, and the tree.
fn decode(text: &str) -> Result<(RawConfig, Vec<Finding>, Option<Rc<yaml::Node>>)> {
    let mut raw = RawConfig::default();
    let Some(root) = yaml::parse(text)? else { return Ok((raw, Vec::new(), None)) };
    decode_into(&mut SnapshotOnly::default(), &root)?;
    let oddities = decode_into(&mut raw, &root)?;
    let warnings = review::review(&raw, &root, oddities);
    Ok((raw, warnings, Some(root)))
}

fn decode_into<T: Decode>(value: &mut T, root: &yaml::Node) -> Result<Vec<Oddity>> {
    let mut decoder = Decoder::default();
    value.decode(root, &mut decoder);
    if let Some(fatal) = decoder.fatal {
        return Err(Error::invalid(fatal));
    }
    if decoder.errors.is_empty() {
        return Ok(decoder.oddities);
    }
    Err(Error::invalid(format!("yaml: unmarshal errors:\n  {}", decoder.errors.join("\n  "))))
}

/// What an examination of a configuration file comes to.
#[derive(Debug)]
pub struct Inspection {
    /// The file.
    pub path: PathBuf,
    /// What it says, where that can be said at all.
    pub config: Option<Config>,
    /// Everything found, in the order of lines. Unknown settings are errors here.
    pub findings: Vec<Finding>,
    root: Option<Rc<yaml::Node>>,
}

impl Inspection {
    /// Names the line of the setting a finding is about, if it has none yet.
    #[must_use]
    pub fn located(&self, finding: Finding) -> Finding {
        match &self.root {
            Some(root) if finding.line.is_none() && !finding.setting.is_empty() => {
                let line = root.line_of(&finding.setting);
                finding.on_line(line)
            }
            _ => finding,
        }
    }
}

/// Examines a configuration file without stopping at the first fault.
///
/// # Errors
/// The file cannot be read.
pub fn inspect(flag: &str, expand: ExpandEnv, around: Surroundings<'_>) -> Result<Inspection> {
    let Source { path, text, warnings } = Source::read(flag, expand, around)?;
    let mut inspection = Inspection { path, config: None, findings: warnings, root: None };
    let (raw, odd, root) = match decode(&text) {
        Ok(decoded) => decoded,
        Err(err) => {
            inspection.findings.extend(yaml_errors(&err.to_string()));
            return Ok(inspection);
        }
    };
    inspection.root = root;
    inspection.findings.extend(odd.into_iter().map(review::stricter));
    let (config, faults) = validate::resolve(raw, around);
    for fault in faults.all() {
        let finding = inspection.located(Finding::error(fault.setting, fault.message));
        inspection.findings.push(finding);
    }
    for (i, entry) in config.iter().flat_map(|config| config.dbs.iter().enumerate()) {
        if let Err(err) = entry.replica(around) {
            let setting = format!("dbs[{i}].{}", review::key_in(&err.to_string()));
            let finding = inspection.located(Finding::error(setting, err.to_string()));
            inspection.findings.push(finding);
        }
    }
    inspection.config = config;
    inspection.findings.sort_by_key(|finding| finding.line);
    Ok(inspection)
}

/// Takes the message of a decoding error apart: `line 3: cannot unmarshal …`, one or several.
fn yaml_errors(message: &str) -> Vec<Finding> {
    let message = message.strip_prefix("yaml: ").unwrap_or(message);
    let lines = message.strip_prefix("unmarshal errors:\n").unwrap_or(message).lines();
    lines
        .map(|line| {
            let line = line.trim();
            let numbered = line.strip_prefix("line ").and_then(|rest| rest.split_once(": "));
            match numbered.and_then(|(number, text)| Some((number.parse().ok()?, text))) {
                Some((number, text)) => Finding::error("", text).on_line(number),
                None => Finding::error("", line),
            }
        })
        .collect()
}

/// The configuration of `replicate DB_PATH REPLICA_URL…`: defaults, and one database.
///
/// # Errors
/// The path cannot be expanded.
pub fn ad_hoc(path: &str, urls: &[String], around: Surroundings<'_>) -> Result<Config> {
    let replica = |url: &String| Some(ReplicaKeys { url: url.clone(), ..ReplicaKeys::default() });
    let mut raw = RawConfig::default();
    raw.dbs.push(Some(RawDb {
        path: path.to_owned(),
        replicas: urls.iter().map(replica).collect(),
        ..RawDb::default()
    }));
    raw.logging.level = "INFO".to_owned();
    let (config, faults) = validate::resolve(raw, around);
    config.ok_or_else(|| one(faults))
}

#[cfg(test)]
mod tests;
