//! `litestream replicate` (`spec: cli` §7): arguments, one-shot runs, signals.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use super::support::{Ran, Scratch};

fn database(scratch: &Scratch, name: &str) {
    let conn = rusqlite::Connection::open(scratch.path(name)).unwrap();
    conn.execute_batch("pragma journal_mode = wal; create table t(v); insert into t values (1)").unwrap();
}

fn url(scratch: &Scratch, name: &str) -> String {
    format!("file://{}", scratch.path(name).display())
}

/// Messages of a text log, in order.
fn messages(ran: &Ran) -> Vec<String> {
    let message = |line: &str| {
        let rest = line.split_once(" msg=")?.1;
        let quoted = rest.strip_prefix('"').and_then(|r| r.split_once('"')).map(|(m, _)| m);
        Some(quoted.unwrap_or_else(|| rest.split(' ').next().unwrap_or("")).to_owned())
    };
    ran.stdout.lines().filter_map(message).collect()
}

#[test]
fn arguments_are_checked_before_anything_is_said() {
    let scratch = Scratch::new();
    scratch.write("exec.yml", "exec: 'true'\n");
    for (args, message) in [
        (&["app.db"][..], "must specify at least one replica URL for app.db"),
        (&["-config", "c.yml", "app.db"], "must specify at least one replica URL for app.db"),
        (&["-config", "c.yml", "app.db", "file:///r"], "cannot specify a replica URL and the -config flag"),
        (
            &["app.db", "file:///r", "-exec", "true"],
            "flag \"-exec\" must be positioned before DB_PATH and REPLICA_URL arguments",
        ),
        (&["-once", "-exec", "true", "app.db", "file:///r"], "cannot specify -once flag with -exec"),
        (&["-once", "-config", "exec.yml"], "cannot specify -once flag with -exec"),
        (&["-force-snapshot", "app.db", "file:///r"], "cannot specify -force-snapshot flag without -once"),
        (&["-enforce-retention", "app.db", "file:///r"], "cannot specify -enforce-retention flag without -once"),
    ] {
        scratch.run(&[&["replicate"], args].concat()).refused(&format!("Error: {message}\n"));
    }
}

#[test]
fn a_replica_that_cannot_be_is_found_at_start_up() {
    let scratch = Scratch::new();
    for (urls, message) in [
        (&[""][..], "file replica path required"),
        (&["rep"], "replica url scheme required: rep"),
        (&["foo://bar"], "unknown replica type in config: \"foo\""),
        (&["file:///a", "file:///b"], "multiple replicas on a single database are no longer supported"),
    ] {
        let ran = scratch.run(&[&["replicate", "app.db"], urls].concat());
        assert_eq!((ran.code, ran.stderr), (Some(1), format!("Error: {message}\n")));
        assert_eq!(ran.stdout.lines().count(), 1, "only the version line");
    }
}

