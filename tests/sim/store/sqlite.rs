//! SQLite as one life of a process uses it: whatever thread of work it is called from, its files are
//! opened, looked for and removed by that process.

use std::path::Path;
use std::time::Duration;

use litestream::error::Result;
use litestream::sqlite::{CheckpointResult, Conn, Sqlite, SystemSqlite, WalIndex};

use crate::disk::{Who, acting};

/// Opens connections for one life of a process.
#[derive(Debug)]
pub(super) struct ProcessSqlite(pub(super) Who);

#[derive(Debug)]
struct ProcessConn {
    who: Who,
    conn: Option<Box<dyn Conn>>,
}

impl Sqlite for ProcessSqlite {
    fn open(&self, path: &Path, busy_timeout: Duration) -> Result<Box<dyn Conn>> {
        let conn = acting(self.0, || SystemSqlite.open(path, busy_timeout))?;
        Ok(Box::new(ProcessConn { who: self.0, conn: Some(conn) }))
    }
}

impl ProcessConn {
    fn act<T>(&mut self, work: impl FnOnce(&mut dyn Conn) -> T) -> T {
        let conn = self.conn.as_mut().expect("open until dropped");
        acting(self.who, || work(conn.as_mut()))
    }
}

impl Conn for ProcessConn {
    fn execute(&mut self, sql: &str) -> Result<()> {
        self.act(|conn| conn.execute(sql))
    }

    fn query(&mut self, sql: &str) -> Result<String> {
        self.act(|conn| conn.query(sql))
    }

    fn checkpoint(&mut self) -> Result<CheckpointResult> {
        self.act(|conn| conn.checkpoint())
    }

    fn wal_index(&self) -> Result<WalIndex> {
        let conn = self.conn.as_ref().expect("open until dropped");
        acting(self.who, || conn.wal_index())
    }

    fn keep_writers_out(&self) -> Result<bool> {
        let conn = self.conn.as_ref().expect("open until dropped");
        acting(self.who, || conn.keep_writers_out())
    }

    fn let_writers(&self) {
        let conn = self.conn.as_ref().expect("open until dropped");
        acting(self.who, || conn.let_writers());
    }
}

impl Drop for ProcessConn {
    fn drop(&mut self) {
        acting(self.who, || self.conn = None);
    }
}
