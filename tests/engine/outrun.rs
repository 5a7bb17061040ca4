//! An application that commits whenever the engine looks.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use litestream::db::{Db, DbConfig};
use litestream::error::Result;
use litestream::sqlite::{CheckpointResult, Conn, Sqlite, SystemSqlite, WalIndex};
use litestream::sys::World;
use rusqlite::Connection;

use super::support::{Bench, set_up};

/// More commits than any sync has a reason to wait for.
const ENOUGH: u32 = 500;

/// Commits three times before each look at the wal-index, `ENOUGH` times at most.
#[derive(Debug, Clone)]
struct Eager {
    app: Arc<Mutex<Connection>>,
    commits: Arc<AtomicU32>,
}

#[derive(Debug)]
struct EagerConn(Box<dyn Conn>, Eager);

impl Sqlite for Eager {
    fn open(&self, path: &Path, busy_timeout: Duration) -> Result<Box<dyn Conn>> {
        Ok(Box::new(EagerConn(SystemSqlite.open(path, busy_timeout)?, self.clone())))
    }
}

impl Conn for EagerConn {
    fn execute(&mut self, sql: &str) -> Result<()> {
        self.0.execute(sql)
    }

    fn query(&mut self, sql: &str) -> Result<String> {
        self.0.query(sql)
    }

    fn checkpoint(&mut self) -> Result<CheckpointResult> {
        self.0.checkpoint()
    }

    fn wal_index(&self) -> Result<WalIndex> {
        for _ in 0..3 {
            let write = "INSERT INTO t(v) VALUES (randomblob(3000))";
            // Under the engine's own write lock it does not get in.
            if self.1.commits.load(Ordering::Relaxed) < ENOUGH
                && self.1.app.lock().unwrap().execute_batch(write).is_ok()
            {
                self.1.commits.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.0.wal_index()
    }

    fn keep_writers_out(&self) -> Result<bool> {
        self.0.keep_writers_out()
    }

    fn let_writers(&self) {
        self.0.let_writers();
    }

    fn is_waited_for(&self) -> bool {
        self.0.is_waited_for()
    }
}

#[test]
fn a_writer_that_is_always_ahead_of_limited_files_is_caught_up_with() {
    let bench = Bench::new();
    let app = bench.app();
    set_up(&app, 1024);
    app.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
    app.busy_timeout(Duration::ZERO).unwrap();
    let eager = Eager { app: Arc::new(Mutex::new(app)), commits: Arc::new(AtomicU32::new(ENOUGH)) };
    let config = DbConfig { max_sync_wal_bytes: Some(1), ..bench.config() };
    let mut db = Db::new(World::system(), Arc::new(eager.clone()), config);
    // The first file is an image, which has no limit.
    db.sync_log().unwrap();
    eager.commits.store(0, Ordering::Relaxed);
    db.sync_log().unwrap();
    let meanwhile = eager.commits.load(Ordering::Relaxed);
    assert!(meanwhile < ENOUGH, "the sync ended only when the writer did");
    eager.commits.store(ENOUGH, Ordering::Relaxed);
    db.sync().unwrap();
    bench.assert_caught_up("after the writer has stopped");
}
