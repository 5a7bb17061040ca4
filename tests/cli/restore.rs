//! `litestream restore` (`spec: cli` §8).

use super::support::{Ran, Scratch};

fn rows(scratch: &Scratch, name: &str) -> i64 {
    let conn = rusqlite::Connection::open(scratch.path(name)).unwrap();
    conn.query_row("select count(*) from t", [], |row| row.get(0)).unwrap()
}

fn restore(scratch: &Scratch, url: &str, args: &[&str]) -> Ran {
    scratch.run(&[&["restore"], args, &["-o", "out.db", url]].concat())
}

#[test]
fn a_restore_says_nothing_and_writes_the_newest_state() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    restore(&scratch, &url, &[]).printed("");
    assert_eq!(rows(&scratch, "out.db"), 3);
}

#[test]
fn earlier_states_by_txid_and_by_time() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    restore(&scratch, &url, &["-txid", "0000000000000002"]).printed("");
    assert_eq!(rows(&scratch, "out.db"), 2);
    restore(&scratch, &url, &["-force", "-timestamp", "2026-01-01T00:00:02Z"]).printed("");
    assert_eq!(rows(&scratch, "out.db"), 1, "the time itself is excluded");
    for (args, message) in [
        (&["-txid", "00000000000000ff"][..], "no matching backup files available"),
        (&["-timestamp", "2020-01-01T00:00:00Z"], "timestamp does not exist"),
        (
            &["-timestamp", "2026-01-01"],
            "invalid -timestamp, must specify in ISO 8601\u{a0}format (e.g. 2000-01-01T00:00:00Z)",
        ),
        (
            &["-txid", "0000000000000002", "-timestamp", "2026-01-01T00:00:02Z"],
            "cannot specify index & timestamp to restore",
        ),
        (&["-integrity-check", "bogus"], "invalid -integrity-check value: bogus"),
        (&["-dry-run", "-f"], "cannot use -dry-run with -f"),
        (&["-f", "-txid", "0000000000000002"], "cannot use follow mode with -txid"),
    ] {
        restore(&scratch, &url, &[&["-force"], args].concat()).refused(&format!("Error: {message}\n"));
        assert_eq!(rows(&scratch, "out.db"), 1, "a refused restore changes nothing: {args:?}");
    }
}

#[test]
fn an_existing_database_is_kept_unless_forced() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    scratch.write("out.db", "precious");
    restore(&scratch, &url, &[]).refused(
        "Error: cannot restore, output path already exists and is not empty: out.db. Use -force to overwrite\n",
    );
    let skipped = restore(&scratch, &url, &["-if-db-not-exists"]);
    assert_eq!(skipped.code, Some(0));
    assert!(skipped.stdout.ends_with(" level=INFO msg=\"database already exists, skipping\"\n"), "{}", skipped.stdout);
    let none = format!("file://{}", scratch.path("none").display());
    restore(&scratch, &none, &["-force"]).refused("Error: no matching backup files available\n");
    assert_eq!(std::fs::read_to_string(scratch.path("out.db")).unwrap(), "precious", "also when forced in vain");
    restore(&scratch, &url, &["-force"]).printed("");
    assert_eq!(rows(&scratch, "out.db"), 3);
}

#[test]
fn an_empty_replica_is_an_error_unless_allowed() {
    let scratch = Scratch::new();
    let none = format!("file://{}", scratch.path("none").display());
    restore(&scratch, &none, &[]).refused("Error: no matching backup files available\n");
    let allowed = restore(&scratch, &none, &["-if-replica-exists", "-json"]);
    assert_eq!((allowed.code, allowed.stdout.as_str()), (Some(0), ""));
    assert!(allowed.stderr.ends_with(" level=INFO msg=\"no matching backups found\"\n"), "{}", allowed.stderr);
    restore(&scratch, &none, &["-if-replica-exists", "-timestamp", "2026-01-01T00:00:00Z"])
        .refused("Error: no backups found\n");
}

