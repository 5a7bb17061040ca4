//! Following a replica: readers see whole states only, whatever fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{Either, select};
use litestream::error::{Error, ErrorKind, Result};
use litestream::restore::{Following, Request, Target, follow};
use litestream::sqlite::{Exclusive, SystemSqlite};
use litestream::sys::{DirEntry, File, FileStat, Fs, Lock, OpenMode, OsFs, OwnerMode, World};
use litestream::types::{Timestamp, Txid};
use rusqlite::{Connection, OpenFlags};
use tokio_util::sync::CancellationToken;

use super::support::{Scene, no_check};

/// One L0 chain with TXIDs 1…n, a level-9 snapshot of the first four.
const FIXTURE: &str = "basic-4096";

fn hex(txid: u64) -> String {
    format!("{txid:016x}")
}

fn sidecar(scene: &Scene) -> PathBuf {
    scene.out_dir().join("db-txid")
}

pub(crate) fn saved(scene: &Scene) -> Option<u64> {
    u64::from_str_radix(fs::read_to_string(sidecar(scene)).ok()?.trim(), 16).ok()
}

pub(crate) async fn run(scene: &Scene, world: &World, stop: &CancellationToken) -> Result<()> {
    let following = Following { request: Request::new(scene.output()), interval: Duration::from_millis(5) };
    follow(world, &scene.replica, &following, no_check(), Arc::new(Exclusive(SystemSqlite)), stop, |_| {}).await
}

