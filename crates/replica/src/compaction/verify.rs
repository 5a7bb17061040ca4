//! Whether a level's files follow each other, and what to do where they do not. Pure.

use super::manifest::Manifest;
use super::plan::{between, is_bridged};
use crate::replica::FileInfo;
use crate::types::{Level, Txid, TxidRange};

/// Gaps looked at in one go: each costs an upload or a snapshot, after which there is another look.
const MAX_GAPS: usize = 64;

/// How two neighbours do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The second begins before the first.
    Unsorted,
    /// Transactions are missing between them.
    Gap,
    /// Both hold the same transactions.
    Overlap,
}

impl Fault {
    /// As in log lines and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unsorted => "unsorted",
            Self::Gap => "gap",
            Self::Overlap => "overlap",
        }
    }
}

/// Two neighbours of one level that do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// How.
    pub fault: Fault,
    /// The first file.
    pub prev: FileInfo,
    /// The one listed behind it.
    pub next: FileInfo,
}

impl Finding {
    /// The words of `validation error detected`.
    #[must_use]
    pub fn validation_text(&self) -> String {
        let (prev, next) = (self.prev.txids, self.next.txids);
        match self.fault {
            Fault::Unsorted => {
                format!("files out of order: prev.MinTXID={}, curr.MinTXID={}", prev.min(), next.min())
            }
            Fault::Gap => self.text("TXID gap", "curr"),
            Fault::Overlap => self.text("TXID overlap", "curr"),
        }
    }

    /// The words of `post-compaction verification failed`.
    #[must_use]
    pub fn compaction_text(&self) -> String {
        match self.fault {
            Fault::Gap => self.text("TXID gap detected", "next"),
            Fault::Unsorted | Fault::Overlap => self.text("TXID overlap detected", "next"),
        }
    }

    fn text(&self, what: &str, second: &str) -> String {
        let (prev, next) = (self.prev.txids, self.next.txids);
        let expected = prev.max().next();
        format!("{what}: prev.MaxTXID={}, {second}.MinTXID={} (expected {expected})", prev.max(), next.min())
    }
}

/// Compares each file of a level with the one listed before it.
pub fn findings(files: &[FileInfo]) -> impl Iterator<Item = Finding> + '_ {
    files.iter().zip(files.iter().skip(1)).filter_map(|(prev, next)| {
        let expected = prev.txids.max().next();
        let fault = match next.txids.min() {
            min if min < prev.txids.min() => Fault::Unsorted,
            min if min > expected => Fault::Gap,
            min if min < expected => Fault::Overlap,
            _ => return None,
        };
        Some(Finding { fault, prev: *prev, next: *next })
    })
}

/// Transactions of level 0 that are missing above the end of level 1 (D8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The transactions.
    pub txids: TxidRange,
    /// A file of a higher level leads across: nothing is lost but the states in between.
    pub bridged: bool,
}

/// The gaps of level 0 above level 1, ascending; of very many the first ones.
#[must_use]
pub fn gaps(manifest: &Manifest) -> Vec<Gap> {
    let mut reached = manifest.max(Level::new(1).unwrap_or(Level::L0));
    let mut gaps = Vec::new();
    for file in manifest.reaching(Level::L0, Txid::after(reached)) {
        if let Some(txids) = between(reached, file.txids.min()) {
            gaps.push(Gap { txids, bridged: is_bridged(manifest, txids) });
            if gaps.len() == MAX_GAPS {
                break;
            }
        }
        reached = reached.max(Some(file.txids.max()));
    }
    gaps
}

/// Whether files lead from nothing to the newest transaction: otherwise nothing can be restored but what was before
/// the place where they do not.
#[must_use]
pub fn is_rooted(manifest: &Manifest) -> bool {
    let mut files: Vec<TxidRange> = manifest.iter().map(|file| file.txids).collect();
    files.sort_unstable_by_key(|txids| TxidRange::min(*txids));
    let mut reached = None;
    for txids in files {
        if between(reached, txids.min()).is_some() {
            return false;
        }
        reached = reached.max(Some(txids.max()));
    }
    true
}

/// Files that lead to the newest transaction, in order: the newest snapshot, and then always the file that reaches furthest.
#[must_use]
pub fn way(manifest: &Manifest) -> Vec<FileInfo> {
    let mut way: Vec<FileInfo> = manifest.newest(Level::SNAPSHOT).copied().into_iter().collect();
    let mut reached = way.first().map(|file| file.txids.max());
    let mut files: Vec<FileInfo> = manifest.iter().filter(|file| file.level != Level::SNAPSHOT).copied().collect();
    files.sort_unstable_by_key(|file| file.txids.min());
    let mut files = files.into_iter().peekable();
    loop {
        let mut best: Option<FileInfo> = None;
        while let Some(file) = files.next_if(|file| file.txids.min() <= Txid::after(reached)) {
            if Some(file.txids.max()) > best.map_or(reached, |best| Some(best.txids.max())) {
                best = Some(file);
            }
        }
        let Some(best) = best else { return way };
        reached = Some(best.txids.max());
        way.push(best);
    }
}

/// How a gap is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cure {
    /// Upload these local files again: together they fill it.
    Upload(Vec<TxidRange>),
    /// The files are gone: a snapshot leads across.
    Snapshot,
    /// The files are gone, but there is a way across.
    Accept,
}

