//! Writers that do not keep the wal-index, and files that are written past their log.

use std::time::Duration;

use litestream::db::Db;
use litestream::error::ErrorKind;
use litestream::ltx::LocalDir;
use litestream::sys::World;
use litestream::types::Level;
use rusqlite::{Connection, OpenFlags};

use crate::support::{Bench, set_up, wal_of};

/// A connection whose wal-index is on the heap and that takes no locks. Keep it until the engine is closed: closing
/// it would drop the locks of this process.
fn without_index(bench: &Bench) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags_and_vfs(&bench.path, flags, c"unix-none").unwrap();
    conn.query_row("PRAGMA locking_mode = exclusive", [], |_| Ok(())).unwrap();
    conn.execute_batch("PRAGMA synchronous = normal").unwrap();
    conn
}

fn rows(bytes: &[u8]) -> i64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    std::fs::write(&path, bytes).unwrap();
    let conn = Connection::open(&path).unwrap();
    let check: String = conn.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
    assert_eq!(check, "ok");
    conn.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap()
}

fn files(bench: &Bench) -> usize {
    LocalDir::new(&World::system(), bench.meta()).list(Level::L0).unwrap().len()
}

fn engine(bench: &Bench) -> Db {
    bench.engine(bench.config())
}

/// Until modification times tell a further write.
fn let_settle() {
    std::thread::sleep(Duration::from_millis(120));
}

#[test]
fn commits_that_the_index_does_not_know_are_taken_in() {
    let bench = Bench::new();
    set_up(&bench.app(), 4096);
    let mut engine = engine(&bench);
    engine.sync().unwrap();
    let app = without_index(&bench);
    for n in 0..20 {
        app.execute("INSERT INTO t VALUES (?1, randomblob(300))", [n]).unwrap();
        assert!(engine.needs_step(), "a write to the log alone is noticed");
        engine.sync().unwrap();
        assert_eq!(rows(&bench.replayed()), n + 1);
    }
    let_settle();
    engine.sync().unwrap();
    assert!(!engine.needs_step(), "an idle one costs nothing");
    let before = files(&bench);
    engine.sync().unwrap();
    assert_eq!(files(&bench), before);
}

#[test]
fn a_log_that_such_a_writer_restarts_is_followed() {
    let bench = Bench::new();
    set_up(&bench.app(), 4096);
    let mut engine = engine(&bench);
    engine.sync().unwrap();
    let app = without_index(&bench);
    app.execute_batch("PRAGMA wal_autocheckpoint = 5").unwrap();
    for n in 0..60 {
        app.execute("INSERT INTO t VALUES (?1, randomblob(3000))", [n]).unwrap();
        if n % 3 == 0 {
            let_settle();
            engine.sync().unwrap();
            assert_eq!(rows(&bench.replayed()), n + 1);
        }
    }
    let check: String = app.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
    assert_eq!(check, "ok", "the application's own view is untouched");
}

#[test]
fn a_snapshot_beside_such_a_writer_is_one_state() {
    let bench = Bench::new();
    set_up(&bench.app(), 4096);
    let mut engine = engine(&bench);
    engine.sync().unwrap();
    let app = without_index(&bench);
    app.execute("INSERT INTO t VALUES (1, 'a')", []).unwrap();
    engine.sync().unwrap();
    let_settle();
    let mut reader = engine.begin_snapshot().unwrap();
    app.execute_batch("INSERT INTO t VALUES (2, 'b'); PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let err = reader.write(Vec::new()).unwrap_err();
    drop(reader);
    assert_eq!(err.kind(), ErrorKind::Changed, "{err}");
    app.execute("INSERT INTO t VALUES (3, 'c')", []).unwrap();
    let_settle();
    engine.sync().unwrap();
    assert_eq!(rows(&bench.replayed()), 3);
}

#[test]
fn a_log_that_such_a_writer_empties_or_removes_is_followed() {
    let bench = Bench::new();
    set_up(&bench.app(), 4096);
    let mut engine = engine(&bench);
    engine.sync().unwrap();
    let app = without_index(&bench);
    for n in 0..4 {
        app.execute("INSERT INTO t VALUES (?1, 'a')", [2 * n]).unwrap();
        engine.sync().unwrap();
        app.execute("INSERT INTO t VALUES (?1, 'b')", [2 * n + 1]).unwrap();
        app.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        let_settle();
        engine.sync().unwrap();
        assert_eq!(rows(&bench.replayed()), 2 * n + 2);
        assert_eq!(std::fs::metadata(wal_of(&bench.path)).unwrap().len(), 0, "nothing of ours is in its log");
    }
    // The last one to close removes the log. It also drops the locks of this process, which has nothing to lose.
    drop(app);
    let_settle();
    engine.sync().unwrap();
    assert_eq!(rows(&bench.replayed()), 8);
}

#[test]
fn while_somebody_else_has_it_open_such_commits_are_an_error() {
    let bench = Bench::new();
    let stock = bench.app();
    set_up(&stock, 4096);
    let mut engine = engine(&bench);
    engine.sync().unwrap();
    let app = without_index(&bench);
    app.execute("INSERT INTO t VALUES (1, 'a')", []).unwrap();
    let err = engine.sync().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Busy, "{err}");
    assert!(engine.needs_step());
    // A connection of SQLite's own takes their place, as it would after a writer was killed there.
    stock.execute("INSERT INTO t VALUES (7, 'stock')", []).unwrap();
    engine.sync().unwrap();
    bench.assert_caught_up("after the next commit");
    drop(engine);
    drop(app);
}

