//! Which files become one file of the next level. Pure.
//!
//! Rules, by the defects of Litestream 0.5.17 they avoid (`spec: compaction-retention` §8):
//! * C1 Level 1 goes on exactly where it ends, unless a file of a higher level covers what is
//!   missing. Above level 0 a gap at that point is legal: retention removes files below a snapshot.
//! * C2 A gap further on ends the merge before it.
//! * C3 Files that begin before the end of the destination and reach beyond it are used.
//! * C4 One page size per output.
//!
//! What is left over after a merge (inputs beyond the bounds, behind a gap or of another page size)
//! is for the next call, in the same pass.

use super::manifest::Manifest;
use crate::error::{Error, Result};
use crate::replica::FileInfo;
use crate::sys::mutant;
use crate::types::{Level, PageSize, Txid, TxidRange};

/// Inputs up to this size are read into memory as a whole; larger ones are streamed.
pub(super) const SMALL: u64 = 64 * 1024;
/// What an open input takes beside its content: a first buffer and a page.
const FIXED_COST: u64 = 24 * 1024;
/// What streaming from a local file takes.
const LOCAL_COST: u64 = 320 * 1024;
/// What streaming from a store takes: pieces on their way, and the decoder's buffer.
const REMOTE_COST: u64 = 1280 * 1024;

/// Bounds of one merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files.
    pub inputs: usize,
    /// Bytes of memory, roughly. Two files are merged in any case.
    pub memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { inputs: 512, memory: 16 << 20 }
    }
}

/// What to do about a level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// The level below has nothing new.
    Nothing,
    /// Merge these files of the level below, in this order. Never empty.
    Merge(Vec<FileInfo>),
    /// These transactions are missing in level 0 and nothing covers them: heal first.
    Gap(TxidRange),
}

/// The next merge into `dest`, which is one of levels 1…8.
///
/// # Errors
/// `Invalid` for another level.
pub fn plan(manifest: &Manifest, dest: Level, limits: Limits) -> Result<Plan> {
    let source = match dest.get() {
        1..=8 => dest.get() - 1,
        _ => return Err(Error::invalid(format!("level {dest} is not compacted"))),
    };
    let source = Level::new(source).unwrap_or(Level::L0);
    let end = manifest.max(dest);
    let seek = Txid::after(end);
    let mut sources = manifest.reaching(source, seek).copied().peekable();
    let Some(first) = sources.peek() else { return Ok(Plan::Nothing) };
    let start = first.txids.min();
    if source == Level::L0
        && let Some(gap) = between(end, start)
        && !is_bridged(manifest, gap)
        && !mutant("store-gap-skipped")
    {
        return Ok(Plan::Gap(gap));
    }
    // What precedes the first file, where there is a gap.
    let reached = end.max(Txid::new(start.get() - 1));
    Ok(Plan::Merge(chain(sources, reached, limits)))
}

/// The transactions between a state and a file that starts at `next`, if any are missing.
pub(super) fn between(reached: Option<Txid>, next: Txid) -> Option<TxidRange> {
    let last = Txid::new(next.get() - 1)?;
    TxidRange::new(Txid::after(reached), last).ok()
}

/// Whether one file of level 2 or higher takes a restore across `gap`.
pub(super) fn is_bridged(manifest: &Manifest, gap: TxidRange) -> bool {
    let across = |file: &&FileInfo| file.txids.min() <= gap.min() && file.txids.max() >= gap.max();
    Level::all().skip(2).any(|level| manifest.level(level).iter().any(|file| across(&file)))
}

/// As many files as follow each other without a gap, within the limits. Where files overlap, the
/// one that leads furthest.
fn chain(
    mut sources: std::iter::Peekable<impl Iterator<Item = FileInfo>>,
    mut reached: Option<Txid>,
    limits: Limits,
) -> Vec<FileInfo> {
    let (mut chosen, mut memory) = (Vec::new(), 0);
    while chosen.len() < limits.inputs.max(1) {
        let mut best: Option<FileInfo> = None;
        while let Some(file) = sources.next_if(|file| file.txids.min() <= Txid::after(reached)) {
            if Some(file.txids.max()) > best.map(|b| b.txids.max()) {
                best = Some(file);
            }
        }
        let Some(best) = best.filter(|file| file.txids.extends(reached)) else { break };
        memory += cost(&best);
        if memory > limits.memory && chosen.len() >= 2 {
            break;
        }
        reached = Some(best.txids.max());
        chosen.push(best);
    }
    chosen
}

