//! Those who read what follow mode writes, and keep it open: no rows of another state, no old rows for ever.

use std::fs;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use litestream::error::{ErrorKind, Result};
use rusqlite::{Connection, OpenFlags};
use tokio_util::sync::CancellationToken;

use super::follow::{follow_while, run, saved};
use super::support::Scene;

/// The file of a database that `sql` makes, in rollback-journal mode.
fn database(dir: &Path, sql: &str) -> Vec<u8> {
    let path = dir.join("source");
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch(sql).unwrap();
    drop(conn);
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    bytes
}

/// The file after `sql` was run on it.
fn changed(dir: &Path, before: &[u8], sql: &str) -> Vec<u8> {
    fs::write(dir.join("source"), before).unwrap();
    database(dir, sql)
}

fn reader(scene: &Scene) -> Connection {
    let conn = Connection::open_with_flags(scene.output(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    conn.busy_timeout(Duration::from_secs(5)).unwrap();
    conn
}

fn number(conn: &Connection, sql: &str) -> i64 {
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

async fn follow_to(scene: &Scene, txid: u64) {
    follow_while(scene, &scene.world, || saved(scene) != Some(txid)).await.unwrap();
    assert_eq!(saved(scene), Some(txid));
}

/// Follows while `body` runs; what became of following, and of `body` if that came to its end.
async fn beside<T>(scene: &Scene, body: impl Future<Output = T>) -> (Result<()>, Option<T>) {
    let stop = CancellationToken::new();
    let following = run(scene, &scene.world, &stop);
    let body = async {
        let done = body.await;
        stop.cancel();
        done
    };
    tokio::pin!(following, body);
    tokio::select! {
        ended = &mut following => (ended, None),
        done = &mut body => (following.await, Some(done)),
    }
}

async fn until(mut done: impl FnMut() -> bool) -> bool {
    for _ in 0..2000 {
        if done() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

const ROWS: &str = "CREATE TABLE t(n INTEGER PRIMARY KEY, v); \
    WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 300) \
    INSERT INTO t SELECT n, 'old' || hex(zeroblob(50)) FROM c;";
const NEW_ROWS: &str = "UPDATE t SET v = 'new' || hex(zeroblob(50))";
const OLD: &str = "SELECT count(*) FROM t WHERE v LIKE 'old%'";
const NEW: &str = "SELECT count(*) FROM t WHERE v LIKE 'new%'";

/// A replica with two states, of which the second is not there yet.
fn two_states() -> (Scene, Vec<u8>, Vec<u8>) {
    let scene = Scene::empty();
    let one = database(&scene.out_dir(), ROWS);
    let two = changed(&scene.out_dir(), &one, NEW_ROWS);
    scene.put(1, &one, None);
    (scene, one, two)
}

/// What Turso's library does to a database that it opens, even if it only reads.
fn turn_header_to_wal(scene: &Scene) {
    let file = fs::File::options().write(true).open(scene.output()).unwrap();
    file.write_all_at(&[2, 2], 18).unwrap();
    fs::write(scene.out_dir().join("db-wal"), []).unwrap();
}

fn assert_in_order(scene: &Scene) {
    assert_eq!(fs::read(scene.output()).unwrap()[18..20], [1, 1]);
    let mut names: Vec<String> = scene.outputs().into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, ["db", "db-txid"]);
    assert_eq!(number(&reader(scene), NEW), 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_an_output_that_was_turned_to_wal_mode_are_waited_for() {
    // By the pragma, which counts as a change, and by a library that does not tell.
    for by_pragma in [true, false] {
        let (scene, one, two) = two_states();
        follow_to(&scene, 1).await;
        let (ended, done) = beside(&scene, async {
            // The follower has the output open.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let conn = if by_pragma {
                let conn = Connection::open(scene.output()).unwrap();
                conn.query_row("PRAGMA journal_mode = wal", [], |_| Ok(())).unwrap();
                conn
            } else {
                turn_header_to_wal(&scene);
                Connection::open(scene.output()).unwrap()
            };
            conn.execute_batch("BEGIN").unwrap();
            assert_eq!(number(&conn, OLD), 300);
            scene.put(2, &two, Some(&one));
            tokio::time::sleep(Duration::from_millis(500)).await;
            // Pages beyond the reader's cache come from the file.
            conn.execute_batch("PRAGMA shrink_memory").unwrap();
            assert_eq!(number(&conn, OLD), 300, "by pragma: {by_pragma}");
            let check: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(check, "ok");
            conn.execute_batch("COMMIT").unwrap();
            drop(conn);
            until(|| saved(&scene) == Some(2)).await
        })
        .await;
        ended.unwrap();
        assert_eq!(done, Some(true), "by pragma: {by_pragma}");
        assert_in_order(&scene);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_in_wal_mode_is_taken_up_again_after_a_restart() {
    let (scene, one, two) = two_states();
    follow_to(&scene, 1).await;
    turn_header_to_wal(&scene);
    // Another program has it open all the time that the follower is not there, and for a while longer.
    let conn = Connection::open(scene.output()).unwrap();
    assert_eq!(number(&conn, OLD), 300);
    scene.put(2, &two, Some(&one));
    let (ended, done) = beside(&scene, async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(number(&conn, OLD), 300);
        drop(conn);
        until(|| saved(&scene) == Some(2)).await
    })
    .await;
    ended.unwrap();
    assert_eq!(done, Some(true));
    assert_in_order(&scene);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_waits_for_readers_in_wal_mode_can_be_stopped() {
    let (scene, one, two) = two_states();
    follow_to(&scene, 1).await;
    let conn = Connection::open(scene.output()).unwrap();
    conn.query_row("PRAGMA journal_mode = wal", [], |_| Ok(())).unwrap();
    assert_eq!(number(&conn, OLD), 300);
    scene.put(2, &two, Some(&one));
    let stopped = beside(&scene, tokio::time::sleep(Duration::from_millis(300)));
    let (ended, _) = tokio::time::timeout(Duration::from_secs(10), stopped).await.unwrap();
    ended.unwrap();
    assert_eq!(saved(&scene), Some(1));
    assert_eq!(number(&conn, OLD), 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_another_program_made_in_wal_mode_end_following() {
    for stays in [true, false] {
        let (scene, one, two) = two_states();
        follow_to(&scene, 1).await;
        let (ended, done) = beside(&scene, async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let conn = Connection::open(scene.output()).unwrap();
            conn.query_row("PRAGMA journal_mode = wal", [], |_| Ok(())).unwrap();
            conn.execute_batch("CREATE TABLE mine(x)").unwrap();
            // Closing brings the commit into the database, and removes the log.
            let conn = Some(conn).filter(|_| stays);
            scene.put(2, &two, Some(&one));
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(conn);
        })
        .await;
        let err = ended.expect_err(if stays { "with a log" } else { "without" });
        assert_eq!(done, None);
        assert_eq!(err.kind(), ErrorKind::Changed, "{err}");
        assert!(err.to_string().contains("another program has changed the output of follow mode"), "{err}");
        assert_eq!(number(&Connection::open(scene.output()).unwrap(), "SELECT count(*) FROM mine"), 0);
    }
}

fn cookie(database: &[u8]) -> u32 {
    u32::from_be_bytes(database[40..44].try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_reader_never_gets_rows_of_another_table() {
    // The same number of changes to the schema, and the same pages: only the names differ.
    const CITIES: &str = "CREATE TABLE city(name TEXT); INSERT INTO city VALUES ('Rome');";
    const CODES: &str = "CREATE TABLE code(n INTEGER); INSERT INTO code VALUES (4711);";
    for restarted in [false, true] {
        let scene = Scene::empty();
        let (cities, codes) = (database(&scene.out_dir(), CITIES), database(&scene.out_dir(), CODES));
        assert_eq!(cookie(&cities), cookie(&codes));
        scene.put(1, &cities, None);
        follow_to(&scene, 1).await;
        let conn = reader(&scene);
        let mut names = conn.prepare("SELECT name FROM city").unwrap();
        let mut name = || names.query_row([], |row| row.get::<_, rusqlite::types::Value>(0));
        assert_eq!(name().unwrap(), rusqlite::types::Value::Text("Rome".to_owned()));
        scene.put(2, &codes, None);
        follow_to(&scene, 2).await;
        let err = name().unwrap_err();
        assert!(err.to_string().contains("no such table: city"), "{err}");
        assert_eq!(number(&conn, "SELECT n FROM code"), 4711);
        // And back, to the cookie that the reader had seen before.
        let mut codes_read = conn.prepare("SELECT n FROM code").unwrap();
        assert_eq!(codes_read.query_row([], |row| row.get::<_, i64>(0)).unwrap(), 4711);
        if restarted {
            scene.put(3, &cities, None);
            follow_to(&scene, 3).await;
        } else {
            scene.put(3, &cities, Some(&codes));
            let (ended, _) = beside(&scene, until(|| saved(&scene) == Some(3))).await;
            ended.unwrap();
        }
        assert!(codes_read.query_row([], |row| row.get::<_, i64>(0)).is_err());
        assert_eq!(name().unwrap(), rusqlite::types::Value::Text("Rome".to_owned()));
        let output = fs::read(scene.output()).unwrap();
        assert_eq!(output[24..28], output[92..96], "SQLite trusts the number of pages only then");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_on_many_pages_that_changed_without_its_cookie_is_read_anew() {
    let scene = Scene::empty();
    let columns: String = (0..60).map(|n| format!(", column_{n} TEXT")).collect();
    let tables: String = (0..40).map(|n| format!("CREATE TABLE t{n}(a INTEGER PRIMARY KEY{columns});")).collect();
    let one = database(&scene.out_dir(), &format!("{tables} INSERT INTO t39(a, column_7) VALUES (1, 'seven')"));
    assert_eq!(one[100], 5, "the first page is not a leaf");
    let two = changed(&scene.out_dir(), &one, "INSERT INTO t39(a, column_7) VALUES (2, 'seven')");
    // An edit by hand, which keeps the cookie.
    let three = changed(
        &scene.out_dir(),
        &two,
        "PRAGMA writable_schema = ON; \
         UPDATE sqlite_schema SET sql = replace(replace(replace(sql, 'column_7 ', 'column_x '), 'column_8 ', \
         'column_7 '), 'column_x ', 'column_8 ') WHERE name = 't39'",
    );
    assert_eq!((cookie(&one), one[..] == two[..]), (cookie(&three), false));
    let page_one = |database: &[u8]| database[100..4096].to_vec();
    assert!(page_one(&two) == page_one(&three), "the change is on other pages only");
    scene.put(1, &one, None);
    follow_to(&scene, 1).await;
    let conn = reader(&scene);
    let mut sevens = conn.prepare("SELECT count(*) FROM t39 WHERE column_7 = 'seven'").unwrap();
    let mut count = || sevens.query_row([], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count(), 1);
    let (ended, done) = beside(&scene, async {
        scene.put(2, &two, Some(&one));
        assert!(until(|| saved(&scene) == Some(2)).await);
        let before = number(&conn, "PRAGMA schema_version");
        assert_eq!(count(), 2);
        scene.put(3, &three, Some(&two));
        assert!(until(|| saved(&scene) == Some(3)).await);
        (before, number(&conn, "PRAGMA schema_version"))
    })
    .await;
    ended.unwrap();
    let (before, after) = done.unwrap();
    assert_eq!(count(), 0);
    assert_eq!(after, before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_alone_do_not_make_readers_read_the_schema_anew() {
    let (scene, mut now, _) = two_states();
    let (ended, _) = beside(&scene, async {
        // The note of its state comes before the database.
        assert!(until(|| scene.output().exists()).await);
        let conn = reader(&scene);
        let mut cookies = Vec::new();
        for txid in 2..6 {
            let next = changed(&scene.out_dir(), &now, "INSERT INTO t(v) SELECT hex(zeroblob(400)) FROM t");
            scene.put(txid, &next, Some(&now));
            now = next;
            assert!(until(|| saved(&scene) == Some(txid)).await);
            cookies.push(number(&conn, "PRAGMA schema_version"));
        }
        // The first batch of a follower does not know what cookie of the source came before.
        assert!(cookies.iter().all(|cookie| *cookie == cookies[0]), "{cookies:?}");
        let next = changed(&scene.out_dir(), &now, "CREATE TABLE u(x)");
        scene.put(6, &next, Some(&now));
        assert!(until(|| saved(&scene) == Some(6)).await);
        assert_eq!(number(&conn, "PRAGMA schema_version"), cookies[0] + 1);
    })
    .await;
    ended.unwrap();
}