/// Follows until `done`, or until following ends by itself.
pub(crate) async fn follow_while(scene: &Scene, world: &World, mut more: impl FnMut() -> bool) -> Result<()> {
    let stop = CancellationToken::new();
    let watch = async {
        for _ in 0..2000 {
            if !more() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    };
    match select(pin!(run(scene, world, &stop)), pin!(watch)).await {
        Either::Left((ended, _)) => ended,
        Either::Right(((), running)) => running.await,
    }
}

async fn follow_to(scene: &Scene, txid: u64) {
    follow_while(scene, &scene.world, || saved(scene) != Some(txid)).await.unwrap();
    assert_eq!(saved(scene), Some(txid));
    assert_whole(scene, txid).await;
}

/// Everything but journal mode, change counter, schema cookie, and the size and library version that go with them.
fn comparable(mut bytes: Vec<u8>) -> Vec<u8> {
    for range in [18..20, 24..32, 40..44, 92..100] {
        bytes[range].fill(0);
    }
    bytes
}

async fn state(txid: u64) -> Vec<u8> {
    let scene = Scene::of(FIXTURE);
    let target = Target::Txid(Txid::new(txid).unwrap());
    scene.restore(&Request { target, ..Request::new(scene.output()) }).await.unwrap();
    comparable(fs::read(scene.output()).unwrap())
}

async fn assert_whole(scene: &Scene, txid: u64) {
    assert!(comparable(fs::read(scene.output()).unwrap()) == state(txid).await, "state {txid}");
    let conn = Connection::open_with_flags(scene.output(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let text = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(text("PRAGMA integrity_check"), "ok");
    assert_eq!(text("PRAGMA journal_mode"), "delete");
    let mut names: Vec<String> = scene.outputs().into_iter().map(|(name, _)| name).collect();
    names.retain(|name| name != "db" && name != "db-txid");
    assert!(names.is_empty(), "{names:?}");
}

/// A scene whose replica holds TXIDs up to `newest` only, in level 0; the rest is in `hold`.
struct Held {
    scene: Scene,
    hold: PathBuf,
    newest: u64,
}

impl Held {
    fn at(txid: u64) -> Self {
        let scene = Scene::of(FIXTURE);
        let hold = scene.object("hold");
        fs::create_dir(&hold).unwrap();
        OsFs.rename(&scene.ltx(9, 1, 4), &hold.join("snapshot")).unwrap();
        let newest = (1..).take_while(|n| scene.ltx(0, *n, *n).exists()).last().unwrap();
        for n in txid + 1..=newest {
            OsFs.rename(&scene.ltx(0, n, n), &hold.join(hex(n))).unwrap();
        }
        Self { scene, hold, newest }
    }

    fn bring(&self, txid: u64) {
        OsFs.rename(&self.hold.join(hex(txid)), &self.scene.ltx(0, txid, txid)).unwrap();
    }

    fn bring_snapshot(&self) {
        OsFs.rename(&self.hold.join("snapshot"), &self.scene.ltx(9, 1, 4)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_new_state_arrives_and_a_stopped_follower_resumes() {
    let held = Held::at(1);
    let scene = &held.scene;
    follow_to(scene, 1).await;
    for txid in 2..=held.newest {
        held.bring(txid);
        // X2: the saved TXID is beyond every snapshot, there being none.
        follow_to(scene, txid).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_changes_nothing_and_is_tried_again() {
    for damage in [|bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 3), |bytes: &mut Vec<u8>| bytes[130] ^= 1] {
        let held = Held::at(2);
        let scene = &held.scene;
        follow_to(scene, 2).await;
        held.bring(3);
        let path = scene.ltx(0, 3, 3);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        damage(&mut bad);
        fs::write(&path, bad).unwrap();
        let before = scene.outputs();
        let mut rounds = 40;
        follow_while(scene, &scene.world, || {
            rounds -= 1;
            rounds > 0
        })
        .await
        .unwrap();
        assert!(scene.outputs() == before);
        fs::write(&path, good).unwrap();
        follow_to(scene, 3).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_bridged_by_a_snapshot() {
    let held = Held::at(1);
    let scene = &held.scene;
    follow_to(scene, 1).await;
    // X3: the files that would lead on were deleted; only a snapshot is left.
    held.bring_snapshot();
    fs::remove_file(scene.ltx(0, 1, 1)).unwrap();
    follow_to(scene, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_resumed_is_said_so() {
    let held = Held::at(2);
    let scene = &held.scene;
    let error = async || {
        let err = follow_while(scene, &scene.world, || true).await.unwrap_err();
        err.to_string().replace(scene.output().to_str().unwrap(), "$OUT")
    };
    follow_to(scene, 2).await;
    fs::remove_file(sidecar(scene)).unwrap();
    assert!(error().await.ends_with("no -txid file found; delete the database to re-restore: $OUT"));
    fs::write(sidecar(scene), "junk\n").unwrap();
    assert_eq!(
        error().await,
        "read txid file for crash recovery: parse txid file: invalid formatted transaction id length: \"junk\""
    );
    fs::write(sidecar(scene), hex(9)).unwrap();
    assert_eq!(
        error().await,
        "cannot resume follow mode: saved TXID 0000000000000009 is ahead of the replica (max TXID 0000000000000002); \
         delete $OUT and $OUT-txid to re-restore"
    );
    fs::write(sidecar(scene), hex(2)).unwrap();
    held.bring(3);
    held.bring(4);
    fs::remove_file(scene.ltx(0, 3, 3)).unwrap();
    assert!(error().await.contains("saved TXID 0000000000000002 is behind the earliest file that follows"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_somebody_else_writes_to_is_left_alone() {
    let held = Held::at(2);
    let scene = &held.scene;
    follow_to(scene, 2).await;
    let stop = CancellationToken::new();
    let meddle = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let conn = Connection::open(scene.output()).unwrap();
        conn.busy_timeout(Duration::from_secs(5)).unwrap();
        conn.execute_batch("PRAGMA user_version = 7").unwrap();
        held.bring(3);
        tokio::time::sleep(Duration::from_millis(100)).await;
        conn.execute_batch("PRAGMA user_version = 8").unwrap();
        held.bring(4);
        tokio::time::sleep(Duration::from_secs(5)).await;
        stop.cancel();
    };
    let err = tokio::select! {
        ended = run(scene, &scene.world, &stop) => ended.unwrap_err(),
        () = meddle => panic!("not noticed"),
    };
    assert_eq!(err.kind(), ErrorKind::Changed);
    assert!(err.to_string().contains("another program has changed the output of follow mode"), "{err}");
    // A log with content is no state of ours either.
    fs::write(scene.out_dir().join("db-wal"), [1; 100]).unwrap();
    let err = follow_while(scene, &scene.world, || true).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Changed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_database_in_wal_mode_can_be_followed_too() {
    let held = Held::at(2);
    let scene = &held.scene;
    scene.restore(&Request::new(scene.output())).await.unwrap();
    assert_eq!(fs::read(scene.output()).unwrap()[18], 2);
    fs::write(sidecar(scene), hex(2)).unwrap();
    held.bring(3);
    follow_to(scene, 3).await;
}

/// Fails the n-th step that changes something below the output directory, and all after it.
#[derive(Debug)]
struct Failing {
    left: Arc<AtomicU64>,
}

fn pass(left: &AtomicU64) -> Result<()> {
    match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::new(ErrorKind::DiskFull, "no space left")),
    }
}

#[derive(Debug)]
struct FailingFile {
    file: Box<dyn File>,
    left: Arc<AtomicU64>,
}

impl File for FailingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        if let Err(err) = pass(&self.left) {
            // Half of it arrives.
            self.file.write_all_at(&buf[..buf.len() / 2], offset)?;
            return Err(err);
        }
        self.file.write_all_at(buf, offset)
    }
    fn set_len(&self, len: u64) -> Result<()> {
        pass(&self.left)?;
        self.file.set_len(len)
    }
    fn sync(&self) -> Result<()> {
        pass(&self.left)?;
        self.file.sync()
    }
    fn stat(&self) -> Result<FileStat> {
        self.file.stat()
    }
    fn set_modified(&self, at: Timestamp) -> Result<()> {
        self.file.set_modified(at)
    }
}

impl Fs for Failing {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Box<dyn File>> {
        if matches!(mode, OpenMode::CreateNew(_)) {
            pass(&self.left)?;
        }
        Ok(Box::new(FailingFile { file: OsFs.open(path, mode)?, left: self.left.clone() }))
    }
    fn stat(&self, path: &Path) -> Result<FileStat> {
        OsFs.stat(path)
    }
    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        OsFs.list(dir)
    }
    fn create_dir_all(&self, dir: &Path, owner_mode: OwnerMode) -> Result<()> {
        OsFs.create_dir_all(dir, owner_mode)
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        pass(&self.left)?;
        OsFs.rename(from, to)
    }
    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        pass(&self.left)?;
        OsFs.rename_new(from, to)
    }
    fn lock(&self, path: &Path, owner_mode: OwnerMode, holder: &str) -> Result<Box<dyn Lock>> {
        OsFs.lock(path, owner_mode, holder)
    }
    fn remove_file(&self, path: &Path) -> Result<()> {
        pass(&self.left)?;
        OsFs.remove_file(path)
    }
    fn remove_dir_all(&self, dir: &Path) -> Result<()> {
        OsFs.remove_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> Result<()> {
        pass(&self.left)?;
        OsFs.sync_dir(dir)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_a_batch_fails_readers_see_the_state_before_or_after_it() {
    let (old, new) = (state(2).await, state(4).await);
    let mut seen = (0, 0);
    for steps in 0.. {
        let held = Held::at(2);
        let scene = &held.scene;
        follow_to(scene, 2).await;
        held.bring(3);
        held.bring(4);
        let left = Arc::new(AtomicU64::new(steps));
        let world = World { fs: Arc::new(Failing { left: left.clone() }), ..scene.world.clone() };
        let mut rounds = 10;
        let _ = follow_while(scene, &world, || {
            rounds -= 1;
            left.load(Ordering::SeqCst) > 0 && rounds > 0 && saved(scene) != Some(4)
        })
        .await;
        let finished = saved(scene) == Some(4);
        // A reader is the first to come: what a crash left is rolled back for it.
        let reader = Connection::open(scene.output()).unwrap();
        reader.busy_timeout(Duration::from_secs(5)).unwrap();
        let check: String = reader.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "after {steps} steps");
        drop(reader);
        let is = comparable(fs::read(scene.output()).unwrap());
        assert!(is == old || is == new, "a mixture after {steps} steps");
        seen = (seen.0 + u32::from(is == old), seen.1 + u32::from(is == new));
        // Whatever it was: the next follower gets to the end.
        for (name, _) in scene.outputs().iter().filter(|(name, _)| name.ends_with(".tmp")) {
            fs::remove_file(scene.out_dir().join(name)).unwrap();
        }
        follow_to(scene, 4).await;
        if finished && left.load(Ordering::SeqCst) > 0 {
            break;
        }
    }
    assert!(seen.0 > 5 && seen.1 > 1, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_inside_a_transaction_is_waited_for() {
    let held = Held::at(2);
    let scene = &held.scene;
    follow_to(scene, 2).await;
    let reader = Connection::open_with_flags(scene.output(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let version = || reader.query_row("PRAGMA schema_version", [], |row| row.get::<_, i64>(0)).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let before = version();
    held.bring(3);
    let mut rounds = 100;
    follow_while(scene, &scene.world, || {
        rounds -= 1;
        rounds > 0
    })
    .await
    .unwrap();
    assert_eq!(version(), before);
    assert_eq!(saved(scene), Some(2));
    reader.execute_batch("COMMIT").unwrap();
    drop(reader);
    follow_to(scene, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_the_output_does_not_go_back() {
    // The output is at 4, the note of it was lost: files that lead only to 3 must not be applied.
    let held = Held::at(2);
    let scene = &held.scene;
    follow_to(scene, 2).await;
    held.bring(3);
    held.bring(4);
    follow_to(scene, 4).await;
    fs::write(sidecar(scene), hex(2)).unwrap();
    fs::write(scene.out_dir().join("db-txid-next"), format!("{} {}\n", hex(2), hex(4))).unwrap();
    fs::remove_file(scene.ltx(0, 4, 4)).unwrap();
    let before = fs::read(scene.output()).unwrap();
    let mut rounds = 40;
    follow_while(scene, &scene.world, || {
        rounds -= 1;
        rounds > 0
    })
    .await
    .unwrap();
    assert!(fs::read(scene.output()).unwrap() == before);
    assert_eq!(saved(scene), Some(2));
    // With the snapshot of 4 back it goes on.
    held.bring_snapshot();
    follow_to(scene, 4).await;
}
