//! What was uploaded vanishes from the replica while the program runs: a lifecycle rule, a `sync --delete`, another disk in
//! its place. It can be restored again soon, or whoever asks is told that it cannot.

use std::sync::Arc;
use std::time::Duration;

use litestream::error::ErrorKind;
use litestream::replica::faulty::{Fault, Op};
use litestream::replica::file::FileClient;
use litestream::replica::{FileInfo, Layout, Replica};
use litestream::store::{Managed, Store, TargetStatus};
use litestream::sys::{ManualClock, World};
use litestream::types::{Level, Timestamp, Txid};

use super::support::{Remote, Source, close, eventually, open_in, upkeep};

async fn running(source: &Source, remote: &Remote) -> (Store, Managed) {
    let store = source.store(remote).await;
    store.start();
    let db = store.find(&source.path()).unwrap();
    for n in 1..5 {
        source.insert(n..n + 1);
        db.sync(true, None).await.unwrap().unwrap();
    }
    // Nothing is left to do: the rounds of level 1 have nothing new.
    eventually("level 1 has everything", async || is_compacted(remote, &db).await).await;
    (store, db)
}

fn position(db: &Managed) -> u64 {
    db.status().local.position.map_or(0, Txid::get)
}

async fn is_compacted(remote: &Remote, db: &Managed) -> bool {
    remote.level(1).await.last().is_some_and(|file| file.1 == position(db))
}

async fn delete(remote: &Remote, which: impl Fn(&FileInfo) -> bool) {
    for file in remote.files().await.iter().filter(|file| which(file)) {
        remote.replica.delete(&[(file.level, file.txids)]).await.unwrap();
    }
}

fn target(db: &Managed) -> TargetStatus {
    db.status().targets[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_replica_can_be_restored_again_soon_after_the_next_commits() {
    let (source, remote) = (Source::new(1), Remote::new());
    let (store, db) = running(&source, &remote).await;
    delete(&remote.beside(), |_| true).await;
    source.insert(10..12);
    eventually("restorable", async || remote.beside().has_all_of(&source).await).await;
    eventually("nothing is amiss", async || !target(&db).lost).await;
    close(store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_can_one_that_has_lost_what_is_old() {
    let (source, remote) = (Source::new(1), Remote::new());
    let (store, db) = running(&source, &remote).await;
    let newest = position(&db);
    delete(&remote.beside(), |file| file.level != Level::L0 || file.txids.max().get() < newest).await;
    source.insert(10..12);
    eventually("restorable", async || remote.beside().has_all_of(&source).await).await;
    close(store).await;
}

/// An empty disk is mounted over the directory.
#[tokio::test(flavor = "multi_thread")]
async fn so_can_a_directory() {
    let (source, dir) = (Source::new(1), tempfile::tempdir().unwrap());
    let root = dir.path().join("replica");
    let mut remote = Remote::new();
    remote.replica = Replica::new(Arc::new(FileClient::new(World::system(), root.clone())), Layout::Decimal);
    let (store, _) = running(&source, &remote).await;
    std::fs::remove_dir_all(&root).unwrap();
    std::fs::create_dir(&root).unwrap();
    source.insert(10..12);
    eventually("restorable", async || remote.has_all_of(&source).await).await;
    close(store).await;
}

/// Nobody commits: only the hourly look can notice.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_database_is_there_again_within_the_hour() {
    let (source, remote) = (Source::new(1), Remote::new());
    let clock = Arc::new(ManualClock::starting_at(Timestamp::from_millis(1_000_000_000)));
    let world = World { clock: clock.clone(), ..World::system() };
    let store = open_in(world, vec![source.config(&remote)], upkeep()).await.unwrap();
    store.start();
    let db = store.find(&source.path()).unwrap();
    db.sync(true, None).await.unwrap().unwrap();
    eventually("level 1", async || {
        clock.advance(Duration::from_millis(50));
        is_compacted(&remote, &db).await
    })
    .await;
    delete(&remote.beside(), |_| true).await;
    let gets = remote.client.calls(Op::Get);
    clock.advance(Duration::from_secs(3500));
    for _ in 0..50 {
        clock.advance(Duration::from_millis(1));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(remote.client.calls(Op::Get), gets, "an idle database asks for nothing");
    clock.advance(Duration::from_secs(110));
    eventually("restorable", async || {
        clock.advance(Duration::from_millis(10));
        remote.beside().has_all_of(&source).await
    })
    .await;
    close(store).await;
}

/// What is missing cannot be uploaded either.
#[tokio::test(flavor = "multi_thread")]
async fn while_it_cannot_be_restored_everybody_is_told() {
    let (source, remote) = (Source::new(1), Remote::new());
    let (store, db) = running(&source, &remote).await;
    assert!(!target(&db).lost);
    delete(&remote.beside(), |_| true).await;
    for _ in 0..10_000 {
        remote.client.push(Op::Put, Fault::Refuse(ErrorKind::PermissionDenied));
    }
    // Nobody has committed: whoever wants to be told that everything is there is the first to find out.
    let err = db.sync(true, Some(Duration::from_secs(5))).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::PermissionDenied, "{err}");
    let told = target(&db);
    assert!(told.lost && told.trouble.is_some(), "{told:?}");
    source.insert(10..11);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(target(&db).lost);
    remote.client.forget_faults();
    db.sync(true, None).await.unwrap().unwrap();
    assert_eq!(remote.latest().await, source.rows());
    let told = target(&db);
    assert!(!told.lost && told.trouble.is_none() && told.lag.is_zero(), "{told:?}");
    close(store).await;
}

/// Nobody asks either, but commits go on: that they are not uploaded does not hide what is missing besides.
#[tokio::test(flavor = "multi_thread")]
async fn a_loss_is_noticed_also_while_uploads_fail() {
    let (source, remote) = (Source::new(1), Remote::new());
    let (store, db) = running(&source, &remote).await;
    for _ in 0..10_000 {
        remote.client.push(Op::Put, Fault::Refuse(ErrorKind::DiskFull));
    }
    delete(&remote.beside(), |_| true).await;
    source.insert(10..12);
    eventually("told", async || target(&db).lost).await;
    remote.client.forget_faults();
    eventually("restorable", async || remote.beside().has_all_of(&source).await).await;
    eventually("nothing is amiss", async || !target(&db).lost).await;
    close(store).await;
}

/// The store is out of reach: nobody knows, and that shows too.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_cannot_be_seen_lags() {
    let (source, remote) = (Source::new(1), Remote::new());
    let (store, db) = running(&source, &remote).await;
    for _ in 0..10_000 {
        remote.client.push(Op::Get, Fault::Refuse(ErrorKind::Unavailable));
    }
    db.sync(true, Some(Duration::from_secs(5))).await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let told = target(&db);
    assert!(!told.lost && !told.lag.is_zero(), "{told:?}");
    remote.client.forget_faults();
    db.sync(true, None).await.unwrap().unwrap();
    assert!(target(&db).lag.is_zero());
    close(store).await;
}
