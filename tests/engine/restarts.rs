//! Commits that hide from a log reader that was away, one way each.

use rusqlite::Connection;

use litestream::sys::{Fs, OsFs};

use crate::support::{Bench, set_up, wal_of};

fn insert(app: &Connection) {
    app.execute_batch("INSERT INTO t(v) VALUES (randomblob(20))").unwrap();
}

fn wal_len(bench: &Bench) -> u64 {
    std::fs::metadata(wal_of(&bench.path)).unwrap().len()
}

fn checkpoint(app: &Connection) {
    let row: (i64, i64, i64) =
        app.query_row("PRAGMA wal_checkpoint(FULL)", [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap();
    assert_eq!((row.0, row.1), (0, row.2));
}

/// A database whose log was read up to its end by an engine that is gone.
fn left_alone() -> (Bench, Connection) {
    let bench = Bench::new();
    let app = bench.app();
    set_up(&app, 4096);
    app.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
    for _ in 0..40 {
        insert(&app);
    }
    let mut engine = bench.engine(bench.config());
    engine.sync().unwrap();
    bench.assert_caught_up("before");
    (bench, app)
}

/// Starts the engine again; returns whether it wrote a full image.
fn come_back(bench: &Bench, record: bool) -> bool {
    if !record {
        std::fs::remove_file(bench.meta().join("continuity")).unwrap();
    }
    let mut engine = bench.engine(bench.config());
    let report = engine.sync().unwrap();
    bench.assert_caught_up(if record { "with record" } else { "without record" });
    report.full_images > 0
}

#[test]
fn commits_checkpointed_and_then_hidden_by_one_restart_are_recovered() {
    for record in [true, false] {
        let (bench, app) = left_alone();
        // An older generation reached further: what lies behind the new commits is old.
        drop(app);
        let app = bench.app();
        set_long_file(&bench, &app);
        insert(&app);
        insert(&app);
        checkpoint(&app);
        insert(&app);
        // Without the record nothing says that there was no power cut in between.
        assert_eq!(come_back(&bench, record), !record, "the stale frames prove themselves");
    }
}

/// Makes the file longer than the log: many commits, restart, few commits, and a sync of those.
fn set_long_file(bench: &Bench, app: &Connection) {
    app.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
    for _ in 0..60 {
        insert(app);
    }
    checkpoint(app);
    for _ in 0..10 {
        insert(app);
    }
    let mut engine = bench.engine(bench.config());
    engine.sync().unwrap();
    bench.assert_caught_up("long file");
}

#[test]
fn a_log_cut_on_a_frame_boundary_by_a_size_limit_proves_nothing() {
    for record in [true, false] {
        for cut_at_synced_end in [true, false] {
            let (bench, app) = left_alone();
            if !cut_at_synced_end {
                insert(&app);
            }
            let boundary = wal_len(&bench);
            insert(&app);
            insert(&app);
            let limit = format!("PRAGMA journal_size_limit = {boundary}");
            let _: i64 = app.query_row(&limit, [], |r| r.get(0)).unwrap();
            checkpoint(&app);
            insert(&app);
            assert_eq!(wal_len(&bench), boundary, "the restart cut the file");
            assert!(come_back(&bench, record));
        }
    }
}

#[test]
fn two_restarts_are_a_full_image() {
    for record in [true, false] {
        let (bench, app) = left_alone();
        for _ in 0..2 {
            insert(&app);
            checkpoint(&app);
        }
        insert(&app);
        assert!(come_back(&bench, record));
    }
}

#[test]
fn commits_appended_while_away_are_incremental() {
    for record in [true, false] {
        let (bench, app) = left_alone();
        insert(&app);
        insert(&app);
        assert!(!come_back(&bench, record));
    }
}

#[test]
fn a_log_that_was_folded_in_and_removed_is_a_full_image() {
    let (bench, app) = left_alone();
    insert(&app);
    drop(app);
    assert!(!wal_of(&bench.path).exists(), "the last connection removes the log");
    assert!(come_back(&bench, true));
}

#[test]
fn a_database_replaced_by_another_is_a_full_image() {
    for same_wal in [true, false] {
        let (bench, app) = left_alone();
        insert(&app);
        let other = bench.path.with_file_name("other");
        let _: String =
            app.query_row(&format!("VACUUM INTO '{}'", other.display()), [], |_| Ok(String::new())).unwrap_or_default();
        drop(app);
        OsFs.rename(&other, &bench.path).unwrap();
        if !same_wal {
            let _ = std::fs::remove_file(wal_of(&bench.path));
        }
        assert!(come_back(&bench, true));
    }
}

#[test]
fn a_database_replaced_under_a_running_engine_starts_over() {
    let (bench, app) = left_alone();
    let mut engine = bench.engine(bench.config());
    engine.sync().unwrap();
    let other = bench.path.with_file_name("other");
    let conn = Connection::open(&other).unwrap();
    set_up(&conn, 4096);
    insert(&conn);
    drop(conn);
    drop(app);
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(bench.path.with_file_name(format!("db{suffix}")));
    }
    OsFs.rename(&other, &bench.path).unwrap();
    let report = engine.sync().unwrap();
    assert_eq!(report.full_images, 1);
    bench.assert_caught_up("replaced");
    insert(&bench.app());
    engine.sync().unwrap();
    bench.assert_caught_up("after");
}

#[test]
fn a_page_size_change_while_away_is_a_full_image() {
    let (bench, app) = left_alone();
    let mode: String = app.query_row("PRAGMA journal_mode = delete", [], |r| r.get(0)).unwrap();
    assert_eq!(mode, "delete");
    app.execute_batch("PRAGMA page_size = 8192; VACUUM").unwrap();
    drop(app);
    let mut engine = bench.engine(bench.config());
    assert_eq!(engine.sync().unwrap().full_images, 1);
}
