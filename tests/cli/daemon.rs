//! A running daemon, asked over its control socket and at `addr`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use litestream::sys::{Clock, SystemClock};
use rustix::process::{Pid, Signal, kill_process};

use super::support::{Ran, Scratch};

/// Waits no longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon with a socket, ended when dropped.
struct Daemon {
    scratch: Scratch,
    child: Child,
}

impl Daemon {
    /// Databases of the given names, each with one row, and what else stands in the configuration.
    fn start(names: &[&str], more: &str) -> Self {
        let scratch = Scratch::new();
        for name in names {
            database(&scratch.path(name));
        }
        Self::start_in(scratch, names, more)
    }

    fn start_in(scratch: Scratch, names: &[&str], more: &str) -> Self {
        scratch.write("c.yml", &config(names, more));
        let log = std::fs::File::create(scratch.path("log")).unwrap();
        let child = scratch
            .command(&["replicate", "-config", "c.yml"])
            .stdout(Stdio::from(log))
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let daemon = Self { scratch, child };
        daemon.until("the socket", || daemon.try_get("/info").is_some());
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    #[track_caller]
    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let clock = SystemClock::new();
        while !done() {
            assert!(clock.elapsed() < PATIENCE, "{what} did not come:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn run(&self, args: &[&str]) -> Ran {
        let (command, rest) = args.split_first().unwrap();
        self.scratch.run(&[&[command, "-socket", "s.sock"], rest].concat())
    }

    /// One exchange; status and body.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        self.try_ask(method, path, body).unwrap()
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path, "")
    }

    fn try_get(&self, path: &str) -> Option<(u16, String)> {
        self.try_ask("GET", path, "")
    }

