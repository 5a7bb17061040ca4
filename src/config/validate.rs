//! From the file as written to [`Config`]: the steps of `spec: config` §1.1 from 6 on, in their
//! order, because the order decides which error is seen.

use std::collections::HashMap;
use std::path::PathBuf;

use jiff::SignedDuration;

use super::raw::{RawConfig, RawDb, RawLevel, RawLogging, RawMcp, RawSnapshot};
use super::settings::{
    Config, DbEntry, HeartbeatSettings, LogFormat, LoggingSettings, McpSettings, Place, ShutdownSettings,
    SnapshotSettings, SocketSettings, positive,
};
use super::{Surroundings, defaults};
use crate::error::{Error, Result};
use crate::types::format_duration;

pub(super) fn resolve(mut raw: RawConfig, around: Surroundings<'_>) -> Result<Config> {
    let (mut dbs, levels) = (Vec::new(), raw.levels.drain(..).collect::<Option<Vec<RawLevel>>>());
    for (i, db) in raw.dbs.drain(..).enumerate() {
        dbs.push(db.ok_or_else(|| Error::invalid(format!("database config #{}: must not be empty", i + 1)))?);
    }
    let levels = levels.ok_or_else(|| Error::invalid("levels: a compaction level must not be empty"))?;

    promote_snapshot(&mut raw.snapshot, &dbs)?;
    let mut paths = Vec::with_capacity(dbs.len());
    for db in &dbs {
        paths.push(if db.path.is_empty() { None } else { Some(around.expand(&db.path)?) });
    }
    for db in &mut dbs {
        for replica in db.replica.iter_mut().chain(db.replicas.iter_mut().flatten()) {
            replica.settings.inherit(&raw.replica_defaults);
        }
    }

    let global = check_global(&raw, &levels)?;
    check_databases(&dbs, &paths)?;
    let logging = logging(&raw.logging, around)?;

    let entries =
        dbs.into_iter().zip(paths).map(|(raw, path)| DbEntry { place: path.map_or(Place::Dir, Place::File), raw });
    let nonempty = |text: String| Some(text).filter(|t| !t.is_empty());
    Ok(Config {
        addr: nonempty(raw.addr),
        mcp: mcp(raw.mcp_addr, raw.mcp, around)?,
        exec: nonempty(raw.exec),
        socket: SocketSettings {
            enabled: raw.socket.enabled,
            path: PathBuf::from(raw.socket.path),
            permissions: raw.socket.permissions,
        },
        logging,
        levels: levels.iter().map(|l| defaults::unsigned(l.interval)).collect(),
        snapshot: SnapshotSettings {
            interval: defaults::unsigned(global.snapshot_interval),
            retention: defaults::unsigned(global.snapshot_retention),
        },
        retention_enabled: raw.retention.enabled.unwrap_or(true),
        validation_interval: raw.validation.interval.and_then(positive),
        l0_retention: positive(global.l0_retention),
        l0_retention_check_interval: defaults::unsigned(global.l0_check_interval),
        verify_compaction: raw.verify_compaction,
        heartbeat: nonempty(raw.heartbeat_url)
            .map(|url| HeartbeatSettings { url, interval: defaults::unsigned(global.heartbeat_interval) }),
        shutdown: ShutdownSettings {
            timeout: defaults::unsigned(global.shutdown_timeout),
            interval: defaults::unsigned(global.shutdown_interval),
        },
        dbs: entries.collect(),
    })
}

/// A database's own snapshot settings become the global ones where those are not set; two databases
/// must not differ even where they are.
fn promote_snapshot(global: &mut RawSnapshot, dbs: &[RawDb]) -> Result<()> {
    type Field = fn(&RawSnapshot) -> Option<SignedDuration>;
    let fields: [(&str, Field); 2] = [("intervals", |s| s.interval), ("retentions", |s| s.retention)];
    let mut promoted = [None, None];
    for ((name, field), promoted) in fields.into_iter().zip(&mut promoted) {
        let mut first: Option<(&str, SignedDuration)> = None;
        for db in dbs {
            let Some(value) = field(&db.snapshot) else { continue };
            let label = if db.path.is_empty() { &db.dir } else { &db.path };
            match first {
                None => first = Some((label, value)),
                Some((other, earlier)) if earlier != value => {
                    let (earlier, value) = (format_duration(earlier), format_duration(value));
                    return Err(Error::invalid(format!(
                        "conflicting database snapshot {name}: {other} has {earlier}, {label} has {value}"
                    )));
                }
                Some(_) => {}
            }
        }
        *promoted = first.map(|(_, value)| value);
    }
    global.interval = global.interval.or(promoted[0]);
    global.retention = global.retention.or(promoted[1]);
    Ok(())
}

fn refuse(field: &str, text: &str, got: impl std::fmt::Display) -> Result<()> {
    Err(Error::invalid(format!("{field}: {text} (got {got})")))
}

