//! Local state or replica content that is gone, or another's: replication is whole again without help,
//! and TXIDs never fall below what the replica holds.

use std::time::Duration;

use litestream::compaction::Levels;
use litestream::error::ErrorKind;
use litestream::replica::FileInfo;
use litestream::replica::faulty::{Fault, Op};
use litestream::restore::Target;
use litestream::store::UpkeepConfig;
use litestream::sys::World;
use litestream::types::{Level, Txid, TxidRange};

use super::support::{Remote, Source, close, eventually, open_with, upkeep};

async fn three_files() -> (Source, Remote) {
    let (source, remote) = (Source::new(1), Remote::new());
    for n in 1..4 {
        source.replicate_once(&remote).await.unwrap();
        source.insert(n..n + 1);
    }
    assert_eq!(remote.level(0).await, [(1, 1), (2, 2), (3, 3)]);
    (source, remote)
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_metadata() {
    let (source, remote) = three_files().await;
    std::fs::remove_dir_all(source.meta()).unwrap();
    source.replicate_once(&remote).await.unwrap();
    assert_eq!(remote.level(0).await.last(), Some(&(4, 4)));
    assert_eq!(remote.latest().await, source.rows());
    assert_eq!(remote.restored(Target::Txid(Txid::new(2).unwrap())).await.unwrap(), [0, 1]);
}

/// As `litestream reset` does, also while the program runs.
#[tokio::test(flavor = "multi_thread")]
async fn d5_a_local_reset_continues_above_the_replica() {
    let (source, remote) = three_files().await;
    let store = source.store(&remote).await;
    store.run_once(false, false).await.unwrap();
    close(store).await;
    std::fs::remove_dir_all(source.meta().join("ltx")).unwrap();
    source.insert(10..12);
    source.replicate_once(&remote).await.unwrap();
    source.insert(12..14);
    source.replicate_once(&remote).await.unwrap();
    let txids: Vec<u64> = remote.level(0).await.iter().map(|(_, max)| *max).collect();
    assert_eq!(txids, [1, 2, 3, 4, 5, 6]);
    assert_eq!(remote.latest().await, source.rows());
    assert_eq!(remote.restored(Target::Txid(Txid::new(3).unwrap())).await.unwrap(), [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_empty_replica() {
    let (source, _) = three_files().await;
    let new = Remote::new();
    source.replicate_once(&new).await.unwrap();
    assert_eq!(new.latest().await, source.rows());
    // Where early local files are gone, a snapshot leads to the present.
    for n in 1..4 {
        std::fs::remove_file(source.local_l0(n)).unwrap();
    }
    let newer = Remote::new();
    source.insert(20..22);
    source.replicate_once(&newer).await.unwrap();
    assert_eq!(newer.latest().await, source.rows());
    assert_eq!(newer.level(9).await.len(), 1);
    source.insert(22..24);
    source.replicate_once(&newer).await.unwrap();
    assert_eq!(newer.latest().await, source.rows());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_replica_of_another_database() {
    let (source, remote) = three_files().await;
    let other = Source::new(0);
    other.insert(100..103);
    // Its local state knows TXIDs beyond those of the replica it is pointed to.
    let own = Remote::new();
    for n in 0..5 {
        other.insert(200 + n..201 + n);
        other.replicate_once(&own).await.unwrap();
    }
    other.insert(300..301);
    other.replicate_once(&remote).await.unwrap();
    assert_eq!(remote.latest().await, other.rows());
    assert_eq!(remote.restored(Target::Txid(Txid::new(3).unwrap())).await.unwrap(), [0, 1, 2]);
    drop(source);
}

/// A machine that was set back to an old image, database and metadata alike, and went on.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_of_database_and_metadata_that_went_on() {
    let (source, remote) = three_files().await;
    let old = tempfile::tempdir().unwrap();
    source.app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let keep = |name: &str| std::fs::copy(source.path().with_file_name(name), old.path().join(name)).map(|_| ());
    keep("db").unwrap();
    copy_dir(&source.meta(), &old.path().join(".db-litestream"));
    // The replica learns two more transactions, the copy two others.
    for n in 40..42 {
        source.insert(n..n + 1);
        source.replicate_once(&remote).await.unwrap();
    }
    let before = remote.latest().await;
    let copy = Source::new(0);
    std::fs::remove_dir_all(copy.meta()).ok();
    copy.app.execute_batch("PRAGMA journal_mode = delete").unwrap();
    std::fs::copy(old.path().join("db"), copy.path()).unwrap();
    copy_dir(&old.path().join(".db-litestream"), &copy.meta());
    let apart = Remote::new();
    let app = rusqlite::Connection::open(copy.path()).unwrap();
    for n in 50..54 {
        app.execute("INSERT INTO t VALUES (?1)", [n]).unwrap();
        copy.replicate_once(&apart).await.unwrap();
    }
    let newest = remote.level(0).await.last().unwrap().1;
    copy.replicate_once(&remote).await.unwrap();
    assert_eq!(remote.latest().await, apart.latest().await);
    assert_eq!(remote.restored(Target::Txid(Txid::new(newest).unwrap())).await.unwrap(), before);
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The simulator's finding: each of two first syncs fetched the newest file under one temporary name, and one
/// published what the other had only begun.
#[tokio::test(flavor = "multi_thread")]
async fn first_syncs_at_the_same_time_fetch_what_was_lost_once() {
    let mut fetches = Vec::new();
    for at_once in [1, 4] {
        let (source, remote) = three_files().await;
        std::fs::remove_dir_all(source.meta()).unwrap();
        remote.client.set_latency(std::time::Duration::from_millis(20));
        let before = remote.client.calls(Op::Get);
        let store = source.store(&remote).await;
        let managed = store.find(&source.path()).unwrap();
        let syncs = (0..at_once).map(|_| managed.sync(false, None));
        for synced in futures::future::join_all(syncs).await {
            synced.unwrap();
        }
        fetches.push(remote.client.calls(Op::Get) - before);
        close(store).await;
        assert_eq!(remote.latest().await, source.rows());
    }
    assert_eq!(fetches[0], fetches[1]);
}

/// W10: a local file whose bytes turned is never uploaded; the next one is a full image.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_local_file_is_not_uploaded() {
    // Somewhere in the pages, in the time of the header, and in the checksum at the end.
    for at in [150, 30, -3] {
        let (source, remote) = (Source::new(1), Remote::new());
        source.replicate_once(&remote).await.unwrap();
        let store = source.store(&remote).await;
        store.run_once(false, false).await.unwrap();
        source.insert(1..3);
        let managed = store.find(&source.path()).unwrap();
        managed.sync(false, None).await.unwrap();
        source.turn_bit(2, at);
        let _ = managed.sync(true, None).await;
        managed.sync(true, None).await.unwrap();
        assert_eq!(remote.latest().await, source.rows(), "byte {at}");
        source.insert(3..5);
        managed.sync(true, None).await.unwrap();
        close(store).await;
        for file in remote.files().await {
            let whole = remote.replica.get(file.level, file.txids, None).await.unwrap();
            let bytes: Vec<bytes::Bytes> = futures::TryStreamExt::try_collect(whole).await.unwrap();
            litestream::ltx::verify(bytes.concat().as_slice()).unwrap();
        }
        assert_eq!(remote.latest().await, source.rows(), "byte {at}");
    }
}

/// W10: nor does one that was uploaded before stop everything, when the replica is compared with it after an error.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_local_file_that_was_uploaded_is_given_up_too() {
    for at in [2, 30] {
        let (source, remote) = (Source::new(1), Remote::new());
        source.replicate_once(&remote).await.unwrap();
        let store = source.store(&remote).await;
        let managed = store.find(&source.path()).unwrap();
        managed.sync(true, None).await.unwrap();
        source.insert(1..3);
        managed.sync(true, None).await.unwrap();
        source.turn_bit(2, at);
        source.insert(3..5);
        remote.client.push(Op::Put, Fault::Refuse(ErrorKind::Unavailable));
        managed.sync(true, None).await.unwrap_err();
        let _ = managed.sync(true, None).await;
        managed.sync(true, None).await.unwrap();
        assert_eq!(remote.latest().await, source.rows(), "byte {at}");
        close(store).await;
    }
}

/// W9: a snapshot that replaces one of the same transaction takes over its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_forced_snapshot_hides_no_earlier_moment() {
    let (source, remote) = (Source::new(2), Remote::new());
    let store = source.store(&remote).await;
    store.run_once(true, false).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let moment = World::system().clock.now();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    store.run_once(true, false).await.unwrap();
    close(store).await;
    assert_eq!(remote.level(9).await, [(1, 1)]);
    // As retention does.
    remote.delete(0, 1, 1).await;
    assert_eq!(remote.restored(Target::Before(moment)).await.unwrap(), source.rows());
}

/// A snapshot that reads otherwise than it was written is not put either.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_refused_at_every_level() {
    let (source, remote) = (Source::new(3), Remote::new());
    source.replicate_once(&Remote::new()).await.unwrap();
    let path = source.local_l0(1);
    let whole = std::fs::read(&path).unwrap();
    let world = World::system();
    for level in Level::all() {
        for at in [30, 150, whole.len() - 20, whole.len() - 3] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let put = remote.replica.put_local(level, TxidRange::single(Txid::FIRST), &world, &path, None).await;
            assert_eq!(put.unwrap_err().kind(), ErrorKind::Corrupt, "level {level}, byte {at}");
        }
        std::fs::write(&path, &whole).unwrap();
        remote.replica.put_local(level, TxidRange::single(Txid::FIRST), &world, &path, None).await.unwrap();
    }
}