    fn try_ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        exchange(UnixStream::connect(self.path("s.sock")).ok()?, method, path, body)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends it, and says what it logged.
    fn end(mut self) -> String {
        self.signal(Signal::TERM);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        self.log()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(names: &[&str], more: &str) -> String {
    let mut text = format!("socket: {{enabled: true, path: s.sock}}\n{more}\ndbs:\n");
    for name in names {
        text.push_str(&format!(
            " - {{path: {name}, monitor-interval: 50ms, replica: {{path: rep-{name}, sync-interval: 50ms}}}}\n"
        ));
    }
    text
}

fn database(path: &Path) {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.execute_batch("pragma journal_mode = wal; create table t(v); insert into t values (1)").unwrap();
}

fn insert(path: &Path) {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.busy_timeout(PATIENCE).unwrap();
    conn.execute_batch("insert into t values (2)").unwrap();
}

fn exchange(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn every_endpoint_answers_as_litestream_does() {
    let daemon = Daemon::start(&["app.db"], "");
    let app = daemon.shown("app.db");
    daemon.until("the first sync", || daemon.get("/txid?path=app.db").1 == "{\"txid\":1}\n");
    daemon.until("the first upload", || daemon.get("/list").1.contains("last_sync_at"));
    let bad_body = |details: &str| format!("{{\"error\":\"invalid request body\",\"details\":\"{details}\"}}\n");
    let error = |text: &str| format!("{{\"error\":\"{text}\"}}\n");
    for (method, path, body, status, want) in [
        ("GET", "/txid", "", 400, error("path required")),
        ("GET", "/txid?path=/nope", "", 404, error("database not found")),
        ("POST", "/start", "", 400, bad_body("EOF")),
        ("POST", "/start", "xx", 400, bad_body("invalid character 'x' looking for beginning of value")),
        ("POST", "/start", "{}", 400, error("path required")),
        ("POST", "/start", "{\"path\":\"/nope\"}", 500, error("database not found: /nope")),
        ("POST", "/sync", "{\"path\":\"/nope\"}", 404, error("database not found: /nope")),
        ("POST", "/register", "{\"path\":\"x.db\"}", 400, error("replica_url required")),
        (
            "POST",
            "/register",
            "{\"path\":\"x.db\",\"replica_url\":\"foo://x\"}",
            400,
            error("invalid replica url: unsupported replica URL scheme: \\\"foo\\\""),
        ),
        (
            "POST",
            "/unregister",
            "{\"path\":\"/nope\"}",
            200,
            "{\"status\":\"already_unregistered\",\"path\":\"/nope\",\"txid\":0}\n".to_owned(),
        ),
        (
            "POST",
            "/sync",
            "{\"path\":\"app.db\",\"wait\":true}",
            200,
            format!("{{\"status\":\"no_change\",\"path\":\"{app}\",\"txid\":1,\"replicated_txid\":1}}\n"),
        ),
        (
            "POST",
            "/start",
            "{\"PATH\":\"app.db\",\"x\":1}junk",
            200,
            format!("{{\"status\":\"already_running\",\"path\":\"{app}\",\"txid\":1}}\n"),
        ),
        ("GET", "/start", "", 405, "Method Not Allowed\n".to_owned()),
        ("POST", "/list", "{}", 405, "Method Not Allowed\n".to_owned()),
        ("GET", "/metrics", "", 404, "404 page not found\n".to_owned()),
        ("GET", "/", "", 404, "404 page not found\n".to_owned()),
        ("GET", "//list", "", 301, "Moved Permanently\n".to_owned()),
    ] {
        assert_eq!(daemon.ask(method, path, body), (status, want), "{method} {path} {body}");
    }
    let (_, status) = daemon.get("/debug/sync-status");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let app = &status["databases"][0];
    assert_eq!(
        (&app["path"], &app["operation"], &app["phase"]),
        (&daemon.shown("app.db").into(), &"sync".into(), &"update_metrics".into())
    );
    assert!(app["wal_size"].as_u64().unwrap() > 4096 && app["wal_size"] == app["last_synced_wal_offset"], "{app}");
    let log = daemon.end();
    assert!(log.contains("msg=\"control socket listening\" system=server path=s.sock"), "{log}");
}

#[test]
fn a_database_is_stopped_and_started_while_another_goes_on() {
    let daemon = Daemon::start(&["a.db", "b.db"], "");
    let stopped =
        format!("status: stopped\ndb_path: {}\nstate: stopped\ntxid: 1\nsocket: s.sock\n", daemon.shown("a.db"));
    daemon.until("the first sync", || daemon.get("/txid?path=a.db").1 == "{\"txid\":1}\n");
    daemon.run(&["stop", "a.db"]).printed(&stopped);
    insert(&daemon.path("a.db"));
    insert(&daemon.path("b.db"));
    daemon.until("b's next sync", || daemon.get("/txid?path=b.db").1 == "{\"txid\":2}\n");
    daemon
        .run(&["sync", "a.db"])
        .refused(&format!("Error: sync failed: database not open: {}\n", daemon.shown("a.db")));
    daemon.run(&["stop", "a.db"]).printed(&stopped.replace("stopped\ndb_path", "already_stopped\ndb_path"));
    let started = daemon.run(&["start", "a.db"]);
    assert!(started.stdout.starts_with("status: started\n"), "{started:?}");
    let synced = daemon.run(&["sync", "-wait", "-json", "a.db"]);
    assert!(synced.stdout.contains("\"txid\": 2,\n  \"replica_txid\": 2,\n"), "{synced:?}");
}

#[test]
fn a_database_comes_and_goes_with_its_last_commit_replicated() {
    let daemon = Daemon::start(&["a.db"], "");
    database(&daemon.path("new.db"));
    let url = format!("file://{}", daemon.shown("rep-new"));
    assert!(daemon.run(&["register", "-replica", &url, "new.db"]).stdout.starts_with("status: registered\n"));
    assert!(daemon.run(&["register", "-replica", &url, "new.db"]).stdout.starts_with("status: already registered\n"));
    insert(&daemon.path("new.db"));
    let gone = daemon.run(&["unregister", "-json", "new.db"]);
    let gone: serde_json::Value = serde_json::from_str(&gone.stdout).unwrap();
    assert_eq!(gone["status"], "unregistered");
    let listed = daemon.run(&["list"]).stdout;
    assert!(listed.starts_with(&daemon.shown("a.db")) && listed.lines().count() == 1, "{listed}");
    daemon.scratch.run(&["restore", "-o", "out.db", &url]).printed("");
    let rows: i64 = rusqlite::Connection::open(daemon.path("out.db"))
        .unwrap()
        .query_row("select count(*) from t", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 2);
}

#[test]
fn the_socket_of_a_living_daemon_is_not_taken() {
    let daemon = Daemon::start(&["a.db"], "");
    daemon.scratch.write("c2.yml", "socket: {enabled: true, path: s.sock}\n");
    let log = std::fs::File::create(daemon.path("log")).unwrap();
    let child = daemon.scratch.command(&["replicate", "-config", "c2.yml"]).stdout(Stdio::from(log)).spawn().unwrap();
    let second = Daemon { child, scratch: Scratch::new() };
    daemon.until("the refusal", || daemon.log().contains("socket is in use by another process: s.sock"));
    drop(second);
    assert_eq!(daemon.get("/info").0, 200);
}

#[test]
fn hostile_clients_do_not_hold_replication_up() {
    let daemon = Daemon::start(&["a.db"], "");
    daemon.until("the first sync", || daemon.get("/txid?path=a.db").1 == "{\"txid\":1}\n");
    // Many that say nothing, many that never finish, and some that send more than anybody reads.
    let mut held = Vec::new();
    for n in 0..600 {
        let mut stream = UnixStream::connect(daemon.path("s.sock")).unwrap();
        if n % 2 == 0 {
            stream.write_all(b"POST /stop HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
        }
        held.push(stream);
    }
    for head in ["Content-Length: 1073741824", "Transfer-Encoding: chunked"] {
        let mut stream = UnixStream::connect(daemon.path("s.sock")).unwrap();
        write!(stream, "POST /sync HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n").unwrap();
        let chunk = [b'x'; 4096];
        for _ in 0..64 {
            let chunked = head.starts_with('T') && stream.write_all(b"1000\r\n").is_err();
            if chunked
                || stream.write_all(&chunk).is_err()
                || (head.starts_with('T') && stream.write_all(b"\r\n").is_err())
            {
                break;
            }
        }
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
    insert(&daemon.path("a.db"));
    daemon.until("the next sync", || daemon.get("/txid?path=a.db").1 == "{\"txid\":2}\n");
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap().count();
    assert!(open < 250, "{open} descriptors");
    drop(held);
}

#[test]
fn the_endpoint_says_how_things_stand() {
    let port = free_port();
    let daemon = Daemon::start(&["a.db"], &format!("addr: '127.0.0.1:{port}'"));
    let at = |path: &str| exchange(TcpStream::connect(("127.0.0.1", port)).unwrap(), "GET", path, "").unwrap();
    daemon.until("the endpoint", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    daemon.until("the first upload", || daemon.get("/list").1.contains("last_sync_at"));
    assert_eq!(at("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(at("/readyz"), (200, "ok: 1 databases replicated\n".to_owned()));
    assert_eq!(at("/").0, 404);
    let (status, metrics) = at("/metrics");
    assert_eq!(status, 200);
    let app = daemon.shown("a.db");
    for series in [
        format!("litestream_txid{{db=\"{app}\"}} 1"),
        format!("litestream_sync_error_count{{db=\"{app}\"}} 0"),
        format!("sqlite_replication_lag_seconds{{db=\"{app}\",replica=\"file\"}} 0"),
        "sqlite_replication_databases{state=\"replicating\"} 1".to_owned(),
        "sqlite_replication_requests_total{operation=\"PUT\",outcome=\"ok\",replica_type=\"file\"}".to_owned(),
        "process_resident_memory_bytes".to_owned(),
    ] {
        assert!(metrics.lines().any(|line| line.starts_with(&series)), "{series} is not in\n{metrics}");
    }
    let status: serde_json::Value = serde_json::from_str(&at("/status.json").1).unwrap();
    assert_eq!(status["databases"][0]["state"], "replicating");
    assert_eq!(status["databases"][0]["targets"][0]["txid"], "0000000000000001");
    assert!(at("/status").1.contains("<!doctype html>"));
}

#[test]
fn lag_is_told_and_recovers() {
    let daemon = Daemon::start(&["a.db"], "");
    daemon.until("the first upload", || daemon.get("/list").1.contains("last_sync_at"));
    assert_eq!(daemon.run(&["status", "-max-lag", "1s"]).code, Some(0));
    // A file where the level's directory should be: nothing can be written to the replica.
    let (level, aside) = (daemon.path("rep-a.db/ltx/0"), daemon.path("rep-a.db/ltx/aside"));
    rustix::fs::rename(&level, &aside).unwrap();
    std::fs::write(&level, "in the way").unwrap();
    insert(&daemon.path("a.db"));
    daemon.until("the alarm", || daemon.run(&["status", "-max-lag", "1s"]).code == Some(1));
    let said = daemon.run(&["status", "-max-lag", "1s"]);
    assert_eq!(said.stderr, "Error: 1 of 1 replicas are further behind than 1s\n", "{said:?}");
    assert!(said.stdout.contains("late") && said.stdout.contains("file"), "{said:?}");
    std::fs::remove_file(&level).unwrap();
    rustix::fs::rename(&aside, &level).unwrap();
    daemon.until("the recovery", || daemon.run(&["status", "-max-lag", "1s"]).code == Some(0));
}

#[test]
fn a_hundred_databases_come_move_and_go() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("d")).unwrap();
    scratch.write("c.yml", "socket: {enabled: true, path: s.sock}\ndbs:\n - {dir: d, pattern: '*.db', recursive: true, watch: true, replica: {path: rep}}\n");
    let log = std::fs::File::create(scratch.path("log")).unwrap();
    let child = scratch.command(&["replicate", "-config", "c.yml"]).stdout(Stdio::from(log)).spawn().unwrap();
    let daemon = Daemon { scratch, child };
    let listed = || daemon.try_get("/list").map_or(0, |(_, list)| list.matches("\"path\"").count());
    daemon.until("the socket", || daemon.try_get("/info").is_some());
    for n in 0..100 {
        database(&daemon.path(&format!("d/{n}.db")));
    }
    daemon.until("all of them", || listed() == 100);
    std::fs::create_dir_all(daemon.path("d/sub/deep")).unwrap();
    for n in 0..100 {
        for suffix in ["", "-wal", "-shm"] {
            let _ = rustix::fs::rename(
                daemon.path(&format!("d/{n}.db{suffix}")),
                daemon.path(&format!("d/sub/deep/m{n}.db{suffix}")),
            );
        }
    }
    daemon.until("all under new names", || {
        daemon.try_get("/list").is_some_and(|(_, list)| {
            list.matches("/sub/deep/m").count() == 100 && list.matches("\"path\"").count() == 100
        })
    });
    // Local state is still written to meanwhile.
    daemon.until("an empty directory", || std::fs::remove_dir_all(daemon.path("d/sub")).is_ok());
    daemon.until("none", || listed() == 0);
}

#[test]
fn the_configuration_is_read_again_on_sighup() {
    let daemon = Daemon::start(&["a.db", "b.db"], "");
    database(&daemon.path("c.db"));
    daemon.until("the first sync", || daemon.get("/txid?path=a.db").1 == "{\"txid\":1}\n");
    let listed = || -> Vec<String> {
        let list: serde_json::Value = serde_json::from_str(&daemon.get("/list").1).unwrap();
        let paths = list["databases"].as_array().unwrap().iter();
        paths.map(|db| db["path"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()).collect()
    };
    daemon.scratch.write("c.yml", "dbs: [{path: a.db}");
    daemon.signal(Signal::HUP);
    daemon.until("the refusal", || daemon.log().contains("cannot reload configuration, the old one stays in force"));
    assert_eq!(listed(), ["a.db", "b.db"]);
    daemon.scratch.write("c.yml", &config(&["a.db", "c.db"], ""));
    daemon.signal(Signal::HUP);
    daemon.until("the reload", || daemon.log().contains("msg=\"configuration reloaded\" removed=1 added=1"));
    assert_eq!(listed(), ["a.db", "c.db"]);
}

#[test]
fn everything_but_the_databases_changes_on_sighup_too() {
    let daemon = Daemon::start(&["a.db"], "");
    daemon.until("the first sync", || daemon.get("/txid?path=a.db").1 == "{\"txid\":1}\n");
    let (first, second, mcp) = (free_port(), free_port(), free_port());
    let reload = |more: &str, name: &str| {
        let before = daemon.log().matches("configuration reloaded").count();
        let socket = format!("socket: {{enabled: true, path: {name}}}");
        let text = config(&["a.db"], more).replace("socket: {enabled: true, path: s.sock}", &socket);
        daemon.scratch.write("c.yml", &text);
        daemon.signal(Signal::HUP);
        daemon.until("the reload", || daemon.log().matches("configuration reloaded").count() > before);
    };
    let healthy = |port: u16| {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok();
        stream.and_then(|stream| exchange(stream, "GET", "/healthz", "")).is_some_and(|(status, _)| status == 200)
    };
    let more = format!(
        "addr: '127.0.0.1:{first}'\nmcp-addr: '127.0.0.1:{mcp}'\nlogging: {{level: debug}}\nlevels: [{{interval: 1s}}]\n\
         exec: something"
    );
    reload(&more, "s.sock");
    assert!(healthy(first));
    assert!(TcpStream::connect(("127.0.0.1", mcp)).is_ok());
    let log = daemon.log();
    assert!(log.contains("compaction, snapshots and retention follow the new settings"), "{log}");
    assert!(log.contains("setting=exec"), "{log}");
    insert(&daemon.path("a.db"));
    daemon.until("debug lines", || daemon.log().contains("level=DEBUG"));
    daemon.until("a compaction by the new interval", || daemon.log().contains("msg=\"compaction complete\""));
    // Elsewhere, and by another socket; an address that is taken leaves the old one in force.
    let _taken = TcpListener::bind(("127.0.0.1", second)).unwrap();
    reload(&format!("addr: '127.0.0.1:{second}'"), "t.sock");
    assert!(healthy(first) && TcpStream::connect(("127.0.0.1", mcp)).is_err());
    assert!(daemon.log().contains("cannot start metrics server"));
    assert!(!daemon.path("s.sock").exists());
    let stream = UnixStream::connect(daemon.path("t.sock")).unwrap();
    assert!(exchange(stream, "GET", "/list", "").unwrap().1.contains("a.db"));
    reload("", "t.sock");
    assert!(!healthy(first));
    // Nothing of this touched the database.
    let log = daemon.end();
    assert_eq!(log.matches("removed=0 added=0").count(), 3, "{log}");
}

#[test]
fn an_address_without_a_host_is_that_of_all_interfaces_and_said_to_be() {
    let port = free_port();
    let daemon = Daemon::start(&["a.db"], &format!("addr: ':{port}'"));
    daemon.until("the line", || daemon.log().contains("are served on all interfaces"));
    assert!(daemon.log().contains(&format!("url=http://localhost:{port}/metrics")));
    drop(daemon);
    let daemon = Daemon::start(&["a.db"], &format!("addr: 'localhost:{port}'"));
    daemon.until("the endpoint", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert!(!daemon.log().contains("all interfaces"));
}

/// A daemon with nothing to be asked through: it is only started and ended.
fn bare(config: &str, scratch: &Scratch) -> Child {
    scratch.write("c.yml", config);
    let log = std::fs::File::create(scratch.path("log")).unwrap();
    scratch.command(&["replicate", "-config", "c.yml"]).stdout(Stdio::from(log)).stderr(Stdio::null()).spawn().unwrap()
}

fn logged(scratch: &Scratch) -> String {
    std::fs::read_to_string(scratch.path("log")).unwrap()
}

fn ended_within(child: &mut Child, limit: Duration) -> Option<i32> {
    let clock = SystemClock::new();
    while clock.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("still there after {limit:?}");
}

/// A replica of a service at a port of this machine.
fn at_port(port: u16, path: &str) -> String {
    format!(
        "{{type: s3, bucket: b, path: {path}, endpoint: 'http://127.0.0.1:{port}', region: us-east-1, force-path-style: \
         true, access-key-id: a, secret-access-key: b}}"
    )
}

/// A service that refuses everything with this status.
fn refusing(status: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream
                .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes());
        }
    });
    port
}

#[test]
fn what_waiting_cannot_cure_ends_the_daemon_at_once_and_its_exit_code_says_so() {
    let scratch = Scratch::new();
    database(&scratch.path("app.db"));
    database(&scratch.path("locked.db"));
    scratch.write("junk.db", &"no database ".repeat(1000));
    let locked = rusqlite::Connection::open(scratch.path("locked.db")).unwrap();
    locked.execute_batch("pragma locking_mode = exclusive; begin exclusive; commit; begin exclusive").unwrap();
    let refused = at_port(refusing("403 Forbidden"), "app");
    for (path, replica) in [("app.db", refused.as_str()), ("junk.db", "{path: rep}"), ("locked.db", "{path: rep}")] {
        let mut child = bare(&format!("dbs: [{{path: {path}, replica: {replica}}}]"), &scratch);
        std::thread::sleep(Duration::from_millis(2500));
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        // The default shutdown timeout is 30 s.
        assert_eq!(ended_within(&mut child, Duration::from_secs(5)), Some(1), "{}", logged(&scratch));
        assert!(logged(&scratch).contains("failed to close database"));
    }
}

#[test]
fn a_store_that_never_answers_keeps_the_daemon_no_longer_than_its_timeout_and_a_second_signal_ends_it() {
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let replica = at_port(hole.local_addr().unwrap().port(), "app");
    let scratch = Scratch::new();
    database(&scratch.path("app.db"));
    for (timeout, signals, limit) in [("2s", 1, 6), ("60s", 2, 4)] {
        let config = format!("shutdown-sync-timeout: {timeout}\ndbs: [{{path: app.db, replica: {replica}}}]");
        let mut child = bare(&config, &scratch);
        std::thread::sleep(Duration::from_secs(1));
        for _ in 0..signals {
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
            std::thread::sleep(Duration::from_millis(300));
        }
        assert_eq!(ended_within(&mut child, Duration::from_secs(limit)), Some(1), "{}", logged(&scratch));
        assert!(logged(&scratch).contains("litestream shut down"));
    }
}

#[test]
fn signals_for_the_process_group_do_not_end_the_daemon_and_reach_the_application_as_usual() {
    let scratch = Scratch::new();
    database(&scratch.path("app.db"));
    let config = "exec: \"/bin/grep -E 'Sig(Ign|Blk)' /proc/self/status\"\ndbs: [{path: app.db, replica: {path: rep}}]";
    let mut child = bare(config, &scratch);
    assert_eq!(ended_within(&mut child, PATIENCE), Some(0));
    let log = logged(&scratch);
    for set in ["SigIgn:", "SigBlk:"] {
        let shown = log.lines().find_map(|line| line.strip_prefix(set)).expect("the line of grep");
        // Those that have names: whoever runs the tests may ignore others.
        assert_eq!(u64::from_str_radix(shown.trim(), 16).unwrap() & 0x7fff_ffff, 0, "{log}");
    }
    let daemon = Daemon::start(&["a.db"], "");
    for signal in [Signal::USR1, Signal::USR2, Signal::ALARM, Signal::PIPE] {
        daemon.signal(signal);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(daemon.get("/info").0, 200);
    daemon.end();
}

#[test]
fn addresses_that_the_process_before_still_has_are_taken_once_they_are_free() {
    let (scratch, other) = (Scratch::new(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (addr, mcp) = (other.local_addr().unwrap().port(), TcpListener::bind("127.0.0.1:0").unwrap());
    let mcp_port = mcp.local_addr().unwrap().port();
    let socket = std::os::unix::net::UnixListener::bind(scratch.path("s.sock")).unwrap();
    database(&scratch.path("a.db"));
    let more = format!("addr: '127.0.0.1:{addr}'\nmcp-addr: '127.0.0.1:{mcp_port}'");
    let child = bare(&config(&["a.db"], &more), &scratch);
    let daemon = Daemon { scratch, child };
    for failed in ["cannot start metrics server", "MCP server error", "failed to start control server"] {
        daemon.until(failed, || daemon.log().contains(failed));
    }
    std::thread::sleep(Duration::from_secs(2));
    drop((other, mcp, socket));
    daemon.until("the socket", || daemon.try_get("/info").is_some());
    daemon.until("the endpoint", || TcpStream::connect(("127.0.0.1", addr)).is_ok());
    daemon.until("the MCP server", || TcpStream::connect(("127.0.0.1", mcp_port)).is_ok());
    daemon.until("three lines", || daemon.log().matches("the address is free now").count() == 3);
    let log = daemon.end();
    assert_eq!(log.matches("cannot start metrics server").count(), 1, "{log}");
    assert_eq!(log.matches("failed to start control server").count(), 1, "{log}");
}

/// A store that is away fails all of them several times a second.
#[test]
fn many_databases_in_one_outage_are_one_line() {
    let names: Vec<String> = (0..20).map(|n| format!("{n}.db")).collect();
    let scratch = Scratch::new();
    names.iter().for_each(|name| database(&scratch.path(name)));
    let port = free_port();
    let mut text = "shutdown-sync-timeout: 1s\ndbs:\n".to_owned();
    for name in &names {
        text.push_str(&format!(" - {{path: {name}, replica: {}}}\n", at_port(port, name)));
    }
    let mut child = bare(&text, &scratch);
    std::thread::sleep(Duration::from_secs(8));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(ended_within(&mut child, Duration::from_secs(6)), Some(1));
    let log = logged(&scratch);
    let said = |level: &str| log.lines().filter(|line| line.contains(&format!("level={level}"))).count();
    // Each database says at the end what it lacks.
    assert_eq!(log.matches("failed to close database").count(), names.len(), "{log}");
    assert!(said("WARN") + said("ERROR") - names.len() <= 6, "{log}");
}
