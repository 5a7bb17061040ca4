//! `litestream check`: each broken file is one fault, named with its line.

use serde_json::Value;

use super::place::{Bench, cases};

/// File, line of the fault (0: none), severity, and what the message must say.
const BROKEN: [(&str, u64, &str, &str); 48] = [
    // YAML itself.
    ("dbs:\n  - path: @home\n", 2, "error", "found character that cannot start any token"),
    ("dbs:\n\t- path: /a\n", 2, "error", "found character that cannot start any token"),
    ("dbs:\n  - path: a: b\n", 2, "error", "mapping values are not allowed"),
    ("dbs: *nope\n", 0, "error", "unknown anchor"),
    // Types.
    ("# x\nsync-interval: 7d\n", 2, "error", "cannot unmarshal !!str `7d` into time.Duration"),
    ("dbs:\n  - path: a\n    replica: s3://bkt\n", 3, "error", "into main.ReplicaConfig"),
    ("socket:\n  enabled: \"true\"\n", 2, "error", "into bool"),
    // Values.
    ("\nsnapshot:\n  interval: 0s\n", 3, "error", "snapshot interval must be greater than 0"),
    ("snapshot:\n  retention: -1h\n", 2, "error", "snapshot retention must be greater than 0 (got -1h0m0s)"),
    ("l0-retention: -1s\n", 1, "error", "l0 retention must not be negative"),
    ("levels:\n  - interval: 1m\n  - interval: 0\n", 3, "error", "levels[1].interval"),
    ("levels:\n  -\n", 2, "error", "a compaction level must not be empty"),
    ("heartbeat-interval: 59s\n", 1, "error", "at least 1 minute"),
    ("heartbeat-url: hc.example.com\n", 1, "error", "must be a valid HTTP or HTTPS URL"),
    ("logging:\n  level: info\n  type: xml\n", 3, "error", "must be text, json or pretty"),
    ("addr: \"9090\"\n", 1, "error", "must specify port"),
    ("exec: \"sh -c 'x\"\n", 1, "error", "invalid command line string"),
    ("\nexec: no-such-program-xyz --flag\n", 2, "error", "executable file not found"),
    (
        "levels: [{interval: 1s}, {interval: 1s}, {interval: 1s}, {interval: 1s}, {interval: 1s},\n  {interval: 1s}, \
         {interval: 1s}, {interval: 1s}, {interval: 1s}]\n",
        2,
        "error",
        "compaction level cannot exceed 8",
    ),
    // Databases.
    ("dbs:\n  - replica: {path: r}\n", 2, "error", "must specify either 'path' or 'dir'"),
    ("dbs:\n  - path: a\n    dir: b\n    replica: {path: r}\n", 3, "error", "cannot specify both 'path' and 'dir'"),
    ("dbs:\n  - dir: b\n    replica: {path: r}\n", 2, "error", "'pattern' is required"),
    (
        "dbs:\n  - path: a\n    replica: {path: r}\n  - path: ./a\n    replica: {path: q}\n",
        4,
        "error",
        "duplicate path",
    ),
    ("dbs:\n  - path: a\n    watch: true\n    replica: {path: r}\n", 3, "error", "'watch' can only be enabled"),
    ("dbs:\n  - path: a\n", 2, "error", "must specify replica for database"),
    ("dbs:\n  - path: a\n    replicas: [{path: r}, {path: q}]\n", 3, "error", "multiple replicas"),
    (
        "dbs:\n  - path: good.db\n    min-checkpoint-page-count: 0\n    replica: {path: r}\n",
        3,
        "error",
        "minimum checkpoint",
    ),
    ("dbs:\n  - dir: none\n    pattern: '*'\n    replica: {path: r}\n", 2, "error", "failed to scan directory"),
    ("dbs:\n  - path: junk.db\n    replica: {path: r}\n", 2, "error", "is not a SQLite database"),
    ("dbs:\n  - path: folder\n    replica: {path: r}\n", 2, "error", "is not a file"),
    ("dbs:\n  - path: delete.db\n    replica: {path: r}\n", 2, "warning", "is not in WAL mode"),
    ("dbs:\n  - path: nowhere/x.db\n    replica: {path: r}\n", 2, "warning", "does not exist"),
    (
        "dbs:\n  - path: good.db\n    replica: {path: r}\n  - path: link.db\n    replica: {path: q}\n",
        4,
        "error",
        "are the same file",
    ),
    // Replicas.
    (
        "dbs:\n  - path: good.db\n    replica:\n      url: s3://b/x\n      path: y\n",
        4,
        "error",
        "cannot specify url & path",
    ),
    ("dbs:\n  - path: good.db\n    replica:\n      type: ftp\n      path: /x\n", 4, "error", "unknown replica type"),
    ("dbs:\n  - path: good.db\n    replica:\n      url: \"s3://bkt/%zz\"\n", 4, "error", "invalid URL escape"),
    ("dbs:\n  - path: good.db\n    replica: {path: junk.db}\n", 3, "error", "is not a directory"),
    ("dbs:\n  - path: good.db\n    replica: {path: junk.db/below}\n", 3, "error", "cannot be used"),
    (
        "dbs:\n  - path: good.db\n    replica: {path: r}\n  - path: other.db\n    replica:\n      path: ./r/\n",
        5,
        "error",
        "would be written to the same replica",
    ),
    (
        "dbs:\n  - path: good.db\n    replica: {path: r}\n  - path: other.db\n    replica:\n      path: r/b\n",
        5,
        "warning",
        "are inside each other",
    ),
    (
        "dbs:\n  - path: good.db\n    replica:\n      type: s3\n      bucket: b\n      sse-customer-key: AAAA\n",
        6,
        "error",
        "must be 256-bit",
    ),
    (
        "dbs:\n  - path: good.db\n    replica: {url: 'sftp://u@h/p', host-key: any, key-path: /no/such}\n",
        3,
        "error",
        "/no/such",
    ),
    ("dbs:\n  - path: good.db\n    replica: {url: 'sftp://u@h.invalid/p'}\n", 3, "error", "in no known_hosts file"),
    ("dbs:\n  - path: good.db\n    replica: {url: 'sftp://u@h/p', host-key: any}\n", 3, "warning", "not verified"),
    // Unknown and without effect.
    ("dbs:\n  - path: good.db\n    replica:\n      path: r\n      sync_interval: 1s\n", 5, "error", "unknown setting"),
    ("snapshots:\n  interval: 1h\n", 1, "error", "unknown setting"),
    ("part-size: 10MiB\n", 1, "warning", "replicas do not take this from the top level"),
    ("sync-interval: 10\n", 1, "warning", "10 nanoseconds"),
];