#[test]
fn a_one_shot_run_replicates_and_what_it_wrote_restores() {
    let scratch = Scratch::new();
    database(&scratch, "app.db");
    let url = url(&scratch, "rep");
    let ran = scratch.run(&["replicate", "-once", "app.db", &url]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let messages = messages(&ran);
    for message in [
        "litestream",
        "initialized db",
        "replicating to",
        "syncing database",
        "one-shot replication complete",
        "replication complete, litestream shutting down",
        "litestream shut down",
    ] {
        assert!(messages.iter().any(|m| m == message), "{message}: {messages:?}");
    }
    scratch.run(&["restore", "-integrity-check", "full", "-json", "-o", "out.db", &url]);
    let conn = rusqlite::Connection::open(scratch.path("out.db")).unwrap();
    assert_eq!(conn.query_row("select count(*) from t", [], |r| r.get::<_, i64>(0)).unwrap(), 1);
}

#[test]
fn a_missing_database_fails_a_one_shot_run_after_a_clean_shutdown() {
    let scratch = Scratch::new();
    let ran = scratch.run(&["replicate", "-once", "nodb.db", &url(&scratch, "rep")]);
    let path = scratch.path("nodb.db").display().to_string();
    assert_eq!(ran.code, Some(1));
    assert_eq!(ran.stderr, format!("Error: sync replica for {path}: no position, waiting for data\n"));
    assert_eq!(messages(&ran).last().unwrap(), "litestream shut down");
}

#[test]
fn a_one_shot_run_that_failed_does_not_wait_for_its_replica() {
    let scratch = Scratch::new();
    database(&scratch, "app.db");
    std::fs::write(scratch.path("file"), "").unwrap();
    let ran = scratch.run(&["replicate", "-once", "app.db", &url(&scratch, "file/rep")]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("ot a directory"), "{}", ran.stderr);
    let messages = messages(&ran);
    assert!(messages.iter().any(|m| m == "failed to close database"), "{messages:?}");
    assert!(!messages.iter().any(|m| m.starts_with("shutdown sync failed, retrying")), "{messages:?}");
}

#[test]
fn a_missing_database_is_brought_back_first_when_asked_to() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    let args = ["replicate", "-once", "-restore-if-db-not-exists", "app.db", &url];
    let first = messages(&scratch.run(&args));
    assert_eq!(first[1..3], ["attempting restore before replication", "restore completed"]);
    assert_eq!(messages(&scratch.run(&args))[1], "database exists, skipping restore");
    let conn = rusqlite::Connection::open(scratch.path("app.db")).unwrap();
    assert_eq!(conn.query_row("select count(*) from t", [], |r| r.get::<_, i64>(0)).unwrap(), 3);
}

#[test]
fn levels_come_from_flag_then_environment_then_file() {
    let scratch = Scratch::new();
    database(&scratch, "app.db");
    let url = url(&scratch, "rep");
    let silent = scratch.run_with_env(&["replicate", "-once", "app.db", &url], &[("LOG_LEVEL", "error")]);
    assert_eq!(silent.stdout, "");
    let loud = ["replicate", "-once", "-log-level", "bogus", "app.db", &url];
    let ran = scratch.run_with_env(&loud, &[("LOG_LEVEL", "error")]);
    assert!(ran.stdout.lines().next().unwrap().ends_with(" level=bogus"), "{}", ran.stdout);
    scratch.write(
        "c.yml",
        &format!("logging: {{type: json, stderr: true}}\ndbs: [{{path: app.db, replica: {{url: '{url}'}}}}]"),
    );
    let ran = scratch.run(&["replicate", "-once", "-config", "c.yml"]);
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{}", ran.stderr);
    assert!(ran.stderr.contains("\"msg\":\"replicating to\",\"type\":\"file\",\"sync-interval\":1000000000,"));
}

#[test]
fn a_signal_ends_the_daemon_with_a_final_sync() {
    for (signal, name) in [(Signal::TERM, "terminated"), (Signal::INT, "interrupt")] {
        let scratch = Scratch::new();
        database(&scratch, "app.db");
        let url = url(&scratch, "rep");
        let mut child = scratch
            .command(&["replicate", "app.db", &url])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("msg=\"replicating to\"")));
        // Committed, and perhaps not looked at before the signal.
        let conn = rusqlite::Connection::open(scratch.path("app.db")).unwrap();
        conn.execute("insert into t values (2)", []).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(rest.iter().any(|l| l.ends_with(&format!("litestream shutting down\" signal={name}"))), "{rest:?}");
        assert!(rest.last().unwrap().ends_with("msg=\"litestream shut down\""), "{rest:?}");
        scratch.run(&["restore", "-o", "out.db", &url]).printed("");
        let conn = rusqlite::Connection::open(scratch.path("out.db")).unwrap();
        assert_eq!(conn.query_row("select count(*) from t", [], |r| r.get::<_, i64>(0)).unwrap(), 2);
    }
}

