//! The keeper at work: a store with short intervals, a real database, a directory as target.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use litestream::compaction::{Levels, RetentionPolicy};
use litestream::db::DbConfig;
use litestream::replica::faulty::{Faulty, Op};
use litestream::replica::file::FileClient;
use litestream::replica::{FileInfo, Layout, Replica, Stamps};
use litestream::restore::{self, Request};
use litestream::sqlite::SystemSqlite;
use litestream::store::{DatabaseConfig, ShutdownPolicy, Store, StoreConfig, TargetConfig, UpkeepConfig};
use litestream::sys::World;
use litestream::types::{Level, Txid, TxidRange};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

struct Scene {
    dir: TempDir,
    client: Arc<Faulty>,
    replica: Replica,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = FileClient::new(World::system(), dir.path().join("replica"));
        let client = Arc::new(Faulty::new(Arc::new(files)));
        let replica = Replica::new(client.clone(), Layout::Decimal);
        Self { dir, client, replica }
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("db")
    }

    fn local_l0(&self) -> PathBuf {
        self.dir.path().join("meta/ltx/0")
    }

    fn app(&self) -> Connection {
        let conn = Connection::open(self.db()).unwrap();
        conn.busy_timeout(millis(5000)).unwrap();
        conn.execute_batch("pragma journal_mode = wal; create table if not exists t (n integer primary key, v)")
            .unwrap();
        conn
    }

    async fn start(&self, upkeep: UpkeepConfig) -> Store {
        let db = DbConfig::new(self.db(), self.dir.path().join("meta"));
        let target = TargetConfig { replica: self.replica.clone(), sync_interval: millis(20), max_files: None };
        let database = DatabaseConfig { db, monitor_interval: Some(millis(20)), targets: vec![target] };
        let config = StoreConfig {
            databases: vec![database],
            shutdown: ShutdownPolicy { timeout: millis(1000), interval: millis(100) },
            upkeep,
        };
        let store = Store::open(World::system(), Arc::new(SystemSqlite), config).await.unwrap();
        store.start();
        store
    }

    async fn files(&self, level: u8) -> Vec<FileInfo> {
        self.replica.list(Level::new(level).unwrap(), None, Stamps::Cheap).await.unwrap()
    }

    async fn restored(&self) -> i64 {
        let out = self.dir.path().join(format!("out-{}", self.client.calls(Op::List)));
        restore::run(&World::system(), &self.replica, &Request::new(&out), Arc::new(|_, _| Ok(()))).await.unwrap();
        let conn = Connection::open(&out).unwrap();
        let check: String = conn.query_row("pragma integrity_check", [], |r| r.get(0)).unwrap();
        assert_eq!(check, "ok");
        conn.query_row("select count(*) from t", [], |r| r.get(0)).unwrap()
    }

    async fn wait_for(&self, what: &str, mut done: impl AsyncFnMut(&Self) -> bool) {
        for _ in 0..400 {
            if done(self).await {
                return;
            }
            tokio::time::sleep(millis(25)).await;
        }
        let files = self.replica.list_all(Stamps::Cheap).await.unwrap();
        let names: Vec<String> = files.iter().map(ToString::to_string).collect();
        panic!("waited too long for {what}: {names:#?}");
    }
}

fn upkeep() -> UpkeepConfig {
    UpkeepConfig {
        levels: Levels::new(vec![millis(200), millis(500)]).unwrap(),
        snapshot_interval: millis(1000),
        retention: RetentionPolicy { enabled: true, snapshots: millis(1500), l0: Some(millis(300)) },
        l0_check_interval: millis(100),
        verify_compaction: true,
        validation_interval: None,
    }
}

fn insert(conn: &Connection) {
    conn.execute("insert into t (v) values (randomblob(500))", []).unwrap();
}

fn local_files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_database_stays_small_on_both_sides_and_whole() {
    let scene = Scene::new();
    let app = scene.app();
    let store = scene.start(upkeep()).await;
    let mut rows = 0;
    for _ in 0..250 {
        insert(&app);
        rows += 1;
        tokio::time::sleep(millis(20)).await;
    }
    for level in [1, 2] {
        let files = scene.files(level).await;
        assert!(files.len() > 1, "level {level}: {files:?}");
        for pair in files.windows(2) {
            assert_eq!(pair[0].txids.max().next(), pair[1].txids.min(), "level {level}");
        }
    }
    let snapshots = scene.files(9).await;
    assert!((2..=4).contains(&snapshots.len()), "{snapshots:?}");
    assert!(scene.files(1).await[0].txids.min() > Txid::FIRST);
    let (l0, local) = (scene.files(0).await, local_files(&scene.local_l0()));
    assert!(l0.len() < 120 && local < 120, "{} {local}", l0.len());
    store.close(CancellationToken::new()).await;
    assert_eq!(scene.restored().await, rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_target_is_not_listed() {
    let scene = Scene::new();
    let app = scene.app();
    let store = scene.start(upkeep()).await;
    insert(&app);
    scene
        .wait_for("level 2 and a snapshot", async |s| !s.files(2).await.is_empty() && !s.files(9).await.is_empty())
        .await;
    tokio::time::sleep(millis(1500)).await;
    let calls = [Op::List, Op::Get, Op::Put, Op::Delete].map(|op| scene.client.calls(op));
    tokio::time::sleep(millis(2500)).await;
    assert_eq!([Op::List, Op::Get, Op::Put, Op::Delete].map(|op| scene.client.calls(op)), calls);
    store.close(CancellationToken::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d8_a_lost_object_is_uploaded_again_or_bridged_by_a_snapshot() {
    for keep_local in [true, false] {
        let scene = Scene::new();
        let app = scene.app();
        let quiet = UpkeepConfig { levels: Levels::default(), snapshot_interval: millis(3_600_000), ..upkeep() };
        let store = scene.start(quiet.clone()).await;
        for _ in 0..6 {
            insert(&app);
            tokio::time::sleep(millis(120)).await;
        }
        scene.wait_for("six files", async |s| s.files(0).await.len() >= 6).await;
        store.close(CancellationToken::new()).await;
        let lost = TxidRange::single(Txid::new(4).unwrap());
        scene.replica.delete(&[(Level::L0, lost)]).await.unwrap();
        // The snapshot from the start must not hide the gap.
        for snapshot in scene.files(9).await.iter().filter(|f| f.txids.max() >= lost.max()) {
            scene.replica.delete(&[(snapshot.level, snapshot.txids)]).await.unwrap();
        }
        if !keep_local {
            std::fs::remove_file(scene.local_l0().join(format!("{lost}.ltx"))).unwrap();
        }
        let store = scene.start(UpkeepConfig { levels: upkeep().levels, ..quiet }).await;
        insert(&app);
        scene.wait_for("level 1", async |s| s.files(1).await.last().is_some_and(|f| f.txids.max().get() > 6)).await;
        let there = scene.files(0).await.iter().any(|f| f.txids == lost);
        let bridged = scene.files(9).await.iter().any(|f| f.txids.max() >= lost.max());
        assert!(bridged || keep_local);
        assert!(there == keep_local || scene.files(1).await.iter().any(|f| f.txids.min() <= lost.min()));
        store.close(CancellationToken::new()).await;
        assert_eq!(scene.restored().await, 7);
    }
}
