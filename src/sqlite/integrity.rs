//! Asking SQLite whether a database file is sound.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::codes;
use crate::error::{Error, Result};
use crate::types::IntegrityCheck;

/// Runs the check on a file nobody else uses. The content is untrusted: no triggers, views or
/// functions of its schema run.
///
/// # Errors
/// `Corrupt` with SQLite's first finding (`integrity check failed: …`); errors of opening.
pub fn integrity_check(path: &Path, check: IntegrityCheck) -> Result<()> {
    let sql = match check {
        IntegrityCheck::None => return Ok(()),
        IntegrityCheck::Quick => "PRAGMA quick_check",
        IntegrityCheck::Full => "PRAGMA integrity_check",
    };
    let run = || -> rusqlite::Result<String> {
        let conn =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        conn.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON")?;
        conn.query_row(sql, [], |row| row.get(0))
    };
    match run().map_err(|e| codes::error("integrity check failed", e))?.as_str() {
        "ok" => Ok(()),
        text => Err(Error::corrupt(format!("integrity check failed: {text}"))),
    }
}

/// Puts a database that nobody else has open into rollback-journal mode, with all of its log in it.
///
/// # Errors
/// `Busy` if others keep it open; errors of opening.
pub fn leave_wal_mode(path: &Path, patience: std::time::Duration) -> Result<()> {
    let run = || -> rusqlite::Result<String> {
        let conn =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        conn.busy_timeout(patience)?;
        conn.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0))
    };
    match run().map_err(|e| codes::error("leave WAL mode", e).at(path.display()))?.as_str() {
        "delete" => Ok(()),
        mode => Err(Error::new(
            crate::error::ErrorKind::Busy,
            format!("cannot leave WAL mode: {} stays in mode {mode}", path.display()),
        )),
    }
}
