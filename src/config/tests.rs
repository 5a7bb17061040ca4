use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::sys::OsFs;

fn parse_in(text: &str, env: &Environment) -> Result<Config> {
    parse(text, Surroundings { env, fs: &OsFs })
}

fn empty_env() -> Environment {
    Environment::new([], PathBuf::from("/here"))
}

fn load_text(text: &str) -> Result<Config> {
    parse_in(text, &empty_env())
}

fn refusal(text: &str) -> String {
    load_text(text).unwrap_err().to_string()
}

fn build_first(text: &str) -> Result<DbSettings> {
    let env = empty_env();
    let around = Surroundings { env: &env, fs: &OsFs };
    let mut all = parse(text, around)?.build_all(around)?;
    Ok(all.remove(0))
}

#[test]
fn an_empty_file_means_the_defaults() {
    for text in ["", "# only a comment\n", "dbs:\n", "dbs: []\n", "{}"] {
        let config = load_text(text).unwrap();
        assert!(config.dbs.is_empty());
        assert_eq!(config.levels, [30, 300, 3600].map(Duration::from_secs));
        assert_eq!(config.snapshot.interval, Duration::from_secs(86_400));
        assert_eq!(config.l0_retention, Some(Duration::from_secs(300)));
        assert_eq!(config.socket.path, PathBuf::from("/var/run/litestream.sock"));
        assert!(config.retention_enabled);
    }
}

#[test]
fn a_null_section_is_cleared_and_only_some_defaults_come_back() {
    let config = load_text("snapshot:\nlevels:\nsocket: {enabled: true, path: }\nl0-retention:\n").unwrap();
    assert!(config.levels.is_empty());
    assert_eq!(config.snapshot.retention, Duration::from_secs(86_400));
    assert_eq!(config.l0_retention, Some(Duration::from_secs(300)));
    assert_eq!(config.socket.path, PathBuf::new());
    assert_eq!(config.socket.permissions, 0o600);
}

#[test]
fn zero_turns_some_settings_off() {
    let config = load_text("l0-retention: 0\nshutdown-sync-timeout: 0s\nretention: {enabled: off}\n").unwrap();
    assert_eq!(config.l0_retention, None);
    assert_eq!(config.shutdown.timeout, Duration::ZERO);
    assert!(!config.retention_enabled);
}

#[test]
fn a_database_gets_its_defaults() {
    let db = build_first("dbs: [{path: app.db, replica: {path: rep}}]").unwrap();
    assert_eq!(db.path, PathBuf::from("/here/app.db"));
    assert_eq!(db.meta_path, PathBuf::from("/here/.app.db-litestream"));
    assert_eq!(db.monitor_interval, Some(Duration::from_secs(1)));
    assert_eq!(db.min_checkpoint_page_count, 1000);
    assert_eq!(db.truncate_page_n, Some(121_359));
    assert_eq!(db.max_sync_wal_bytes, Some(64 << 20));
    assert_eq!(db.replica.sync_interval, Duration::from_secs(1));
    assert_eq!(db.replica.max_sync_ltx_files, Some(256));
    assert!(matches!(db.replica.kind, ReplicaKind::File(f) if f.path == Path::new("/here/rep")));
}

#[test]
fn numbers_that_switch_a_limit_off() {
    let db = build_first(
        "dbs: [{path: a, truncate-page-n: -1, max-sync-wal-bytes: 0, checkpoint-interval: 0, \
         monitor-interval: -1s, replica: {path: r, max-sync-ltx-files: 0}}]",
    )
    .unwrap();
    assert_eq!(db.truncate_page_n, None);
    assert_eq!(db.max_sync_wal_bytes, None);
    assert_eq!(db.checkpoint_interval, None);
    assert_eq!(db.monitor_interval, None);
    assert_eq!(db.replica.max_sync_ltx_files, None);
    let db = build_first("dbs: [{path: a, truncate-page-n: 0, replica: {path: r}}]").unwrap();
    assert_eq!(db.truncate_page_n, Some(121_359), "zero is the default, not off");
}

