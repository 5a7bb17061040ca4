//! `replicate -exec`: the application beside the daemon, and the service manager above it.

use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::support::Scratch;

/// An application that inserts `last` and ends with the given code when it is told to.
fn application(scratch: &Scratch, code: i32) -> String {
    let conn = rusqlite::Connection::open(scratch.path("app.db")).unwrap();
    conn.execute_batch("pragma journal_mode = wal; create table t(v); insert into t values ('first')").unwrap();
    // Nothing but a shell can be counted on: the test makes the last commit when the file appears.
    let script = format!(
        "#!/bin/sh\ntrap 'touch told; while [ ! -e done ]; do sleep 0.05; done; exit {code}' TERM\ntouch up\n\
         while :; do sleep 0.05; done\n"
    );
    scratch.write("app.sh", &script);
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(scratch.path("app.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("file://{}", scratch.path("rep").display())
}

fn wait_for(path: &Path) {
    for _ in 0..600 {
        if path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{} did not appear", path.display());
}

fn terminate(child: &Child) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::TERM).unwrap();
}

fn output(mut child: Child) -> (Option<i32>, String, String) {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (child.wait().unwrap().code(), stdout, stderr)
}

#[test]
fn the_last_commit_is_replicated_whatever_the_applications_exit_code() {
    for (code, want) in [(0, (Some(0), "")), (5, (Some(1), "Error: cannot wait for exec process: exit status 5\n"))] {
        let scratch = Scratch::new();
        let url = application(&scratch, code);
        let mut command = scratch.command(&["replicate", "-exec", "./app.sh", "app.db", &url]);
        command.env("PATH", "/usr/bin:/bin").stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        wait_for(&scratch.path("up"));
        terminate(&child);
        wait_for(&scratch.path("told"));
        let conn = rusqlite::Connection::open(scratch.path("app.db")).unwrap();
        conn.execute("insert into t values ('last')", []).unwrap();
        drop(conn);
        scratch.write("done", "");
        let (got, stdout, stderr) = output(child);
        assert_eq!((got, stderr.as_str()), want, "{stdout}");
        for message in ["sending signal to exec process", "waiting for exec process to close", "litestream shut down"] {
            assert!(stdout.contains(message), "{message}: {stdout}");
        }
        assert_eq!(scratch.run(&["restore", "-o", "out.db", &url]).code, Some(0));
        let conn = rusqlite::Connection::open(scratch.path("out.db")).unwrap();
        let rows: String = conn.query_row("select group_concat(v) from t", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, "first,last");
    }
}

#[test]
fn an_application_that_cannot_be_started_ends_the_daemon() {
    let scratch = Scratch::new();
    let url = application(&scratch, 0);
    let ran = scratch.run(&["replicate", "-log-level", "error", "-exec", "./no-such-program", "app.db", &url]);
    let want = "Error: cannot start exec command: fork/exec ./no-such-program: no such file or directory\n";
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(1), "", want));
    assert_eq!(scratch.run(&["restore", "-o", "out.db", &url]).code, Some(0), "what was there was replicated");
}

#[test]
fn the_service_manager_hears_of_us_and_the_application_does_not_hear_of_it() {
    let scratch = Scratch::new();
    let url = application(&scratch, 0);
    let socket = UnixDatagram::bind(scratch.path("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let line = "sh -c \"env > env.txt\"";
    let mut command = scratch.command(&["replicate", "-exec", line, "app.db", &url]);
    command.env("PATH", "/usr/bin:/bin").env("NOTIFY_SOCKET", scratch.path("notify")).env("WATCHDOG_USEC", "200000");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(output(child).0, Some(0));
    let mut heard = Vec::new();
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 512];
    while let Ok(n) = socket.recv(&mut buffer) {
        heard.push(String::from_utf8_lossy(&buffer[..n]).lines().next().unwrap().to_owned());
    }
    assert_eq!(heard.first().map(String::as_str), Some("READY=1"));
    assert_eq!(heard.last().map(String::as_str), Some("STOPPING=1"));
    assert!(heard.contains(&"WATCHDOG=1".to_owned()), "{heard:?}");
    let env = std::fs::read_to_string(scratch.path("env.txt")).unwrap();
    assert!(!env.contains("NOTIFY_SOCKET") && !env.contains("WATCHDOG"), "{env}");
}

#[test]
fn packages_get_a_manual_page_and_completions() {
    let scratch = Scratch::new();
    for (what, first) in [
        ("man", ".TH LITESTREAM 1 "),
        ("bash", "# bash completion for litestream"),
        ("zsh", "#compdef litestream"),
        ("fish", "# fish completion for litestream"),
    ] {
        let ran = scratch.run(&["generate", what]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        assert!(ran.stdout.starts_with(first), "{what}");
        assert!(ran.stdout.contains("restore-if-db-not-exists") || what == "man", "{what}");
    }
    scratch.run(&["generate"]).refused("Error: specify one of man, bash, zsh, fish\nTry: litestream generate man\n");
}