#[test]
fn a_damaged_file_is_never_taken_for_no_backup() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    scratch.write("rep/ltx/0/0000000000000003-0000000000000003.ltx", &"x".repeat(500));
    let ran = restore(&scratch, &url, &["-if-replica-exists"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(!scratch.path("out.db").exists());
}

#[test]
fn the_summary_is_pure_json_and_log_lines_go_to_stderr() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    let ran = restore(&scratch, &url, &["-json", "-integrity-check", "full"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let summary: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let keys: Vec<&String> = summary.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["db_path", "replica", "txid", "duration_ms", "integrity_check", "restored"]);
    assert_eq!(summary["txid"], "0000000000000003");
    assert_eq!(summary["integrity_check"], "full");
    assert!(ran.stderr.ends_with(" level=INFO msg=\"post-restore integrity check passed\" replica=file\n"));
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    let ran = restore(&scratch, &url, &["-dry-run"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let head = format!(
        "Restore plan:\n  source: {url}\n  target: out.db\n  replica: file\n  \
         txid range: 0000000000000001 - 0000000000000003\n\nFiles to fetch:\nlevel  file "
    );
    assert!(ran.stdout.starts_with(&head), "{}", ran.stdout);
    let json = restore(&scratch, &url, &["-dry-run", "-json"]).stdout;
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(plan["files"].as_array().unwrap().len(), 3);
    assert_eq!(plan["files"][0]["name"], "0000000000000001-0000000000000001.ltx");
    assert!(!scratch.path("out.db").exists());
}

#[test]
fn a_database_of_the_configuration_goes_to_its_own_path() {
    let scratch = Scratch::new();
    scratch.replica("rep");
    scratch.write("c.yml", "dbs: [{path: out.db, replica: {path: rep}}]");
    scratch.run(&["restore", "-config", "c.yml", "out.db"]).printed("");
    assert_eq!(rows(&scratch, "out.db"), 3);
    let checked = scratch.run(&["restore", "-config", "c.yml", "-force", "-integrity-check", "quick", "out.db"]);
    assert!(
        checked.stdout.ends_with("msg=\"post-restore integrity check passed\" db=out.db replica=file\n"),
        "{checked:?}"
    );
}

#[test]
fn arguments_are_checked_first() {
    let scratch = Scratch::new();
    scratch.run(&["restore"]).refused(
        "Error: database path or replica URL required\nTry: litestream restore -o /path/to/db s3://bucket/prefix\n",
    );
    scratch.run(&["restore", "a", "b"]).refused("Error: too many arguments\n");
    scratch.run(&["restore", "file:///rep"]).refused(
        "Error: -o is required when restoring from a replica URL\nTry: litestream restore -o /path/to/db file:///rep\n",
    );
}

/// The last byte of the newest file of the replica changes.
fn spoil(scratch: &Scratch, file: &str) {
    let path = scratch.path(file);
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn a_damaged_replica_is_explained_and_can_be_salvaged() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    restore(&scratch, &url, &["-salvage"]).printed("");
    assert!(!scratch.path("out.db.loss.json").exists(), "nothing was lost");
    spoil(&scratch, "rep/ltx/0/0000000000000003-0000000000000003.ltx");
    let failed = restore(&scratch, &url, &["-force"]);
    assert_eq!(failed.code, Some(1));
    assert!(
        failed.stderr.starts_with("Error: decode database: 0/0000000000000003-0000000000000003.ltx: "),
        "{}",
        failed.stderr
    );
    assert!(failed.stderr.contains("file checksum mismatch at offset "), "{}", failed.stderr);
    assert!(failed.stderr.contains("Hint: TXID 0000000000000002 ("), "{}", failed.stderr);
    assert_eq!(rows(&scratch, "out.db"), 3);

    let salvaged = restore(&scratch, &url, &["-force", "-salvage"]);
    assert_eq!(salvaged.code, Some(3));
    assert!(
        salvaged.stderr.contains("Error: restored TXID 0000000000000002 only: transactions up to 0000000000000003 ("),
        "{}",
        salvaged.stderr
    );
    assert_eq!(rows(&scratch, "out.db"), 2);
    let report = std::fs::read_to_string(scratch.path("out.db.loss.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["restored_txid"], "0000000000000002");
    assert_eq!(report["lost_first_txid"], "0000000000000003");
    assert_eq!(report["lost_last_txid"], "0000000000000003");
    assert_eq!(report["damaged"][0]["name"], "0000000000000003-0000000000000003.ltx");
}

#[test]
fn all_databases_of_a_configuration_are_restored_below_one_directory() {
    let scratch = Scratch::new();
    let (good, bad) = (scratch.replica("rep"), scratch.replica("bad"));
    spoil(&scratch, "bad/ltx/0/0000000000000003-0000000000000003.ltx");
    let dir = scratch.path("").display().to_string();
    let dir = dir.trim_end_matches('/');
    let entry = |db: &str, url: &str| format!("  - path: {dir}/live/{db}\n    replica:\n      url: {url}\n");
    let none = format!("file://{dir}/none");
    scratch.write("c.yml", &format!("dbs:\n{}{}", entry("a.db", &good), entry("b.db", &none)));
    let all = ["restore", "-all", "-config", "c.yml", "-output-dir", "out"];
    let ran = scratch.run(&[&all[..], &["-if-replica-exists"]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("a.db  restored   0000000000000003"), "{}", ran.stdout);
    assert!(ran.stdout.contains("b.db  no backup"), "{}", ran.stdout);
    assert_eq!(rows(&scratch, &format!("out{dir}/live/a.db")), 3);

    // What fails is told, and holds up nothing else.
    scratch.write("c.yml", &format!("dbs:\n{}{}", entry("bad.db", &bad), entry("a.db", &good)));
    let ran = scratch.run(&[&all[..], &["-force", "-json"]].concat());
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.starts_with("Error: 1 of 2 databases were not restored:\n"), "{}", ran.stderr);
    let lines: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(lines[0]["result"], "failed");
    assert_eq!(lines[1]["txid"], "0000000000000003");
    assert!(!scratch.path(&format!("out{dir}/live/bad.db")).exists());

    scratch.run(&["restore", "-all"]).refused(
        "Error: -output-dir is required with -all\n\
         Try: litestream restore -all -config litestream.yml -output-dir /path/to/dir\n",
    );
    scratch.run(&[&all[..], &["-f"]].concat()).refused("Error: cannot use -all with -f\n");
}

#[test]
fn all_replicas_below_a_prefix_are_restored_under_their_names() {
    let scratch = Scratch::new();
    for name in ["backups/a.db", "backups/eu/b.db", "backups/eu/bad.db"] {
        scratch.replica(name);
    }
    std::fs::create_dir_all(scratch.path("backups/nothing/here")).unwrap();
    spoil(&scratch, "backups/eu/bad.db/ltx/0/0000000000000003-0000000000000003.ltx");
    let url = format!("file://{}", scratch.path("backups").display());
    let ran = scratch.run(&["restore", "-all", "-json", "-output-dir", "out", &url]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.starts_with("Error: 1 of 3 databases were not restored:\n"), "{}", ran.stderr);
    let lines: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let told: Vec<_> = lines.as_array().unwrap().iter().map(|l| (l["output"].clone(), l["result"].clone())).collect();
    let expected = [("out/a.db", "restored"), ("out/eu/b.db", "restored"), ("out/eu/bad.db", "failed")];
    assert_eq!(told, expected.map(|(output, result)| (output.into(), result.into())));
    assert_eq!((rows(&scratch, "out/a.db"), rows(&scratch, "out/eu/b.db")), (3, 3));
    assert!(!scratch.path("out/eu/bad.db").exists());

    // A URL that is a replica itself.
    let ran = scratch.run(&["restore", "-all", "-output-dir", "one", &format!("{url}/eu/b.db")]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(rows(&scratch, "one/b.db"), 3);
    let none = scratch.run(&["restore", "-all", "-output-dir", "one", &format!("{url}/nothing")]);
    assert!(none.stderr.starts_with("Error: no replicas found below file://"), "{}", none.stderr);
    scratch.run(&["restore", "-all", "-output-dir", "one", "x.db"]).refused(
        "Error: too many arguments: -all takes databases from the configuration, or a replica URL\n\
         Try: litestream restore -all -output-dir /path/to/dir s3://bucket/prefix\n",
    );
}

#[test]
fn the_summary_tells_what_was_restored_from_what() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    let ran = restore(&scratch, &url, &["-json"]);
    let summary: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let restored = &summary["restored"];
    let size = std::fs::metadata(scratch.path("out.db")).unwrap().len();
    assert_eq!(restored["bytes"], size);
    assert_eq!(restored["pages"].as_u64().unwrap() * restored["page_size"].as_u64().unwrap(), size);
    assert_eq!(restored["resumed_bytes"], 0);
    let plan: serde_json::Value =
        serde_json::from_str(&restore(&scratch, &url, &["-dry-run", "-json"]).stdout).unwrap();
    assert_eq!(restored["files"], plan["files"]);
    assert_eq!(restored["timestamp"], plan["files"].as_array().unwrap().last().unwrap()["timestamp"]);
    let sizes = plan["files"].as_array().unwrap().iter().map(|file| file["size"].as_u64().unwrap());
    assert_eq!(restored["replica_bytes"], sizes.sum::<u64>());
}

#[test]
fn a_check_that_needs_the_application_does_not_throw_the_database_away() {
    let scratch = Scratch::new();
    let conn = rusqlite::Connection::open(scratch.path("app.db")).unwrap();
    conn.execute_batch(
        "pragma journal_mode = wal; create table t(v collate nocase); create index i on t(v); insert into t values ('a');
         pragma writable_schema = on; update sqlite_schema set sql = replace(sql, 'nocase', 'unicase')",
    )
    .unwrap();
    drop(conn);
    let url = format!("file://{}", scratch.path("rep").display());
    assert_eq!(scratch.run(&["replicate", "-once", "app.db", &url]).code, Some(0));
    for mode in ["quick", "full"] {
        let ran = scratch.run(&["restore", "-integrity-check", mode, "-force", "-o", "out.db", &url]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""));
        assert_eq!(
            ran.stderr,
            "Warning: t could not be checked without its application: no such collation sequence: unicase (257); its \
             rows were read to the end\nWarning: everything else was checked and is sound\n"
        );
        assert!(scratch.path("out.db").exists());
    }
}