/// What helps against a gap, given the local L0 files in ascending order.
#[must_use]
pub fn cure(gap: Gap, local: &[TxidRange]) -> Cure {
    let inside = |file: TxidRange| file.min() >= gap.txids.min() && file.max() <= gap.txids.max();
    let inside: Vec<TxidRange> = local.iter().copied().filter(|file| inside(*file)).collect();
    let mut reached = Txid::new(gap.txids.min().get() - 1);
    for file in inside.iter().copied() {
        if file.extends(reached) {
            reached = Some(file.max());
        }
    }
    match (reached >= Some(gap.txids.max()), gap.bridged) {
        (true, _) => Cure::Upload(inside),
        (false, false) => Cure::Snapshot,
        (false, true) => Cure::Accept,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::file;
    use super::*;

    fn range(min: u64, max: u64) -> TxidRange {
        file(0, min, max, 0).txids
    }

    #[test]
    fn neighbours_are_described_in_litestreams_words() {
        let files = [file(1, 1, 4, 0), file(1, 6, 9, 0), file(1, 8, 12, 0), file(1, 13, 14, 0), file(1, 2, 20, 0)];
        let found: Vec<Finding> = findings(&files).collect();
        assert_eq!(found.iter().map(|f| f.fault.name()).collect::<Vec<_>>(), ["gap", "overlap", "unsorted"]);
        let texts: Vec<String> = found.iter().map(Finding::validation_text).collect();
        assert_eq!(
            texts,
            [
                "TXID gap: prev.MaxTXID=0000000000000004, curr.MinTXID=0000000000000006 (expected 0000000000000005)",
                "TXID overlap: prev.MaxTXID=0000000000000009, curr.MinTXID=0000000000000008 (expected 000000000000000a)",
                "files out of order: prev.MinTXID=000000000000000d, curr.MinTXID=0000000000000002",
            ]
        );
        assert_eq!(
            found[0].compaction_text(),
            "TXID gap detected: prev.MaxTXID=0000000000000004, next.MinTXID=0000000000000006 (expected 0000000000000005)"
        );
        assert!(found[1].compaction_text().starts_with("TXID overlap detected: prev.MaxTXID=0000000000000009, next."));
        assert_eq!(findings(&[]).count(), 0);
    }

    #[test]
    fn d8_gaps_of_level_zero_are_found_above_level_one() {
        let mut manifest = Manifest::new([
            file(1, 1, 4, 0),
            file(0, 2, 2, 0), // Below the end of level 1: retention has been here.
            file(0, 4, 4, 0),
            file(0, 5, 5, 0),
            file(0, 8, 8, 0),
            file(0, 10, 10, 0),
        ]);
        let found = gaps(&manifest);
        assert_eq!(found, [Gap { txids: range(6, 7), bridged: false }, Gap { txids: range(9, 9), bridged: false }]);
        manifest.insert(file(9, 1, 8, 0));
        assert_eq!(gaps(&manifest)[0], Gap { txids: range(6, 7), bridged: true });
        assert!(!gaps(&manifest)[1].bridged);
    }

    #[test]
    fn d8_a_gap_is_closed_from_local_files_or_else_by_a_snapshot() {
        let gap = |bridged| Gap { txids: range(6, 8), bridged };
        let local = [range(5, 5), range(6, 6), range(7, 7), range(8, 8), range(9, 9)];
        assert_eq!(cure(gap(false), &local), Cure::Upload(local[1..4].to_vec()));
        assert_eq!(cure(gap(true), &local), Cure::Upload(local[1..4].to_vec()));
        assert_eq!(cure(gap(false), &local[2..]), Cure::Snapshot);
        assert_eq!(cure(gap(false), &[]), Cure::Snapshot);
        assert_eq!(cure(gap(true), &local[2..]), Cure::Accept);
    }

    #[test]
    fn the_way_to_the_present_begins_with_the_newest_snapshot_and_takes_the_longest_files() {
        let manifest = Manifest::new([
            file(9, 1, 3, 0),
            file(9, 1, 6, 0),
            file(2, 4, 8, 0),
            file(1, 1, 6, 0),
            file(1, 7, 8, 0),
            file(1, 9, 11, 0),
            file(0, 10, 10, 0),
            file(0, 11, 11, 0),
            file(0, 12, 12, 0),
            file(0, 14, 14, 0),
        ]);
        let names: Vec<_> = way(&manifest).iter().map(|f| (f.level.get(), f.txids.min().get())).collect();
        assert_eq!(names, [(9, 1), (2, 4), (1, 9), (0, 12)]);
        assert_eq!(way(&Manifest::default()), []);
        assert_eq!(way(&Manifest::new([file(0, 1, 1, 0), file(0, 2, 2, 0)])).len(), 2);
        assert_eq!(way(&Manifest::new([file(0, 2, 2, 0)])), [], "nothing leads there");
    }

    #[test]
    fn a_level_without_gaps_has_none() {
        assert_eq!(gaps(&Manifest::default()), []);
        assert_eq!(gaps(&Manifest::new([file(0, 1, 1, 0), file(0, 2, 2, 0)])), []);
        assert_eq!(gaps(&Manifest::new([file(0, 5, 5, 0), file(2, 1, 4, 0)])).len(), 1);
    }
}
