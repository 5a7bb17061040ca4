//! A reader that keeps a checkpoint from completing, for as long as it likes.

use super::support::{Bench, set_up};
use litestream::db::DbConfig;

/// D9: Litestream tries a TRUNCATE checkpoint at every step then, each of which blocks the application
/// for its busy timeout. D10: it writes to the idle database and makes a file at every step.
#[test]
fn d9_d10_a_blocked_checkpoint_costs_neither_stalls_nor_files() {
    let bench = Bench::new();
    let app = bench.app();
    set_up(&app, 4096);
    app.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
    // No patience at all: whatever holds a lock when the application writes is an error.
    app.busy_timeout(std::time::Duration::ZERO).unwrap();
    let mut db = bench.engine(DbConfig { min_checkpoint_pages: 20, truncate_pages: Some(40), ..bench.config() });
    db.sync().unwrap();

    let reader = bench.app();
    reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
    for n in 0..200 {
        app.execute("INSERT INTO t(v) VALUES (?1)", [vec![n as u8; 900]]).unwrap();
        db.sync().unwrap();
    }
    let files = |bench: &Bench| std::fs::read_dir(bench.meta().join("ltx/0")).unwrap().count();
    let version =
        |app: &rusqlite::Connection| app.query_row("PRAGMA data_version", [], |r| r.get::<_, i64>(0)).unwrap();
    let (before, data) = (files(&bench), version(&app));
    for _ in 0..100 {
        let report = db.sync().unwrap();
        assert_eq!((report.files, report.checkpointed), (0, false));
    }
    assert_eq!(files(&bench), before);
    assert_eq!(version(&app), data, "somebody wrote to an idle database");
    app.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    db.sync().unwrap();
    bench.assert_caught_up("behind a long reader");
    drop(reader);
}
