//! Closing in time, whatever the store does.

use std::sync::Arc;
use std::time::Duration;

use litestream::error::ErrorKind;
use litestream::replica::faulty::{Fault, Op};
use litestream::sqlite::SystemSqlite;
use litestream::store::{ShutdownPolicy, Store, StoreConfig};
use litestream::sys::World;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::support::{Remote, Source, eventually, upkeep};

const TIMEOUT: Duration = Duration::from_secs(1);
/// What a busy machine may add.
const SLACK: Duration = Duration::from_millis(1500);
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

async fn open(source: &Source, remote: &Remote, timeout: Duration) -> Store {
    let shutdown = ShutdownPolicy { timeout, interval: Duration::from_millis(100) };
    let config = StoreConfig { databases: vec![source.config(remote)], shutdown, upkeep: upkeep() };
    Store::open(World::system(), Arc::new(SystemSqlite), config).await.unwrap()
}

/// How long closing took, and whether the replica may lack commits.
async fn closed(store: &Store, interrupt: CancellationToken) -> (Duration, bool) {
    let began = Instant::now();
    let behind = store.close(interrupt).await;
    (began.elapsed(), !behind.is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_never_answers_keeps_nobody_longer_than_the_timeout() {
    for uploaded_before in [false, true] {
        let (source, remote) = (Source::new(1), Remote::new());
        let store = open(&source, &remote, TIMEOUT).await;
        if uploaded_before {
            store.start();
            eventually("the first upload", async || remote.has_all_of(&source).await).await;
        }
        remote.client.set_latency(FOR_EVER);
        store.start();
        source.insert(1..2);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (took, behind) = closed(&store, CancellationToken::new()).await;
        assert!(took < TIMEOUT + SLACK, "{took:?}");
        assert!(behind);
        // What the next start needs is there.
        assert!(source.local_l0(if uploaded_before { 2 } else { 1 }).exists() || !uploaded_before);
        let beside = remote.beside();
        source.replicate_once(&beside).await.unwrap();
        assert_eq!(beside.latest().await, source.rows());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_it_at_once() {
    let (source, remote) = (Source::new(1), Remote::new());
    let store = open(&source, &remote, Duration::from_secs(60)).await;
    remote.client.set_latency(FOR_EVER);
    store.start();
    let interrupt = CancellationToken::new();
    let later = interrupt.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        later.cancel();
    });
    let (took, _) = closed(&store, interrupt).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waiting_cannot_cure_is_tried_once() {
    for kind in [ErrorKind::PermissionDenied, ErrorKind::Invalid, ErrorKind::InUse, ErrorKind::Corrupt] {
        let (source, remote) = (Source::new(1), Remote::new());
        let store = open(&source, &remote, Duration::from_secs(60)).await;
        (0..100).for_each(|_| remote.client.push(Op::List, Fault::Refuse(kind)));
        let before = remote.client.calls(Op::List);
        let (took, behind) = closed(&store, CancellationToken::new()).await;
        assert!(took < SLACK && behind, "{kind:?}: {took:?}");
        // All levels are listed in one attempt.
        assert!(remote.client.calls(Op::List) - before <= 10, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_tried_again_and_nothing_is_missing_then() {
    let (source, remote) = (Source::new(1), Remote::new());
    let store = open(&source, &remote, Duration::from_secs(20)).await;
    (0..25).for_each(|_| remote.client.push(Op::List, Fault::Refuse(ErrorKind::Unavailable)));
    let (_, behind) = closed(&store, CancellationToken::new()).await;
    assert!(!behind);
    assert_eq!(remote.latest().await, source.rows());
}

/// It never held commits that anybody could miss.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_could_never_be_opened_is_not_waited_for() {
    let (source, remote) = (Source::new(1), Remote::new());
    let store = open(&source, &remote, Duration::from_secs(60)).await;
    source.app.execute_batch("PRAGMA locking_mode = exclusive; BEGIN EXCLUSIVE; COMMIT; BEGIN EXCLUSIVE").unwrap();
    let (took, behind) = closed(&store, CancellationToken::new()).await;
    assert!(took < Duration::from_secs(10) && behind, "{took:?}");
}

/// Whoever had it is gone, and nobody has looked since.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_somebody_else_has_left_is_synced_before_the_end() {
    let (source, remote) = (Source::new(1), Remote::new());
    let first = open(&source, &remote, TIMEOUT).await;
    first.run_once(false, false).await.unwrap();
    let second = open(&source, &remote, TIMEOUT).await;
    second.start();
    // It looks more and more seldom.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (_, behind) = closed(&first, CancellationToken::new()).await;
    assert!(!behind);
    source.insert(1..3);
    let (_, behind) = closed(&second, CancellationToken::new()).await;
    assert!(!behind);
    assert_eq!(remote.latest().await, source.rows());
}

/// It has nothing that only this one could have saved, and nobody waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_somebody_else_has_is_left_to_them() {
    let (source, remote) = (Source::new(1), Remote::new());
    let first = open(&source, &remote, TIMEOUT).await;
    first.run_once(false, false).await.unwrap();
    let second = open(&source, &remote, Duration::from_secs(60)).await;
    second.start();
    tokio::time::sleep(Duration::from_millis(300)).await;
    source.insert(1..3);
    let (took, behind) = closed(&second, CancellationToken::new()).await;
    assert!(took < SLACK && !behind, "{took:?}");
    first.run_once(false, false).await.unwrap();
    assert_eq!(remote.latest().await, source.rows());
}

/// Sixteen that hang do not keep a seventeenth from its last sync.
#[tokio::test(flavor = "multi_thread")]
async fn databases_that_hang_do_not_keep_others_from_their_last_sync() {
    let hanging: Vec<(Source, Remote)> = (0..20).map(|_| (Source::new(1), Remote::new())).collect();
    let (well, remote) = (Source::new(3), Remote::new());
    let mut databases: Vec<_> = hanging.iter().map(|(source, remote)| source.config(remote)).collect();
    databases.push(well.config(&remote));
    let shutdown = ShutdownPolicy { timeout: Duration::from_secs(5), interval: Duration::from_millis(100) };
    let config = StoreConfig { databases, shutdown, upkeep: upkeep() };
    let store = Store::open(World::system(), Arc::new(SystemSqlite), config).await.unwrap();
    hanging.iter().for_each(|(_, remote)| remote.client.set_latency(FOR_EVER));
    let behind = store.close(CancellationToken::new()).await;
    assert_eq!(behind.len(), 20);
    assert_eq!(remote.latest().await, well.rows());
}
