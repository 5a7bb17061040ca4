//! Connections, behind traits so that a simulation can put its own disk below them.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::path::Path;
use std::ptr;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, ffi};

use super::codes;
use super::waiting::{self, ShmDescriptor};
use super::wal_index::WalIndex;
use crate::error::{Error, ErrorKind, Result};

/// Opens connections.
pub trait Sqlite: fmt::Debug + Send + Sync + 'static {
    /// Opens an existing database for reading and writing, with the settings of
    /// `spec: replication` §2: busy timeout, no automatic checkpoints, the WAL file kept at
    /// close. Closing never checkpoints.
    ///
    /// # Errors
    /// Classified by SQLite's result code.
    fn open(&self, path: &Path, busy_timeout: Duration) -> Result<Box<dyn Conn>>;
}

/// The row that a checkpoint answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointResult {
    /// Somebody was in the way.
    pub busy: bool,
    /// Frames in the log; `None` if there is no log.
    pub log: Option<u32>,
    /// Frames copied so far.
    pub checkpointed: Option<u32>,
}

/// One connection. Dropping it ends its transaction and closes it.
pub trait Conn: fmt::Debug + Send {
    /// Runs statements whose rows do not matter.
    ///
    /// # Errors
    /// Classified by SQLite's result code.
    fn execute(&mut self, sql: &str) -> Result<()>;
    /// First column of the first row as text.
    ///
    /// # Errors
    /// Classified by SQLite's result code; `Internal` if there is no row.
    fn query(&mut self, sql: &str) -> Result<String>;
    /// `PRAGMA wal_checkpoint(PASSIVE)`: copies what it can without waiting for anybody. No other
    /// mode is used: they make the application wait, and reset the log behind our back.
    ///
    /// # Errors
    /// Classified by SQLite's result code.
    fn checkpoint(&mut self) -> Result<CheckpointResult>;
    /// The state of the log as SQLite sees it. Call it only while this connection has a read
    /// transaction open: that is what keeps the wal-index valid.
    ///
    /// # Errors
    /// `Busy` while a writer is between its two copies for longer than a few tries.
    fn wal_index(&self) -> Result<WalIndex>;
    /// Keeps every writer that knows SQLite's locks out of the log until [`Conn::let_writers`], without looking
    /// at a page: the log may contradict its index. `false` if one is at work. Call it only while this
    /// connection has a read transaction open, and nothing else in between.
    ///
    /// # Errors
    /// I/O errors.
    fn keep_writers_out(&self) -> Result<bool>;
    /// Ends [`Conn::keep_writers_out`].
    fn let_writers(&self);
    /// Whether another process is in the middle of a checkpoint that waits for readers. `false` too where that
    /// cannot be told.
    fn is_waited_for(&self) -> bool {
        false
    }
}

/// The bundled library on the machine's files.
#[derive(Debug, Clone, Copy)]
pub struct SystemSqlite;

impl Sqlite for SystemSqlite {
    fn open(&self, path: &Path, busy_timeout: Duration) -> Result<Box<dyn Conn>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        waiting::remember_shm();
        let open = || -> rusqlite::Result<Connection> {
            let conn = Connection::open_with_flags(path, flags)?;
            conn.busy_timeout(busy_timeout)?;
            conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            Ok(conn)
        };
        let mut conn = SystemConn { conn: open().map_err(|e| codes::error("", e))?, shm: None };
        conn.keep_wal_file()?;
        // We read a page or two; a larger cache would only be memory per database.
        let settings = "PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = 8";
        conn.noting_shm(|conn| conn.execute_batch(settings)).map_err(|e| codes::error("", e))?;
        Ok(Box::new(conn))
    }
}

struct SystemConn {
    conn: Connection,
    /// SQLite's own descriptor of the wal-index, if this connection was the first of the process to need one.
    shm: Option<ShmDescriptor>,
}

impl fmt::Debug for SystemConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemConn").finish_non_exhaustive()
    }
}

impl SystemConn {
    /// A connection opens the wal-index when it first reads.
    fn noting_shm<T>(&mut self, work: impl FnOnce(&Connection) -> T) -> T {
        if self.shm.is_some() {
            return work(&self.conn);
        }
        // What others opened on this thread is not ours.
        let _ = waiting::take_opened();
        let done = work(&self.conn);
        self.shm = waiting::take_opened();
        done
    }

