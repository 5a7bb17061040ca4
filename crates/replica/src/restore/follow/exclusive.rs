//! SQLite, as far as follow mode needs it. It comes in from outside, as the check of a restored database does:
//! restoring links no SQLite.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::error::Result;

/// Opens the output with SQLite, whose locks keep readers out while pages are written.
pub trait ExclusiveDb: fmt::Debug + Send + Sync + 'static {
    /// Opens an existing database for reading and writing. A statement waits for locks up to `busy_timeout`. Closing
    /// the connection never checkpoints.
    ///
    /// # Errors
    /// SQLite's; `Busy` where somebody is in the way.
    fn connect(&self, path: &Path, busy_timeout: Duration) -> Result<Box<dyn ExclusiveConn>>;
}

/// One connection. Dropping it ends its transaction and closes it.
pub trait ExclusiveConn: fmt::Debug + Send {
    /// Runs statements whose rows do not matter.
    ///
    /// # Errors
    /// SQLite's; `Busy` where somebody is in the way.
    fn execute(&mut self, sql: &str) -> Result<()>;
    /// First column of the first row as text.
    ///
    /// # Errors
    /// SQLite's; `Busy` where somebody is in the way.
    fn query(&mut self, sql: &str) -> Result<String>;
}
