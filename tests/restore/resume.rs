//! A restore that was interrupted goes on where it ended, or starts anew; either way the result is the same.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use litestream::error::{Error, ErrorKind};
use litestream::ltx::{Encoder, Header, WalPos};
use litestream::replica::faulty::{Fault, Faulty, Op};
use litestream::replica::file::FileClient;
use litestream::replica::{Layout, Replica};
use litestream::restore::{Report, Request, run};
use litestream::sys::World;
use litestream::types::{Checksum, PageSize, Pgno, Timestamp, Txid, TxidRange};
use tempfile::TempDir;

use super::support::{no_check, sha256};

const PAGE: usize = 4096;
const PAGES: u32 = 10_000;

/// Content that does not compress.
fn page(pgno: u32, txid: u64) -> Vec<u8> {
    let mut state = (u64::from(pgno) << 32) | txid | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..PAGE / 8).flat_map(|_| next().to_le_bytes()).collect()
}

/// An LTX file with pages as `content` would have written them, but for `other`.
fn encoded(min: u64, max: u64, content: u64, other: Option<u32>, pages: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let header = Header {
        no_checksum: true,
        page_size: PageSize::new(PAGE as u32).unwrap(),
        commit: PAGES,
        txids: TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap(),
        timestamp: Timestamp::from_millis(5),
        pre_apply: Checksum::NONE,
        wal: WalPos::default(),
        node_id: 0,
    };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for pgno in pages {
        let content = if Some(pgno) == other { content + 1000 } else { content };
        encoder.page(Pgno::new(pgno).unwrap(), &page(pgno, content)).unwrap();
    }
    encoder.finish(Checksum::NONE).unwrap().0
}

/// A replica of 41 MB: a snapshot, and a small file after it.
struct Scene {
    dir: TempDir,
    client: Arc<Faulty>,
    replica: Replica,
    world: World,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = World::system();
        let client = Arc::new(Faulty::new(Arc::new(FileClient::new(world.clone(), dir.path().join("replica")))));
        let replica = Replica::new(client.clone(), Layout::Decimal);
        let scene = Self { dir, client, replica, world };
        scene.add(9, 1, 5, 1..=PAGES);
        scene.add(0, 6, 6, [1, 17, PAGES]);
        fs::create_dir(scene.out_dir()).unwrap();
        scene
    }

    fn add(&self, level: u8, min: u64, max: u64, pages: impl IntoIterator<Item = u32>) {
        let path = self.dir.path().join(format!("replica/ltx/{level}/{min:016x}-{max:016x}.ltx"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, encoded(min, max, max, None, pages)).unwrap();
    }

    fn out_dir(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// File names in the output directory, digits of temporary names replaced.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.out_dir()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        for name in &mut names {
            if let Some((_, rest)) = name.split_once(".tmp") {
                *name = format!("TEMP{rest}");
            }
        }
        names
    }

    fn temp(&self) -> PathBuf {
        let mut entries = fs::read_dir(self.out_dir()).unwrap().map(|e| e.unwrap().path());
        entries.find(|path| path.extension().is_some_and(|ext| ext == "tmp")).unwrap()
    }

    fn request(&self) -> Request {
        Request { parallelism: Some(1), ..Request::new(self.out_dir().join("db")) }
    }

    async fn restore(&self) -> Result<Report, Error> {
        run(&self.world, &self.replica, &self.request(), no_check()).await
    }

    /// A restore that is stopped after so many bytes of the snapshot, which comes second.
    async fn interrupted(&self, after: u64) {
        self.client.push(Op::Get, Fault::CutBody { after: u64::MAX });
        self.interrupted_again(after).await;
    }

    /// The same when only the snapshot is left.
    async fn interrupted_again(&self, after: u64) {
        self.client.push(Op::Get, Fault::BreakBody { after, kind: ErrorKind::Cancelled });
        let err = self.restore().await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Cancelled, "{err}");
    }

    fn sha256(&self) -> String {
        sha256(&self.out_dir().join("db"))
    }
}

async fn want(scene: &Scene) -> String {
    let request = Request::new(scene.dir.path().join("fresh"));
    run(&scene.world, &scene.replica, &request, no_check()).await.unwrap();
    sha256(&request.output)
}

#[tokio::test]
async fn an_interrupted_restore_goes_on_where_it_ended() {
    let scene = Scene::new();
    let want = want(&scene).await;
    scene.interrupted(20 << 20).await;
    assert_eq!(scene.names(), ["TEMP", "TEMP-progress"]);
    let gets = scene.client.calls(Op::Get);
    scene.interrupted_again(20 << 20).await;
    let report = scene.restore().await.unwrap();
    assert!(report.resumed >= 32 << 20, "{}", report.resumed);
    assert_eq!(scene.names(), ["db"]);
    assert_eq!(scene.sha256(), want);
    // The file that was done is not asked for again.
    assert_eq!(scene.client.calls(Op::Get), gets + 2);
}

#[tokio::test]
async fn an_interruption_before_anything_was_noted_leaves_nothing() {
    let scene = Scene::new();
    scene.interrupted(1 << 20).await;
    assert_eq!(scene.names(), [""; 0]);
    assert_eq!(scene.restore().await.unwrap().resumed, 0);
}

#[tokio::test]
async fn what_was_written_must_still_be_there() {
    let scene = Scene::new();
    let want = want(&scene).await;
    scene.interrupted(20 << 20).await;
    let mut bytes = fs::read(scene.temp()).unwrap();
    bytes[5 * PAGE + 7] ^= 1;
    fs::write(scene.temp(), bytes).unwrap();
    let report = scene.restore().await.unwrap();
    assert_eq!(report.resumed, 0);
    assert_eq!((scene.names(), scene.sha256()), (vec!["db".to_owned()], want));
}

#[tokio::test]
async fn other_files_mean_a_new_start() {
    let scene = Scene::new();
    scene.interrupted(20 << 20).await;
    scene.add(0, 7, 7, [1, 2]);
    let want = want(&scene).await;
    let report = scene.restore().await.unwrap();
    assert_eq!((report.resumed, report.txid.unwrap().get()), (0, 7));
    assert_eq!((scene.names(), scene.sha256()), (vec!["db".to_owned()], want));
}

#[tokio::test]
async fn a_file_that_was_exchanged_unnoticed_means_a_new_start() {
    let scene = Scene::new();
    scene.interrupted(20 << 20).await;
    // The same name, size and time, other pages.
    let path = scene.dir.path().join("replica/ltx/9/0000000000000001-0000000000000005.ltx");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    let size = fs::metadata(&path).unwrap().len();
    fs::write(&path, encoded(1, 5, 5, Some(3), 1..=PAGES)).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), size);
    let want = want(&scene).await;
    let report = scene.restore().await.unwrap();
    assert_eq!(report.resumed, 0);
    assert_eq!((scene.names(), scene.sha256()), (vec!["db".to_owned()], want));
}

#[tokio::test]
async fn real_damage_is_an_error_also_when_going_on() {
    let scene = Scene::new();
    scene.interrupted(20 << 20).await;
    let path = scene.dir.path().join("replica/ltx/9/0000000000000001-0000000000000005.ltx");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let from = bytes.len() - 200_000;
    bytes[from..from + 100].iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::write(&path, bytes).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    let err = scene.restore().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt, "{err}");
    assert!(scene.names().is_empty(), "{:?}", scene.names());
}