/// Bytes of memory an input takes while it is merged.
fn cost(file: &FileInfo) -> u64 {
    let streaming = if file.level == Level::L0 { LOCAL_COST } else { REMOTE_COST };
    FIXED_COST + if file.size <= SMALL { file.size } else { streaming }
}

/// How many of the inputs, counted from the first, have its page size (C4).
#[must_use]
pub fn same_page_size(inputs: impl IntoIterator<Item = PageSize>) -> usize {
    let mut inputs = inputs.into_iter().peekable();
    let Some(first) = inputs.peek().copied() else { return 0 };
    inputs.take_while(|size| *size == first).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::file;
    use super::*;

    fn level(n: u8) -> Level {
        Level::new(n).unwrap()
    }

    fn ranges(plan: &Plan) -> Vec<(u64, u64)> {
        let Plan::Merge(files) = plan else { panic!("{plan:?}") };
        files.iter().map(|f| (f.txids.min().get(), f.txids.max().get())).collect()
    }

    fn planned(files: &[FileInfo], dest: u8) -> Plan {
        plan(&Manifest::new(files.iter().copied()), level(dest), Limits::default()).unwrap()
    }

    fn gap(min: u64, max: u64) -> Plan {
        Plan::Gap(TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap())
    }

    #[test]
    fn everything_new_is_taken_in_one_merge() {
        let files = [file(1, 1, 2, 0), file(0, 2, 2, 0), file(0, 3, 3, 0), file(0, 4, 4, 0)];
        assert_eq!(ranges(&planned(&files, 1)), [(3, 3), (4, 4)]);
    }

    #[test]
    fn without_anything_new_there_is_nothing_to_do() {
        assert_eq!(planned(&[], 1), Plan::Nothing);
        assert_eq!(planned(&[file(1, 1, 4, 0), file(0, 3, 3, 0), file(0, 4, 4, 0)], 1), Plan::Nothing);
        assert_eq!(planned(&[file(0, 1, 1, 0)], 2), Plan::Nothing);
    }

    #[test]
    fn snapshots_and_level_zero_are_not_compacted_into() {
        for n in [0, 9] {
            assert!(plan(&Manifest::default(), level(n), Limits::default()).is_err());
        }
    }

    #[test]
    fn c1_level_one_does_not_go_on_behind_a_gap() {
        let mut files = vec![file(1, 1, 2, 0), file(0, 4, 4, 0), file(0, 5, 5, 0)];
        assert_eq!(planned(&files, 1), gap(3, 3));
        // Healed by uploading it again …
        files.push(file(0, 3, 3, 0));
        assert_eq!(ranges(&planned(&files, 1)), [(3, 3), (4, 4), (5, 5)]);
        // … or by a snapshot.
        files.pop();
        files.push(file(9, 1, 5, 0));
        assert_eq!(ranges(&planned(&files, 1)), [(4, 4), (5, 5)]);
    }

    #[test]
    fn c1_a_replica_that_does_not_begin_at_the_beginning_needs_a_snapshot_first() {
        let files = [file(0, 4, 4, 0), file(0, 5, 5, 0), file(9, 1, 3, 0)];
        assert_eq!(planned(&files[..2], 1), gap(1, 3));
        assert_eq!(ranges(&planned(&files, 1)), [(4, 4), (5, 5)]);
    }

    #[test]
    fn c1_above_level_zero_a_gap_at_the_seek_point_is_legal() {
        let files = [file(2, 1, 10, 0), file(1, 41, 50, 0), file(1, 51, 60, 0)];
        assert_eq!(ranges(&planned(&files, 2)), [(41, 50), (51, 60)]);
    }

    #[test]
    fn c2_a_gap_further_on_ends_the_merge_before_it() {
        let files = [file(1, 1, 2, 0), file(0, 3, 3, 0), file(0, 4, 4, 0), file(0, 6, 6, 0)];
        assert_eq!(ranges(&planned(&files, 1)), [(3, 3), (4, 4)]);
        let then = [file(1, 1, 2, 0), file(1, 3, 4, 0), file(0, 6, 6, 0)];
        assert_eq!(planned(&then, 1), gap(5, 5));
    }

    #[test]
    fn c3_sources_that_span_the_end_of_the_destination_are_used() {
        let files = [file(2, 1, 6, 0), file(1, 4, 9, 0), file(1, 10, 12, 0)];
        assert_eq!(ranges(&planned(&files, 2)), [(4, 9), (10, 12)]);
    }

    #[test]
    fn of_files_that_overlap_those_that_lead_furthest_are_merged() {
        let files = [file(1, 1, 4, 0), file(1, 2, 3, 0), file(1, 3, 9, 0), file(1, 4, 4, 0), file(1, 5, 9, 0)];
        assert_eq!(ranges(&planned(&files, 2)), [(1, 4), (3, 9)]);
    }

    #[test]
    fn c4_a_merge_ends_where_the_page_size_changes() {
        let size = |n| PageSize::new(n).unwrap();
        assert_eq!(same_page_size([512, 512, 4096, 512].map(size)), 2);
        assert_eq!(same_page_size([4096].map(size)), 1);
        assert_eq!(same_page_size([]), 0);
    }

    #[test]
    fn one_merge_is_bounded_in_files_and_memory() {
        let many: Vec<FileInfo> = (1..=600).map(|n| file(0, n, n, 0)).collect();
        assert_eq!(ranges(&planned(&many, 1)).len(), 512);
        let large: Vec<FileInfo> = (1..=600).map(|n| FileInfo { size: 1 << 30, ..file(1, n, n, 0) }).collect();
        assert_eq!(ranges(&planned(&large, 2)).len(), 12);
        let tight = Limits { inputs: 512, memory: 1 };
        let two = plan(&Manifest::new(large), level(2), tight).unwrap();
        assert_eq!(ranges(&two).len(), 2);
    }

    fn any_level_files(n: u8) -> impl Strategy<Value = Vec<FileInfo>> {
        proptest::collection::vec((1..12_u64, 0..4_u64), 0..8)
            .prop_map(move |f| f.into_iter().map(|(min, span)| file(n, min, min + span, 0)).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// What is planned can be merged, leaves nothing out, and reaches as far as any order of
        /// the sources could.
        #[test]
        fn a_plan_is_what_brute_force_finds(below in any_level_files(0), dest in any_level_files(1), up in 1..3_u8, s in 0..14_u64) {
            let raise = |f: &FileInfo, by| FileInfo { level: level(f.level.get() + by), ..*f };
            let below: Vec<_> = below.iter().map(|f| raise(f, up - 1)).collect();
            let mut files: Vec<_> = dest.iter().map(|f| raise(f, up - 1)).chain(below.iter().copied()).collect();
            if s > 0 {
                files.push(file(9, 1, s, 0));
            }
            let end = dest.iter().map(|f| f.txids.max().get()).max().unwrap_or(0);
            let first = below.iter().filter(|f| f.txids.max().get() > end).map(|f| f.txids.min().get()).min();
            match planned(&files, up) {
                Plan::Nothing => prop_assert!(below.iter().all(|f| f.txids.max().get() <= end)),
                Plan::Gap(hole) => {
                    prop_assert_eq!(up, 1);
                    prop_assert_eq!(hole.min().get(), end + 1);
                    prop_assert_eq!(Some(hole.max().get() + 1), first);
                    prop_assert!(s < hole.max().get());
                }
                Plan::Merge(chosen) => {
                    let first = first.unwrap();
                    if up == 1 {
                        prop_assert!(first <= end + 1 || s + 1 >= first);
                    }
                    let mut reached = end.max(first - 1);
                    for f in &chosen {
                        prop_assert!(f.txids.extends(Txid::new(reached)));
                        reached = f.txids.max().get();
                    }
                    let mut furthest = end.max(first - 1);
                    while let Some(f) = below.iter().find(|f| f.txids.extends(Txid::new(furthest))) {
                        furthest = f.txids.max().get();
                    }
                    prop_assert_eq!(reached, furthest);
                }
            }
        }
    }
}
