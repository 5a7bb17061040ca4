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
