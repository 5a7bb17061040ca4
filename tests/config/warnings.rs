//! What the reference ignores without a word is said here when the daemon starts.

use super::place::Bench;

/// The warnings of one run of `replicate -once`, without time and level.
fn warnings(yaml: &str) -> Vec<String> {
    let bench = Bench::new(yaml);
    bench.database("app.db");
    let (_, stdout, _) = bench.run(&["replicate", "-once"]);
    let mark = "level=WARN msg=\"configuration warning\" ";
    stdout.lines().filter_map(|line| Some(line.split_once(mark)?.1.to_owned())).collect()
}

#[test]
fn a_file_of_version_0_3_says_what_no_longer_acts_and_what_to_write() {
    let yaml = "dbs:\n  - path: app.db\n    max-checkpoint-page-count: 10000\n    replicas:\n      - name: main\n        \
                path: rep\n        retention: 168h\n        retention-check-interval: 1h\n        \
                snapshot-interval: 4h\n        validation-interval: 6h\n";
    let setting = |line, name: &str, problem: &str, hint: &str| {
        format!("line={line} setting={name} problem=\"{problem}\" hint=\"{hint}\"")
    };
    let gone = "no longer acts since 0.5";
    let of_replica = |key: &str| format!("dbs[0].replicas[0].{key}");
    assert_eq!(
        warnings(yaml),
        [
            setting(
                3,
                "dbs[0].max-checkpoint-page-count",
                gone,
                "remove it; truncate-page-n is the nearest thing there is"
            ),
            setting(5, &of_replica("name"), "has no effect since 0.5", "remove it"),
            setting(7, &of_replica("retention"), gone, "write 'snapshot: {retention: 168h}' at the top level"),
            setting(
                8,
                &of_replica("retention-check-interval"),
                gone,
                "remove it: what is too old goes whenever a snapshot was taken"
            ),
            setting(9, &of_replica("snapshot-interval"), gone, "write 'snapshot: {interval: 4h}' at the top level"),
            setting(
                10,
                &of_replica("validation-interval"),
                "has no effect since 0.5",
                "write 'validation: {interval: 6h}' at the top level"
            ),
        ]
    );
}

#[test]
fn every_kind_of_silence_is_broken() {
    for (yaml, want) in [
        (
            "snapshot:\n  intervall: 1h\n",
            "line=2 setting=snapshot.intervall problem=\"unknown setting, ignored\" hint=\"did you mean \\\"interval\\\"?\"",
        ),
        (
            "dbs:\n  - path: app.db\n    sync-interval: 5s\n    replica: {path: r}\n",
            "line=3 setting=dbs[0].sync-interval problem=\"unknown setting, ignored\" hint=\"\\\"sync-interval\\\" belongs below \\\"dbs[].replica\\\"\"",
        ),
        ("colour: red\n", "line=1 setting=colour problem=\"unknown setting, ignored\""),
        (
            "levels:\n  - interval: 1m\n    retention: 24h\n",
            "line=3 setting=levels[0].retention problem=\"levels have no retention of their own\" hint=\"write 'snapshot: {retention: 24h}' at the top level\"",
        ),
        (
            "url: s3://b\n",
            "line=1 setting=url problem=\"has no effect at the top level\" hint=\"write it in the replica of a database\"",
        ),
        (
            "dbs:\n  - path: app.db\n    replica:\n      path: r\n      bucket: b\n",
            "line=5 setting=dbs[0].replica.bucket problem=\"has no effect on a replica of type file\" hint=\"remove it, or check 'type' and 'url'\"",
        ),
        (
            "addr: ''\naddr: ''\n",
            "line=2 setting=addr problem=\"given twice: only the last one counts\" hint=\"remove one of them\"",
        ),
        (
            "snapshot:\n  interval: 24\n",
            "line=2 setting=snapshot.interval problem=\"24 without a unit means 24 nanoseconds\" hint=\"write 24s for seconds\"",
        ),
        (
            "socket:\n  permissions: 1000\n",
            "line=2 setting=socket.permissions problem=\"1000 is a decimal number\" hint=\"write octal permissions with a leading zero: 0600\"",
        ),
        (
            "# $IN_A_COMMENT\naddr: ${ADDRESS:-}\n",
            "line=2 problem=\"${ADDRESS:…} is a shell form that means nothing here: it becomes empty\" hint=\"write ${ADDRESS} and set the variable\"",
        ),
        (
            "addr: $NO_SUCH_VARIABLE\n",
            "line=1 problem=\"variable NO_SUCH_VARIABLE is not set: $NO_SUCH_VARIABLE becomes empty\"",
        ),
        (
            "dbs:\n  - path: app.db\n    replica: {url: 's3://k:s@b/x?regoin=y'}\n",
            "line=3 setting=dbs[0].replica.url problem=\"query parameter \\\"regoin\\\" is ignored\" hint=\"did you mean \\\"region\\\"?\"",
        ),
        (
            "dbs:\n  - path: app.db\n    replica: {type: s3, bucket: b, access-key-id: AK}\n",
            "line=3 setting=dbs[0].replica.access-key-id problem=\"one half of the credentials is ignored\" hint=\"give both access-key-id and secret-access-key\"",
        ),
        (
            "dbs:\n  - path: app.db\n    replica: {type: s3, bucket: b, part-size: 5MB}\n",
            "line=3 setting=dbs[0].replica.part-size problem=\"smaller than S3 takes: uploads will fail\" hint=\"at least 5MiB (5MB is less)\"",
        ),
    ] {
        assert!(warnings(yaml).iter().any(|w| w == want), "{yaml}\nwanted {want}\ngot {:#?}", warnings(yaml));
    }
}

#[test]
fn what_is_meant_for_others_is_left_alone() {
    let yaml = "x-note: anything\ndefaults: &d\n  sync-interval: 5s\ndbs:\n  - path: app.db\n    replica:\n      <<: *d\n      path: rep\n";
    assert_eq!(warnings(yaml), [""; 0]);
    let yaml = "dbs:\n  - path: app.db\n    replica: {path: a}\n    replica: {sync-interval: 2s}\n";
    assert_eq!(warnings(yaml), [""; 0], "repeated mappings merge");
}
