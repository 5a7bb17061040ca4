//! What is at the destination stays until the new database is complete, and never mixes with it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use litestream::error::{Error, ErrorKind};
use litestream::restore::{Overwrite, Request, run};
use litestream::sys::Random;
use litestream::types::IntegrityCheck;

use super::support::{Scene, sha256};

const FIXTURE: &str = "basic-4096";

fn scene_with(existing: &[(&str, &str)]) -> Scene {
    let scene = Scene::of(FIXTURE);
    for (name, content) in existing {
        fs::write(scene.out_dir().join(name), content).unwrap();
    }
    scene
}

fn with_force(scene: &Scene) -> Request {
    Request { overwrite: Overwrite::Replace, ..Request::new(scene.output()) }
}

fn spoil(scene: &Scene) {
    let path = scene.ltx(9, 1, 4);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
}

async fn restored_sha256() -> String {
    let scene = Scene::of(FIXTURE);
    scene.restore(&Request::new(scene.output())).await.unwrap();
    sha256(&scene.output())
}

#[tokio::test]
async fn what_exists_is_refused_without_force() {
    for (existing, text) in [
        (
            &[("db", "x")][..],
            "cannot restore, output path already exists and is not empty: $OUT. Use -force to overwrite",
        ),
        (
            &[("db", ""), ("db-wal", "x")],
            "cannot restore, SQLite sidecar path already exists: $OUT-wal. Use -force to overwrite",
        ),
        // The database itself is missing: its log would be replayed into the restored one.
        (&[("db-wal", "x")], "cannot restore, SQLite sidecar path already exists: $OUT-wal. Use -force to overwrite"),
        (
            &[("db-journal", "x")],
            "cannot restore, SQLite sidecar path already exists: $OUT-journal. Use -force to overwrite",
        ),
    ] {
        let scene = scene_with(existing);
        let before = scene.outputs();
        let err = scene.restore(&Request::new(scene.output())).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Exists);
        assert_eq!(err.to_string(), text.replace("$OUT", scene.output().to_str().unwrap()));
        assert_eq!(scene.outputs(), before);
    }
}

#[tokio::test]
async fn directories_and_nameless_paths_are_refused_even_with_force() {
    let scene = Scene::of(FIXTURE);
    let request = Request { output: scene.out_dir(), ..with_force(&scene) };
    let err = scene.restore(&request).await.unwrap_err();
    assert!(err.to_string().starts_with("cannot restore, output path is a directory: "), "{err}");
    for output in ["", "/", ".."] {
        let err = scene.restore(&Request { output: output.into(), ..with_force(&scene) }).await.unwrap_err();
        assert_eq!(err.to_string(), "output path required");
    }
}

#[tokio::test]
async fn an_empty_file_is_replaced_and_missing_directories_are_made() {
    let want = restored_sha256().await;
    let scene = scene_with(&[("db", "")]);
    scene.restore(&Request::new(scene.output())).await.unwrap();
    assert_eq!(sha256(&scene.output()), want);

    let deep = scene.out_dir().join("a/b/db");
    scene.restore(&Request::new(&deep)).await.unwrap();
    assert_eq!(sha256(&deep), want);
    assert_eq!(fs::metadata(deep.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(deep.parent().unwrap()).unwrap().count(), 1);
}

#[tokio::test]
async fn sidecars_that_can_do_no_harm_are_no_obstacle() {
    let want = restored_sha256().await;
    for existing in [
        &[("db-shm", "old index")][..],
        &[("db-wal", "")],
        &[("db-wal", ""), ("db-shm", "old index"), ("db-journal", "")],
        &[("db", ""), ("db-wal", ""), ("db-shm", "")],
    ] {
        let scene = scene_with(existing);
        scene.restore(&Request::new(scene.output())).await.unwrap();
        assert_eq!(sha256(&scene.output()), want);
        assert_eq!(scene.outputs().len(), 1, "they belong to no database");
    }
    // A directory in that place is nobody's log.
    let scene = scene_with(&[]);
    fs::create_dir(scene.out_dir().join("db-shm")).unwrap();
    assert_eq!(scene.restore(&Request::new(scene.output())).await.unwrap_err().kind(), ErrorKind::Exists);
}

#[tokio::test]
async fn force_replaces_the_database_and_its_sidecars() {
    let want = restored_sha256().await;
    let scene = scene_with(&[("db", "old"), ("db-wal", "w"), ("db-shm", "s"), ("db-journal", "j"), ("db-other", "o")]);
    fs::set_permissions(scene.output(), fs::Permissions::from_mode(0o4600)).unwrap();
    scene.restore(&with_force(&scene)).await.unwrap();
    let names: Vec<String> = scene.outputs().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["db", "db-other"]);
    assert_eq!(sha256(&scene.output()), want);
    assert_eq!(fs::metadata(scene.output()).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn a_failing_restore_keeps_the_old_database_and_its_log() {
    let scene = scene_with(&[("db", "old"), ("db-wal", "w"), ("db-shm", "s")]);
    spoil(&scene);
    let before = scene.outputs();
    let err = scene.restore(&with_force(&scene)).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt);
    assert!(err.to_string().contains("file checksum mismatch"), "{err}");
    assert_eq!(scene.outputs(), before);
}

#[tokio::test]
async fn sidecars_go_back_when_publishing_fails() {
    // A non-empty directory where a sidecar would be put aside makes the third rename fail.
    let scene = scene_with(&[("db", "old"), ("db-wal", "w"), ("db-shm", "s"), ("db-journal", "j")]);
    let in_the_way = scene.out_dir().join("db-journal.before-restore");
    fs::create_dir(&in_the_way).unwrap();
    fs::write(in_the_way.join("x"), "").unwrap();
    scene.restore(&with_force(&scene)).await.unwrap_err();
    fs::remove_dir_all(&in_the_way).unwrap();
    let names: Vec<String> =
        scene.outputs().into_iter().map(|(name, content)| format!("{name}={}", content.len())).collect();
    assert_eq!(names, ["db=3", "db-journal=1", "db-shm=1", "db-wal=1"]);
}

/// Makes temporary names known beforehand.
#[derive(Debug)]
struct Fixed;

impl Random for Fixed {
    fn next_u64(&self) -> u64 {
        7
    }
}

const TEMP: &str = "db.0000000000000007.tmp";

#[tokio::test]
async fn links_at_the_temporary_name_and_the_output_are_not_followed() {
    let want = restored_sha256().await;
    let mut scene = Scene::of(FIXTURE);
    scene.world.random = Arc::new(Fixed);
    let victim = scene.out_dir().join("victim");
    fs::write(&victim, "precious").unwrap();
    symlink(&victim, scene.out_dir().join(TEMP)).unwrap();
    symlink(&victim, scene.output()).unwrap();
    let err = scene.restore(&Request::new(scene.output())).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Exists);
    scene.restore(&with_force(&scene)).await.unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert!(fs::symlink_metadata(scene.output()).unwrap().is_file());
    assert!(!scene.out_dir().join(TEMP).exists());
    assert_eq!(sha256(&scene.output()), want);
}

