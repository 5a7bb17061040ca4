//! SQLite through its own library: the connections we hold, the read transaction that keeps
//! others from resetting the log, checkpoints, and the wal-index header.
//!
//! POSIX lock rule: closing any descriptor of a database file drops all locks this process holds
//! on it. Nothing outside SQLite opens and closes a database file that SQLite has open here;
//! `db` keeps one descriptor of its own for direct page reads, opened before the first
//! connection and closed after the last (`spec: replication` §2).

mod codes;
mod conn;
mod exclusive;
mod integrity;
mod waiting;
mod wal_index;

pub use conn::{CheckpointResult, Conn, Sqlite, SystemSqlite};
pub use exclusive::Exclusive;
pub use integrity::{Unchecked, integrity_check};
pub use wal_index::WalIndex;