fn bench(yaml: &str) -> Bench {
    let bench = Bench::new(yaml);
    bench.database("good.db").database("other.db");
    let conn = rusqlite::Connection::open(bench.path("delete.db")).unwrap();
    conn.execute_batch("create table t(v)").unwrap();
    std::fs::write(bench.path("junk.db"), "this is no database, and long enough to see it").unwrap();
    std::fs::create_dir(bench.path("folder")).unwrap();
    std::fs::hard_link(bench.path("good.db"), bench.path("link.db")).unwrap();
    bench
}

fn report(bench: &Bench) -> (i32, Value) {
    let (code, stdout, stderr) = bench.run(&["check", "-json"]);
    assert_eq!(stderr, "");
    (code, serde_json::from_str(&stdout).unwrap_or_else(|err| panic!("{err}: {stdout}")))
}

#[test]
fn every_broken_file_is_named_with_its_line() {
    for (yaml, line, severity, text) in BROKEN {
        let (code, report) = report(&bench(yaml));
        let findings = report["findings"].as_array().unwrap();
        let wanted = |f: &&Value| {
            f["severity"] == severity
                && f["line"].as_u64().unwrap_or(0) == line
                && f["message"].as_str().unwrap().contains(text)
        };
        assert_eq!(findings.iter().filter(wanted).count(), 1, "{yaml}\nwanted line {line}: {text}\n{report:#}");
        let errors = findings.iter().filter(|f| f["severity"] == "error").count();
        assert_eq!(code, i32::from(errors > 0), "{yaml}\n{report:#}");
        assert_eq!(report["ok"], Value::Bool(errors == 0));
        // One fault in the file, one error in the report.
        assert_eq!(errors, usize::from(severity == "error"), "{yaml}\n{report:#}");
    }
}

#[test]
fn a_sound_file_has_no_findings() {
    let bench = bench("dbs:\n  - path: good.db\n    replica: {path: r}\n  - path: other.db\n    replica: {path: q}\n");
    assert_eq!(bench.run(&["check"]), (0, "no problems found\n".to_owned(), String::new()));
    assert_eq!(report(&bench).1["findings"], Value::Array(Vec::new()));
    assert!(!bench.path("r").exists(), "nothing is made");
}

#[test]
fn text_reads_like_a_compilers_and_all_faults_come_at_once() {
    let bench = bench(
        "dbs:\n  - path: good.db\n    replicas:\n      - path: r\n        buckte: x\nl0-retention: -1s\nheartbeat-interval: 1s\n",
    );
    let (code, stdout, _) = bench.run(&["check"]);
    let file = bench.path("c.yml").display().to_string();
    assert_eq!(code, 1);
    assert_eq!(
        stdout,
        format!(
            "{file}:5: error: dbs[0].replicas[0].buckte: unknown setting, ignored\n    Hint: did you mean \"bucket\"?\n\
             {file}:6: error: l0-retention: l0-retention: l0 retention must not be negative (got -1s)\n\
             {file}:7: error: heartbeat-interval: heartbeat-interval: heartbeat interval must be at least 1 minute (got 1s)\n\
             3 errors, 0 warnings\n"
        )
    );
}

#[test]
fn files_the_reference_takes_are_never_impossible_here() {
    for case in cases("valid") {
        let ran = case.run(&["check", "-json"]);
        let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
        for finding in report["findings"].as_array().unwrap() {
            let message = finding["message"].as_str().unwrap();
            // What is an error for `check` alone: things outside the file, and settings nobody reads.
            let tolerated = finding["severity"] == "warning"
                || message.starts_with("unknown setting")
                || [
                    "no such file",
                    "same replica",
                    "are the same",
                    "is not a file",
                    "invalid command",
                    "is not a database",
                    "cannot exceed 8",
                    "must be 256-bit",
                    "does not exist",
                    "minimum checkpoint",
                    "share local state",
                    "are inside each other",
                    "not found",
                    "in no known_hosts file",
                ]
                .iter()
                .any(|text| message.contains(text));
            assert!(tolerated, "{}: {finding}", case.name);
        }
    }
}
