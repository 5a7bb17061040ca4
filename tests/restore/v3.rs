//! Damaged backups of Litestream 0.3.x, and the choice between both formats.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use litestream::error::ErrorKind;
use litestream::replica::Stamps;
use litestream::restore::{Plan, Request, Target};
use litestream::types::Timestamp;
use lz4_flex::frame::{FrameDecoder, FrameEncoder};

use super::support::{Scene, sha256};

const GENERATION: &str = "generations/2718c9f14ac70deb";

fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    FrameDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    bytes
}

fn pack(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Changes the content of an object; its time stays.
fn change(path: &PathBuf, how: impl FnOnce(&mut Vec<u8>)) {
    let time = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    how(&mut bytes);
    fs::write(path, bytes).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
}

async fn error(scene: &Scene) -> String {
    let err = scene.restore(&Request::new(scene.output())).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt, "{err}");
    assert!(scene.outputs().is_empty(), "{err}");
    err.to_string()
}

/// Restores after `damage` to one unpacked object of the newest state.
async fn damaged(object: &str, damage: impl FnOnce(&mut Vec<u8>)) -> String {
    let scene = Scene::of("v3-basic");
    change(&scene.object(&format!("{GENERATION}/{object}")), |packed| {
        let mut bytes = unpack(packed);
        damage(&mut bytes);
        *packed = pack(&bytes);
    });
    error(&scene).await
}

type Damage = Box<dyn FnOnce(&mut Vec<u8>)>;

const FRAME: usize = 24 + 4096;

#[tokio::test]
async fn a_frame_that_does_not_continue_its_log_is_no_end_of_it() {
    // V1: the LZ4 frame is whole; Litestream restores the state before, and reports success.
    let at = 100;
    let text = damaged("wal/00000004_00001038.wal.lz4", |bytes| bytes[at] ^= 1).await;
    assert!(text.starts_with("apply WAL segments: write WAL segment 4/4152: generations/"), "{text}");
    assert!(text.ends_with("frame does not continue the log at offset 4152"), "{text}");
}

#[tokio::test]
async fn a_log_must_end_with_a_commit_and_a_whole_frame() {
    let cut = damaged("wal/00000005_00001038.wal.lz4", |bytes| bytes.truncate(bytes.len() - FRAME)).await;
    assert!(cut.starts_with("apply WAL segments: WAL 5: ends inside a transaction at offset "), "{cut}");
    let torn = damaged("wal/00000005_00001038.wal.lz4", |bytes| bytes.truncate(bytes.len() - 1)).await;
    assert!(torn.starts_with("apply WAL segments: WAL 5: unexpected EOF at offset "), "{torn}");
    let behind = damaged("wal/00000005_00001038.wal.lz4", |bytes| bytes.push(0)).await;
    assert!(behind.contains("unexpected EOF"), "{behind}");
}

#[tokio::test]
async fn logs_and_snapshots_of_something_else_are_refused() {
    let magic = damaged("snapshots/00000004.snapshot.lz4", |bytes| bytes[0] = b'X').await;
    assert!(magic.starts_with("download snapshot: generations/"), "{magic}");
    assert!(magic.ends_with("not a SQLite database"), "{magic}");
    let half = damaged("snapshots/00000004.snapshot.lz4", |bytes| bytes.truncate(5000)).await;
    assert!(half.ends_with("5000 bytes are not a number of pages of 4096 bytes"), "{half}");
    let header = damaged("wal/00000004_00000000.wal.lz4", |bytes| bytes[8] ^= 1).await;
    assert!(header.contains("wal header checksum mismatch"), "{header}");
}

#[tokio::test]
async fn damaged_lz4_frames_are_errors() {
    let path = format!("{GENERATION}/wal/00000005_00001038.wal.lz4");
    let len = fs::read(Scene::of("v3-basic").object(&path)).unwrap().len();
    let mut cases: Vec<(&str, Damage)> = vec![
        ("data behind the end", Box::new(|bytes: &mut Vec<u8>| bytes.push(0))),
        ("", Box::new(|bytes: &mut Vec<u8>| bytes.clear())),
        ("", Box::new(|bytes: &mut Vec<u8>| bytes[0] ^= 1)),
        ("", Box::new(|bytes: &mut Vec<u8>| *bytes = b"age-encryption.org/v1\n".to_vec())),
    ];
    for cut in (1..len).step_by(97) {
        cases.push(("", Box::new(move |bytes: &mut Vec<u8>| bytes.truncate(cut))));
    }
    for at in (0..len).step_by(61) {
        cases.push(("", Box::new(move |bytes: &mut Vec<u8>| bytes[at] ^= 0x10)));
    }
    for (text, damage) in cases {
        let scene = Scene::of("v3-basic");
        change(&scene.object(&path), damage);
        let said = error(&scene).await;
        assert!(said.starts_with("apply WAL segments: "), "{said}");
        assert!(said.contains(text), "{said}");
    }
}

