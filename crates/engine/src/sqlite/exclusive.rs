//! What follow mode needs of SQLite, from connections of ours.

use std::path::Path;
use std::time::Duration;

use super::conn::{Conn, Sqlite};
use crate::error::Result;
use crate::restore::{ExclusiveConn, ExclusiveDb};

/// Connections for follow mode, opened with `S`.
#[derive(Debug, Clone, Copy)]
pub struct Exclusive<S>(pub S);

impl<S: Sqlite> ExclusiveDb for Exclusive<S> {
    fn connect(&self, path: &Path, busy_timeout: Duration) -> Result<Box<dyn ExclusiveConn>> {
        Ok(Box::new(Connected(self.0.open(path, busy_timeout)?)))
    }
}

#[derive(Debug)]
struct Connected(Box<dyn Conn>);

impl ExclusiveConn for Connected {
    fn execute(&mut self, sql: &str) -> Result<()> {
        self.0.execute(sql)
    }

    fn query(&mut self, sql: &str) -> Result<String> {
        self.0.query(sql)
    }
}
