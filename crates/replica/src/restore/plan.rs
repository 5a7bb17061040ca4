//! Which files make up the wanted state (`spec: restore` §2). Pure.
//!
//! The newest admissible snapshot, then, as long as it leads on, the file of levels 8…0 that
//! follows without a gap and reaches furthest. Litestream ends silently before a gap when a
//! timestamp is given, and reports older data as success (X1); here that is an error.

use std::cmp::Reverse;

use crate::error::{Error, ErrorKind, Result};
use crate::replica::FileInfo;
use crate::sys::mutant;
use crate::types::{Level, Timestamp, Txid};

/// Smallest LTX file: a header. Anything below was cut off while it was copied.
const MIN_FILE_SIZE: u64 = 100;

/// The state to restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The newest there is.
    Latest,
    /// Exactly after this transaction.
    Txid(Txid),
    /// The newest state older than this time; a file stamped with this very time is left out.
    Before(Timestamp),
}

impl Target {
    pub(super) fn admits(self, file: &FileInfo) -> bool {
        match self {
            Self::Latest => true,
            Self::Txid(txid) => file.txids.max() <= txid,
            Self::Before(time) if mutant("store-time-inclusive") => file.created <= time,
            Self::Before(time) => file.created < time,
        }
    }
}

/// The files to apply, oldest first. `files` may come in any order.
///
/// # Errors
/// `NotFound` when nothing leads to the target, `Corrupt` when files are missing on the way.
pub fn plan(files: &[FileInfo], target: Target) -> Result<Vec<FileInfo>> {
    let mut admitted: Vec<FileInfo> = files.iter().filter(|file| target.admits(file)).copied().collect();
    admitted.sort_unstable();

    let mut plan = Vec::new();
    let mut reached: Option<Txid> = None;
    if let Some(snapshot) = admitted.iter().rfind(|file| file.level == Level::SNAPSHOT) {
        if !snapshot.txids.is_snapshot() {
            return Err(gap(None, snapshot.txids.min()));
        }
        reached = Some(snapshot.txids.max());
        plan.push(*snapshot);
    }

    let next = lead_on(&admitted, &mut reached, &mut plan);
    match (target, next) {
        (Target::Txid(txid), _) if reached != Some(txid) => Err(nothing_found()),
        // Before the first snapshot that is left there is no state to be older than what was asked for.
        (Target::Before(_), _) if plan.is_empty() => Err(nothing_found()),
        (Target::Latest | Target::Before(_), Some(next)) if !mutant("store-gap-is-the-end") => Err(gap(reached, next)),
        _ if plan.is_empty() => Err(nothing_found()),
        _ => Ok(plan),
    }
}

/// Appends to `plan` the files of levels 8…0 that lead on from `reached`. Returns where a gap ends, if
/// one keeps further files from being used. `files` are in order.
fn lead_on(files: &[FileInfo], reached: &mut Option<Txid>, plan: &mut Vec<FileInfo>) -> Option<Txid> {
    let mut cursors: Vec<Cursor<'_>> = files
        .chunk_by(|a, b| a.level == b.level)
        .filter(|level| level[0].level != Level::SNAPSHOT)
        .map(|rest| Cursor { rest, best: None })
        .collect();
    loop {
        let best = cursors.iter_mut().filter_map(|cursor| cursor.advance(*reached)).max_by_key(merit);
        let Some(best) = best else { break };
        *reached = Some(best.txids.max());
        plan.push(best);
    }
    cursors.iter().filter_map(|cursor| cursor.rest.first()).map(|file| file.txids.min()).min()
}

