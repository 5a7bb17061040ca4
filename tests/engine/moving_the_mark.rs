//! What others may do at the very moments in which our read mark moves.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use litestream::db::{Db, DbConfig};
use litestream::error::Result;
use litestream::sqlite::{CheckpointResult, Conn, Sqlite, SystemSqlite, WalIndex};
use litestream::sys::World;
use rusqlite::Connection;

use super::support::{Bench, set_up};

type Steps = Arc<Mutex<VecDeque<Box<dyn FnOnce() + Send>>>>;

/// Runs one step of somebody else before each statement that begins or ends a transaction, and before
/// each checkpoint, while there are any.
#[derive(Clone)]
struct Interleaved(Steps);

impl std::fmt::Debug for Interleaved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interleaved")
    }
}

#[derive(Debug)]
struct InterleavedConn(Box<dyn Conn>, Interleaved);

impl Interleaved {
    fn take_turns(&self) {
        let step = self.0.lock().unwrap().pop_front();
        if let Some(step) = step {
            step();
        }
    }
}

impl Sqlite for Interleaved {
    fn open(&self, path: &Path, busy_timeout: Duration) -> Result<Box<dyn Conn>> {
        Ok(Box::new(InterleavedConn(SystemSqlite.open(path, busy_timeout)?, self.clone())))
    }
}

impl Conn for InterleavedConn {
    fn execute(&mut self, sql: &str) -> Result<()> {
        self.1.take_turns();
        self.0.execute(sql)
    }

    fn query(&mut self, sql: &str) -> Result<String> {
        self.0.query(sql)
    }

    fn checkpoint(&mut self) -> Result<CheckpointResult> {
        self.1.take_turns();
        self.0.checkpoint()
    }

    fn wal_index(&self) -> Result<WalIndex> {
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

fn step(path: &Path, sql: &'static str) -> Box<dyn FnOnce() + Send> {
    let path = path.to_owned();
    Box::new(move || {
        let conn = Connection::open(path).unwrap();
        conn.busy_timeout(Duration::ZERO).unwrap();
        conn.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
        let _ = conn.execute_batch(sql);
        // Closing checkpoints only if it is the last; ours are open.
    })
}

/// A commit, a checkpoint and a commit fall between the statements of one checkpoint of ours, in every
/// order that fits: the first commit is not read yet when the mark moves past it, the checkpoint copies
/// it, so that we land on read lock 0, and the second commit restarts the log over it.
#[test]
fn a_log_that_is_copied_and_restarted_while_the_mark_moves_loses_nothing() {
    const WRITE: &str = "INSERT INTO t(v) VALUES (randomblob(300))";
    const COPY: &str = "PRAGMA wal_checkpoint(PASSIVE)";
    for first in 0..8 {
        for second in first..9 {
            for third in second..10 {
                let bench = Bench::new();
                let app = bench.app();
                set_up(&app, 1024);
                app.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
                let steps = Steps::default();
                let sqlite = Arc::new(Interleaved(Arc::clone(&steps)));
                let config = DbConfig { min_checkpoint_pages: 4, ..bench.config() };
                let mut db = Db::new(World::system(), sqlite, config);
                db.sync().unwrap();
                for _ in 0..6 {
                    app.execute_batch(WRITE).unwrap();
                }
                {
                    let mut steps = steps.lock().unwrap();
                    for at in 0..10 {
                        let mut all: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
                        for (when, sql) in [(first, WRITE), (second, COPY), (third, WRITE)] {
                            if when == at {
                                all.push(step(&bench.path, sql));
                            }
                        }
                        steps.push_back(Box::new(move || all.into_iter().for_each(|step| step())));
                    }
                }
                let _ = db.sync();
                steps.lock().unwrap().clear();
                db.sync().unwrap();
                bench.assert_caught_up(&format!("commit {first}, checkpoint {second}, commit {third}"));
            }
        }
    }
}
