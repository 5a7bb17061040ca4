//! Databases whose pages belong to another layer in part.

use rusqlite::Connection;

use crate::support::{Bench, set_up, wal_of};

/// Reserves bytes at the end of each page, as a checksum or cipher layer does.
fn reserve(conn: &Connection, bytes: i32) {
    let mut bytes = bytes;
    // SAFETY: the handle is open for the whole call, and RESERVE_BYTES reads and writes one int.
    let code = unsafe {
        rusqlite::ffi::sqlite3_file_control(
            conn.handle(),
            c"main".as_ptr(),
            rusqlite::ffi::SQLITE_FCNTL_RESERVE_BYTES,
            std::ptr::from_mut(&mut bytes).cast(),
        )
    };
    assert_eq!(code, rusqlite::ffi::SQLITE_OK);
}

#[test]
fn a_database_with_reserved_bytes_is_followed_and_never_checkpointed_by_us() {
    let bench = Bench::new();
    let app = bench.app();
    reserve(&app, 8);
    set_up(&app, 4096);
    app.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
    let mut config = bench.config();
    config.min_checkpoint_pages = 10;
    let mut engine = bench.engine(config);
    engine.sync().unwrap();
    let file = std::fs::read(&bench.path).unwrap();
    assert_eq!(file[20], 8);
    for n in 0..50 {
        app.execute("INSERT INTO t VALUES (?1, randomblob(3000))", [n]).unwrap();
        engine.sync().unwrap();
    }
    assert!(std::fs::read(&bench.path).unwrap() == file, "nobody but the application writes to the file");
    bench.assert_caught_up("followed");
    assert_eq!(engine.counters().checkpoints, 0);
    // The application's own checkpoints are not in our way, nor we in theirs.
    for n in 50..60 {
        std::thread::sleep(std::time::Duration::from_millis(120));
        app.execute("INSERT INTO t VALUES (?1, randomblob(3000))", [n]).unwrap();
        engine.sync().unwrap();
        app.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(120));
        assert!(engine.needs_step(), "everything was copied: our mark can leave the log");
        engine.sync().unwrap();
    }
    let (frames, copied): (i64, i64) =
        app.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| Ok((row.get(1)?, row.get(2)?))).unwrap();
    assert!(frames < 20, "{frames} frames are left in the log, {copied} copied");
    bench.assert_caught_up("after its checkpoints");
}

#[test]
fn what_is_no_database_is_refused_with_a_line_of_its_own() {
    let bench = Bench::new();
    std::fs::write(&bench.path, [9; 8192]).unwrap();
    let mut engine = bench.engine(bench.config());
    let err = engine.sync().unwrap_err();
    assert!(err.hint_text().is_some_and(|hint| hint.contains("encrypted")), "{err}");
    assert!(!wal_of(&bench.path).exists());
    // A database that takes its place is followed.
    std::fs::remove_file(&bench.path).unwrap();
    set_up(&bench.app(), 4096);
    engine.sync().unwrap();
    bench.assert_caught_up("after it was replaced");
}
