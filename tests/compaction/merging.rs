//! Merges carried out against stores that fail, with bytes.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use litestream::compaction::{Compactor, Limits, Manifest, SharedManifest, Step};
use litestream::error::{ErrorKind, Result};
use litestream::ltx::{Decoder, Encoder, Header, LocalDir, WalPos};
use litestream::replica::faulty::{Fault, Faulty, Op};
use litestream::replica::file::FileClient;
use litestream::replica::memory::MemoryClient;
use litestream::replica::{FileInfo, Layout, Replica, ReplicaClient, Stamps, once};
use litestream::sys::World;
use litestream::types::{Checksum, Level, PageSize, Pgno, Timestamp, Txid, TxidRange};
use tempfile::TempDir;

use super::rng::Rng;

/// A store that can fail, and a local directory.
struct Scene {
    _dir: TempDir,
    client: Arc<Faulty>,
    replica: Replica,
    manifest: SharedManifest,
    local: LocalDir,
}

fn level(n: u8) -> Level {
    Level::new(n).unwrap()
}

fn range(min: u64, max: u64) -> TxidRange {
    TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap()
}

/// A file of these pages of a database of `commit` pages. Stamp = last TXID.
fn ltx(txids: TxidRange, page_size: u32, commit: u32, pages: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let header = Header {
        no_checksum: true,
        page_size: PageSize::new(page_size).unwrap(),
        commit,
        txids,
        timestamp: Timestamp::from_millis(i64::try_from(txids.max().get()).unwrap()),
        pre_apply: Checksum::NONE,
        wal: WalPos::default(),
        node_id: 0,
    };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (pgno, page) in pages {
        encoder.page(Pgno::new(*pgno).unwrap(), page).unwrap();
    }
    encoder.finish(Checksum::NONE).unwrap().0
}

fn noise(seed: u64, len: u32) -> Vec<u8> {
    let mut rng = Rng(seed);
    (0..len / 8).flat_map(|_| rng.next().to_be_bytes()).collect()
}

/// One page of noise at page `txid % 5 + 1` of five.
fn small(txid: u64, page_size: u32) -> Vec<u8> {
    let page = u32::try_from(txid % 5).unwrap() + 1;
    ltx(range(txid, txid), page_size, 5, &[(page, noise(txid, page_size))])
}

impl Scene {
    fn new() -> Self {
        Self::over(Arc::new(MemoryClient::new()))
    }

    fn over(store: Arc<dyn ReplicaClient>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let client = Arc::new(Faulty::new(store));
        let replica = Replica::new(client.clone(), Layout::Decimal);
        let local = LocalDir::new(&World::system(), dir.path().join("meta"));
        fs::create_dir_all(local.level_dir(Level::L0)).unwrap();
        Self { _dir: dir, client, replica, manifest: SharedManifest::new(), local }
    }

    fn compactor(&self) -> Compactor<'_> {
        Compactor {
            replica: &self.replica,
            manifest: &self.manifest,
            local: Some(&self.local),
            local_until: Txid::new(u64::MAX),
            modes: None,
            limits: Limits::default(),
        }
    }

    async fn put(&self, n: u8, txids: TxidRange, bytes: Vec<u8>) {
        let stamp = Timestamp::from_millis(i64::try_from(txids.max().get()).unwrap());
        self.replica.put(level(n), txids, stamp, None, None, once(bytes)).await.unwrap();
    }

    /// A whole pass.
    async fn pass(&self, dest: u8) -> Result<Vec<FileInfo>> {
        let compactor = self.compactor();
        let until = compactor.end_below(level(dest)).await?;
        let mut made = Vec::new();
        while let Step::Merged(file) = compactor.step(level(dest), until).await? {
            made.push(file);
        }
        Ok(made)
    }

    async fn names(&self, n: u8) -> Vec<(u64, u64)> {
        let files = self.replica.list(level(n), None, Stamps::Cheap).await.unwrap();
        files.iter().map(|f| (f.txids.min().get(), f.txids.max().get())).collect()
    }

    /// Header and pages of a file of the store, verified.
    async fn content(&self, n: u8, txids: TxidRange) -> (Header, Vec<(u32, Vec<u8>)>) {
        let body = self.replica.get(level(n), txids, None).await.unwrap();
        let bytes: Vec<u8> = body.map_ok(|b| b.to_vec()).try_concat().await.unwrap();
        let mut decoder = Decoder::new(bytes.as_slice()).unwrap();
        let (mut page, mut pages) = (vec![0; decoder.header().page_size.len()], Vec::new());
        while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
            pages.push((pgno.get(), page.clone()));
        }
        (*decoder.header(), pages)
    }
}

