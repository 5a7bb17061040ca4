//! Defects of Litestream 0.5.17 (`spec: replication` §13, `compaction-retention` §8) that only a whole
//! store can show; those of pure decisions are tested beside them.

use std::time::Duration;

use litestream::replica::faulty::Op;
use litestream::restore::{Target, plan_for};

use super::support::{Remote, Source, close, eventually, open_with, upkeep};

/// The full image in the middle is a snapshot as well, and restores start there.
#[tokio::test(flavor = "multi_thread")]
async fn c5_a_full_image_is_published_as_a_snapshot() {
    let (source, remote) = (Source::new(2), Remote::new());
    source.replicate_once(&remote).await.unwrap();
    source.insert(2..4);
    source.replicate_once(&remote).await.unwrap();
    assert_eq!(remote.level(9).await, []);
    std::fs::remove_dir_all(source.meta()).unwrap();
    source.app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    source.insert(4..6);
    source.replicate_once(&remote).await.unwrap();
    assert_eq!(remote.level(0).await, [(1, 1), (2, 2), (3, 3)]);
    assert_eq!(remote.level(9).await, [(1, 3)]);
    let plan = plan_for(&remote.replica, Target::Latest, false).await.unwrap();
    assert_eq!(
        plan.files().iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["9/0000000000000001-0000000000000003.ltx"]
    );
    assert_eq!(remote.latest().await, source.rows());
}

/// The first snapshot is the first L0 file under another name: the database is not read again.
#[tokio::test(flavor = "multi_thread")]
async fn c6_the_first_snapshot_is_made_of_the_first_file() {
    let (source, remote) = (Source::new(50), Remote::new());
    let store = source.store(&remote).await;
    store.start();
    eventually("a snapshot", async || !remote.level(9).await.is_empty()).await;
    close(store).await;
    let files = remote.files().await;
    let first = files.iter().find(|f| f.level.get() == 0 && f.txids.max().get() == 1).unwrap();
    let snapshot = files.iter().find(|f| f.level.get() == 9).unwrap();
    assert_eq!(snapshot.txids, first.txids);
    // Made now it would carry the present time.
    assert_eq!(remote.header(snapshot).await.timestamp, remote.header(first).await.timestamp);
    assert_eq!(snapshot.size, first.size);
    assert_eq!(remote.latest().await, source.rows());
}

/// Level 0 of the replica is empty, level 1 knows better.
#[tokio::test(flavor = "multi_thread")]
async fn d6_the_next_txid_lies_above_all_levels() {
    let (source, remote) = (Source::new(1), Remote::new());
    let store = source.store(&remote).await;
    store.start();
    for n in 1..4 {
        source.insert(n..n + 1);
        eventually("uploaded", async || remote.has_all_of(&source).await).await;
    }
    let newest = remote.level(0).await.last().unwrap().1;
    eventually("compacted", async || remote.level(1).await.last().is_some_and(|l1| l1.1 == newest)).await;
    close(store).await;
    for (min, max) in remote.level(0).await {
        remote.delete(0, min, max).await;
    }
    std::fs::remove_dir_all(source.meta()).unwrap();
    source.insert(7..9);
    source.replicate_once(&remote).await.unwrap();
    assert_eq!(remote.level(0).await, [(newest + 1, newest + 1)]);
    assert_eq!(remote.latest().await, source.rows());
}

/// A hole in level 0 is filled from local files, or bridged when those are gone.
#[tokio::test(flavor = "multi_thread")]
async fn d8_a_hole_in_the_replica_is_closed_at_the_next_start() {
    for local_is_there in [true, false] {
        let (source, remote) = (Source::new(1), Remote::new());
        for n in 1..6 {
            source.replicate_once(&remote).await.unwrap();
            source.insert(n..n + 1);
        }
        remote.delete(0, 3, 3).await;
        if !local_is_there {
            std::fs::remove_file(source.meta().join("ltx/0/0000000000000003-0000000000000003.ltx")).unwrap();
        }
        assert!(remote.restored(Target::Latest).await.is_err());
        source.replicate_once(&remote).await.unwrap();
        assert_eq!(remote.latest().await, source.rows(), "{local_is_there}");
        assert_eq!(remote.level(0).await.contains(&(3, 3)), local_is_there);
    }
}

/// An idle replica costs no request at all.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_database_makes_no_requests() {
    let (source, remote) = (Source::new(3), Remote::new());
    let mut upkeep = upkeep();
    upkeep.levels =
        litestream::compaction::Levels::new(vec![Duration::from_millis(50), Duration::from_millis(100)]).unwrap();
    upkeep.snapshot_interval = Duration::from_millis(100);
    upkeep.retention.snapshots = Duration::from_millis(300);
    upkeep.retention.l0 = Some(Duration::from_millis(50));
    upkeep.l0_check_interval = Duration::from_millis(50);
    let store = open_with(vec![source.config(&remote)], upkeep).await.unwrap();
    store.start();
    for n in 3..20 {
        source.insert(n..n + 1);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    eventually("uploaded", async || remote.has_all_of(&source).await).await;
    // Everything that time brings about without commits happens once.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let calls = || [Op::List, Op::Get, Op::Put, Op::Delete].map(|op| remote.client.calls(op));
    let before = calls();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(calls(), before);
    // A busy one lists nothing either.
    let lists = remote.client.calls(Op::List);
    for n in 20..60 {
        source.insert(n..n + 1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    close(store).await;
    assert_eq!(remote.client.calls(Op::List), lists);
    assert_eq!(remote.latest().await, source.rows());
}