#[test]
fn an_open_transaction_is_no_commit() {
    let bench = Bench::new();
    let app = bench.app();
    set_up(&app, 4096);
    app.execute_batch("PRAGMA cache_size = 4; BEGIN").unwrap();
    let mut engine = engine(&bench);
    engine.sync().unwrap();
    let before = files(&bench);
    for n in 0..60 {
        app.execute("INSERT INTO t VALUES (?1, randomblob(3000))", [n]).unwrap();
    }
    assert!(std::fs::metadata(wal_of(&bench.path)).unwrap().len() > 40 * 4096, "spilled into the log");
    let_settle();
    engine.sync().unwrap();
    engine.sync().unwrap();
    assert_eq!(files(&bench), before);
    assert!(!engine.needs_step());
    app.execute_batch("ROLLBACK; INSERT INTO t VALUES (1, 'b')").unwrap();
    engine.sync().unwrap();
    bench.assert_caught_up("after a rollback");
}

/// The frames of the long one that were looked at last still continue each other behind the commit.
#[test]
fn a_short_commit_in_the_place_of_a_long_transaction_that_was_rolled_back_is_seen() {
    let bench = Bench::new();
    set_up(&bench.app(), 4096);
    let mut engine = engine(&bench);
    engine.sync().unwrap();
    let app = without_index(&bench);
    app.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = 4; INSERT INTO t VALUES (0, 'a')").unwrap();
    engine.sync().unwrap();
    // Long values: their pages are written once. A page that is written again breaks the chain.
    app.execute_batch("BEGIN; INSERT INTO t VALUES (100, randomblob(400000))").unwrap();
    engine.sync().unwrap();
    app.execute_batch("INSERT INTO t VALUES (200, randomblob(400000))").unwrap();
    app.execute_batch("ROLLBACK; INSERT INTO t VALUES (1, 'b')").unwrap();
    engine.sync().unwrap();
    assert_eq!(rows(&bench.replayed()), 2);
}

/// What `cp new.db app.db` does, or a program that writes its whole database from memory.
fn rewrite(bench: &Bench, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(&bench.path).unwrap();
    file.set_len(0).unwrap();
    file.write_all_at(bytes, 0).unwrap();
}

fn other_database(mode: &str, rows: i64) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new");
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch(&format!("PRAGMA journal_mode = {mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)"))
        .unwrap();
    for n in 0..rows {
        conn.execute("INSERT INTO t VALUES (?1, randomblob(100))", [n]).unwrap();
    }
    drop(conn);
    std::fs::read(&path).unwrap()
}

#[test]
fn a_database_rewritten_in_place_by_a_program_that_ignores_the_log_is_replicated() {
    let bench = Bench::new();
    set_up(&bench.app(), 4096);
    let mut engine = engine(&bench);
    engine.sync().unwrap();
    for rows_now in [10, 40, 200] {
        let content = other_database("delete", rows_now);
        rewrite(&bench, &content);
        assert!(engine.needs_step());
        let_settle();
        engine.sync().unwrap();
        assert!(bench.replayed() == content, "byte for byte");
        let_settle();
        let before = files(&bench);
        engine.sync().unwrap();
        assert_eq!(files(&bench), before, "once is enough");
        assert!(!engine.needs_step());
        let mut snapshot = Vec::new();
        engine.snapshot(&mut snapshot).unwrap();
    }
    // And after a restart.
    drop(engine);
    let content = other_database("delete", 300);
    rewrite(&bench, &content);
    let_settle();
    let mut engine = bench.engine(bench.config());
    engine.sync().unwrap();
    assert!(bench.replayed() == content);
}