#[tokio::test]
async fn files_become_one_with_the_newest_pages_and_the_last_stamp() {
    let scene = Scene::new();
    for n in 2..=9 {
        scene.put(0, range(n, n), small(n, 512)).await;
    }
    scene.put(1, range(1, 1), ltx(range(1, 1), 512, 1, &[(1, noise(1, 512))])).await;
    let made = scene.pass(1).await.unwrap();
    assert_eq!(made.len(), 1);
    assert_eq!((made[0].txids, made[0].created.millis()), (range(2, 9), 9));
    let (header, pages) = scene.content(1, range(2, 9)).await;
    assert_eq!((header.txids, header.timestamp.millis(), header.wal), (range(2, 9), 9, WalPos::default()));
    // Transaction n writes page n % 5 + 1.
    let expected: Vec<_> = [(1, 5), (2, 6), (3, 7), (4, 8), (5, 9)].map(|(p, n)| (p, noise(n, 512))).to_vec();
    assert_eq!(pages, expected);
    assert_eq!(scene.pass(1).await.unwrap(), []);
    assert_eq!(scene.pass(2).await.unwrap()[0].txids, range(1, 9));
}

#[tokio::test]
async fn after_the_first_listing_no_pass_lists() {
    let scene = Scene::new();
    scene.put(0, range(1, 1), ltx(range(1, 1), 512, 1, &[(1, noise(1, 512))])).await;
    scene.pass(1).await.unwrap();
    let listings = scene.client.calls(Op::List);
    for n in 2..9 {
        let bytes = ltx(range(n, n), 512, 1, &[(1, noise(n, 512))]);
        let info = scene.replica.put(Level::L0, range(n, n), Timestamp::from_millis(1), None, None, once(bytes)).await;
        scene.manifest.written(info.unwrap());
        assert_eq!(scene.pass(1).await.unwrap().len(), 1);
        scene.pass(2).await.unwrap();
    }
    assert_eq!(scene.client.calls(Op::List), listings);
}

#[tokio::test]
async fn local_files_come_first_and_the_store_where_they_are_gone() {
    let scene = Scene::new();
    for n in 2..=4 {
        // What the store shows is not what was written: it is behind.
        let bytes = if n == 3 { small(n, 512) } else { b"not there yet".to_vec() };
        scene.put(0, range(n, n), bytes).await;
        if n != 3 {
            fs::write(scene.local.path(Level::L0, range(n, n)), small(n, 512)).unwrap();
        }
    }
    scene.put(1, range(1, 1), b"x".to_vec()).await;
    assert_eq!(scene.pass(1).await.unwrap()[0].txids, range(2, 4));
    assert_eq!(scene.client.calls(Op::Get), 1);
}

/// The simulator's finding: beyond what we have uploaded, another writer may have put another file under the name.
#[tokio::test]
async fn local_files_beyond_what_is_known_to_be_ours_are_not_used() {
    let scene = Scene::new();
    scene.put(1, range(1, 1), b"x".to_vec()).await;
    for n in 2..=4 {
        scene.put(0, range(n, n), small(n, 512)).await;
        let local = if n == 4 { small(n + 50, 512) } else { small(n, 512) };
        fs::write(scene.local.path(Level::L0, range(n, n)), local).unwrap();
    }
    let compactor = Compactor { local_until: Txid::new(3), ..scene.compactor() };
    let until = compactor.end_below(level(1)).await.unwrap();
    assert!(matches!(compactor.step(level(1), until).await.unwrap(), Step::Merged(_)));
    assert_eq!(scene.client.calls(Op::Get), 1);
    let (_, pages) = scene.content(1, range(2, 4)).await;
    assert_eq!(pages.iter().find(|(pgno, _)| *pgno == 5), Some(&(5, noise(4, 512))));
}

