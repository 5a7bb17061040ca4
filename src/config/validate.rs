//! From the file as written to [`Config`]: the steps of `spec: config` §1.1 from 6 on, in their
//! order, because the order decides which error is seen.

use std::collections::HashMap;
use std::path::PathBuf;

use jiff::SignedDuration;

use super::raw::{RawConfig, RawDb, RawLevel, RawLogging, RawMcp, RawSnapshot};
use super::settings::{
    Config, DbEntry, HeartbeatSettings, LogFormat, LoggingSettings, McpSettings, Place, ShutdownSettings,
    SnapshotSettings, SocketSettings,
};
use super::{Surroundings, defaults};
use crate::settings::{positive, unsigned};
use crate::types::format_duration;

/// Resolves a configuration and collects every fault, in the order that decides which one is reported by
/// those who report one. There is a configuration if, and only if, there is no fault.
pub(super) fn resolve(mut raw: RawConfig, around: Surroundings<'_>) -> (Option<Config>, Faults) {
    let mut faults = Faults::default();
    let (mut dbs, mut levels) = (Vec::new(), Vec::new());
    for (i, db) in raw.dbs.drain(..).enumerate() {
        match db {
            Some(db) => dbs.push(db),
            None => faults.add(format!("dbs[{i}]"), format!("database config #{}: must not be empty", i + 1)),
        }
    }
    for (i, level) in raw.levels.drain(..).enumerate() {
        match level {
            Some(level) => levels.push(level),
            None => faults.add(format!("levels[{i}]"), "levels: a compaction level must not be empty"),
        }
    }
    if !faults.is_empty() {
        // Places in lists would be counted wrongly from here on.
        return (None, faults);
    }

    promote_snapshot(&mut raw.snapshot, &dbs, &mut faults);
    let mut paths = Vec::with_capacity(dbs.len());
    for (i, db) in dbs.iter().enumerate() {
        paths.push(if db.path.is_empty() {
            None
        } else {
            around.expand(&db.path).map_err(|err| faults.add(format!("dbs[{i}].path"), err.to_string())).ok()
        });
    }
    for db in &mut dbs {
        for replica in db.replica.iter_mut().chain(db.replicas.iter_mut().flatten()) {
            replica.settings.inherit(&raw.replica_defaults);
        }
    }

    let global = check_global(&raw, &levels, &mut faults);
    check_databases(&dbs, &paths, &mut faults);
    let logging = logging(&raw.logging, around, &mut faults);
    let mcp = mcp(&raw.mcp_addr, &raw.mcp, around, &mut faults);
    if !faults.is_empty() {
        return (None, faults);
    }

    let entries =
        dbs.into_iter().zip(paths).map(|(raw, path)| DbEntry { place: path.map_or(Place::Dir, Place::File), raw });
    let nonempty = |text: String| Some(text).filter(|t| !t.is_empty());
    let config = Config {
        addr: nonempty(raw.addr),
        mcp,
        exec: nonempty(raw.exec),
        socket: SocketSettings {
            enabled: raw.socket.enabled,
            path: PathBuf::from(raw.socket.path),
            permissions: raw.socket.permissions,
        },
        logging,
        levels: levels.iter().map(|l| unsigned(l.interval)).collect(),
        snapshot: SnapshotSettings {
            interval: unsigned(global.snapshot_interval),
            retention: unsigned(global.snapshot_retention),
        },
        retention_enabled: raw.retention.enabled.unwrap_or(true),
        validation_interval: raw.validation.interval.and_then(positive),
        l0_retention: positive(global.l0_retention),
        l0_retention_check_interval: unsigned(global.l0_check_interval),
        verify_compaction: raw.verify_compaction,
        heartbeat: nonempty(raw.heartbeat_url)
            .map(|url| HeartbeatSettings { url, interval: unsigned(global.heartbeat_interval) }),
        shutdown: ShutdownSettings {
            timeout: unsigned(global.shutdown_timeout),
            interval: unsigned(global.shutdown_interval),
        },
        dbs: entries.collect(),
        warnings: Vec::new(),
    };
    (Some(config), faults)
}

/// What makes a configuration impossible.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

/// One of them: where, and the words of the reference.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) setting: String,
    pub(super) message: String,
}

impl Faults {
    fn add(&mut self, setting: impl Into<String>, message: impl Into<String>) {
        self.0.push(Fault { setting: setting.into(), message: message.into() });
    }

    /// A value out of range. `label` names it in the message.
    fn refuse(&mut self, setting: &str, label: &str, text: &str, got: impl std::fmt::Display) {
        self.add(setting, format!("{label}: {text} (got {got})"));
    }