/// Both the file and a log that is not its own: what SQLite would make of it is neither database.
#[test]
fn another_database_in_wal_mode_copied_over_it_is_replicated_without_the_log() {
    for restart in [false, true] {
        let bench = Bench::new();
        let app = bench.app();
        set_up(&app, 4096);
        let mut open = Some(engine(&bench));
        open.as_mut().unwrap().sync().unwrap();
        app.execute("INSERT INTO t VALUES (1, randomblob(9000))", []).unwrap();
        open.as_mut().unwrap().sync().unwrap();
        for rows_now in [50, 60, 300] {
            if restart {
                open = None;
            }
            let before = files(&bench);
            let content = other_database("wal", rows_now);
            rewrite(&bench, &content);
            let_settle();
            let now = open.get_or_insert_with(|| engine(&bench));
            now.sync().unwrap();
            assert_eq!(files(&bench), before + 1, "restart {restart}");
            assert!(bench.replayed() == content, "byte for byte, restart {restart}");
            let_settle();
            assert!(!now.needs_step());
            now.sync().unwrap();
            assert_eq!(files(&bench), before + 1, "once is enough");
            // The log is not its own now either.
            let mut snapshot = Vec::new();
            now.snapshot(&mut snapshot).unwrap();
            assert!(std::fs::read(&bench.path).unwrap() == content, "nobody wrote to it");
        }
        // An image that is asked for for another reason reads the file alone as well.
        drop(open);
        engine(&bench).sync().unwrap();
        assert_eq!(rows(&bench.replayed()), 300, "restart {restart}");
    }
}

/// From then on SQLite's own view counts: it began from both.
#[test]
fn a_commit_behind_a_log_that_was_not_the_files_own_makes_it_so() {
    let bench = Bench::new();
    let app = bench.app();
    set_up(&app, 4096);
    let mut engine = engine(&bench);
    engine.sync().unwrap();
    // The same tables, so that what SQLite makes of both is no damaged database.
    app.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
    let mut content = std::fs::read(&bench.path).unwrap();
    content[60..64].copy_from_slice(&77_u32.to_be_bytes());
    app.execute("INSERT INTO t VALUES (1, 'a')", []).unwrap();
    engine.sync().unwrap();
    rewrite(&bench, &content);
    let_settle();
    engine.sync().unwrap();
    assert!(bench.replayed() == content);
    app.execute("INSERT INTO t VALUES (2, 'b')", []).unwrap();
    engine.sync().unwrap();
    bench.assert_caught_up("as SQLite sees it");
}

#[test]
fn another_database_in_wal_mode_is_noticed_while_the_log_is_empty() {
    for restart in [false, true] {
        let bench = Bench::new();
        let app = bench.app();
        set_up(&app, 4096);
        app.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        let mut open = Some(engine(&bench));
        open.as_mut().unwrap().sync().unwrap();
        drop(app);
        if restart {
            open = None;
        }
        let before = files(&bench);
        rewrite(&bench, &other_database("wal", 50));
        let_settle();
        open.get_or_insert_with(|| engine(&bench)).sync().unwrap();
        assert_eq!(files(&bench), before + 1, "restart {restart}");
        assert_eq!(rows(&bench.replayed()), 50);
    }
}

#[test]
fn half_a_file_is_never_published() {
    let bench = Bench::new();
    set_up(&bench.app(), 4096);
    let mut engine = engine(&bench);
    engine.sync().unwrap();
    let before = bench.replayed();
    let content = other_database("delete", 200);
    rewrite(&bench, &content[..content.len() / 2]);
    let_settle();
    let err = engine.sync().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Changed, "{err}");
    assert!(bench.replayed() == before);
    rewrite(&bench, &content);
    let_settle();
    engine.sync().unwrap();
    assert!(bench.replayed() == content);
}

#[test]
fn checkpoints_of_the_application_are_no_rewriting() {
    let bench = Bench::new();
    let app = bench.app();
    set_up(&app, 4096);
    let mut engine = engine(&bench);
    engine.sync().unwrap();
    for (n, mode) in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"].into_iter().cycle().take(30).enumerate() {
        app.execute("INSERT INTO t(v) VALUES (randomblob(3000))", []).unwrap();
        app.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(())).unwrap();
        let report = engine.sync().unwrap();
        assert_eq!(report.full_images, 0, "round {n}");
    }
    bench.assert_caught_up("in the end");
}