    /// Without this the last connection to close would unlink the `-wal` path, even if a
    /// new database owns that name by now.
    fn keep_wal_file(&self) -> Result<()> {
        let mut on: c_int = 1;
        // SAFETY: the handle is open for the whole call, "main" is a NUL-terminated string, and
        // SQLITE_FCNTL_PERSIST_WAL reads and writes one int.
        let code = unsafe {
            ffi::sqlite3_file_control(
                self.conn.handle(),
                c"main".as_ptr(),
                ffi::SQLITE_FCNTL_PERSIST_WAL,
                ptr::from_mut(&mut on).cast::<c_void>(),
            )
        };
        if code == ffi::SQLITE_OK {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Io, format!("set PERSIST_WAL: result code {code}")))
        }
    }

    /// The open database file and its methods of version 2, which are those of shared memory.
    fn shared_memory(&self) -> Result<(*mut ffi::sqlite3_file, &ffi::sqlite3_io_methods)> {
        let fail = |what: &str| Error::new(ErrorKind::Io, format!("use wal-index: {what}"));
        let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
        // SAFETY: the handle is open; FILE_POINTER stores one pointer.
        let code = unsafe {
            ffi::sqlite3_file_control(
                self.conn.handle(),
                c"main".as_ptr(),
                ffi::SQLITE_FCNTL_FILE_POINTER,
                ptr::from_mut(&mut file).cast::<c_void>(),
            )
        };
        if code != ffi::SQLITE_OK || file.is_null() {
            return Err(fail("no file pointer"));
        }
        // SAFETY: `file` is the open main database file of this connection, which lives at least as long
        // as `self.conn`; its method table is set by the VFS that opened it, and is static.
        match unsafe { (*file).pMethods.as_ref() } {
            Some(methods) if methods.iVersion >= 2 => Ok((file, methods)),
            _ => Err(fail("the file system layer has no shared memory")),
        }
    }

    /// Takes or gives back the lock of the writer of the log.
    fn lock_of_writers(&self, flags: c_int) -> Result<c_int> {
        /// Its place among the locks of the wal-index.
        const WRITE_LOCK: c_int = 0;
        let (file, methods) = self.shared_memory()?;
        let Some(lock) = methods.xShmLock else { return Ok(ffi::SQLITE_IOERR_SHMLOCK) };
        // SAFETY: `file` is open, and its shared memory is mapped while the connection has its read transaction.
        Ok(unsafe { lock(file, WRITE_LOCK, 1, flags | ffi::SQLITE_SHM_EXCLUSIVE) })
    }

    /// Copies the start of the wal-index out of shared memory.
    fn copy_wal_index(&self) -> Result<[u8; WalIndex::BYTES]> {
        const REGION: c_int = 32 * 1024;
        let fail = |what: &str| Error::new(ErrorKind::Io, format!("read wal-index: {what}"));
        let (file, methods) = self.shared_memory()?;
        let mut region: *mut c_void = ptr::null_mut();
        let Some(map) = methods.xShmMap else { return Err(fail("the file system layer has no shared memory")) };
        // SAFETY: `file` is open. With extend = 0 this only hands out a region that exists.
        let code = unsafe { map(file, 0, REGION, 0, &raw mut region) };
        if code != ffi::SQLITE_OK && code != ffi::SQLITE_READONLY {
            return Err(fail(&format!("result code {code}")));
        }
        if region.is_null() {
            return Err(fail("not mapped"));
        }
        let mut bytes = [0_u8; WalIndex::BYTES];
        // SAFETY: region 0 has 32 KiB and stays mapped while the connection has its read
        // transaction. Other processes write to it at the same time, hence volatile reads and the
        // check of both copies afterwards. Words are aligned because regions are page-aligned.
        unsafe {
            let words = region.cast::<u32>();
            for (i, chunk) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                if i == 12 {
                    // A writer changes copy 2, then copy 1; reading in the other order means that
                    // equal copies were both complete.
                    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                }
                #[expect(clippy::host_endian_bytes, reason = "copied as it lies in memory")]
                let word = words.add(i).read_volatile().to_ne_bytes();
                *chunk = word;
            }
        }
        Ok(bytes)
    }
}

