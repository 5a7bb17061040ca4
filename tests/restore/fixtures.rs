//! Every state the real program was asked for, with the same plan and the same bytes.

use std::fs;

use litestream::error::ErrorKind;
use litestream::restore::{Request, Target, plan_for};
use litestream::types::{Txid, parse_timestamp};
use serde::Deserialize;

use super::support::{Scene, fixtures, sha256};

#[derive(Deserialize)]
struct Expected {
    latest: Outcome,
    /// 0.3.x has no TXIDs.
    #[serde(default)]
    by_txid: Vec<Outcome>,
    by_timestamp: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    txid: Option<String>,
    timestamp: Option<String>,
    sha256: Option<String>,
    size: Option<u64>,
    error: Option<String>,
    plan: Option<Vec<String>>,
}

impl Outcome {
    fn target(&self) -> Target {
        match (&self.txid, &self.timestamp) {
            (Some(txid), _) => Target::Txid(txid.parse::<Txid>().unwrap()),
            (_, Some(time)) => Target::Before(parse_timestamp(time).unwrap()),
            _ => Target::Latest,
        }
    }
}

/// Where Litestream 0.5.17 reports success with older data although the replica shows that a later
/// transaction was before the time asked for (`spec: restore` X1).
fn must_refuse(fixture: &str, outcome: &Outcome) -> bool {
    let times: &[&str] = match fixture {
        "gap-l0" => &["2026-11-21T00:41:49.483Z", "2026-11-21T00:41:49.541Z"],
        // The bridge over the gap is younger than that.
        "gap-bridged" => &["2026-11-21T00:41:50.704Z", "2026-11-21T00:41:50.761Z"],
        _ => &[],
    };
    outcome.timestamp.as_deref().is_some_and(|time| times.contains(&time))
}

/// Where Litestream 0.5.17 restores the older of two backups, the 0.3.x one, because the LTX files had no
/// snapshot yet (`spec: restore` X10).
fn takes_ltx(fixture: &str, outcome: &Outcome) -> Option<Txid> {
    let first_snapshot = "2026-11-21T00:42:44.113Z";
    let time = outcome.timestamp.as_deref().filter(|time| fixture == "v3-and-ltx" && *time < first_snapshot)?;
    let states = [("2026-11-21T00:42:43.774Z", 1), ("2026-11-21T00:42:44.106Z", 2)];
    Txid::new(states.iter().rfind(|(from, _)| time >= *from)?.1)
}

async fn check(fixture: &str, scene: &Scene, outcome: &Outcome) {
    let target = outcome.target();
    let case = format!("{fixture} {target:?}");
    let request = Request { target, require_known_time: true, ..Request::new(scene.output()) };
    let plan = plan_for(&scene.replica, target, true).await;
    let report = scene.restore(&request).await;

    if must_refuse(fixture, outcome) {
        assert!(outcome.error.is_none(), "{case}");
        let err = report.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Corrupt, "{case}");
        assert!(err.to_string().starts_with("cannot calc restore plan: non-contiguous ltx files: "), "{case}: {err}");
    } else if let Some(text) = &outcome.error {
        let err = report.unwrap_err();
        assert_eq!(&err.to_string(), text, "{case}");
        let corrupt = text.starts_with("cannot calc") || text.starts_with("apply WAL segments");
        let kind = if corrupt { ErrorKind::Corrupt } else { ErrorKind::NotFound };
        assert_eq!(err.kind(), kind, "{case}");
    } else {
        let report = report.unwrap_or_else(|err| panic!("{case}: {err}"));
        assert_eq!(plan.unwrap(), report.plan, "{case}");
        let files: Vec<String> = report.plan.files().iter().map(ToString::to_string).collect();
        if outcome.plan.is_some() {
            assert_eq!(Some(files), outcome.plan, "{case}");
        }
        assert_eq!(Some(report.bytes), outcome.size, "{case}");
        let other = takes_ltx(fixture, outcome);
        if other.is_some() {
            assert_eq!(report.txid, other, "{case}");
        } else {
            assert_eq!(Some(sha256(&scene.output())), outcome.sha256, "{case}");
        }
        fs::remove_file(scene.output()).unwrap();
    }
    assert!(scene.outputs().is_empty(), "{case}: leftovers");
}

async fn check_all(fixture: &str) {
    let text = fs::read_to_string(fixtures().join(fixture).join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&text).unwrap();
    let scene = Scene::of(fixture);
    check(fixture, &scene, &expected.latest).await;
    for outcome in expected.by_txid.iter().chain(&expected.by_timestamp) {
        check(fixture, &scene, outcome).await;
    }
}

macro_rules! fixtures {
    ($($test:ident = $name:literal,)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            check_all($name).await;
        })*

        #[test]
        fn no_fixture_is_forgotten() {
            let mut there: Vec<_> =
                fs::read_dir(fixtures()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            there.sort();
            assert_eq!(there, [$($name),*]);
        }
    };
}

fixtures! {
    basic_4096 = "basic-4096",
    gap_bridged = "gap-bridged",
    gap_l0 = "gap-l0",
    legacy_mixed = "legacy-mixed",
    levels_4096 = "levels-4096",
    levels_span_4096 = "levels-span-4096",
    moved_host = "moved-host",
    overlap = "overlap",
    page_512 = "page-512",
    page_65536 = "page-65536",
    shrink_grow_1024 = "shrink-grow-1024",
    v3_and_ltx = "v3-and-ltx",
    v3_basic = "v3-basic",
    v3_missing_index = "v3-missing-index",
    v3_missing_offset = "v3-missing-offset",
    v3_two_generations = "v3-two-generations",
    wal_restarts = "wal-restarts",
}