/// The files that take a database from `from` as far as they lead, oldest first; none if they do not.
/// A snapshot is used only if nothing else leads as far.
pub(super) fn continuation(files: &[FileInfo], from: Txid) -> Vec<FileInfo> {
    let mut files = files.to_vec();
    files.sort_unstable();
    let mut reached = Some(from);
    let mut plan = Vec::new();
    lead_on(&files, &mut reached, &mut plan);
    let newest = files.iter().rfind(|file| file.level == Level::SNAPSHOT && file.txids.is_snapshot());
    let Some(snapshot) = newest.filter(|file| file.txids.max() > from) else { return plan };
    let mut with_snapshot = vec![*snapshot];
    let mut further = Some(snapshot.txids.max());
    lead_on(&files, &mut further, &mut with_snapshot);
    if further > reached { with_snapshot } else { plan }
}

/// The files that lead furthest towards the target, whatever is missing behind them; none if nothing
/// begins a database.
pub(super) fn furthest(files: &[FileInfo], target: Target) -> Vec<FileInfo> {
    let mut admitted: Vec<FileInfo> =
        files.iter().filter(|file| target.admits(file) && file.size >= MIN_FILE_SIZE).copied().collect();
    admitted.sort_unstable();
    let snapshots = admitted.iter().filter(|file| file.level == Level::SNAPSHOT && file.txids.is_snapshot());
    let starts = std::iter::once(Vec::new()).chain(snapshots.map(|file| vec![*file]));
    let chains = starts.map(|mut chain| {
        let mut reached = chain.last().map(|file| file.txids.max());
        lead_on(&admitted, &mut reached, &mut chain);
        chain
    });
    let reach = |chain: &Vec<FileInfo>| (chain.last().map(|file| file.txids.max()), Reverse(chain.len()));
    chains.max_by_key(reach).unwrap_or_default()
}

/// Files of one level that start too late to be used yet, and the best of those that could be.
struct Cursor<'a> {
    rest: &'a [FileInfo],
    best: Option<FileInfo>,
}

impl Cursor<'_> {
    /// The file of this level that leads furthest beyond `reached` without a gap.
    fn advance(&mut self, reached: Option<Txid>) -> Option<FileInfo> {
        let next = Txid::after(reached);
        let usable = self.rest.partition_point(|file| file.txids.min() <= next);
        let (usable, rest) = self.rest.split_at(usable);
        self.rest = rest;
        self.best = self.best.iter().chain(usable).max_by_key(|file| merit(file)).copied();
        self.best.filter(|file| Some(file.txids.max()) > reached)
    }
}

/// Greater is better: furthest reach, then the one that starts earliest, higher level, earlier time.
fn merit(file: &FileInfo) -> impl Ord + use<> {
    (file.txids.max(), Reverse(file.txids.min()), file.level, Reverse(file.created))
}

fn gap(reached: Option<Txid>, next: Txid) -> Error {
    let reached = reached.map_or(0, Txid::get);
    Error::corrupt(format!("non-contiguous ltx files: have up to {reached:016x} but next file starts at {next}"))
        .hint("files are missing in the replica; an earlier -timestamp or -txid may still be restorable")
        .context("cannot calc restore plan")
}

fn nothing_found() -> Error {
    Error::new(ErrorKind::NotFound, "no matching backup files available")
}

