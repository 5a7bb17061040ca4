//! A configured path that is a link: SQLite keeps the log beside the file itself, and there it must be found.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use litestream::db::DbConfig;
use litestream::sys::{Fs, OsFs};
use rusqlite::Connection;

use super::support::{Bench, set_up, wal_of};

fn insert(conn: &Connection) {
    conn.execute_batch("INSERT INTO t(v) VALUES (randomblob(3000))").unwrap();
}

/// The database of `bench`, under the name of a link to a link to it, in another directory.
fn linked(bench: &Bench) -> (DbConfig, PathBuf) {
    let dir = bench.path.parent().unwrap();
    std::fs::create_dir_all(dir.join("elsewhere")).unwrap();
    let (near, far) = (dir.join("near"), dir.join("elsewhere/far"));
    symlink("db", &near).unwrap();
    symlink("../near", &far).unwrap();
    (DbConfig::new(far.clone(), bench.meta()), far)
}

#[test]
fn commits_behind_a_link_are_seen() {
    let bench = Bench::new();
    let app = bench.app();
    set_up(&app, 4096);
    insert(&app);
    let (config, link) = linked(&bench);
    let mut engine = bench.engine(config);
    for _ in 0..3 {
        engine.sync().unwrap();
        bench.assert_caught_up("behind a link");
        insert(&app);
        assert!(engine.needs_step());
    }
    assert!(!wal_of(&link).exists());
    // The application opens it by the link as well.
    insert(&Connection::open(&link).unwrap());
    assert_eq!(engine.sync().unwrap().full_images, 0);
    bench.assert_caught_up("by the link");
    // Until modification times tell a further write.
    std::thread::sleep(std::time::Duration::from_millis(120));
    engine.sync().unwrap();
    assert!(!engine.needs_step());
    // Another life goes on where this one ended.
    drop(engine);
    insert(&app);
    let mut engine = bench.engine(DbConfig::new(link, bench.meta()));
    assert_eq!(engine.sync().unwrap().full_images, 0);
    bench.assert_caught_up("after a restart");
}

#[test]
fn a_link_that_leads_elsewhere_is_a_full_image() {
    let mut bench = Bench::new();
    let app = bench.app();
    set_up(&app, 4096);
    insert(&app);
    let (config, link) = linked(&bench);
    let mut engine = bench.engine(config);
    engine.sync().unwrap();
    let other = bench.path.with_file_name("other");
    let conn = Connection::open(&other).unwrap();
    set_up(&conn, 4096);
    insert(&conn);
    let turned = link.with_file_name("turned");
    symlink(&other, &turned).unwrap();
    OsFs.rename(&turned, &link).unwrap();
    assert!(engine.needs_step());
    assert_eq!(engine.sync().unwrap().full_images, 1);
    bench.path = other;
    bench.assert_caught_up("the other one");
    insert(&app);
    insert(&conn);
    engine.sync().unwrap();
    bench.assert_caught_up("what comes there");
    // Nothing behind it for a while.
    std::fs::remove_file(&link).unwrap();
    assert!(engine.sync().unwrap().no_database);
    symlink("../other", &link).unwrap();
    insert(&conn);
    engine.sync().unwrap();
    bench.assert_caught_up("back again");
}

#[test]
fn a_file_that_is_moved_behind_its_link_is_a_full_image() {
    // Same file, but from now on its log has another name.
    let mut bench = Bench::new();
    let app = bench.app();
    set_up(&app, 4096);
    insert(&app);
    let (config, link) = linked(&bench);
    let mut engine = bench.engine(config);
    engine.sync().unwrap();
    drop(app);
    let moved = bench.path.with_file_name("moved");
    for suffix in ["", "-wal", "-shm"] {
        let of = |path: &PathBuf| PathBuf::from(format!("{}{suffix}", path.display()));
        let _ = OsFs.rename(&of(&bench.path), &of(&moved));
    }
    std::fs::remove_file(&link).unwrap();
    symlink("../moved", &link).unwrap();
    bench.path = moved;
    insert(&bench.app());
    engine.sync().unwrap();
    bench.assert_caught_up("moved");
    insert(&bench.app());
    engine.sync().unwrap();
    bench.assert_caught_up("after");
}