impl Conn for SystemConn {
    fn execute(&mut self, sql: &str) -> Result<()> {
        self.noting_shm(|conn| conn.execute_batch(sql)).map_err(|e| codes::error("", e))
    }

    fn query(&mut self, sql: &str) -> Result<String> {
        let value: rusqlite::types::Value =
            self.noting_shm(|conn| conn.query_row(sql, [], |row| row.get(0))).map_err(|e| codes::error("", e))?;
        Ok(match value {
            rusqlite::types::Value::Integer(n) => n.to_string(),
            rusqlite::types::Value::Text(text) => text,
            other => format!("{other:?}"),
        })
    }

    fn checkpoint(&mut self) -> Result<CheckpointResult> {
        self.conn
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
                let (busy, log, done): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                Ok(CheckpointResult {
                    busy: busy != 0,
                    log: u32::try_from(log).ok(),
                    checkpointed: u32::try_from(done).ok(),
                })
            })
            .map_err(|e| codes::error("", e))
    }

    fn keep_writers_out(&self) -> Result<bool> {
        match self.lock_of_writers(ffi::SQLITE_SHM_LOCK)? {
            ffi::SQLITE_OK => Ok(true),
            ffi::SQLITE_BUSY => Ok(false),
            code => Err(Error::new(ErrorKind::Io, format!("lock wal-index: result code {code}"))),
        }
    }

    fn is_waited_for(&self) -> bool {
        self.shm.is_some_and(ShmDescriptor::is_waited_on)
    }

    fn let_writers(&self) {
        // Unlocking does not fail; a connection that is closed has no locks either.
        let _ = self.lock_of_writers(ffi::SQLITE_SHM_UNLOCK);
    }

    fn wal_index(&self) -> Result<WalIndex> {
        for attempt in 0..500 {
            if let Some(index) = WalIndex::decode(&self.copy_wal_index()?) {
                return Ok(index);
            }
            // A writer is between its two copies: nanoseconds, unless it was preempted there.
            if attempt > 10 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Err(Error::new(ErrorKind::Busy, "read wal-index: header copies do not agree"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PageSize;

    fn wal_db(dir: &Path) -> (std::path::PathBuf, Connection) {
        let path = dir.join("db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t(x)").unwrap();
        (path, app)
    }

    #[test]
    fn the_wal_index_says_where_the_log_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (path, app) = wal_db(dir.path());
        let mut conn = SystemSqlite.open(&path, Duration::from_secs(1)).unwrap();
        conn.execute("BEGIN").unwrap();
        conn.query("PRAGMA schema_version").unwrap();
        let before = conn.wal_index().unwrap();
        app.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        let after = conn.wal_index().unwrap();
        assert!(after.last_frame > before.last_frame);
        assert_eq!(after.salts, before.salts);
        let bytes = std::fs::read(dir.path().join("db-wal")).unwrap();
        assert_eq!(after.end(PageSize::new(4096).unwrap()), bytes.len() as u64);
        let header = crate::wal::WalHeader::decode(bytes[..32].try_into().unwrap()).unwrap();
        assert_eq!(header.salts, after.salts);
    }

    #[test]
    fn closing_keeps_the_log_and_does_not_checkpoint_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, app) = wal_db(dir.path());
        let mut conn = SystemSqlite.open(&path, Duration::from_secs(1)).unwrap();
        // A connection takes part in the log only from its first read on.
        conn.query("PRAGMA schema_version").unwrap();
        let size = std::fs::metadata(&path).unwrap().len();
        drop(app);
        drop(conn);
        assert!(dir.path().join("db-wal").exists());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
    }

    #[test]
    fn not_a_database_is_a_typed_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("junk");
        std::fs::write(&path, vec![7; 5000]).unwrap();
        let err = SystemSqlite
            .open(&path, Duration::ZERO)
            .and_then(|mut conn| conn.query("PRAGMA journal_mode"))
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Corrupt);
        assert_eq!(err.to_string(), "file is not a database (26)");
    }
}