/// Refuses a duration that is not above zero.
fn above_zero(field: &str, text: &str, value: SignedDuration) -> Result<()> {
    if value.is_positive() { Ok(()) } else { refuse(field, text, format_duration(value)) }
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

fn check_global(raw: &RawConfig, levels: &[RawLevel]) -> Result<Global> {
    let global = Global {
        snapshot_interval: raw.snapshot.interval.unwrap_or(defaults::SNAPSHOT_INTERVAL),
        snapshot_retention: raw.snapshot.retention.unwrap_or(defaults::SNAPSHOT_RETENTION),
        l0_retention: raw.l0_retention.unwrap_or(defaults::L0_RETENTION),
        l0_check_interval: raw.l0_retention_check_interval.unwrap_or(defaults::L0_RETENTION_CHECK_INTERVAL),
        shutdown_timeout: raw.shutdown_sync_timeout.unwrap_or(defaults::SHUTDOWN_SYNC_TIMEOUT),
        shutdown_interval: raw.shutdown_sync_interval.unwrap_or(defaults::SHUTDOWN_SYNC_INTERVAL),
        heartbeat_interval: raw.heartbeat_interval.unwrap_or(defaults::HEARTBEAT_INTERVAL),
    };
    above_zero("snapshot.interval", SNAPSHOT_INTERVAL_TEXT, global.snapshot_interval)?;
    above_zero("snapshot.retention", SNAPSHOT_RETENTION_TEXT, global.snapshot_retention)?;
    if global.l0_retention.is_negative() {
        refuse("l0-retention", "l0 retention must not be negative", format_duration(global.l0_retention))?;
    }
    above_zero(
        "l0-retention-check-interval",
        "l0 retention check interval must be greater than 0",
        global.l0_check_interval,
    )?;
    if global.shutdown_timeout.is_negative() {
        let got = format_duration(global.shutdown_timeout);
        refuse("shutdown-sync-timeout", "shutdown-sync-timeout must be >= 0", got)?;
    }
    above_zero("shutdown-sync-interval", "shutdown sync interval must be greater than 0", global.shutdown_interval)?;
    let url = &raw.heartbeat_url;
    if !url.is_empty() && !url.starts_with("http://") && !url.starts_with("https://") {
        refuse("heartbeat-url", "heartbeat URL must be a valid HTTP or HTTPS URL", url)?;
    }
    if global.heartbeat_interval < defaults::HEARTBEAT_INTERVAL_MIN {
        let got = format_duration(global.heartbeat_interval);
        refuse("heartbeat-interval", "heartbeat interval must be at least 1 minute", got)?;
    }
    for (i, level) in levels.iter().enumerate() {
        let field = format!("levels[{i}].interval");
        above_zero(&field, "compaction interval must be greater than 0", level.interval)?;
    }
    Ok(global)
}

fn check_databases(dbs: &[RawDb], paths: &[Option<PathBuf>]) -> Result<()> {
    let mut seen: HashMap<&PathBuf, usize> = HashMap::new();
    for (i, (db, path)) in dbs.iter().zip(paths).enumerate() {
        let number = i + 1;
        let wrong = |text: String| Err(Error::invalid(format!("database config #{number}: {text}")));
        match (path, db.dir.is_empty()) {
            (Some(_), false) => return wrong("cannot specify both 'path' and 'dir'".into()),
            (None, true) => return wrong("must specify either 'path' or 'dir'".into()),
            _ => {}
        }
        if let Some(path) = path
            && let Some(first) = seen.insert(path, number)
        {
            return wrong(format!(
                "duplicate path \"{}\" (already used by database config #{first}); \
                 each database can be listed only once",
                path.display()
            ));
        }
        if path.is_none() && db.pattern.is_empty() {
            return wrong("'pattern' is required when using 'dir'".into());
        }
        if path.is_some() && db.watch {
            return wrong("'watch' can only be enabled with a directory".into());
        }
        if path.is_some() && db.meta_dir.is_some() {
            return wrong("'meta-dir' can only be used with a directory".into());
        }
        if db.meta_path.is_some() && db.meta_dir.is_some() {
            return wrong("cannot specify both 'meta-path' and 'meta-dir'".into());
        }
        let label = path.as_ref().map_or_else(|| db.dir.clone(), |p| p.display().to_string());
        check_intervals(db, &label)?;
    }
    Ok(())
}

fn check_intervals(db: &RawDb, label: &str) -> Result<()> {
    if let Some(interval) = db.snapshot.interval {
        above_zero(&format!("dbs[{label}].snapshot.interval"), SNAPSHOT_INTERVAL_TEXT, interval)?;
    }
    if let Some(retention) = db.snapshot.retention {
        above_zero(&format!("dbs[{label}].snapshot.retention"), SNAPSHOT_RETENTION_TEXT, retention)?;
    }
    if let Some(interval) = db.replica.as_ref().and_then(|r| r.settings.sync_interval) {
        above_zero(&format!("dbs[{label}].replica.sync-interval"), SYNC_INTERVAL_TEXT, interval)?;
    }
    for (i, replica) in db.replicas.iter().enumerate() {
        if let Some(interval) = replica.as_ref().and_then(|r| r.settings.sync_interval) {
            above_zero(&format!("dbs[{label}].replicas[{i}].sync-interval"), SYNC_INTERVAL_TEXT, interval)?;
        }
    }
    Ok(())
}

/// `LOG_LEVEL` beats the file.
fn mcp(addr: String, raw: RawMcp, around: Surroundings<'_>) -> Result<Option<McpSettings>> {
    if addr.is_empty() {
        return Ok(None);
    }
    let paths = raw.paths.iter().map(|path| around.expand(path)).collect::<Result<_>>()?;
    Ok(Some(McpSettings { addr, token: raw.token, allow_changes: raw.allow_changes, paths }))
}

fn logging(raw: &RawLogging, around: Surroundings<'_>) -> Result<LoggingSettings> {
    let format = match raw.kind.as_str() {
        "" | "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        "pretty" => LogFormat::Pretty,
        other => {
            return Err(Error::invalid(format!("logging.type: must be text, json or pretty (got {other})")));
        }
    };
    let level = around.env.get_nonempty("LOG_LEVEL").unwrap_or(&raw.level).to_owned();
    Ok(LoggingSettings { level, format, stderr: raw.stderr, source: raw.source })
}
