//! Damaged replicas and failing stores: an error, and nothing at the destination.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use litestream::error::ErrorKind;
use litestream::replica::faulty::{Fault, Faulty, Op};
use litestream::replica::memory::MemoryClient;
use litestream::replica::{FileInfo, Layout, Replica, Stamps, once};
use litestream::restore::{Request, Target, run};
use litestream::types::{Level, Txid, TxidRange};

use super::support::{Scene, no_check, sha256, stamp};

/// Restores a replica after `damage` to one of its files; the error text.
async fn damaged(damage: impl FnOnce(&mut Vec<u8>)) -> String {
    let scene = Scene::of("overlap");
    let newest = scene.replica.list(Level::L0, None, Stamps::Cheap).await.unwrap().last().copied().unwrap();
    let path = scene.ltx(0, newest.txids.min().get(), newest.txids.max().get());
    let mut bytes = fs::read(&path).unwrap();
    damage(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let err = scene.restore(&Request::new(scene.output())).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt, "{err}");
    assert!(scene.outputs().is_empty());
    let text = err.to_string();
    text.replace(&newest.to_string(), "FILE")
}

#[tokio::test]
async fn damaged_files_are_named_and_leave_nothing() {
    let magic = damaged(|bytes| bytes[0] ^= 1).await;
    assert_eq!(magic, "decode database: FILE: decode header: unmarshal header: invalid LTX file");
    let commit = damaged(|bytes| bytes[15] ^= 0x40).await;
    assert!(commit.starts_with("decode database: FILE: "), "{commit}");
    for (what, at) in [("payload", 200), ("trailer", usize::MAX)] {
        let text = damaged(|bytes| {
            let at = at.min(bytes.len() - 1);
            bytes[at] ^= 1;
        })
        .await;
        assert!(text.starts_with("decode database: FILE: "), "{what}: {text}");
    }
    let cut = damaged(|bytes| bytes.truncate(150)).await;
    assert!(cut.starts_with("decode database: FILE: read compressed data: unexpected EOF"), "{cut}");
    let stub = damaged(|bytes| bytes.truncate(99)).await;
    assert!(stub.starts_with("invalid ltx file: level=0 min="), "{stub}");
    assert!(stub.ends_with("has size 99 bytes (minimum 100)"), "{stub}");
}

#[tokio::test]
async fn a_file_under_a_wrong_name_is_refused() {
    let scene = Scene::of("basic-4096");
    let max = scene.replica.max_txid().await.unwrap().unwrap().get();
    scene.world.fs.rename(&scene.ltx(0, max, max), &scene.ltx(0, max, max + 1)).unwrap();
    let err = scene.restore(&Request::new(scene.output())).await.unwrap_err();
    assert!(err.to_string().contains("file name does not match its header"), "{err}");
    assert!(scene.outputs().is_empty());
}

#[tokio::test]
async fn files_that_are_no_ltx_files_by_name_are_ignored() {
    let scene = Scene::of("page-512");
    for name in ["lost+found", "0000000000000009-0000000000000009.ltx.tmp", "0000000000000009-000000000000000A.ltx"] {
        fs::write(scene.ltx(0, 1, 1).with_file_name(name), "x").unwrap();
    }
    scene.restore(&Request::new(scene.output())).await.unwrap();
}

#[tokio::test]
async fn an_empty_replica_is_not_found() {
    let scene = Scene::of("page-512");
    let replica = Replica::new(Arc::new(MemoryClient::new()), Layout::Hex4);
    let request = Request::new(scene.output());
    let err = run(&scene.world, &replica, &request, no_check()).await.unwrap_err();
    assert_eq!((err.kind(), err.to_string().as_str()), (ErrorKind::NotFound, "no matching backup files available"));
    assert!(scene.outputs().is_empty());
}

/// The replica of `scene` in memory, in the other layout, behind a client that can fail.
async fn in_memory(scene: &Scene) -> (Arc<Faulty>, Replica) {
    let client = Arc::new(Faulty::new(Arc::new(MemoryClient::new())));
    let replica = Replica::new(client.clone(), Layout::Hex4);
    for file in scene.replica.list_all(Stamps::Exact).await.unwrap() {
        let body = scene.replica.get_resumable(&file).unwrap();
        let FileInfo { level, txids, size, created } = file;
        replica.put(level, txids, created, Some(size), None, body).await.unwrap();
    }
    (client, replica)
}

#[tokio::test]
async fn dropped_connections_do_not_matter() {
    let scene = Scene::of("levels-4096");
    scene.restore(&Request::new(scene.output())).await.unwrap();
    let want = sha256(&scene.output());
    let (client, replica) = in_memory(&scene).await;
    for after in [0, 1, 99, 100, 500, 1000] {
        client.push(Op::Get, Fault::CutBody { after });
        client.push(Op::Get, Fault::BreakBody { after, kind: ErrorKind::Unavailable });
    }
    let request = Request::new(scene.out_dir().join("other"));
    run(&scene.world, &replica, &request, no_check()).await.unwrap();
    assert_eq!(sha256(&request.output), want);
}

