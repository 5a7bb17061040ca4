//! What `replicate` would do, told from the settings: the recorded log lines of every valid file, without
//! starting a backend.

use std::time::Duration;

use litestream::config::{Config, DbSettings, ReplicaKind};
use litestream::error::Result;
use litestream::types::format_duration;

use super::place::{Case, cases};

fn go(d: Duration) -> String {
    format_duration(d.try_into().unwrap())
}

/// A value as log lines show it.
fn shown(value: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && c != '=' && c != '"';
    if !value.is_empty() && value.chars().all(plain) { value.to_owned() } else { format!("{value:?}") }
}

fn target(db: &DbSettings) -> String {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let fields: Vec<(&str, String)> = match &db.replica.kind {
        ReplicaKind::File(s) => vec![("path", s.path.display().to_string())],
        ReplicaKind::S3(s) => vec![
            ("bucket", s.bucket.clone()),
            ("path", s.path.clone()),
            ("region", text(&s.region)),
            ("endpoint", text(&s.endpoint)),
        ],
        ReplicaKind::Gs(s) => vec![("bucket", s.bucket.clone()), ("path", s.path.clone())],
        ReplicaKind::Abs(s) => {
            vec![("bucket", s.bucket.clone()), ("path", s.path.clone()), ("endpoint", text(&s.endpoint))]
        }
        ReplicaKind::Oss(s) => {
            vec![("bucket", s.bucket.clone()), ("path", s.path.clone()), ("region", text(&s.region))]
        }
        ReplicaKind::Sftp(s) => vec![("host", s.host.clone()), ("user", s.user.clone()), ("path", s.path.clone())],
        ReplicaKind::Webdav(_) => vec![],
        ReplicaKind::Nats(s) => vec![("bucket", s.bucket.clone()), ("url", s.url.clone())],
    };
    let fields: String = fields.iter().map(|(name, value)| format!(" {name}={}", shown(value))).collect();
    let (kind, every) = (db.replica.kind.name(), go(db.replica.sync_interval));
    format!("level=INFO msg=\"replicating to\" type={kind} sync-interval={every}{fields}")
}

/// The lines about databases in their order, then those about monitors, sorted.
fn lines(config: &Config, case: &Case) -> Result<Vec<String>> {
    case.load(|_, around| {
        let mut lines = Vec::new();
        let mut databases = Vec::new();
        for entry in &config.dbs {
            let built = entry.build_all(around)?;
            if let Some(dir) = built.directory {
                let count = built.databases.len();
                lines.push(format!(
                    "level=INFO msg=\"found databases in directory\" dir={} count={count} watch={}",
                    dir.written, dir.watch
                ));
            }
            databases.extend(built.databases);
        }
        for db in &databases {
            lines.push(format!("level=INFO msg=\"initialized db\" path={}", shown(&db.path.display().to_string())));
            lines.push(target(db));
        }
        if let Some(retention) = config.l0_retention {
            let every = go(config.l0_retention_check_interval);
            lines.push(format!(
                "level=INFO msg=\"starting L0 retention monitor\" system=store interval={every} retention={}",
                go(retention)
            ));
        }
        let levels = config.levels.iter().copied().enumerate().map(|(i, every)| (i + 1, every));
        for (level, every) in levels.chain([(9, config.snapshot.interval)]) {
            lines.push(format!(
                "level=INFO msg=\"starting compaction monitor\" system=store level={level} interval={}",
                go(every)
            ));
        }
        if let Some(every) = config.validation_interval {
            lines.push(format!("level=INFO msg=\"starting validation monitor\" system=store interval={}", go(every)));
        }
        Ok(lines)
    })?
}

/// Lines that tell of settings; the others tell of servers, children and the version.
fn tells_of_settings(line: &str) -> bool {
    let messages = [
        "found databases",
        "initialized db",
        "replicating to",
        "starting L0",
        "starting compaction",
        "starting validation",
    ];
    line.starts_with("level=") && messages.iter().any(|m| line.contains(m))
}

#[test]
fn valid_files_mean_the_same() {
    let mut compared = 0;
    for case in cases("valid") {
        let log = case.expect["replicate"]["log"].as_array();
        let wanted: Vec<String> = log
            .into_iter()
            .flatten()
            .map(|l| case.filled(l.as_str().unwrap()).replace("{pid}", &std::process::id().to_string()))
            .filter(|l| tells_of_settings(l))
            .collect();
        // Nine levels, a level below info, or another format: nothing of this is printed there.
        if wanted.is_empty() {
            continue;
        }
        compared += 1;
        let config = case.load(|config, _| config.clone()).unwrap();
        let got = lines(&config, &case).unwrap_or_else(|err| panic!("{}: {err}", case.name));
        let about_monitors = |l: &&String| l.contains("\"starting ");
        let split = |all: &[String]| -> (Vec<String>, Vec<String>) {
            let mut monitors: Vec<String> = all.iter().filter(about_monitors).cloned().collect();
            monitors.sort();
            (all.iter().filter(|l| !about_monitors(l)).cloned().collect(), monitors)
        };
        assert_eq!(split(&got), split(&wanted), "{}", case.name);
    }
    assert!(compared > 90, "only {compared} files have such lines");
}

#[test]
fn the_level_in_force_is_the_one_recorded() {
    for case in cases("valid") {
        let Some(first) = case.expect["replicate"]["log"][0].as_str() else { continue };
        let Some((_, level)) = first.split_once("version=0.5.17 level=") else { continue };
        let config = case.load(|config, _| config.clone()).unwrap();
        assert_eq!(shown(&config.logging.level), level, "{}", case.name);
    }
}

/// The text after `initialize replica client for "…": `.
fn at_initialization(case: &Case) -> Option<String> {
    let stderr = case.expect["replicate"]["stderr"].as_str()?;
    stderr.trim_end().split_once("\": ").map(|(_, text)| text.to_owned())
}

#[test]
fn what_settings_alone_can_refuse_is_refused_before_a_connection() {
    let mut seen = 0;
    for case in cases("invalid") {
        let refused = match case.name.as_str() {
            name if name.starts_with("run-sse-") || name.starts_with("run-abs-") => case.load(|config, around| {
                let db = config.dbs[0].build(around).unwrap();
                match db.replica.kind {
                    ReplicaKind::S3(s3) => s3.encryption().map(drop),
                    ReplicaKind::Abs(abs) => abs.check(),
                    other => panic!("{other:?}"),
                }
            }),
            _ => continue,
        };
        seen += 1;
        let err = refused.unwrap().unwrap_err().to_string();
        assert_eq!(Some(err), at_initialization(&case), "{}", case.name);
    }
    assert_eq!(seen, 7);
}
