//! Databases, stores over a replica in memory that counts and fails, and restores of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use litestream::compaction::{Levels, RetentionPolicy};
use litestream::db::DbConfig;
use litestream::error::Result;
use litestream::ltx::Header;
use litestream::replica::faulty::Faulty;
use litestream::replica::memory::MemoryClient;
use litestream::replica::{FileInfo, Layout, Replica, Stamps};
use litestream::restore::{self, Request, Target};
use litestream::sqlite::SystemSqlite;
use litestream::store::{DatabaseConfig, ShutdownPolicy, Store, StoreConfig, TargetConfig, UpkeepConfig};
use litestream::sys::World;
use litestream::types::{Level, Txid, TxidRange};
use rusqlite::Connection;
use tokio_util::sync::CancellationToken;

/// A database in a directory of its own.
pub(crate) struct Source {
    dir: tempfile::TempDir,
    pub(crate) app: Connection,
}

/// A replica, and what stands between it and its users.
#[derive(Clone)]
pub(crate) struct Remote {
    pub(crate) client: Arc<Faulty>,
    pub(crate) replica: Replica,
    memory: Arc<MemoryClient>,
}

impl Source {
    pub(crate) fn new(rows: i64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let app = Connection::open(dir.path().join("db")).unwrap();
        app.execute_batch("PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t(v)").unwrap();
        let source = Self { dir, app };
        source.insert(0..rows);
        source
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("db")
    }

    pub(crate) fn meta(&self) -> PathBuf {
        self.dir.path().join(".db-litestream")
    }

    /// One commit per value.
    /// Where the local level-0 file of a TXID is.
    pub(crate) fn local_l0(&self, txid: u64) -> PathBuf {
        self.meta().join(format!("ltx/0/{txid:016x}-{txid:016x}.ltx"))
    }

    /// Turns one bit of that file over, in the byte at an offset from its start or, below 0, from its end.
    pub(crate) fn turn_bit(&self, txid: u64, at: i64) {
        let mut bytes = std::fs::read(self.local_l0(txid)).unwrap();
        let at = usize::try_from(at.rem_euclid(i64::try_from(bytes.len()).unwrap())).unwrap();
        bytes[at] ^= 4;
        std::fs::write(self.local_l0(txid), bytes).unwrap();
    }

    pub(crate) fn insert(&self, values: std::ops::Range<i64>) {
        for value in values {
            self.app.execute("INSERT INTO t VALUES (?1)", [value]).unwrap();
        }
    }

    pub(crate) fn rows(&self) -> Vec<i64> {
        rows(&self.app)
    }

    pub(crate) fn config(&self, remote: &Remote) -> DatabaseConfig {
        self.config_with_meta(remote, self.meta())
    }

    pub(crate) fn config_with_meta(&self, remote: &Remote, meta: PathBuf) -> DatabaseConfig {
        let target =
            TargetConfig { replica: remote.replica.clone(), sync_interval: Duration::from_millis(10), max_files: None };
        DatabaseConfig {
            db: DbConfig::new(self.path(), meta),
            monitor_interval: Some(Duration::from_millis(10)),
            targets: vec![target],
        }
    }

    /// A store for this database alone.
    pub(crate) async fn store(&self, remote: &Remote) -> Store {
        open(vec![self.config(remote)]).await.unwrap()
    }

    /// Starts, syncs once and ends.
    pub(crate) async fn replicate_once(&self, remote: &Remote) -> Result<()> {
        let store = self.store(remote).await;
        let done = store.run_once(false, false).await;
        close(store).await;
        done
    }
}

fn rows(conn: &Connection) -> Vec<i64> {
    let mut query = conn.prepare("SELECT v FROM t ORDER BY rowid").unwrap();
    let rows = query.query_map([], |row| row.get(0)).unwrap();
    rows.map(std::result::Result::unwrap).collect()
}

pub(crate) fn upkeep() -> UpkeepConfig {
    UpkeepConfig {
        levels: Levels::new(vec![Duration::from_millis(200)]).unwrap(),
        snapshot_interval: Duration::from_secs(3600),
        retention: RetentionPolicy { enabled: true, snapshots: Duration::from_secs(3600), l0: None },
        l0_check_interval: Duration::from_secs(15),
        verify_compaction: false,
        validation_interval: None,
    }
}

pub(crate) async fn open(databases: Vec<DatabaseConfig>) -> Result<Store> {
    open_with(databases, upkeep()).await
}

pub(crate) async fn open_with(databases: Vec<DatabaseConfig>, upkeep: UpkeepConfig) -> Result<Store> {
    open_in(World::system(), databases, upkeep).await
}

pub(crate) async fn open_in(world: World, databases: Vec<DatabaseConfig>, upkeep: UpkeepConfig) -> Result<Store> {
    let shutdown = ShutdownPolicy { timeout: Duration::from_secs(5), interval: Duration::from_millis(20) };
    Store::open(world, Arc::new(SystemSqlite), StoreConfig { databases, shutdown, upkeep }).await
}

pub(crate) async fn close(store: Store) {
    store.close(CancellationToken::new()).await;
}

impl Remote {
    pub(crate) fn new() -> Self {
        Self::of(Arc::new(MemoryClient::new()))
    }

    fn of(memory: Arc<MemoryClient>) -> Self {
        let client = Arc::new(Faulty::new(memory.clone()));
        Self { replica: Replica::new(client.clone(), Layout::Decimal), client, memory }
    }

    /// The same objects by another way, where nothing is slow and nothing fails.
    pub(crate) fn beside(&self) -> Self {
        Self::of(self.memory.clone())
    }

    pub(crate) async fn files(&self) -> Vec<FileInfo> {
        self.replica.list_all(Stamps::Exact).await.unwrap()
    }

    /// (min, max) of the files of a level.
    pub(crate) async fn level(&self, level: u8) -> Vec<(u64, u64)> {
        let files = self.files().await;
        files.iter().filter(|f| f.level.get() == level).map(|f| (f.txids.min().get(), f.txids.max().get())).collect()
    }

    pub(crate) async fn delete(&self, level: u8, min: u64, max: u64) {
        let txids = TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap();
        self.replica.delete(&[(Level::new(level).unwrap(), txids)]).await.unwrap();
    }

    pub(crate) async fn header(&self, file: &FileInfo) -> Header {
        self.replica.header(file.level, file.txids).await.unwrap()
    }

    /// The rows of a restored state.
    pub(crate) async fn restored(&self, target: Target) -> Result<Vec<i64>> {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("restored");
        let request = Request { target, ..Request::new(&out) };
        restore::run(&World::system(), &self.replica, &request, Arc::new(|_, _| Ok(()))).await?;
        let conn = Connection::open(out).unwrap();
        let check: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        Ok(rows(&conn))
    }

    pub(crate) async fn latest(&self) -> Vec<i64> {
        self.restored(Target::Latest).await.unwrap()
    }

    /// Whether the newest state is that of the source.
    pub(crate) async fn has_all_of(&self, source: &Source) -> bool {
        self.restored(Target::Latest).await.is_ok_and(|rows| rows == source.rows())
    }
}

/// Waits for something that tasks do meanwhile.
pub(crate) async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..1000 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still not: {what}");
}
