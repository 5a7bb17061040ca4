//! Databases that come, go, stop and start while the store runs.

use std::time::Duration;

use futures::FutureExt;
use litestream::error::ErrorKind;
use litestream::replica::faulty::{Fault, Op};
use litestream::store::RunState;

use super::support::{Remote, Source, close, open};

const LONG: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_asked_for_at_once_one_engine_works_and_no_commit_is_lost() {
    let (source, remote) = (Source::new(1), Remote::new());
    let store = open(Vec::new()).await.unwrap();
    store.start();
    let mut value = 1;
    for round in 0..20 {
        source.insert(value..value + 5);
        value += 5;
        // All at once: the second engine on a path would be refused by the first one's lock, and say so.
        let path = source.path();
        let (came, left, came_again, stopped) = tokio::join!(
            store.register(source.config(&remote)),
            async { if round % 3 == 0 { store.unregister(&path, LONG).await.map(|_| ()) } else { Ok(()) } },
            store.register(source.config(&remote)),
            async {
                match store.find(&path).filter(|_| round % 2 == 0) {
                    Some(db) => db.stop(LONG).await.map(|_| ()),
                    None => Ok(()),
                }
            },
        );
        for outcome in [came.map(|_| ()), left, came_again.map(|_| ()), stopped] {
            outcome.unwrap();
        }
    }
    store.register(source.config(&remote)).await.unwrap();
    let db = store.find(&source.path()).unwrap();
    db.start(Some(LONG)).await.unwrap();
    let synced = db.sync(true, Some(LONG)).await.unwrap().unwrap();
    assert!(synced.txid.is_some() && synced.replicated >= synced.txid, "{synced:?}");
    assert_eq!(db.status().local.trouble, None);
    close(store).await;
    assert_eq!(remote.latest().await, source.rows());
}

/// However the two come to run: who was taken out may get to his end after the next one begins.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_waits_until_who_left_has_closed() {
    let (source, remote) = (Source::new(1), Remote::new());
    let store = open(vec![source.config(&remote)]).await.unwrap();
    store.start();
    let left = store.find(&source.path()).unwrap();
    left.sync(true, Some(LONG)).await.unwrap().unwrap();
    // Two of them, one after the other: the second one of them never got so far as to begin.
    let leaving = store.take_out(&source.path(), LONG);
    let (next, config) = (store.clone(), source.config(&remote));
    let came = tokio::spawn(async move { next.register(config).await });
    let second = loop {
        match store.find(&source.path()) {
            Some(second) => break second,
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let leaving_too = store.take_out(&source.path(), LONG);
    let (next, config) = (store.clone(), source.config(&remote));
    let came_again = tokio::spawn(async move { next.register(config).await });
    let left_too = tokio::spawn(leaving_too);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(left.status().state, RunState::Replicating);
    assert_eq!(second.status().state, RunState::Stopped);
    assert_eq!(store.find(&source.path()).unwrap().status().state, RunState::Stopped);
    leaving.await.unwrap().unwrap();
    left_too.await.unwrap().unwrap();
    assert!(came.await.unwrap().unwrap() && came_again.await.unwrap().unwrap());
    let last = store.find(&source.path()).unwrap();
    last.sync(true, Some(LONG)).await.unwrap().unwrap();
    assert_eq!((left.status().state, last.status().state), (RunState::Stopped, RunState::Replicating));
    close(store).await;
    assert_eq!(remote.latest().await, source.rows());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_database_is_left_alone_until_it_is_started() {
    let (source, remote) = (Source::new(1), Remote::new());
    let store = open(vec![source.config(&remote)]).await.unwrap();
    store.start();
    let db = store.find(&source.path()).unwrap();
    let first = db.stop(LONG).await.unwrap();
    assert!(first.now && first.txid.is_some());
    assert_eq!(db.status().state, RunState::Stopped);
    assert!(!db.stop(LONG).await.unwrap().now);
    // Nobody holds a read transaction: the application may do with its log what it likes.
    source.insert(1..4);
    let busy: i64 = source.app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
    assert_eq!(busy, 0);
    assert_eq!(db.sync(true, Some(LONG)).await.unwrap(), None);
    assert!(db.start(Some(LONG)).await.unwrap().now);
    assert!(!db.start(Some(LONG)).await.unwrap().now);
    db.sync(true, Some(LONG)).await.unwrap().unwrap();
    close(store).await;
    assert_eq!(remote.latest().await, source.rows());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nobody_waits_for_is_ended() {
    let (source, remote) = (Source::new(1), Remote::new());
    let store = open(vec![source.config(&remote)]).await.unwrap();
    store.start();
    let db = store.find(&source.path()).unwrap();
    // Dropped as soon as it was begun.
    assert!(db.stop(LONG).now_or_never().is_none());
    close(store).await;
    assert_eq!(db.status().state, RunState::Stopped);
    assert_eq!(remote.latest().await, source.rows());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_place_for_local_state_belongs_to_one_database() {
    let (one, two, remote) = (Source::new(1), Source::new(1), Remote::new());
    let store = open(vec![one.config(&remote)]).await.unwrap();
    let other = Remote::new();
    let err = store.register(two.config_with_meta(&other, one.meta())).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
    assert!(err.to_string().starts_with("meta-path collision: "), "{err}");
    assert!(!store.register(one.config(&remote)).await.unwrap());
    assert_eq!(store.len(), 1);
    close(store).await;
    // Who was let go is not started behind the back of who came in his place.
    let store = open(vec![one.config(&remote)]).await.unwrap();
    let left = store.find(&one.path()).unwrap();
    store.unregister(&one.path(), LONG).await.unwrap();
    assert!(store.register(one.config(&remote)).await.unwrap());
    assert_eq!(left.start(Some(LONG)).await.unwrap_err().kind(), ErrorKind::NotFound);
    close(store).await;
    let err = open(vec![one.config(&remote), one.config(&remote)]).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Exists);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_end_nothing_comes_and_nothing_starts() {
    let (source, remote) = (Source::new(1), Remote::new());
    let store = open(vec![source.config(&remote)]).await.unwrap();
    let db = store.find(&source.path()).unwrap();
    close(store.clone()).await;
    assert_eq!(db.start(Some(LONG)).await.unwrap_err().kind(), ErrorKind::Cancelled);
    let other = Source::new(1);
    assert_eq!(store.register(other.config(&Remote::new())).await.unwrap_err().kind(), ErrorKind::Cancelled);
}

/// Only the end of the store is hurried by a run that failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_stopped_after_a_failed_run_is_still_synced_patiently() {
    let (source, remote) = (Source::new(1), Remote::new());
    let store = source.store(&remote).await;
    for _ in 0..2 {
        remote.client.push(Op::Put, Fault::Refuse(ErrorKind::Unavailable));
    }
    store.run_once(false, false).await.unwrap_err();
    store.find(&source.path()).unwrap().stop(LONG).await.unwrap();
    assert_eq!(remote.latest().await, source.rows());
    close(store).await;
}