#[tokio::test]
async fn a_store_that_fails_for_good_leaves_nothing() {
    let scene = Scene::of("levels-4096");
    let (client, replica) = in_memory(&scene).await;
    let request = Request { parallelism: 1, ..Request::new(scene.output()) };

    for _ in 0..4 {
        client.push(Op::Get, Fault::BreakBody { after: 10, kind: ErrorKind::Unavailable });
    }
    let err = run(&scene.world, &replica, &request, no_check()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Unavailable, "{err}");
    assert!(err.to_string().contains("max retries exceeded reading ltx file (level="), "{err}");
    assert!(scene.outputs().is_empty());

    client.push(Op::Get, Fault::Refuse(ErrorKind::NotFound));
    let err = run(&scene.world, &replica, &request, no_check()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound, "{err}");
    assert!(scene.outputs().is_empty());

    // A listing that breaks off is not a shorter listing.
    client.push(Op::List, Fault::BreakBody { after: 1, kind: ErrorKind::Unavailable });
    let err = run(&scene.world, &replica, &request, no_check()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Unavailable, "{err}");
    assert!(scene.outputs().is_empty());
}

#[tokio::test]
async fn a_restore_that_is_given_up_leaves_nothing() {
    let scene = Scene::of("levels-4096");
    let (client, replica) = in_memory(&scene).await;
    let request = Request::new(scene.output());
    // Long enough for the listing, not for the files.
    client.set_latency(Duration::from_millis(200));
    let work = run(&scene.world, &replica, &request, no_check());
    assert!(tokio::time::timeout(Duration::from_millis(300), work).await.is_err());
    // The thread that writes notices that its bytes have stopped coming.
    for _ in 0..500 {
        if fs::read_dir(scene.out_dir()).unwrap().count() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("something was left behind");
}

#[tokio::test]
async fn a_local_file_goes_up_under_its_own_name_and_time_only() {
    let scene = Scene::of("page-512");
    let replica = Replica::new(Arc::new(MemoryClient::new()), Layout::Decimal);
    let path = scene.ltx(0, 1, 1);
    let first = TxidRange::single(Txid::FIRST);
    let put = replica.put_local(Level::L0, first, &scene.world, &path, None).await.unwrap();
    let listed = replica.list_all(Stamps::Exact).await.unwrap();
    assert_eq!(listed, [put]);
    assert_eq!(listed, scene.replica.list(Level::L0, None, Stamps::Exact).await.unwrap()[..1]);
    let bytes: Vec<_> = replica.get(Level::L0, first, None).await.unwrap().try_collect().await.unwrap();
    assert!(bytes.concat() == fs::read(&path).unwrap());

    let second = TxidRange::single(Txid::new(2).unwrap());
    let err = replica.put_local(Level::L0, second, &scene.world, &path, None).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt);
    fs::write(&path, [0; 500]).unwrap();
    let err = replica.put_local(Level::L0, first, &scene.world, &path, None).await.unwrap_err();
    assert!(err.to_string().starts_with("extract timestamp from LTX header "), "{err}");
    assert_eq!(replica.list_all(Stamps::Cheap).await.unwrap().len(), 1);

    replica.delete(&[(Level::L0, first), (Level::L0, second)]).await.unwrap();
    assert_eq!(replica.max_txid().await.unwrap(), None);
}

#[tokio::test]
async fn the_highest_transaction_may_be_in_any_level() {
    let replica = Replica::new(Arc::new(MemoryClient::new()), Layout::Decimal);
    let stamp = litestream::types::Timestamp::from_millis(0);
    let txid = |n| Txid::new(n).unwrap();
    for (level, min, max) in [(0, 7, 7), (0, 3, 9), (0, 8, 8), (4, 1, 12), (9, 1, 5)] {
        let txids = TxidRange::new(txid(min), txid(max)).unwrap();
        replica.put(Level::new(level).unwrap(), txids, stamp, None, None, once("x")).await.unwrap();
    }
    assert_eq!(replica.max_txid().await.unwrap(), Some(txid(12)));
    assert_eq!(replica.max_txid_at(Level::L0).await.unwrap(), Some(txid(9)));
    assert_eq!(replica.max_txid_at(Level::new(2).unwrap()).await.unwrap(), None);
    let from_nine = replica.list(Level::L0, Some(txid(9)), Stamps::Cheap).await.unwrap();
    assert_eq!(from_nine.iter().map(|f| f.txids.min().get()).collect::<Vec<_>>(), [3]);
}

#[tokio::test]
async fn a_target_time_takes_exact_times_from_the_store() {
    // Rewriting a file gives it a new modification time, as copying a replica without times does.
    let scene = Scene::of("page-512");
    let files = scene.replica.list(Level::L0, None, Stamps::Exact).await.unwrap();
    let request = Request { target: Target::Before(files[1].created), ..Request::new(scene.output()) };
    assert_eq!(scene.restore(&request).await.unwrap().txid, Some(files[0].txids.max()));
    fs::remove_file(scene.output()).unwrap();

    let first = scene.ltx(0, 1, 1);
    fs::write(&first, fs::read(&first).unwrap()).unwrap();
    assert_eq!(scene.restore(&request).await.unwrap_err().kind(), ErrorKind::NotFound);
    stamp(&first);
    scene.restore(&request).await.unwrap();
}