#[tokio::test]
async fn a_segment_that_is_missing_is_named() {
    let scene = Scene::of("v3-basic");
    fs::remove_file(scene.object(&format!("{GENERATION}/wal/00000005_00000000.wal.lz4"))).unwrap();
    assert_eq!(error(&scene).await, "apply WAL segments: missing WAL segment: expected 4/82432, got 5/4152");
    let scene = Scene::of("v3-basic");
    fs::remove_file(scene.object(&format!("{GENERATION}/wal/00000004_00000000.wal.lz4"))).unwrap();
    assert_eq!(error(&scene).await, "apply WAL segments: missing WAL segment: expected 4/0, got 4/4152");
}

#[tokio::test]
async fn an_offset_beyond_four_gigabytes_is_a_position_like_any_other() {
    // Nobody keeps such a log as a fixture: what shows is that the segment is asked for, not ignored.
    let scene = Scene::of("v3-basic");
    let dir = scene.object(&format!("{GENERATION}/wal"));
    fs::copy(dir.join("00000005_00001038.wal.lz4"), dir.join("00000005_100001038.wal.lz4")).unwrap();
    let text = error(&scene).await;
    assert!(text.starts_with("apply WAL segments: missing WAL segment: expected 5/"), "{text}");
    assert!(text.ends_with(", got 5/4294971448"), "{text}");
}

#[tokio::test]
async fn other_names_and_links_are_ignored() {
    let want = {
        let scene = Scene::of("v3-basic");
        scene.restore(&Request::new(scene.output())).await.unwrap();
        sha256(&scene.output())
    };
    let scene = Scene::of("v3-basic");
    let root = scene.object(GENERATION);
    let aside = scene.object("aside");
    fs::create_dir(&aside).unwrap();
    for name in ["snapshots/00000009.snapshot", "snapshots/9.snapshot.lz4", "wal/00000009_00000000.wal", "wal/x"] {
        fs::write(root.join(name), "x").unwrap();
    }
    fs::write(aside.join("x"), "x").unwrap();
    std::os::unix::fs::symlink(aside.join("x"), root.join("snapshots/00000009.snapshot.lz4")).unwrap();
    std::os::unix::fs::symlink(&aside, scene.object("generations/ffffffffffffffff")).unwrap();
    fs::create_dir_all(scene.object("generations/not-a-generation/snapshots")).unwrap();
    scene.restore(&Request::new(scene.output())).await.unwrap();
    assert_eq!(sha256(&scene.output()), want);
}

/// The newest LTX file of `v3-and-ltx` is from 44.479.
#[tokio::test]
async fn the_later_state_wins_whatever_its_format() {
    let scene = Scene::of("v3-and-ltx");
    let newest_ltx = scene.replica.list_all(Stamps::Exact).await.unwrap().iter().map(|f| f.created).max().unwrap();
    let log = scene.object("generations/b3832f3220144709/wal/00000001_00001038.wal.lz4");
    let restore = async |target| {
        let report = scene.restore(&Request { target, ..Request::new(scene.output()) }).await.unwrap();
        fs::remove_file(scene.output()).unwrap();
        matches!(report.plan, Plan::V3(_))
    };
    let stamp = |millis: i64| {
        let time = UNIX_EPOCH + Duration::from_millis(millis.try_into().unwrap());
        let file = fs::File::options().write(true).open(&log).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    };
    assert!(!restore(Target::Latest).await);
    stamp(newest_ltx.millis());
    assert!(!restore(Target::Latest).await, "ties go to LTX");
    stamp(newest_ltx.millis() + 1);
    assert!(restore(Target::Latest).await);
    let soon = Timestamp::from_millis(newest_ltx.millis() + 5);
    assert!(restore(Target::Before(soon)).await);
    // Without LTX files there is only one choice.
    fs::remove_dir_all(scene.object("ltx")).unwrap();
    stamp(newest_ltx.millis() - 3000);
    assert!(restore(Target::Latest).await);
}

#[tokio::test]
async fn a_damaged_newer_backup_is_not_replaced_by_an_older_one() {
    let scene = Scene::of("v3-and-ltx");
    let gap = scene.ltx(0, 2, 2);
    fs::remove_file(&gap).unwrap();
    fs::remove_file(scene.ltx(9, 1, 2)).unwrap();
    assert!(error(&scene).await.starts_with("cannot calc restore plan: non-contiguous ltx files: "));
}

#[tokio::test]
async fn a_time_before_all_snapshots_is_said_so() {
    let scene = Scene::of("v3-basic");
    let target = Target::Before(Timestamp::from_millis(1_600_000_000_000));
    let err = scene.restore(&Request { target, ..Request::new(scene.output()) }).await.unwrap_err();
    assert_eq!((err.kind(), err.to_string().as_str()), (ErrorKind::Invalid, "no snapshots available"));
    let target = Target::Txid(litestream::types::Txid::FIRST);
    let err = scene.restore(&Request { target, ..Request::new(scene.output()) }).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound);
}