#[tokio::test]
async fn large_inputs_are_streamed_from_disk_and_store() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::over(Arc::new(FileClient::new(World::system(), dir.path().join("r"))));
    let pages = |seed: u64| -> Vec<_> { (1..=600).map(|p| (p, noise(seed * 1000 + u64::from(p), 4096))).collect() };
    scene.put(9, range(1, 1), b"x".to_vec()).await;
    for n in 2..=4 {
        let bytes = ltx(range(n, n), 4096, 600, &pages(n));
        if n == 3 {
            fs::write(scene.local.path(Level::L0, range(n, n)), &bytes).unwrap();
        }
        scene.put(0, range(n, n), bytes).await;
    }
    assert_eq!(scene.pass(1).await.unwrap()[0].txids, range(2, 4));
    assert_eq!(scene.content(1, range(2, 4)).await.1, pages(4));
}

#[tokio::test]
async fn c1_and_c2_level_one_stops_at_a_gap_and_goes_on_once_it_is_healed() {
    let scene = Scene::new();
    scene.put(9, range(1, 1), b"x".to_vec()).await;
    for n in [2, 3, 5, 6] {
        scene.put(0, range(n, n), small(n, 512)).await;
    }
    assert_eq!(scene.pass(1).await.unwrap()[0].txids, range(2, 3));
    let compactor = scene.compactor();
    assert_eq!(compactor.step(level(1), Txid::new(6)).await.unwrap(), Step::Gap(range(4, 4)));
    assert_eq!(scene.names(1).await, [(2, 3)]);
    scene.put(0, range(4, 4), small(4, 512)).await;
    scene.manifest.forget();
    assert_eq!(scene.pass(1).await.unwrap()[0].txids, range(4, 6));
}

#[tokio::test]
async fn c3_a_source_that_spans_the_end_of_the_destination_is_merged() {
    let scene = Scene::new();
    let file = |min, max| ltx(range(min, max), 512, 5, &[(2, noise(max, 512))]);
    scene.put(2, range(2, 6), file(2, 6)).await;
    scene.put(1, range(4, 9), file(4, 9)).await;
    scene.put(1, range(10, 12), file(10, 12)).await;
    assert_eq!(scene.pass(2).await.unwrap()[0].txids, range(4, 12));
    assert_eq!(scene.content(2, range(4, 12)).await.1, [(2, noise(12, 512))]);
}

#[tokio::test]
async fn c4_a_change_of_page_size_splits_the_output_and_stops_nothing() {
    let scene = Scene::new();
    scene.put(9, range(1, 1), b"x".to_vec()).await;
    for (n, size) in [(2, 512), (3, 512), (4, 1024), (5, 1024), (6, 512)] {
        scene.put(0, range(n, n), small(n, size)).await;
    }
    scene.pass(1).await.unwrap();
    assert_eq!(scene.names(1).await, [(2, 3), (4, 5), (6, 6)]);
    scene.pass(2).await.unwrap();
    assert_eq!(scene.names(2).await, [(2, 3), (4, 5), (6, 6)]);
}

#[tokio::test]
async fn c8_a_page_from_before_a_shrink_is_not_published() {
    let scene = Scene::new();
    scene.put(9, range(1, 1), b"x".to_vec()).await;
    let file = |n, commit, pages: &[u32]| {
        ltx(range(n, n), 512, commit, &pages.iter().map(|p| (*p, noise(n, 512))).collect::<Vec<_>>())
    };
    scene.put(0, range(2, 2), file(2, 9, &[1, 8])).await;
    scene.put(0, range(3, 3), file(3, 5, &[1])).await;
    scene.put(0, range(4, 4), file(4, 9, &[1, 9])).await;
    let err = scene.pass(1).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt);
    assert!(err.to_string().contains("page 8 of"), "{err}");
    assert_eq!(scene.names(1).await, []);
}