#[tokio::test]
async fn leftovers_of_crashed_restores_go_once_they_are_old() {
    let old = "db.0123456789abcdef.tmp";
    let scene = scene_with(&[
        (old, "x"),
        ("db.0123456789abcdee.tmp", "young"),
        ("db.tmp", "x"),
        ("x.0123456789abcdef.tmp", "x"),
    ]);
    for (name, _) in scene.outputs().iter().filter(|(_, content)| content != b"young") {
        let file = fs::File::options().write(true).open(scene.out_dir().join(name)).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH)).unwrap();
    }
    scene.restore(&Request::new(scene.output())).await.unwrap();
    let names: Vec<String> = scene.outputs().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["db", "db.0123456789abcdee.tmp", "db.tmp", "x.0123456789abcdef.tmp"]);
}

#[tokio::test]
async fn a_failing_check_keeps_the_destination_and_runs_before_anything_is_replaced() {
    let temp_wal = format!("{TEMP}-wal");
    let mut scene = scene_with(&[("db", "old"), ("db-wal", "w"), (TEMP, "leftover"), (&temp_wal, "leftover")]);
    scene.world.random = Arc::new(Fixed);
    let check = |temp: &Path, how: IntegrityCheck| {
        assert_eq!(how, IntegrityCheck::Full);
        let dir = temp.parent().unwrap();
        assert_eq!(fs::read(dir.join("db")).unwrap(), b"old");
        assert!(fs::read(temp).unwrap().starts_with(b"SQLite format 3"));
        // Nothing foreign beside it, and what SQLite leaves there goes away.
        assert!(!dir.join(format!("{TEMP}-wal")).exists());
        fs::write(dir.join(format!("{TEMP}-shm")), "").unwrap();
        Err(Error::corrupt("integrity check failed: row 1 missing from index i"))
    };
    let request = Request { integrity: IntegrityCheck::Full, ..with_force(&scene) };
    let err = run(&scene.world, &scene.replica, &request, Arc::new(check)).await.unwrap_err();
    assert_eq!(err.to_string(), "post-restore integrity check: integrity check failed: row 1 missing from index i");
    let names: Vec<String> = scene.outputs().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["db", "db-wal"]);
}

#[tokio::test]
async fn a_passing_check_changes_nothing() {
    let want = restored_sha256().await;
    let scene = Scene::of(FIXTURE);
    let request = Request { integrity: IntegrityCheck::Quick, ..Request::new(scene.output()) };
    run(&scene.world, &scene.replica, &request, Arc::new(|_, _| Ok(()))).await.unwrap();
    assert_eq!(sha256(&scene.output()), want);
    assert_eq!(scene.outputs().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_restores_to_one_place_never_mix() {
    let want = restored_sha256().await;
    let scene = Scene::of(FIXTURE);
    for _ in 0..20 {
        let request = with_force(&scene);
        let both = futures::future::join(scene.restore(&request), scene.restore(&request)).await;
        let done = [both.0, both.1];
        for report in done {
            report.unwrap();
        }
        assert_eq!(sha256(&scene.output()), want);
        let names: Vec<String> = scene.outputs().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["db"]);
    }
}
