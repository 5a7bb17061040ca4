//! The facts about SQLite that the checkpoint protocol relies on, and the protocol under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;

use crate::support::{Bench, set_up};

fn checkpoint(conn: &Connection, mode: &str) -> (i64, i64, i64) {
    conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap()
}

fn read(conn: &Connection) {
    conn.execute_batch("BEGIN; PRAGMA schema_version").unwrap();
}

fn insert(conn: &Connection) {
    conn.execute_batch("INSERT INTO t(v) VALUES (randomblob(100))").unwrap();
}

fn salts(bench: &Bench) -> Vec<u8> {
    std::fs::read(crate::support::wal_of(&bench.path)).unwrap()[16..24].to_vec()
}

fn three() -> (Bench, Connection, Connection, Connection) {
    let bench = Bench::new();
    let app = bench.app();
    app.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
    set_up(&app, 4096);
    let (reader, other) = (bench.app(), bench.app());
    for conn in [&app, &other] {
        conn.busy_timeout(Duration::from_millis(20)).unwrap();
        conn.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
    }
    (bench, app, reader, other)
}

#[test]
fn fact_a_reader_on_a_mark_keeps_everybody_from_restarting_the_log() {
    let (bench, app, reader, other) = three();
    insert(&app);
    read(&reader);
    let before = salts(&bench);
    for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        let _ = checkpoint(&other, mode);
        insert(&app);
        assert_eq!(salts(&bench), before, "{mode}");
    }
}

#[test]
fn fact_a_reader_on_lock_0_lets_the_log_restart_but_keeps_later_frames() {
    let (bench, app, reader, other) = three();
    insert(&app);
    let (_, log, done) = checkpoint(&other, "PASSIVE");
    assert_eq!(log, done);
    read(&reader);
    let before = salts(&bench);
    insert(&app);
    let restarted = salts(&bench);
    assert_ne!(restarted, before, "the next writer restarts the log");
    for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        let row = conn_row(&other, mode);
        assert!(row.is_none_or(|(busy, _, done)| busy == 1 || done == 0), "{mode}: {row:?}");
        insert(&app);
        assert_eq!(salts(&bench), restarted, "{mode}: frames written under lock 0 stay");
    }
}

fn conn_row(conn: &Connection, mode: &str) -> Option<(i64, i64, i64)> {
    conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).ok()
}

#[test]
fn fact_setting_user_version_to_itself_is_a_commit_of_one_page() {
    let (bench, _app, reader, other) = three();
    read(&reader);
    let len = std::fs::metadata(crate::support::wal_of(&bench.path)).unwrap().len();
    other.execute_batch("BEGIN IMMEDIATE; PRAGMA user_version = 0; COMMIT").unwrap();
    let after = std::fs::metadata(crate::support::wal_of(&bench.path)).unwrap().len();
    assert_eq!(after - len, 4096 + 24);
}

#[test]
fn fact_a_size_limit_cuts_the_file_when_our_commit_restarts_the_log() {
    let (bench, app, reader, other) = three();
    for _ in 0..200 {
        insert(&app);
    }
    let len = || std::fs::metadata(crate::support::wal_of(&bench.path)).unwrap().len();
    let long = len();
    let (_, log, done) = checkpoint(&other, "PASSIVE");
    assert_eq!(log, done);
    read(&reader);
    let _: i64 = app.query_row("PRAGMA journal_size_limit = 8272", [], |r| r.get(0)).unwrap();
    app.execute_batch("BEGIN IMMEDIATE; PRAGMA user_version = 0; COMMIT").unwrap();
    assert!(long > 100_000 && len() == 8272, "{long} -> {}", len());
}

#[test]
fn a_busy_application_and_a_foreign_checkpointer_lose_nothing() {
    let bench = Bench::new();
    set_up(&bench.app(), 4096);
    let stop = Arc::new(AtomicBool::new(false));
    let mut config = bench.config();
    config.min_checkpoint_pages = 50;
    let mut engine = bench.engine(config);
    let mut threads = Vec::new();
    for n in 0..3 {
        let (stop, conn) = (Arc::clone(&stop), bench.app());
        threads.push(std::thread::spawn(move || {
            let mut i = 0;
            while !stop.load(Ordering::Relaxed) {
                let table = if (i + n) % 2 == 0 { "t" } else { "u" };
                let sql = format!("INSERT INTO {table}(v) VALUES (randomblob({}))", (i * 37) % 5000);
                let _ = conn.execute_batch(&sql);
                i += 1;
            }
        }));
    }
    let (stop_too, conn) = (Arc::clone(&stop), bench.app());
    threads.push(std::thread::spawn(move || {
        conn.busy_timeout(Duration::from_millis(5)).unwrap();
        for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"].iter().cycle() {
            if stop_too.load(Ordering::Relaxed) {
                break;
            }
            let _ = conn_row(&conn, mode);
            std::thread::sleep(Duration::from_millis(50));
        }
    }));
    let (mut files, mut checkpoints) = (0, 0);
    for _ in 0..300_000 {
        if files > 100 && checkpoints > 2 {
            break;
        }
        let report = engine.sync().unwrap();
        files += report.files;
        checkpoints += u32::from(report.checkpointed);
        assert!(report.full_images == 0 || files == report.files, "only the first file is a full image");
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    engine.sync().unwrap();
    bench.assert_caught_up("after the load");
    assert!(files > 100 && checkpoints > 2, "{files} files, {checkpoints} checkpoints");
}
