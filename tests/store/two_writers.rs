//! More than one replicator for one database or one replica: never a mix, and everybody is told.

use std::sync::Arc;
use std::time::Duration;

use litestream::error::ErrorKind;
use litestream::replica::faulty::{Fault, Op};
use litestream::restore::Target;
use litestream::store::Store;
use litestream::sys::{ManualClock, World};
use litestream::types::{Timestamp, Txid};

use super::support::{Remote, Source, close, eventually, open, open_in, upkeep};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_one_database_is_refused_until_the_first_has_ended() {
    let (source, remote) = (Source::new(3), Remote::new());
    let first = source.store(&remote).await;
    first.run_once(false, false).await.unwrap();
    let second = source.store(&remote).await;
    let err = second.run_once(false, false).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InUse);
    let lock = source.meta().join("litestream.lock");
    let text = format!("locked by process {}: {}", std::process::id(), lock.display());
    assert!(err.to_string().contains("database is being replicated by another litestream"), "{err}");
    assert!(err.to_string().contains(&text), "{err}");
    assert!(err.hint_text().is_some());
    // The first is not disturbed, and what it is writing is not swept away.
    source.insert(3..5);
    first.run_once(false, false).await.unwrap();
    close(first).await;
    source.insert(5..7);
    second.run_once(false, false).await.unwrap();
    close(second).await;
    assert_eq!(remote.latest().await, source.rows());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_daemon_takes_over_by_itself() {
    let (source, remote) = (Source::new(3), Remote::new());
    let first = source.store(&remote).await;
    first.run_once(false, false).await.unwrap();
    let second = source.store(&remote).await;
    second.start();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    close(first).await;
    source.insert(3..9);
    eventually("the second has taken over", async || remote.has_all_of(&source).await).await;
    close(second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_a_daemon_that_only_waited_does_not_take_the_whole_timeout() {
    let (source, remote) = (Source::new(3), Remote::new());
    let first = source.store(&remote).await;
    first.run_once(false, false).await.unwrap();
    let second = source.store(&remote).await;
    second.start();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    // The policy of these stores would try for five seconds.
    tokio::time::timeout(std::time::Duration::from_secs(2), close(second)).await.unwrap();
    close(first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_databases_of_one_config_cannot_share_a_replica() {
    let (a, b, remote) = (Source::new(1), Source::new(1), Remote::new());
    let err = open(vec![a.config(&remote), b.config(&remote)]).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
    assert!(err.to_string().contains("is used by another database"), "{err}");
    let other = Remote::new();
    close(open(vec![a.config(&remote), b.config(&other)]).await.unwrap()).await;
}

/// Whoever starts takes the replica over; whoever is overtaken stops at its next upload. All TXIDs
/// stay what they were: states of one database or the other, never of both.
#[tokio::test(flavor = "multi_thread")]
async fn two_databases_on_one_replica_take_turns_but_never_mix() {
    let (a, b, remote) = (Source::new(0), Source::new(0), Remote::new());
    let mut states = std::collections::BTreeMap::new();
    let mut stores = [None, None];
    let mut value = 0;
    for round in 0..8 {
        let (me, source) = if round % 2 == 0 { (0, &a) } else { (1, &b) };
        // A fresh start takes over, with a full image above everything that is there.
        if let Some(store) = stores[me].take() {
            close(store).await;
        }
        stores[me] = Some(source.store(&remote).await);
        let store = stores[me].as_ref().unwrap();
        for _ in 0..3 {
            source.insert(value..value + 2);
            value += 2;
            store.run_once(false, false).await.unwrap();
            let newest = remote.level(0).await.last().unwrap().1;
            states.insert(newest, source.rows());
        }
        // The other one notices, stays away for good, and says what to do.
        let other = if me == 0 { &b } else { &a };
        if let Some(overtaken) = &stores[1 - me] {
            other.insert(value..value + 1);
            value += 1;
            for _ in 0..2 {
                let err = overtaken.run_once(true, true).await.unwrap_err();
                assert_eq!(err.kind(), ErrorKind::InUse, "{err}");
                assert!(err.to_string().contains("another writer has put a different transaction"), "{err}");
                assert!(err.hint_text().unwrap().contains("restart"));
            }
        }
        assert_eq!(remote.latest().await, source.rows());
    }
    assert_eq!(states.len(), 24);
    for (txid, rows) in states {
        assert_eq!(remote.restored(Target::Txid(Txid::new(txid).unwrap())).await.unwrap(), rows, "TXID {txid}");
    }
    for store in stores.into_iter().flatten() {
        close(store).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_database_with_two_metadata_directories_is_continued_by_the_last_to_start() {
    let (source, remote) = (Source::new(2), Remote::new());
    let first = source.store(&remote).await;
    first.run_once(false, false).await.unwrap();
    let elsewhere = source.meta().with_file_name("elsewhere");
    let second = open(vec![source.config_with_meta(&remote, elsewhere)]).await.unwrap();
    source.insert(2..4);
    second.run_once(false, false).await.unwrap();
    source.insert(4..6);
    assert_eq!(first.run_once(false, false).await.unwrap_err().kind(), ErrorKind::InUse);
    second.run_once(false, false).await.unwrap();
    assert_eq!(remote.latest().await, source.rows());
    close(first).await;
    close(second).await;
    assert_eq!(remote.latest().await, source.rows());
}

/// Daemons with all their tasks, both at it at full speed.
#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_on_one_replica_leave_one_whole_history() {
    let (a, b, remote) = (Source::new(5), Source::new(5), Remote::new());
    b.insert(1000..1005);
    let (first, second) = (a.store(&remote).await, b.store(&remote).await);
    first.start();
    second.start();
    for n in 0..60 {
        a.insert(n..n + 1);
        b.insert(2000 + n..2001 + n);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // One of them has lost and stays away, also at the end.
    close(first).await;
    close(second).await;
    let restored = remote.latest().await;
    assert!(restored == a.rows() || restored == b.rows());
    for file in remote.files().await {
        let rows = remote.restored(Target::Txid(file.txids.max())).await.unwrap();
        assert!(a.rows().starts_with(&rows) || b.rows().starts_with(&rows), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_answer_was_lost_is_not_taken_for_another_writer() {
    let (source, remote) = (Source::new(2), Remote::new());
    let store = source.store(&remote).await;
    store.run_once(false, false).await.unwrap();
    for n in 2..6 {
        source.insert(n..n + 1);
        remote.client.push(Op::Put, Fault::LoseAnswer(ErrorKind::Unavailable));
        assert_eq!(store.run_once(false, false).await.unwrap_err().kind(), ErrorKind::Unavailable);
        store.run_once(false, false).await.unwrap();
    }
    assert_eq!(remote.latest().await, source.rows());
    close(store).await;
}

/// The simulator's finding: an answer that was cut short was taken for another writer's file.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cut_short_is_no_other_writer() {
    let (source, remote) = (Source::new(3), Remote::new());
    let store = source.store(&remote).await;
    // The object is made, and asking again below us met it.
    remote.client.push(Op::Put, Fault::LoseAnswer(ErrorKind::Exists));
    remote.client.push(Op::Get, Fault::CutBody { after: 10 });
    let err = store.run_once(false, false).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt, "{err}");
    store.run_once(false, false).await.unwrap();
    source.insert(3..5);
    store.run_once(false, false).await.unwrap();
    assert_eq!(remote.latest().await, source.rows());
    close(store).await;
}

/// The simulator's finding: what another writer had put beyond our own newest transaction was taken for ours,
/// and what we had was never uploaded although that was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_finds_more_than_it_has_written_has_lost_the_replica() {
    let (a, b, remote) = (Source::new(1), Source::new(1), Remote::new());
    let first = a.store(&remote).await;
    first.run_once(false, false).await.unwrap();
    for value in 1..3 {
        b.insert(value..value + 1);
        b.replicate_once(&remote).await.unwrap();
    }
    // Newest there is 3, here 2.
    a.insert(1..2);
    remote.client.push(Op::Put, Fault::Refuse(ErrorKind::Unavailable));
    assert_eq!(first.run_once(false, false).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(first.run_once(false, false).await.unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(remote.latest().await, b.rows());
    close(first).await;
    a.replicate_once(&remote).await.unwrap();
    assert_eq!(remote.latest().await, a.rows());
}

/// A store whose time passes only when the clock is told so.
async fn on_a_clock(source: &Source, remote: &Remote) -> (Arc<ManualClock>, Store) {
    let clock = Arc::new(ManualClock::starting_at(Timestamp::from_millis(1_700_000_000_000)));
    let world = World { clock: clock.clone(), ..World::system() };
    let store = open_in(world, vec![source.config(remote)], upkeep()).await.unwrap();
    (clock, store)
}

/// While it was idle, another database's transactions took the places of its next ones, and were compacted and
/// gone from level 0, so that the store has nothing to refuse them for.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_was_idle_looks_before_it_goes_on() {
    let (idle, other, remote) = (Source::new(1), Source::new(4), Remote::new());
    let (clock, store) = on_a_clock(&idle, &remote).await;
    store.run_once(false, false).await.unwrap();
    assert_eq!(remote.level(0).await, [(1, 1)]);
    other.replicate_once(&remote).await.unwrap();
    other.insert(4..6);
    other.replicate_once(&remote).await.unwrap();
    let ours = remote.level(0).await;
    assert!(ours.len() >= 3, "{ours:?}");
    for (min, max) in &ours[..ours.len() - 1] {
        remote.delete(0, *min, *max).await;
    }
    clock.advance(Duration::from_secs(200));
    idle.insert(10..11);
    let err = store.run_once(false, false).await.unwrap_err();
    assert!(err.to_string().contains("another writer"), "{err}");
    assert_eq!(remote.level(0).await, ours[ours.len() - 1..], "nothing was uploaded");
    close(store).await;
}

/// W11: nothing to upload is no proof that everything is there.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_writer_that_lost_its_replica_does_not_say_that_all_is_there() {
    let (idle, other, remote) = (Source::new(1), Source::new(4), Remote::new());
    let (clock, store) = on_a_clock(&idle, &remote).await;
    let managed = store.find(&idle.path()).unwrap();
    managed.sync(true, None).await.unwrap();
    // What an empty replica holds is not remembered.
    clock.advance(Duration::from_secs(2));
    managed.sync(true, None).await.unwrap();
    // With nothing to upload, level 0 is listed once; an upload is proof enough.
    let lists = remote.client.calls(Op::List);
    clock.advance(Duration::from_millis(1));
    managed.sync(true, None).await.unwrap();
    assert_eq!(remote.client.calls(Op::List), lists + 1);
    clock.advance(Duration::from_millis(1));
    idle.insert(1..2);
    managed.sync(true, None).await.unwrap();
    assert_eq!(remote.client.calls(Op::List), lists + 1);
    other.replicate_once(&remote).await.unwrap();
    clock.advance(Duration::from_secs(2));
    let err = managed.sync(true, None).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InUse, "{err}");
    close(store).await;
}

/// W8: the first files of a history are missing here, so a snapshot goes ahead of its last one, and meanwhile
/// another database takes all these TXIDs and one more, which must not be restored on top of our snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_another_writer_overtook_is_taken_back() {
    let (slow, fast) = (Source::new(1), Source::new(40));
    for n in 1..4 {
        slow.replicate_once(&Remote::new()).await.unwrap();
        slow.insert(n..n + 1);
    }
    for n in [1, 2] {
        std::fs::remove_file(slow.local_l0(n)).ok();
    }
    let remote = Remote::new();
    let beside = remote.beside();
    let store = slow.store(&remote).await;
    let managed = store.find(&slow.path()).unwrap();
    managed.sync(false, None).await.unwrap();
    let newest = managed.position().await.unwrap().unwrap().get();
    remote.client.set_latency(Duration::from_millis(250));
    let overtaken = async {
        let err = managed.sync(true, None).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InUse, "{err}");
    };
    let overtaking = async {
        eventually("the snapshot is under way", async || remote.client.calls(Op::Put) > 0).await;
        let other = fast.store(&beside).await;
        for n in 0..i64::try_from(newest).unwrap() + 1 {
            other.run_once(false, false).await.unwrap();
            fast.insert(100 + n..101 + n);
        }
        close(other).await;
    };
    tokio::join!(overtaken, overtaking);
    remote.client.set_latency(Duration::ZERO);
    assert!(beside.level(0).await.len() as u64 > newest);
    assert_eq!(beside.level(9).await, []);
    let restored = beside.latest().await;
    assert!(fast.rows().starts_with(&restored) && restored.len() >= 40, "{restored:?}");
    close(store).await;
}

/// W7: the newest header of another database is cut short whenever it is read. Nobody can tell whose it is, so
/// nothing is continued behind it but a full image.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_continues_nothing_whose_header_it_could_not_read() {
    for cuts in [3, 4] {
        let (a, b, remote) = (Source::new(1), Source::new(30), Remote::new());
        b.replicate_once(&Remote::new()).await.unwrap();
        a.replicate_once(&remote).await.unwrap();
        b.insert(30..32);
        for _ in 0..cuts {
            remote.client.push(Op::Get, Fault::CutBody { after: 50 });
        }
        let store = b.store(&remote).await;
        let managed = store.find(&b.path()).unwrap();
        // Cuts that are left may fail this one.
        let _ = managed.sync(true, None).await;
        remote.client.forget_faults();
        managed.sync(true, None).await.unwrap();
        assert_eq!(remote.latest().await, b.rows(), "{cuts} cut answers");
        assert_eq!(remote.restored(Target::Txid(Txid::FIRST)).await.unwrap(), a.rows());
        close(store).await;
    }
}