#[tokio::test]
async fn a_damaged_misnamed_or_missing_input_publishes_nothing() {
    for (bytes, kind, text) in [
        (small(4, 512), ErrorKind::Corrupt, "its header says"),
        (b"x".to_vec(), ErrorKind::Corrupt, "open input 0/0000000000000003-0000000000000003.ltx"),
        (
            {
                let mut b = small(3, 512);
                b[300] ^= 1;
                b
            },
            ErrorKind::Corrupt,
            "",
        ),
        (
            {
                let mut b = small(3, 512);
                b.pop();
                b
            },
            ErrorKind::Corrupt,
            "",
        ),
    ] {
        let scene = Scene::new();
        scene.put(9, range(1, 1), b"x".to_vec()).await;
        scene.put(0, range(2, 2), small(2, 512)).await;
        scene.put(0, range(3, 3), bytes).await;
        let err = scene.pass(1).await.unwrap_err();
        assert_eq!(err.kind(), kind, "{err}");
        assert!(err.to_string().contains(text), "{err}");
        assert_eq!(scene.names(1).await, []);
        // Everything is looked at afresh.
        assert_eq!(scene.manifest.peek(Manifest::is_empty), None);
    }
    let scene = Scene::new();
    scene.put(9, range(1, 1), b"x".to_vec()).await;
    scene.put(0, range(2, 2), small(2, 512)).await;
    scene.manifest.read(&scene.replica, |_| ()).await.unwrap();
    scene.replica.delete(&[(Level::L0, range(2, 2))]).await.unwrap();
    assert_eq!(scene.pass(1).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(scene.pass(1).await.unwrap(), []);
}

#[tokio::test]
async fn when_the_store_refuses_the_output_the_merge_ends_with_its_error() {
    let pages = |seed: u64| -> Vec<_> { (1..=3000).map(|p| (p, noise(seed * 1000 + u64::from(p), 4096))).collect() };
    let scene = Scene::new();
    scene.put(9, range(1, 1), b"x".to_vec()).await;
    for n in 2..=3 {
        fs::write(scene.local.path(Level::L0, range(n, n)), ltx(range(n, n), 4096, 3000, &pages(n))).unwrap();
        scene.put(0, range(n, n), b"x".to_vec()).await;
    }
    for fault in [Fault::Refuse(ErrorKind::DiskFull), Fault::BreakBody { after: 5000, kind: ErrorKind::DiskFull }] {
        scene.client.push(Op::Put, fault);
        let ended = tokio::time::timeout(Duration::from_secs(30), scene.pass(1)).await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::DiskFull);
        assert_eq!(scene.names(1).await, []);
    }
    // The answer was lost: it is there, and the next pass finds out.
    scene.client.push(Op::Put, Fault::LoseAnswer(ErrorKind::Unavailable));
    assert_eq!(scene.pass(1).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(scene.pass(1).await.unwrap(), []);
    assert_eq!(scene.names(1).await, [(2, 3)]);
}

#[tokio::test]
async fn a_merge_survives_dropped_connections_and_can_be_abandoned() {
    let scene = Scene::new();
    scene.put(9, range(1, 1), b"x".to_vec()).await;
    let pages = |n| (1..=99).map(|p| (p, noise(n, 4096))).collect::<Vec<_>>();
    for n in 2..=3 {
        scene.put(1, range(n, n), ltx(range(n, n), 4096, 99, &pages(n))).await;
    }
    scene.client.push(Op::Get, Fault::CutBody { after: 70_000 });
    scene.client.push(Op::Get, Fault::BreakBody { after: 99, kind: ErrorKind::Unavailable });
    assert_eq!(scene.pass(2).await.unwrap()[0].txids, range(2, 3));

    scene.put(1, range(4, 4), ltx(range(4, 4), 4096, 99, &pages(4))).await;
    scene.manifest.forget();
    scene.manifest.read(&scene.replica, |_| ()).await.unwrap();
    scene.client.set_latency(Duration::from_secs(3600));
    let waiting = tokio::time::timeout(Duration::from_millis(200), scene.pass(2));
    assert!(waiting.await.is_err());
    // The merging thread has ended with it: dropping the runtime would wait for it otherwise.
    assert_eq!(scene.manifest.peek(|m| m.level(level(2)).len()), Some(1));
}

#[tokio::test]
async fn a_pass_over_very_many_files_takes_several_merges() {
    let scene = Scene::new();
    scene.put(9, range(1, 1), b"x".to_vec()).await;
    for n in 2..=1100 {
        scene.put(0, range(n, n), small(n, 512)).await;
    }
    let made: Vec<_> = scene.pass(1).await.unwrap().iter().map(|f| f.txids).collect();
    assert_eq!(made, [range(2, 513), range(514, 1025), range(1026, 1100)]);
}