#[test]
fn replica_settings_come_from_the_replica_then_the_top_then_the_defaults() {
    let text = "sync-interval: 5s\nauto-recover: true\nmax-sync-ltx-files: 7\n\
                dbs: [{path: a, replica: {path: r, auto-recover: false}}]";
    let db = build_first(text).unwrap();
    assert_eq!(db.replica.sync_interval, Duration::from_secs(5));
    assert_eq!(db.replica.max_sync_ltx_files, Some(7));
    assert!(!db.replica.auto_recover, "false is a value");
}

#[test]
fn values_out_of_range_are_refused_with_the_words_people_search_for() {
    for (text, want) in [
        ("snapshot: {interval: 0s}", "snapshot.interval: snapshot interval must be greater than 0 (got 0s)"),
        ("snapshot: {retention: -1h}", "snapshot.retention: snapshot retention must be greater than 0 (got -1h0m0s)"),
        ("l0-retention: -1s", "l0-retention: l0 retention must not be negative (got -1s)"),
        ("shutdown-sync-timeout: -1s", "shutdown-sync-timeout: shutdown-sync-timeout must be >= 0 (got -1s)"),
        ("heartbeat-url: ftp://x", "heartbeat-url: heartbeat URL must be a valid HTTP or HTTPS URL (got ftp://x)"),
        ("heartbeat-interval: 59s", "heartbeat-interval: heartbeat interval must be at least 1 minute (got 59s)"),
        (
            "dbs: [{path: /x, heartbeat-url: 'x', replica: {path: /r}}]",
            "dbs[/x].heartbeat-url: heartbeat URL must be a valid HTTP or HTTPS URL (got x)",
        ),
        (
            "dbs: [{path: /x, heartbeat-interval: 1s, replica: {path: /r}}]",
            "dbs[/x].heartbeat-interval: heartbeat interval must be at least 1 minute (got 1s)",
        ),
        ("levels: [{interval: 1s}, {}]", "levels[1].interval: compaction interval must be greater than 0 (got 0s)"),
        (
            "dbs: [{path: /b, replica: {path: /x, sync-interval: 10}}, {path: /c, replica: {sync-interval: 0}}]",
            "dbs[/c].replica.sync-interval: sync interval must be greater than 0 (got 0s)",
        ),
        (
            "snapshot: {interval: 1h}\ndbs: [{path: /b, snapshot: {interval: 0s}}]",
            "dbs[/b].snapshot.interval: snapshot interval must be greater than 0 (got 0s)",
        ),
        (
            "dbs: [{path: /b, snapshot: {interval: 1h}}, {path: c, snapshot: {interval: 90m}}]",
            "conflicting database snapshot intervals: /b has 1h0m0s, c has 1h30m0s",
        ),
        ("dbs: [~]", "database config #1: must not be empty"),
        ("dbs: [{path: ~}]", "database config #1: must specify either 'path' or 'dir'"),
        ("logging: {type: xml}", "logging.type: must be text, json or pretty (got xml)"),
    ] {
        assert_eq!(refusal(text), want, "{text}");
    }
}

#[test]
fn a_replica_must_be_one_and_make_sense() {
    for (replica, want) in [
        ("x: 1", "must specify replica for database"),
        ("replica: ~", "must specify replica for database"),
        ("replicas: []", "must specify replica for database"),
        ("replica: {path: /x}, replicas: [{path: /y}]", "cannot specify 'replica' and 'replicas' on a database"),
        ("replicas: [{path: /x}, {path: /y}]", "multiple replicas on a single database are no longer supported"),
        ("replica: {}", "file replica path required"),
        ("replica: {path: 's3://x'}", "replica path cannot be a url, please use the 'url' field instead: s3://x"),
        ("replica: {type: S3, bucket: b}", "unknown replica type in config: \"S3\""),
        ("replica: {url: 'gcs://b'}", "unknown replica type in config: \"gcs\""),
        ("replica: {url: 'file:///a', path: /b}", "cannot specify url & path for file replica"),
        ("replica: {url: 's3://b', bucket: c}", "cannot specify url & bucket for s3 replica"),
        ("replica: {type: s3}", "bucket required for s3 replica"),
        ("replica: {type: nats}", "bucket required for NATS replica"),
        ("replica: {type: sftp, host: h}", "user required for sftp replica"),
        ("replica: {url: /backup/x}", "replica url scheme required: /backup/x"),
    ] {
        let text = format!("dbs: [{{path: /a, {replica}}}]");
        assert_eq!(build_first(&text).unwrap_err().to_string(), want, "{text}");
    }
    let db = build_first("dbs: [{path: /a, replicas: [{url: 's3://bkt/x'}]}]").unwrap();
    assert_eq!(db.replica.kind.name(), "s3");
}