/// Refuses files that cannot be whole.
///
/// # Errors
/// `Corrupt` for a listed size below that of a header.
pub(super) fn check_sizes(plan: &[FileInfo]) -> Result<()> {
    match plan.iter().find(|file| file.size < MIN_FILE_SIZE) {
        None => Ok(()),
        Some(file) => Err(Error::corrupt(format!(
            "invalid ltx file: level={} min={} max={} has size {} bytes (minimum {MIN_FILE_SIZE})",
            file.level,
            file.txids.min(),
            file.txids.max(),
            file.size
        ))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::TxidRange;

    fn file(level: u8, min: u64, max: u64, created: i64) -> FileInfo {
        let txids = TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap();
        let created = Timestamp::from_millis(created);
        FileInfo { level: Level::new(level).unwrap(), txids, size: 200, created }
    }

    fn txid(n: u64) -> Target {
        Target::Txid(Txid::new(n).unwrap())
    }

    fn before(millis: i64) -> Target {
        Target::Before(Timestamp::from_millis(millis))
    }

    /// §2 word for word, looking at everything in every step.
    fn oracle(files: &[FileInfo], target: Target) -> Option<Vec<FileInfo>> {
        let ok = |f: &&FileInfo| match target {
            Target::Latest => true,
            Target::Txid(x) => f.txids.max() <= x,
            Target::Before(t) => f.created < t,
        };
        let snapshot = files.iter().filter(ok).filter(|f| f.level.get() == 9).max_by_key(|f| f.txids);
        let mut cur = snapshot.map_or(0, |f| f.txids.max().get());
        let mut plan: Vec<FileInfo> = snapshot.copied().into_iter().collect();
        loop {
            let mut best: Option<&FileInfo> = None;
            for f in files.iter().filter(ok).filter(|f| f.level.get() < 9) {
                let (min, max) = (f.txids.min().get(), f.txids.max().get());
                if min > cur + 1 || max <= cur {
                    continue;
                }
                let better = best.is_none_or(|b| {
                    let (bmin, bmax) = (b.txids.min().get(), b.txids.max().get());
                    max > bmax
                        || (max == bmax && min < bmin)
                        || (max == bmax && min == bmin && f.level > b.level)
                        || (max == bmax && min == bmin && f.level == b.level && f.created < b.created)
                });
                if better {
                    best = Some(f);
                }
            }
            let Some(best) = best else { break };
            cur = best.txids.max().get();
            plan.push(*best);
        }
        let beyond = files.iter().filter(ok).any(|f| f.txids.min().get() > cur + 1);
        let good = match target {
            Target::Txid(x) => cur == x.get(),
            _ => !beyond && cur > 0,
        };
        good.then_some(plan)
    }

    /// The furthest state any order of files could reach, levels and choice left aside.
    fn furthest(files: &[FileInfo], target: Target) -> u64 {
        let mut cur = 0;
        loop {
            let step = files
                .iter()
                .filter(|f| target.admits(f) && f.txids.min().get() <= cur + 1)
                .map(|f| f.txids.max().get())
                .fold(cur, u64::max);
            if step == cur {
                return cur;
            }
            cur = step;
        }
    }

    fn any_file() -> impl Strategy<Value = FileInfo> {
        (0..10_u8, 1..12_u64, 0..6_u64, 0..20_i64).prop_map(|(level, min, span, created)| {
            let min = if level == 9 { 1 } else { min };
            file(level, min, min + span, created)
        })
    }

    fn any_target() -> impl Strategy<Value = Target> {
        prop_oneof![Just(Target::Latest), (1..16_u64).prop_map(txid), (0..22_i64).prop_map(before)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_plan_is_what_brute_force_finds(
            mut files in proptest::collection::vec(any_file(), 0..16),
            target in any_target(),
        ) {
            // No store has one name twice.
            let mut names = std::collections::HashSet::new();
            files.retain(|file| names.insert((file.level, file.txids)));
            let planned = plan(&files, target).ok();
            prop_assert_eq!(&planned, &oracle(&files, target));
            let furthest = furthest(&files, target);
            match planned {
                Some(plan) => {
                    let mut reached = None;
                    for file in &plan {
                        prop_assert!(target.admits(file) && file.txids.extends(reached));
                        reached = Some(file.txids.max());
                    }
                    prop_assert_eq!(reached.map_or(0, Txid::get), furthest);
                    prop_assert!(plan.iter().skip(1).all(|f| f.level != Level::SNAPSHOT));
                }
                None => {
                    let refused = match target {
                        Target::Txid(x) => furthest != x.get(),
                        _ if furthest == 0 => true,
                        _ => files.iter().any(|f| target.admits(f) && f.txids.min().get() > furthest + 1),
                    };
                    prop_assert!(refused);
                }
            }
        }
    }

    #[test]
    fn nothing_at_all_is_not_found() {
        for target in [Target::Latest, txid(1), before(100)] {
            let err = plan(&[], target).unwrap_err();
            assert_eq!(
                (err.kind(), err.to_string().as_str()),
                (ErrorKind::NotFound, "no matching backup files available")
            );
        }
    }

    #[test]
    fn a_gap_before_the_target_is_an_error_whatever_the_target() {
        let files = [file(0, 1, 1, 10), file(0, 2, 2, 20), file(0, 4, 4, 40)];
        let text = "cannot calc restore plan: non-contiguous ltx files: \
                    have up to 0000000000000002 but next file starts at 0000000000000004";
        for target in [Target::Latest, before(41)] {
            let err = plan(&files, target).unwrap_err();
            assert_eq!((err.kind(), err.to_string().as_str()), (ErrorKind::Corrupt, text));
        }
        assert_eq!(plan(&files, before(40)).unwrap().len(), 2);
        assert_eq!(plan(&files, txid(4)).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_transaction_inside_a_compacted_range_is_not_available() {
        let files = [file(9, 1, 3, 30), file(1, 4, 8, 80), file(0, 7, 7, 70), file(0, 8, 8, 80)];
        assert_eq!(plan(&files, txid(8)).unwrap().len(), 2);
        assert_eq!(plan(&files, txid(3)).unwrap(), files[..1]);
        assert_eq!(plan(&files, txid(7)).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_snapshot_that_is_none_does_not_start_a_plan() {
        let files = [file(9, 1, 3, 30), file(9, 4, 9, 90)];
        assert_eq!(plan(&files, Target::Latest).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_database_is_led_on_by_the_furthest_files_and_by_a_snapshot_only_in_need() {
        let lead = |files: &[FileInfo], from| -> Vec<(u8, u64)> {
            let plan = continuation(files, Txid::new(from).unwrap());
            plan.iter().map(|file| (file.level.get(), file.txids.max().get())).collect()
        };
        let files = [file(0, 5, 5, 0), file(0, 6, 6, 0), file(0, 8, 8, 0), file(1, 3, 6, 0), file(9, 1, 6, 0)];
        assert_eq!(lead(&files, 4), [(1, 6)]);
        assert_eq!(lead(&files, 6), []);
        assert_eq!(lead(&files, 1), [(9, 6)]);
        let bridged = [&files[..], &[file(9, 1, 7, 0)]].concat();
        assert_eq!(lead(&bridged, 6), [(9, 7), (0, 8)]);
        assert_eq!(lead(&bridged, 7), [(0, 8)]);
        assert_eq!(lead(&bridged, 8), []);
        assert_eq!(lead(&[file(9, 4, 9, 0)], 2), []);
    }

    #[test]
    fn what_leads_furthest_is_found_whatever_is_missing() {
        let furthest_of = |files: &[FileInfo], target| -> Vec<(u8, u64)> {
            super::furthest(files, target).iter().map(|file| (file.level.get(), file.txids.max().get())).collect()
        };
        let files = [file(9, 1, 3, 30), file(9, 1, 6, 60), file(0, 4, 4, 40), file(0, 5, 5, 50), file(0, 8, 8, 80)];
        assert_eq!(furthest_of(&files, Target::Latest), [(9, 6)]);
        assert_eq!(furthest_of(&files, before(60)), [(9, 3), (0, 4), (0, 5)]);
        assert_eq!(furthest_of(&files, txid(4)), [(9, 3), (0, 4)]);
        assert_eq!(furthest_of(&files[2..], Target::Latest), []);
        // The newest snapshot is not the best start if it leads nowhere.
        let late = [file(9, 1, 3, 30), file(0, 1, 9, 90)];
        assert_eq!(furthest_of(&late, Target::Latest), [(0, 9)]);
    }

    #[test]
    fn a_file_smaller_than_its_header_is_refused() {
        let small = FileInfo { size: 99, ..file(0, 2, 2, 0) };
        let err = check_sizes(&[file(0, 1, 1, 0), small]).unwrap_err();
        assert_eq!(
            err.to_string(),
            "invalid ltx file: level=0 min=0000000000000002 max=0000000000000002 has size 99 bytes (minimum 100)"
        );
    }
}