    /// Refuses a duration that is not above zero.
    fn above_zero(&mut self, setting: &str, label: &str, text: &str, value: SignedDuration) {
        if !value.is_positive() {
            self.refuse(setting, label, text, format_duration(value));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one that counts.
    pub(super) fn first(self) -> Option<Fault> {
        self.0.into_iter().next()
    }

    pub(super) fn all(self) -> Vec<Fault> {
        self.0
    }
}

/// A database's own snapshot settings become the global ones where those are not set; two databases
/// must not differ even where they are.
fn promote_snapshot(global: &mut RawSnapshot, dbs: &[RawDb], faults: &mut Faults) {
    type Field = fn(&RawSnapshot) -> Option<SignedDuration>;
    let fields: [(&str, Field); 2] = [("interval", |s| s.interval), ("retention", |s| s.retention)];
    let mut promoted = [None, None];
    for ((name, field), promoted) in fields.into_iter().zip(&mut promoted) {
        let mut first: Option<(&str, SignedDuration)> = None;
        for (i, db) in dbs.iter().enumerate() {
            let Some(value) = field(&db.snapshot) else { continue };
            let label = if db.path.is_empty() { &db.dir } else { &db.path };
            match first {
                None => first = Some((label, value)),
                Some((other, earlier)) if earlier != value => {
                    let (earlier, value) = (format_duration(earlier), format_duration(value));
                    faults.add(
                        format!("dbs[{i}].snapshot.{name}"),
                        format!("conflicting database snapshot {name}s: {other} has {earlier}, {label} has {value}"),
                    );
                }
                Some(_) => {}
            }
        }
        *promoted = first.map(|(_, value)| value);
    }
    global.interval = global.interval.or(promoted[0]);
    global.retention = global.retention.or(promoted[1]);
}

const SNAPSHOT_INTERVAL_TEXT: &str = "snapshot interval must be greater than 0";
const SNAPSHOT_RETENTION_TEXT: &str = "snapshot retention must be greater than 0";
const SYNC_INTERVAL_TEXT: &str = "sync interval must be greater than 0";

struct Global {
    snapshot_interval: SignedDuration,
    snapshot_retention: SignedDuration,
    l0_retention: SignedDuration,
    l0_check_interval: SignedDuration,
    shutdown_timeout: SignedDuration,
    shutdown_interval: SignedDuration,
    heartbeat_interval: SignedDuration,
}

fn check_global(raw: &RawConfig, levels: &[RawLevel], faults: &mut Faults) -> Global {
    let global = Global {
        snapshot_interval: raw.snapshot.interval.unwrap_or(defaults::SNAPSHOT_INTERVAL),
        snapshot_retention: raw.snapshot.retention.unwrap_or(defaults::SNAPSHOT_RETENTION),
        l0_retention: raw.l0_retention.unwrap_or(defaults::L0_RETENTION),
        l0_check_interval: raw.l0_retention_check_interval.unwrap_or(defaults::L0_RETENTION_CHECK_INTERVAL),
        shutdown_timeout: raw.shutdown_sync_timeout.unwrap_or(defaults::SHUTDOWN_SYNC_TIMEOUT),
        shutdown_interval: raw.shutdown_sync_interval.unwrap_or(defaults::SHUTDOWN_SYNC_INTERVAL),
        heartbeat_interval: raw.heartbeat_interval.unwrap_or(defaults::HEARTBEAT_INTERVAL),
    };
    let above_zero = |faults: &mut Faults, at: &str, text, value| faults.above_zero(at, at, text, value);
    above_zero(faults, "snapshot.interval", SNAPSHOT_INTERVAL_TEXT, global.snapshot_interval);
    above_zero(faults, "snapshot.retention", SNAPSHOT_RETENTION_TEXT, global.snapshot_retention);
    if global.l0_retention.is_negative() {
        let got = format_duration(global.l0_retention);
        faults.refuse("l0-retention", "l0-retention", "l0 retention must not be negative", got);
    }
    above_zero(
        faults,
        "l0-retention-check-interval",
        "l0 retention check interval must be greater than 0",
        global.l0_check_interval,
    );
    if global.shutdown_timeout.is_negative() {
        let at = "shutdown-sync-timeout";
        faults.refuse(at, at, "shutdown-sync-timeout must be >= 0", format_duration(global.shutdown_timeout));
    }
    above_zero(
        faults,
        "shutdown-sync-interval",
        "shutdown sync interval must be greater than 0",
        global.shutdown_interval,
    );
    check_heartbeat("", "", &raw.heartbeat_url, Some(global.heartbeat_interval), faults);
    for (i, level) in levels.iter().enumerate() {
        let at = format!("levels[{i}].interval");
        above_zero(faults, &at, "compaction interval must be greater than 0", level.interval);
    }
    global
}

/// `at` and `label` are what comes before the keys, in the file and in the message.
fn check_heartbeat(at: &str, label: &str, url: &str, interval: Option<SignedDuration>, faults: &mut Faults) {
    let mut refuse = |key: &str, text: &str, got: &str| {
        faults.refuse(&format!("{at}{key}"), &format!("{label}{key}"), text, got);
    };
    if !url.is_empty() && !url.starts_with("http://") && !url.starts_with("https://") {
        refuse("heartbeat-url", "heartbeat URL must be a valid HTTP or HTTPS URL", url);
    }
    if let Some(short) = interval.filter(|interval| *interval < defaults::HEARTBEAT_INTERVAL_MIN) {
        refuse("heartbeat-interval", "heartbeat interval must be at least 1 minute", &format_duration(short));
    }
}

fn check_databases(dbs: &[RawDb], paths: &[Option<PathBuf>], faults: &mut Faults) {
    let mut seen: HashMap<&PathBuf, usize> = HashMap::new();
    for (i, (db, path)) in dbs.iter().zip(paths).enumerate() {
        let (number, at) = (i + 1, format!("dbs[{i}]"));
        let mut wrong = |key: &str, text: String| {
            faults.add(format!("{at}{key}"), format!("database config #{number}: {text}"));
        };
        match (path, db.dir.is_empty()) {
            (Some(_), false) => wrong(".dir", "cannot specify both 'path' and 'dir'".into()),
            (None, true) => wrong(".path", "must specify either 'path' or 'dir'".into()),
            _ => {}
        }
        if let Some(path) = path
            && let Some(first) = seen.insert(path, number)
        {
            let text = format!(
                "duplicate path \"{}\" (already used by database config #{first}); \
                 each database can be listed only once",
                path.display()
            );
            wrong(".path", text);
        }
        if path.is_none() && !db.dir.is_empty() && db.pattern.is_empty() {
            wrong("", "'pattern' is required when using 'dir'".into());
        }
        if path.is_some() && db.watch {
            wrong(".watch", "'watch' can only be enabled with a directory".into());
        }
        if path.is_some() && db.meta_dir.is_some() {
            wrong(".meta-dir", "'meta-dir' can only be used with a directory".into());
        }
        if db.meta_path.is_some() && db.meta_dir.is_some() {
            wrong(".meta-dir", "cannot specify both 'meta-path' and 'meta-dir'".into());
        }
        let label = path.as_ref().map_or_else(|| db.dir.clone(), |p| p.display().to_string());
        check_intervals(db, &at, &label, faults);
        let (at, label) = (format!("{at}."), format!("dbs[{label}]."));
        check_heartbeat(&at, &label, &db.heartbeat_url, db.heartbeat_interval, faults);
    }
}

fn check_intervals(db: &RawDb, at: &str, label: &str, faults: &mut Faults) {
    let mut above_zero = |field: &str, text: &str, value: Option<SignedDuration>| {
        if let Some(value) = value {
            faults.above_zero(&format!("{at}.{field}"), &format!("dbs[{label}].{field}"), text, value);
        }
    };
    above_zero("snapshot.interval", SNAPSHOT_INTERVAL_TEXT, db.snapshot.interval);
    above_zero("snapshot.retention", SNAPSHOT_RETENTION_TEXT, db.snapshot.retention);
    let sync_interval = db.replica.as_ref().and_then(|r| r.settings.sync_interval);
    above_zero("replica.sync-interval", SYNC_INTERVAL_TEXT, sync_interval);
    for (i, replica) in db.replicas.iter().enumerate() {
        let sync_interval = replica.as_ref().and_then(|r| r.settings.sync_interval);
        above_zero(&format!("replicas[{i}].sync-interval"), SYNC_INTERVAL_TEXT, sync_interval);
    }
}

fn mcp(addr: &str, raw: &RawMcp, around: Surroundings<'_>, faults: &mut Faults) -> Option<McpSettings> {
    let mut paths = Vec::with_capacity(raw.paths.len());
    for (i, path) in raw.paths.iter().enumerate() {
        match around.expand(path) {
            Ok(path) => paths.push(path),
            Err(err) => faults.add(format!("mcp.paths[{i}]"), err.to_string()),
        }
    }
    let settings =
        McpSettings { addr: addr.to_owned(), token: raw.token.clone(), allow_changes: raw.allow_changes, paths };
    Some(settings).filter(|settings| !settings.addr.is_empty())
}

/// `LOG_LEVEL` beats the file.
fn logging(raw: &RawLogging, around: Surroundings<'_>, faults: &mut Faults) -> LoggingSettings {
    let format = match raw.kind.as_str() {
        "" | "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        "pretty" => LogFormat::Pretty,
        other => {
            faults.refuse("logging.type", "logging.type", "must be text, json or pretty", other);
            LogFormat::Text
        }
    };
    let level = around.env.get_nonempty("LOG_LEVEL").unwrap_or(&raw.level).to_owned();
    LoggingSettings { level, format, stderr: raw.stderr, source: raw.source }
}