#[test]
fn type_errors_of_the_whole_file_come_together_with_line_numbers() {
    assert_eq!(
        refusal("l0-retention: x\nlevels: 5\ndbs: abc\n"),
        "yaml: unmarshal errors:\n  line 1: cannot unmarshal !!str `x` into time.Duration\n  \
         line 2: cannot unmarshal !!int `5` into []*main.CompactionLevelConfig\n  \
         line 3: cannot unmarshal !!str `abc` into []*main.DBConfig"
    );
    assert_eq!(
        refusal("dbs: abc\nsnapshot: 24h\n"),
        "yaml: unmarshal errors:\n  line 2: cannot unmarshal !!str `24h` into main.SnapshotConfig"
    );
}

#[test]
fn repeated_mappings_merge_and_merge_keys_act_where_they_stand() {
    let text = "dbs:\n  - path: /a\n    replica: {sync-interval: 9s}\n    replica: {path: /r}\n";
    assert_eq!(build_first(text).unwrap().replica.sync_interval, Duration::from_secs(9));
    let text = "x: &x {path: /shared, sync-interval: 3s}\ndbs:\n  - path: /a\n    replica: {path: /own, <<: *x}\n";
    let db = build_first(text).unwrap();
    assert!(matches!(db.replica.kind, ReplicaKind::File(f) if f.path == Path::new("/shared")));
}

#[test]
fn the_environment_level_beats_the_file() {
    let env = Environment::new([("LOG_LEVEL".to_owned(), "warn".to_owned())], PathBuf::from("/"));
    assert_eq!(parse_in("logging: {level: debug}", &env).unwrap().logging.level, "warn");
    assert_eq!(load_text("logging: {level: DeBuG}").unwrap().logging.level, "DeBuG");
}

#[test]
fn secrets_do_not_show_in_debug_output() {
    let config = load_text("dbs: [{path: /a, replica: {path: /r, secret-access-key: hunter2}}]").unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}

proptest::proptest! {
    /// Whatever the file holds, the answer is a configuration or an error.
    #[test]
    fn no_text_makes_the_reader_panic(
        words in proptest::collection::vec(
            proptest::sample::select(vec![
                "dbs:", "- ", "path: ", "replica: ", "url: ", "file:///a", "s3://b", "{", "}", "[", "]", ",", "\n", "  ",
                "\t", "&a ", "*a", "<<: ", "!!str ", "\"", "'", "|", ">", "#", "%", "@", "? ", ": ", "---", "...",
                "levels: ", "snapshot: ", "interval: ", "5m", "1e400", "-9223372036854775808", "0x", "~", "é", "\u{85}",
                "\u{feff}", "\0", "part-size: ", "99999999999999999999E", "age: ", "socket: ", "permissions: ",
                "!", "!<", "%ff", "%41", "\\", "\\x41", "\\ud800", "\\u12", "%YAML 1.1\n", "%TAG ! tag:x,2000:\n", "\r", "+1\n", "-\n",
            ]),
            0..40,
        ),
    ) {
        let _ = load_text(&words.concat()).map(|config| {
            let env = empty_env();
            config.build_all(Surroundings { env: &env, fs: &OsFs })
        });
    }

    #[test]
    fn no_variable_reference_makes_expansion_panic(text in ".{0,60}\\$\\{?.{0,20}") {
        let _ = empty_env().expand(&text);
    }
}

#[test]
fn another_endpoint_of_google_is_named_by_the_url_alone() {
    let endpoint = |text: &str| match build_first(text).unwrap().replica.kind {
        ReplicaKind::Gs(gs) => gs.endpoint,
        other => panic!("{}", other.name()),
    };
    let url = "dbs: [{path: a.db, replica: {url: 'gs://b/p?endpoint=storage-x.p.googleapis.com'}}]";
    assert_eq!(endpoint(url).as_deref(), Some("https://storage-x.p.googleapis.com"));
    let key = "endpoint: http://s3.local\ndbs: [{path: a.db, replica: {type: gs, bucket: b, endpoint: http://e}}]";
    assert_eq!(endpoint(key), None);
}
