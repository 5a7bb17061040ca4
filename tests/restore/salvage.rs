//! Damaged replicas: what is said about them, and what can still be had.

use std::fs;

use litestream::error::ErrorKind;
use litestream::replica::Stamps;
use litestream::restore::{Request, Target, run_or_explain, salvage};
use litestream::types::{Level, Txid};

use super::support::{Scene, no_check, sha256};

fn txid(n: u64) -> Txid {
    Txid::new(n).unwrap()
}

async fn digest_of(fixture: &str, n: u64) -> String {
    let scene = Scene::of(fixture);
    scene.restore(&Request { target: Target::Txid(txid(n)), ..Request::new(scene.output()) }).await.unwrap();
    sha256(&scene.output())
}

fn spoil(scene: &Scene, level: u8, min: u64, max: u64) {
    let path = scene.ltx(level, min, max);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
}

#[tokio::test]
async fn a_whole_replica_is_restored_as_ever() {
    let scene = Scene::of("basic-4096");
    let salvaged = salvage(&scene.world, &scene.replica, &Request::new(scene.output()), no_check()).await.unwrap();
    assert!(salvaged.damaged.is_empty() && salvaged.lost_up_to.is_none());
    let newest = scene.replica.max_txid().await.unwrap();
    assert_eq!(salvaged.report.txid, newest);
}

#[tokio::test]
async fn the_newest_state_before_a_damaged_file_is_restored_and_the_loss_is_told() {
    let scene = Scene::of("basic-4096");
    let newest = scene.replica.max_txid().await.unwrap().unwrap();
    spoil(&scene, 0, 7, 7);
    let request = Request::new(scene.output());
    let failed = run_or_explain(&scene.world, &scene.replica, &request, no_check()).await.unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::Corrupt);
    assert_eq!(failed.restorable.unwrap().txid, txid(6));
    assert!(scene.outputs().is_empty());

    let salvaged = salvage(&scene.world, &scene.replica, &request, no_check()).await.unwrap();
    assert_eq!(salvaged.report.txid, Some(txid(6)));
    assert_eq!(salvaged.lost_up_to.unwrap().txid, newest);
    assert_eq!(salvaged.damaged.len(), 1);
    assert!(salvaged.damaged[0].1.contains("file checksum mismatch"), "{}", salvaged.damaged[0].1);
    assert_eq!(sha256(&scene.output()), digest_of("basic-4096", 6).await);
    assert_eq!(scene.outputs().len(), 1);
}

#[tokio::test]
async fn a_damaged_snapshot_is_gone_around() {
    let scene = Scene::of("basic-4096");
    let newest = scene.replica.max_txid().await.unwrap();
    spoil(&scene, 9, 1, 4);
    let salvaged = salvage(&scene.world, &scene.replica, &Request::new(scene.output()), no_check()).await.unwrap();
    assert_eq!(salvaged.report.txid, newest);
    assert!(salvaged.lost_up_to.is_none());
    assert_eq!(salvaged.damaged.iter().map(|(file, _)| file.level).collect::<Vec<_>>(), [Level::SNAPSHOT]);
}

#[tokio::test]
async fn a_gap_ends_what_can_be_restored() {
    let scene = Scene::of("gap-l0");
    let request = Request::new(scene.output());
    let failed = run_or_explain(&scene.world, &scene.replica, &request, no_check()).await.unwrap_err();
    assert!(failed.error.to_string().starts_with("cannot calc restore plan: "), "{}", failed.error);
    let restorable = failed.restorable.unwrap();
    let salvaged = salvage(&scene.world, &scene.replica, &request, no_check()).await.unwrap();
    assert_eq!(salvaged.report.txid, Some(restorable.txid));
    assert_eq!(salvaged.lost_up_to.unwrap().txid, scene.replica.max_txid().await.unwrap().unwrap());
    assert_eq!(sha256(&scene.output()), digest_of("gap-l0", restorable.txid.get()).await);
}

#[tokio::test]
async fn where_nothing_is_whole_nothing_is_restored() {
    let scene = Scene::of("page-512");
    for file in scene.replica.list_all(Stamps::Cheap).await.unwrap() {
        spoil(&scene, file.level.get(), file.txids.min().get(), file.txids.max().get());
    }
    let err = salvage(&scene.world, &scene.replica, &Request::new(scene.output()), no_check()).await.unwrap_err();
    assert_eq!((err.kind(), err.to_string().as_str()), (ErrorKind::NotFound, "nothing of the replica can be restored"));
    assert!(scene.outputs().is_empty());
}