fn rows(scratch: &Scratch, name: &str) -> i64 {
    let conn = rusqlite::Connection::open(scratch.path(name)).unwrap();
    conn.query_row("select count(*) from t", [], |row| row.get(0)).unwrap()
}

const RESTORING: [&str; 4] = ["replicate", "-once", "-restore-if-db-not-exists", "app.db"];

#[test]
fn an_empty_file_is_no_database_and_is_restored() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    scratch.write("app.db", "");
    let ran = scratch.run(&[&RESTORING[..], &[&url]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(messages(&ran).iter().any(|m| m == "restore completed"), "{}", ran.stdout);
    assert_eq!(rows(&scratch, "app.db"), 3);
    // `restore` with the flag of the same meaning, of one and of all.
    scratch.write("other.db", "");
    let ran = scratch.run(&["restore", "-if-db-not-exists", "-o", "other.db", &url]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(rows(&scratch, "other.db"), 3);
    // Where there is no backup, the empty file is as good as ever.
    scratch.write("new.db", "");
    let none = format!("file://{}", scratch.path("none").display());
    let ran = scratch.run(&["restore", "-if-db-not-exists", "-o", "new.db", &none]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let ran = scratch.run(&["restore", "-if-db-not-exists", "-o", "missing.db", &none]);
    assert_eq!(ran.code, Some(1));
}

#[test]
fn sidecars_without_content_do_not_refuse_the_start_and_others_say_what_to_do() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    scratch.write("app.db-shm", "an old index");
    scratch.write("app.db-wal", "");
    let ran = scratch.run(&[&RESTORING[..], &[&url]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(rows(&scratch, "app.db"), 3);

    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    scratch.write("app.db-wal", "commits of another database");
    let ran = scratch.run(&[&RESTORING[..], &[&url]].concat());
    let db = scratch.path("app.db").display().to_string();
    assert_eq!(ran.code, Some(1));
    assert_eq!(
        ran.stderr,
        format!(
            "Error: restore failed: cannot restore, SQLite sidecar path already exists: {db}-wal. Use -force to \
             overwrite\nHint: remove that file, which belongs to a database that is gone, or run this once, which \
             restores without it: litestream restore -force {db}\n"
        )
    );
    assert!(!scratch.path("app.db").exists());
}

#[test]
fn an_empty_file_that_is_replicated_over_a_history_is_warned_about() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    scratch.write("app.db", "");
    let ran = scratch.run(&["replicate", "-once", "app.db", &url]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let warned = ran.stdout.lines().find(|line| line.contains("level=WARN")).unwrap();
    assert!(warned.contains("the database is an empty file, but its replica holds a history"), "{warned}");
    assert!(warned.contains("replica_txid=0000000000000003"), "{warned}");
    // Nothing is lost.
    let ran = scratch.run(&["restore", "-txid", "0000000000000003", "-o", "old.db", &url]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(rows(&scratch, "old.db"), 3);
    // A new database with a new replica is nothing to warn about, and neither is the same one later.
    scratch.write("new.db", "");
    for _ in 0..2 {
        let ran = scratch.run(&["replicate", "-once", "new.db", &format!("file://{}", scratch.path("new").display())]);
        assert_eq!((ran.code, ran.stdout.contains("level=WARN")), (Some(0), false), "{}", ran.stdout);
    }
}

#[test]
fn a_file_url_without_slashes_is_relative_to_the_working_directory() {
    let scratch = Scratch::new();
    database(&scratch, "app.db");
    database(&scratch, "b.db");
    scratch.write(
        "c.yml",
        "dbs:\n - {path: app.db, replica: {url: 'file:rep'}}\n - {path: b.db, replica: {url: 'file:./rep-b/x y'}}\n",
    );
    let ran = scratch.run(&["replicate", "-once", "-config", "c.yml"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(scratch.path("rep/ltx/0").is_dir());
    assert!(scratch.path("rep-b/x y/ltx/0").is_dir());
    assert!(!scratch.path("ltx").exists());
}

#[test]
fn the_time_zone_of_the_environment_governs_log_times() {
    let scratch = Scratch::new();
    // Zones are files of the system; a rule needs none.
    let zones = ["/usr/share/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo"];
    let there = zones.iter().any(|dir| std::path::Path::new(dir).join("Asia/Tokyo").exists());
    let tokyo = if there { "+09:00" } else { "Z" };
    for (tz, offset) in
        [("Asia/Tokyo", tokyo), (":Asia/Tokyo", tokyo), ("XST-9", "+09:00"), ("UTC", "Z"), ("", "Z"), ("No/Where", "Z")]
    {
        let ran = scratch.run_with_env(&["replicate", "app.db", "file:///a", "file:///b"], &[("TZ", tz)]);
        let time = ran.stdout.split(' ').next().unwrap();
        assert!(time.ends_with(offset), "{tz}: {time}");
    }
}

#[test]
fn two_names_of_one_database_are_refused_and_a_link_is_said() {
    let scratch = Scratch::new();
    database(&scratch, "app.db");
    std::os::unix::fs::symlink("app.db", scratch.path("link.db")).unwrap();
    let ran = scratch.run(&["replicate", "-once", "link.db", &url(&scratch, "rep")]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let said = ran.stdout.lines().find(|line| line.contains("symbolic link")).unwrap();
    for path in ["link.db", "app.db"] {
        assert!(said.contains(&scratch.path(path).display().to_string()), "{said}");
    }
    assert!(scratch.path(".link.db-litestream/ltx/0").is_dir());
    assert!(!scratch.path(".app.db-litestream").exists());

    scratch.write(
        "c.yml",
        "dbs:\n - {path: app.db, replica: {path: rep-a}}\n - {path: link.db, replica: {path: rep-b}}\n",
    );
    let ran = scratch.run(&["replicate", "-once", "-config", "c.yml"]);
    assert_eq!(ran.code, Some(1));
    let other = scratch.path("app.db").display().to_string();
    assert!(
        ran.stderr.contains(&format!("this is the same database file as {other}, under another name")),
        "{}",
        ran.stderr
    );
    let ran = scratch.run(&["check", "-config", "c.yml"]);
    assert!(ran.stdout.contains("is a symbolic link to"), "{}", ran.stdout);
    assert!(ran.stdout.contains("are the same file"), "{}", ran.stdout);

    // A directory of databases has it once.
    scratch.write("d.yml", "dbs:\n - {dir: ., pattern: '*.db', replica: {path: rep-d}}\n");
    let ran = scratch.run(&["replicate", "-once", "-config", "d.yml"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(scratch.path("rep-d/app.db").is_dir());
    assert!(!scratch.path("rep-d/link.db").exists());
}

#[test]
fn a_link_that_leads_nowhere_yet_is_restored_behind_it() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    std::fs::create_dir(scratch.path("volume")).unwrap();
    std::os::unix::fs::symlink("volume/data.db", scratch.path("app.db")).unwrap();
    let ran = scratch.run(&[&RESTORING[..], &[&url]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(rows(&scratch, "volume/data.db"), 3);
    assert!(scratch.path("app.db").is_symlink());
}

#[test]
fn a_database_that_does_not_come_is_said() {
    let scratch = Scratch::new();
    let name = "file:app.db?_journal_mode=WAL";
    let mut child = scratch
        .command(&["replicate", name, &url(&scratch, "rep")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let said = lines.find(|line| line.contains("there is no such database")).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    child.wait().unwrap();
    assert!(said.contains("level=WARN") && said.contains("write the plain path"), "{said}");
    scratch.write("c.yml", "dbs:\n - {path: 'app.db?_fk=1', replica: {path: rep}}\n");
    let ran = scratch.run(&["check", "-config", "c.yml"]);
    assert!(ran.stdout.contains("c.yml:2: warning: dbs[0].path: this looks like the URI"), "{}", ran.stdout);
}
