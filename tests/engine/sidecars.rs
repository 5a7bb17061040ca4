//! What SQLite makes of empty files beside a database: `db/sidecars.rs` puts some there before it opens the first connection.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rusqlite::Connection;

fn beside(db: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn mode(conn: &Connection) -> String {
    conn.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap()
}

fn rows(conn: &Connection) -> i64 {
    conn.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

fn put_empty(db: &Path) -> Vec<u64> {
    ["-wal", "-shm", "-journal"]
        .map(|suffix| {
            fs::write(beside(db, suffix), "").unwrap();
            fs::metadata(beside(db, suffix)).unwrap().ino()
        })
        .to_vec()
}

#[test]
fn fact_empty_files_beside_a_database_in_rollback_mode_are_no_log_and_no_journal() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    let app = Connection::open(&db).unwrap();
    app.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
    let inodes = put_empty(&db);
    // Who has it open, and who opens it now, stay in rollback mode, read, write and roll back.
    let other = Connection::open(&db).unwrap();
    for conn in [&app, &other] {
        assert_eq!((mode(conn).as_str(), rows(conn)), ("delete", 1));
    }
    other.execute_batch("BEGIN; INSERT INTO t VALUES (2); ROLLBACK; INSERT INTO t VALUES (3)").unwrap();
    assert_eq!((rows(&app), rows(&other)), (2, 2));
    assert_eq!(fs::metadata(beside(&db, "-wal")).unwrap().len(), 0);
    // Whoever switches it uses the files that are there.
    drop(other);
    app.execute_batch("PRAGMA journal_mode = wal; INSERT INTO t VALUES (4)").unwrap();
    assert_eq!((mode(&app).as_str(), rows(&app)), ("wal", 3));
    for (suffix, inode) in ["-wal", "-shm"].into_iter().zip(inodes) {
        assert_eq!(fs::metadata(beside(&db, suffix)).unwrap().ino(), inode, "{suffix}");
    }
    assert!(!beside(&db, "-journal").exists(), "the journal of the switch took its place and went");
}

#[test]
fn fact_empty_files_beside_a_closed_database_in_wal_mode_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    let app = Connection::open(&db).unwrap();
    app.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
    drop(app);
    assert!(!beside(&db, "-wal").exists());
    let inodes = put_empty(&db);
    let app = Connection::open(&db).unwrap();
    app.execute_batch("INSERT INTO t VALUES (2)").unwrap();
    let other = Connection::open(&db).unwrap();
    assert_eq!((mode(&other).as_str(), rows(&other)), ("wal", 2));
    for (suffix, inode) in ["-wal", "-shm"].into_iter().zip(inodes) {
        assert_eq!(fs::metadata(beside(&db, suffix)).unwrap().ino(), inode, "{suffix}");
    }
    assert!(fs::metadata(beside(&db, "-wal")).unwrap().len() > 0);
}
