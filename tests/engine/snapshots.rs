//! Snapshots are read beside the engine: whatever happens meanwhile, they hold the state they began at.

use std::sync::{Arc, Barrier};

use litestream::db::{DbConfig, SnapshotReader};
use litestream::error::ErrorKind;
use litestream::ltx::Decoder;
use rusqlite::Connection;

use super::support::{Bench, Rng, set_up};

/// The database that a snapshot holds.
fn written(reader: &mut SnapshotReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.write(&mut bytes).unwrap();
    let mut decoder = Decoder::new(bytes.as_slice()).unwrap();
    let header = *decoder.header();
    assert!(header.txids.is_snapshot());
    let size = header.page_size.len();
    let mut image = vec![0; header.commit as usize * size];
    let mut page = vec![0; size];
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        let at = (pgno.get() as usize - 1) * size;
        image[at..at + size].copy_from_slice(&page);
    }
    image
}

fn change(app: &Connection, rng: &mut Rng) {
    let sql = match rng.below(8) {
        0..=3 => format!("INSERT INTO t(v) VALUES (randomblob({}))", 10 + rng.below(3000)),
        4 => "UPDATE t SET v = randomblob(200) WHERE id % 3 = 1".to_owned(),
        5 => format!("DELETE FROM t WHERE id % 5 = {}", rng.below(5)),
        6 => "INSERT INTO u(v) SELECT v FROM t LIMIT 20".to_owned(),
        _ => "DELETE FROM u; VACUUM".to_owned(),
    };
    // Somebody may hold the lock; then nothing changes.
    let _ = app.execute_batch(&sql);
}

#[test]
fn a_snapshot_holds_the_state_it_began_at() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    let mut rng = Rng(seed);
    for round in 0..40 {
        let bench = Bench::new();
        let app = bench.app();
        set_up(&app, 512 << rng.below(4));
        app.execute_batch("PRAGMA wal_autocheckpoint = 30").unwrap();
        let foreign = bench.app();
        foreign.busy_timeout(std::time::Duration::ZERO).unwrap();
        let mut db = bench.engine(DbConfig { min_checkpoint_pages: 10 + rng.below(60) as u32, ..bench.config() });
        for step in 0..6 {
            for _ in 0..rng.below(12) {
                change(&app, &mut rng);
                if rng.chance(40) {
                    db.sync().unwrap();
                }
            }
            let mut reader = db.begin_snapshot().unwrap();
            let truth = bench.truth();
            for _ in 0..rng.below(15) {
                match rng.below(4) {
                    0 => drop(db.sync().unwrap()),
                    1 => {
                        let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][rng.below(4) as usize];
                        let _ = foreign.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
                    }
                    _ => change(&app, &mut rng),
                }
            }
            assert!(written(&mut reader) == truth, "seed {seed}, round {round}, step {step}");
            drop(reader);
            db.sync().unwrap();
            bench.assert_caught_up(&format!("seed {seed}, round {round}, step {step}"));
        }
    }
}

/// A writer that never pauses leaves no moment between two commits; then it waits for one.
#[test]
fn a_snapshot_begins_beside_a_writer_without_pauses() {
    let bench = Bench::new();
    set_up(&bench.app(), 4096);
    let mut db = bench.engine(bench.config());
    db.sync().unwrap();
    let (start, stop) = (Arc::new(Barrier::new(2)), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let writer = std::thread::spawn({
        let (app, start, stop) = (bench.app(), Arc::clone(&start), Arc::clone(&stop));
        move || {
            app.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
            start.wait();
            let mut commits = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                app.execute("INSERT INTO u(v) VALUES (1)", []).unwrap();
                commits += 1;
            }
            commits
        }
    });
    start.wait();
    for _ in 0..10 {
        let mut reader = db.begin_snapshot().unwrap();
        let image = written(&mut reader);
        drop(reader);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("db"), image).unwrap();
        let copy = Connection::open(dir.path().join("db")).unwrap();
        let check: String = copy.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
        assert_eq!(check, "ok");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(writer.join().unwrap() > 0);
    db.sync().unwrap();
    bench.assert_caught_up("after the writer");
}

#[test]
fn closing_the_database_ends_its_snapshots_first() {
    let bench = Bench::new();
    let app = bench.app();
    set_up(&app, 4096);
    app.execute_batch("INSERT INTO u(v) VALUES (zeroblob(4000000))").unwrap();
    let mut db = bench.engine(bench.config());
    let mut reader = db.begin_snapshot().unwrap();
    let closing = std::thread::spawn(move || {
        db.close();
        db
    });
    // It waits for us; we are told at the next look.
    let refused = loop {
        match reader.write(std::io::sink()) {
            Ok(_) => std::thread::yield_now(),
            Err(err) => break err,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::Cancelled);
    assert!(!closing.is_finished());
    drop(reader);
    let mut db = closing.join().unwrap();
    assert_eq!(db.sync().unwrap().files, 0);
    bench.assert_caught_up("after closing");
}