/// W14: nothing leads to what is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_a_beginning_gets_a_snapshot() {
    let (source, remote) = three_files().await;
    let before = remote.files().await;
    for file in before.iter().filter(|file| file.txids.min() == Txid::FIRST) {
        remote.replica.delete(&[(file.level, file.txids)]).await.unwrap();
    }
    assert!(remote.restored(Target::Latest).await.is_err());
    source.replicate_once(&remote).await.unwrap();
    assert_eq!(remote.latest().await, source.rows());
}

/// W15: nor does what is missing elsewhere hide that.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_a_beginning_gets_a_snapshot_also_if_more_is_missing() {
    let (source, remote) = three_files().await;
    for n in 4..6 {
        source.replicate_once(&remote).await.unwrap();
        source.insert(n..n + 1);
    }
    // As compaction of the second file alone would leave it.
    let (second, path) = (TxidRange::single(Txid::new(2).unwrap()), source.local_l0(2));
    remote.replica.put_local(Level::new(1).unwrap(), second, &World::system(), &path, None).await.unwrap();
    let lost = |file: &FileInfo| file.level == Level::SNAPSHOT || [1, 2, 4].contains(&file.txids.min().get());
    for file in remote.files().await.iter().filter(|file| file.level != Level::new(1).unwrap() && lost(file)) {
        remote.replica.delete(&[(file.level, file.txids)]).await.unwrap();
    }
    assert!(remote.restored(Target::Latest).await.is_err());
    source.replicate_once(&remote).await.unwrap();
    assert!(remote.level(0).await.contains(&(4, 4)));
    assert_eq!(remote.latest().await, source.rows());
}

/// W16: nothing after them shows that the newest files are gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_validation_notices_that_the_newest_files_are_missing() {
    for local_is_there in [true, false] {
        let (source, remote) = (Source::new(1), Remote::new());
        let upkeep = UpkeepConfig {
            levels: Levels::new(Vec::new()).unwrap(),
            validation_interval: Some(Duration::from_millis(100)),
            ..upkeep()
        };
        let store = open_with(vec![source.config(&remote)], upkeep).await.unwrap();
        store.start();
        let db = store.find(&source.path()).unwrap();
        for n in 1..5 {
            source.insert(n..n + 1);
            db.sync(true, None).await.unwrap().unwrap();
        }
        let newest = remote.level(0).await.last().copied().unwrap();
        if !local_is_there {
            for txid in newest.0 - 1..=newest.0 {
                std::fs::remove_file(source.local_l0(txid)).unwrap();
            }
        }
        for txid in newest.0 - 1..=newest.0 {
            remote.delete(0, txid, txid).await;
        }
        // Nobody commits, and nobody asks for a sync.
        eventually("the newest state is there again", async || remote.has_all_of(&source).await).await;
        close(store).await;
        assert_eq!(remote.latest().await, source.rows());
    }
}
