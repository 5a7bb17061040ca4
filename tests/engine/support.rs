use std::path::{Path, PathBuf};
use std::sync::Arc;

use litestream::db::{Db, DbConfig};
use litestream::ltx::{Decoder, FileReader, LocalDir};
use litestream::sqlite::SystemSqlite;
use litestream::sys::World;
use litestream::types::Level;
use rusqlite::Connection;

/// A small reproducible random generator (splitmix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

pub(crate) struct Bench {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        Self { _dir: dir, path }
    }

    pub(crate) fn app(&self) -> Connection {
        let conn = Connection::open(&self.path).unwrap();
        conn.busy_timeout(std::time::Duration::from_millis(40)).unwrap();
        conn
    }

    pub(crate) fn config(&self) -> DbConfig {
        DbConfig::new(self.path.clone(), self.meta())
    }

    pub(crate) fn meta(&self) -> PathBuf {
        self.path.with_file_name(".db-litestream")
    }

    pub(crate) fn engine(&self, config: DbConfig) -> Db {
        Db::new(World::system(), Arc::new(SystemSqlite), config)
    }

    /// The local files put together.
    pub(crate) fn replayed(&self) -> Vec<u8> {
        let local = LocalDir::new(&World::system(), self.meta());
        let mut image = Vec::new();
        for txids in local.list(Level::L0).unwrap() {
            let file = local.open(Level::L0, txids).unwrap();
            let mut decoder = Decoder::new(FileReader::new(file)).unwrap();
            let header = *decoder.header();
            let mut page = vec![0; header.page_size.len()];
            let size = header.page_size.len();
            while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
                let at = (pgno.get() as usize - 1) * size;
                if image.len() < at + size {
                    image.resize(at + size, 0);
                }
                image[at..at + size].copy_from_slice(&page);
            }
            image.resize(header.commit as usize * size, 0);
        }
        image
    }

    /// The database as SQLite sees it, everything folded in. Works on copies.
    pub(crate) fn truth(&self) -> Vec<u8> {
        let copy = tempfile::tempdir().unwrap();
        let to = copy.path().join("db");
        std::fs::copy(&self.path, &to).unwrap();
        let wal = wal_of(&self.path);
        if wal.exists() {
            std::fs::copy(&wal, wal_of(&to)).unwrap();
        }
        let conn = Connection::open(&to).unwrap();
        let _: i64 = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get(0)).unwrap();
        drop(conn);
        std::fs::read(&to).unwrap()
    }

    #[track_caller]
    pub(crate) fn assert_caught_up(&self, what: &str) {
        let (replayed, truth) = (self.replayed(), self.truth());
        if replayed == truth {
            return;
        }
        let differing: Vec<usize> = replayed
            .chunks(512)
            .zip(truth.chunks(512))
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(i, _)| i * 512)
            .take(8)
            .collect();
        panic!("{what}: replayed {} bytes, truth {} bytes, differing at {differing:?}", replayed.len(), truth.len());
    }
}

pub(crate) fn wal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

pub(crate) fn set_up(conn: &Connection, page_size: u32) {
    conn.execute_batch(&format!(
        "PRAGMA page_size = {page_size}; PRAGMA journal_mode = wal; PRAGMA synchronous = normal;
         CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB); CREATE TABLE u(id INTEGER PRIMARY KEY, v BLOB);
         CREATE INDEX ti ON t(v)"
    ))
    .unwrap();
}
