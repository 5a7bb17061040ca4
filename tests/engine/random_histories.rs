//! Random histories: application, foreign checkpointers, restarts and crashes of the engine.
//! After every sync the local files must replay to the database, byte for byte.

use rusqlite::Connection;

use crate::support::{Bench, Rng, set_up, wal_of};

const SIZES: [u32; 4] = [512, 1024, 4096, 65536];

/// One transaction of random size and kind. Errors of the application itself do not matter here.
fn write(rng: &mut Rng, conn: &Connection) {
    let table = if rng.chance(50) { "t" } else { "u" };
    let n = rng.below(30) + 1;
    let len = rng.below(3000);
    let sql = match rng.below(10) {
        0 => format!("DELETE FROM {table} WHERE id % 3 = 0"),
        1 => format!("UPDATE {table} SET v = randomblob({len}) WHERE id % 5 = {}", rng.below(5)),
        2 => format!("BEGIN; INSERT INTO {table}(v) VALUES (randomblob({len})); ROLLBACK"),
        _ => format!(
            "BEGIN; WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < {n})
             INSERT INTO {table}(v) SELECT randomblob({len}) FROM c; COMMIT"
        ),
    };
    let _ = conn.execute_batch(&sql);
}

/// A commit of a page or two.
fn small_write(rng: &mut Rng, conn: &Connection) {
    let table = if rng.chance(50) { "t" } else { "u" };
    let _ = conn.execute_batch(&format!("INSERT INTO {table}(v) VALUES (randomblob(20))"));
}

/// What hides commits from a log reader that was away: a few commits behind what it read, a
/// checkpoint of everything, then so few commits that most of the old log stays in the file.
fn hide_commits(rng: &mut Rng, conn: &Connection) {
    for _ in 0..=rng.below(2) {
        for _ in 0..rng.below(4) {
            small_write(rng, conn);
        }
        let mode = ["PASSIVE", "FULL", "RESTART"][rng.below(3) as usize];
        let _ = conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |r| r.get::<_, i64>(0));
        for _ in 0..rng.below(3) {
            small_write(rng, conn);
        }
    }
}

fn checkpoint(rng: &mut Rng, conn: &Connection) {
    let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][rng.below(4) as usize];
    let _ = conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |r| r.get::<_, i64>(0));
}

fn settings(rng: &mut Rng, conn: &Connection) {
    let page_size: i64 = conn.query_row("PRAGMA page_size", [], |r| r.get(0)).unwrap();
    // A limit that falls on a frame boundary: a restart then cuts the log where it looks whole.
    let on_a_boundary = 32 + rng.below(60) as i64 * (page_size + 24);
    let auto = [0, 1, 3, 10, 100, 1000][rng.below(6) as usize];
    let limit = [-1, 0, 4096, on_a_boundary, on_a_boundary, 1 << 20][rng.below(6) as usize];
    let _ = conn.execute_batch(&format!("PRAGMA wal_autocheckpoint = {auto}; PRAGMA busy_timeout = 50"));
    let _ = conn.query_row(&format!("PRAGMA journal_size_limit = {limit}"), [], |r| r.get::<_, i64>(0));
    if rng.chance(20) {
        let _ = conn.execute_batch("PRAGMA cache_size = 5; PRAGMA cache_spill = 1");
    }
}

fn run(seed: u64, steps: u32) {
    let mut rng = Rng(seed);
    let bench = Bench::new();
    let mut app = bench.app();
    let vacuum = ["none", "full", "incremental"][rng.below(3) as usize];
    app.execute_batch(&format!("PRAGMA auto_vacuum = {vacuum}")).unwrap();
    set_up(&app, SIZES[rng.below(4) as usize]);
    settings(&mut rng, &app);
    let mut config = bench.config();
    config.min_checkpoint_pages = [5, 20, 1000][rng.below(3) as usize];
    config.busy_timeout = std::time::Duration::from_millis(20);
    if rng.chance(30) {
        config.max_sync_wal_bytes = Some(20_000);
    }
    let mut engine = bench.engine(config.clone());
    let mut second = bench.app();
    for step in 0..steps {
        let at = format!("seed {seed} step {step}");
        match rng.below(100) {
            0..45 => write(&mut rng, &app),
            45..52 => write(&mut rng, &second),
            52..60 => checkpoint(&mut rng, &second),
            60..82 => {
                engine.sync().unwrap_or_else(|e| panic!("{at}: {e}"));
                bench.assert_caught_up(&at);
            }
            82..88 => {
                // The engine stops, with or without a last look; the application goes on.
                if rng.chance(50) {
                    engine.sync().unwrap_or_else(|e| panic!("{at}: {e}"));
                }
                drop(engine);
                if rng.chance(50) {
                    hide_commits(&mut rng, &app);
                } else {
                    for _ in 0..rng.below(8) {
                        match rng.below(6) {
                            0 => checkpoint(&mut rng, &second),
                            _ => write(&mut rng, &app),
                        }
                    }
                }
                engine = bench.engine(config.clone());
            }
            88..91 => {
                app = bench.app();
                settings(&mut rng, &app);
            }
            91..93 => {
                // Everybody leaves: the last one to close folds the log in and removes it.
                drop(engine);
                drop((app, second));
                app = bench.app();
                second = bench.app();
                engine = bench.engine(config.clone());
            }
            93..95 => {
                let _ = app.execute_batch("VACUUM");
            }
            95..97 => {
                let _ = app.execute_batch("PRAGMA incremental_vacuum(20)");
            }
            _ => {
                // A reader of the application holds an old state for a while.
                let reader = bench.app();
                reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
                write(&mut rng, &app);
                engine.sync().unwrap_or_else(|e| panic!("{at}: {e}"));
                bench.assert_caught_up(&at);
            }
        }
    }
    engine.sync().unwrap_or_else(|e| panic!("seed {seed} end: {e}"));
    bench.assert_caught_up(&format!("seed {seed} end"));
    assert!(wal_of(&bench.path).exists());
}

#[test]
fn every_history_replays_to_the_database() {
    let from: u64 = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let count: u64 = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    for seed in from..from + count {
        run(seed, 120);
    }
}
