//! What may be deleted, and deleting it (`spec: compaction-retention` §5).
//!
//! Guarantees, for decisions made by a [`TrustedTime`](super::TrustedTime):
//! 1. The newest state can always be restored.
//! 2. The last snapshot from before the window, the *base*, stays: whatever moment of the window is
//!    asked for, there is a snapshot to start from. (Litestream deletes it as soon as it is older
//!    than the window, and with it the way to all states up to the next snapshot.)
//! 3. No file is deleted that a plan for a moment of the window, begun at a snapshot or a compacted
//!    file, needs. Inside the window only precision is lost: from single syncs to level 1.
//! 4. These hold between any two deletions too, however the store orders those that may go together
//!    ([`Deletion`]): a crash half-way leaves nothing unrestorable.
//!
//! Deciding is pure; [`Deletion::run`] carries it out.

use std::time::Duration;

use super::deletion::Deletion;
use super::manifest::Manifest;
use crate::ltx::{Header, Trailer};
use crate::replica::FileInfo;
use crate::sys::mutant;
use crate::types::{Level, Timestamp, Txid, TxidRange};

/// What the settings say about deleting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// Whether anything is ever deleted from the target.
    pub enabled: bool,
    /// Age of snapshots, and with it the window in which every moment can be restored.
    pub snapshots: Duration,
    /// Age of L0 files that are compacted; `None` keeps them.
    pub l0: Option<Duration>,
}

/// The newest snapshot from before `window`. Restores of any moment from `window` on start there or
/// later.
///
/// Stamps of snapshots need not ascend, if the clock was set: what counts is their order.
#[must_use]
pub fn base(manifest: &Manifest, window: Timestamp) -> Option<&FileInfo> {
    manifest
        .level(Level::SNAPSHOT)
        .iter()
        .rfind(|file| is_sound(file) && (file.created < window || mutant("store-base-not-kept")))
}

/// Something else under the name of a snapshot is neither relied on nor touched.
fn is_sound(file: &FileInfo) -> bool {
    file.txids.is_snapshot() && file.size >= (Header::SIZE + Trailer::SIZE) as u64
}

/// Snapshots before the base, and of levels 1…8 what lies below the last of them. They may go in any order:
/// whatever moment of the window is asked for, a restore starts at the base or later. With the snapshots last, what an
/// end half-way leaves is found again.
///
/// The floor is the last snapshot that goes, not the first that stays: a restore that was planned
/// before still finds the files that follow its snapshot.
#[must_use]
pub fn expired(manifest: &Manifest, window: Timestamp) -> Vec<FileInfo> {
    let Some(base) = base(manifest, window) else { return Vec::new() };
    let older = manifest.level(Level::SNAPSHOT).iter().take_while(|file| file.txids < base.txids);
    let mut gone: Vec<FileInfo> = older.filter(|file| is_sound(file)).copied().collect();
    let floor = if mutant("store-floor-is-the-newest") { manifest.max(Level::SNAPSHOT) } else { None };
    let Some(floor) = floor.or(gone.last().map(|file| file.txids.max())) else { return gone };
    for level in Level::all().filter(|level| (1..=8).contains(&level.get())) {
        // Where the level ends is where its next compaction goes on.
        let last = manifest.newest(level).map(|file| file.txids).filter(|_| !mutant("store-level-end-deleted"));
        let below = manifest.level(level).iter().filter(|file| file.txids.max() < floor && Some(file.txids) != last);
        gone.extend(below);
    }
    gone
}

/// What level 0 may lose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct L0Decision {
    /// To be deleted from the target.
    pub delete: Deletion,
    /// Local files up to here are not needed on behalf of this target.
    pub local: Option<Txid>,
    /// The end of level 1.
    pub max_l1: Option<Txid>,
    /// Files kept because level 1 has not got them.
    pub not_compacted: usize,
    /// Files kept because they, or others of the same level-1 file, are too young.
    pub too_recent: usize,
}

/// Decides about level 0. Files stamped after `cutoff` are too young; `base` is the last TXID of
/// the snapshot that the window's restores start from, if there is one.
///
/// Files that became one file of level 1 go together. A moment inside such a file can be restored
/// exactly while all of them are there, and to the state before it when none is; with one in the middle
/// missing there would be a gap, and the moment refused. So each goes only after those that follow it are gone.
#[must_use]
pub fn l0(manifest: &Manifest, cutoff: Timestamp, base: Option<Txid>) -> L0Decision {
    let files = manifest.level(Level::L0);
    let ages = effective_stamps(files);
    let level1 = manifest.level(Level::new(1).unwrap_or(Level::L0));
    let mut decision = L0Decision { max_l1: manifest.max(Level::new(1).unwrap_or(Level::L0)), ..L0Decision::default() };
    let Some(newest) = manifest.newest(Level::L0).copied() else { return decision };
    let Some(max_l1) = decision.max_l1 else {
        decision.not_compacted = files.len();
        return decision;
    };
    let mut at = 0;
    while at < files.len() {
        let home = home(level1, &files[at]);
        let needless = base.is_some_and(|base| files[at].txids.max() <= base);
        let len = match home {
            Some(home) if !needless => files[at..].iter().take_while(|file| holds(home, file)).count(),
            _ => 1,
        };
        let group = &files[at..at + len];
        let last = at + len - 1;
        at += len;
        if files[last].txids.max() > max_l1 || (home.is_none() && !needless && !mutant("store-l0-not-compacted")) {
            decision.not_compacted += len;
            continue;
        }
        if ages[last] > cutoff {
            decision.too_recent += len + (files.len() - at);
            break;
        }
        let holds_newest = group.contains(&newest);
        if holds_newest && home.is_some_and(|home| home.max() != newest.txids.max()) {
            // It does not end where its level-1 file ends: alone it would stand behind a gap.
            decision.too_recent += len;
            continue;
        }
        let kept = |file: &&FileInfo| **file != newest;
        let mut going: Vec<FileInfo> = group.iter().rev().filter(kept).copied().collect();
        if mutant("store-l0-oldest-first") {
            going.reverse();
        }
        if mutant("store-l0-in-any-order") {
            decision.delete.in_any_order(going);
        } else {
            decision.delete.in_turn(going);
        }
    }
    decision.local = first_kept(files, &decision.delete).and_then(|kept| Txid::new(kept.get() - 1));
    decision
}

fn holds(home: TxidRange, file: &FileInfo) -> bool {
    home.min() <= file.txids.min() && file.txids.max() <= home.max()
}

/// The level-1 file that holds all of an L0 file.
fn home(level1: &[FileInfo], file: &FileInfo) -> Option<TxidRange> {
    // Of files that overlap, the ends ascend with the beginnings, but for a foreign file in between.
    let from = level1.partition_point(|f| f.txids.max() < file.txids.max());
    level1.get(from).map(|f| f.txids).filter(|home| holds(*home, file))
}

/// A file is at least as old as those that follow it, whatever the clock was set to in between.
fn effective_stamps(files: &[FileInfo]) -> Vec<Timestamp> {
    let mut stamps: Vec<Timestamp> = files.iter().map(|file| file.created).collect();
    for i in (1..stamps.len()).rev() {
        stamps[i - 1] = stamps[i - 1].min(stamps[i]);
    }
    stamps
}

fn first_kept(files: &[FileInfo], deleted: &Deletion) -> Option<Txid> {
    let gone: std::collections::BTreeSet<TxidRange> = deleted.files().map(|file| file.txids).collect();
    files.iter().find(|file| !gone.contains(&file.txids)).map(|file| file.txids.min())
}

/// Local L0 files that no target needs, ascending: `needless` has one entry per target, from
/// [`L0Decision::local`]. The newest one stays: it says where in the log to go on.
#[must_use]
pub fn local_l0(local: &[TxidRange], needless: &[Option<Txid>]) -> Vec<TxidRange> {
    let Some(Some(up_to)) = needless.iter().min().copied() else { return Vec::new() };
    let newest = local.iter().copied().max_by_key(|&file| (file.max(), file.min()));
    local.iter().copied().filter(|&file| file.max() <= up_to && Some(file) != newest).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::file;
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn expired_at(files: &[FileInfo], window: i64) -> Vec<FileInfo> {
        expired(&Manifest::new(files.iter().copied()), at(window))
    }

    fn l0_at(files: &[FileInfo], cutoff: i64, base: u64) -> L0Decision {
        l0(&Manifest::new(files.iter().copied()), at(cutoff), Txid::new(base))
    }

    /// The TXIDs of what goes, step by step.
    fn steps(deletion: &Deletion) -> Vec<Vec<u64>> {
        deletion.steps().map(|step| step.iter().map(|f| f.txids.max().get()).collect()).collect()
    }

    #[test]
    fn the_last_snapshot_before_the_window_stays_and_the_floor_is_the_one_before() {
        let snapshots = [file(9, 1, 3, 10), file(9, 1, 5, 20), file(9, 1, 15, 30), file(9, 1, 25, 40)];
        let l1 = [file(1, 1, 2, 9), file(1, 3, 4, 15), file(1, 5, 14, 29), file(1, 15, 26, 41)];
        let l2 = [file(2, 1, 2, 9), file(2, 3, 4, 15)];
        let files = [&snapshots[..], &l1, &l2].concat();
        assert_eq!(expired_at(&files, 20), []);
        assert_eq!(expired_at(&files, 21), [snapshots[0], l1[0], l2[0]]);
        assert_eq!(expired_at(&files, 31), [snapshots[0], snapshots[1], l1[0], l1[1], l2[0]]);
        // The newest snapshot stays whatever its age, and of each level the last file.
        assert_eq!(expired_at(&files, 1000), [&snapshots[..3], &l1[..3], &l2[..1]].concat());
    }

    #[test]
    fn nothing_goes_while_there_is_only_one_snapshot_or_none() {
        assert_eq!(expired_at(&[], 1000), []);
        assert_eq!(expired_at(&[file(1, 1, 2, 0), file(1, 3, 4, 0)], 1000), []);
        assert_eq!(expired_at(&[file(9, 1, 9, 0), file(1, 1, 2, 0), file(1, 3, 4, 0)], 1000), []);
    }

    #[test]
    fn a_snapshot_stamped_in_the_future_neither_stays_for_ever_nor_takes_others_along() {
        let files = [file(9, 1, 3, 9999), file(9, 1, 5, 20), file(9, 1, 9, 30)];
        assert_eq!(expired_at(&files, 10), []);
        assert_eq!(expired_at(&files, 25), files[..1]);
        let last = [file(9, 1, 3, 10), file(9, 1, 5, 20), file(9, 1, 9, 9999)];
        assert_eq!(expired_at(&last, 1000), last[..1]);
    }

    #[test]
    fn what_only_looks_like_a_snapshot_is_not_relied_on() {
        let torn = FileInfo { size: 99, ..file(9, 1, 9, 20) };
        assert_eq!(expired_at(&[file(9, 1, 3, 10), torn, file(9, 4, 10, 21)], 1000), []);
    }

    #[test]
    fn l0_files_go_when_they_are_old_and_compacted_but_never_the_newest() {
        let files: Vec<_> =
            (1..=8).map(|n| file(0, n, n, n as i64 * 10)).chain([file(1, 1, 3, 30), file(1, 4, 6, 60)]).collect();
        assert!(l0_at(&files, 29, 0).delete.is_empty());
        let decision = l0_at(&files, 30, 0);
        assert_eq!(steps(&decision.delete), [[3], [2], [1]]);
        assert_eq!((decision.local, decision.max_l1), (Txid::new(3), Txid::new(6)));
        let all = l0_at(&files, 1000, 0);
        // Side by side, but each group from its end.
        assert_eq!(steps(&all.delete), [[3, 6], [2, 5], [1, 4]]);
        assert_eq!((all.local, all.not_compacted), (Txid::new(6), 2));
        let newest = [file(0, 5, 5, 50), file(0, 6, 6, 60), file(1, 4, 6, 60)];
        assert_eq!(steps(&l0_at(&newest, 1000, 0).delete), [[5]]);
        assert_eq!(l0_at(&newest, 1000, 0).local, Txid::new(5));
    }

    #[test]
    fn the_newest_l0_file_is_not_left_alone_in_the_middle_of_its_level_one_file() {
        // Files 7 and 8 are lost: alone, 6 would stand behind a gap for moments before level 1's end.
        let files = [file(0, 4, 4, 40), file(0, 5, 5, 50), file(0, 6, 6, 60), file(1, 4, 8, 80), file(9, 1, 3, 30)];
        assert!(l0_at(&files, 1000, 3).delete.is_empty());
        assert_eq!(steps(&l0_at(&files, 1000, 8).delete), [[4, 5]]);
    }

    #[test]
    fn without_level_one_all_of_level_zero_stays() {
        let decision = l0_at(&[file(0, 1, 1, 0), file(0, 2, 2, 0)], 1000, 2);
        assert_eq!((decision.delete.len(), decision.not_compacted, decision.local), (0, 2, None));
        assert_eq!(l0_at(&[], 1000, 0), L0Decision::default());
    }

    #[test]
    fn files_of_one_level_one_file_stay_until_the_youngest_is_old() {
        let files = [file(0, 1, 1, 10), file(0, 2, 2, 20), file(0, 3, 3, 30), file(0, 4, 4, 40), file(1, 1, 3, 30)];
        let decision = l0_at(&files, 20, 0);
        assert_eq!((decision.delete.len(), decision.too_recent), (0, 4));
        // Unless no restore inside the window begins before them.
        assert_eq!(steps(&l0_at(&files, 20, 2).delete), [[1, 2]]);
    }

    #[test]
    fn a_file_level_one_has_skipped_stays() {
        let files = [file(0, 3, 3, 30), file(0, 5, 5, 50), file(0, 6, 6, 60), file(1, 1, 2, 20), file(1, 4, 5, 50)];
        let decision = l0_at(&files, 1000, 0);
        assert_eq!((steps(&decision.delete), decision.not_compacted, decision.local), (vec![vec![5]], 2, Txid::new(2)));
        assert_eq!(steps(&l0_at(&files, 1000, 3).delete), [[3, 5]]);
    }

    #[test]
    fn a_stamp_from_the_future_does_not_stop_level_zero() {
        let files = [file(0, 1, 1, 10), file(0, 2, 2, 9999), file(0, 3, 3, 30), file(0, 4, 4, 40), file(1, 1, 3, 30)];
        assert_eq!(steps(&l0_at(&files, 30, 0).delete), [[3], [2], [1]]);
    }

    #[test]
    fn local_files_go_when_no_target_needs_them() {
        let local = [1, 2, 3, 4].map(|n| file(0, n, n, 0).txids);
        let txid = Txid::new;
        assert_eq!(local_l0(&local, &[txid(3), txid(2)]), local[..2]);
        assert_eq!(local_l0(&local, &[txid(9)]), local[..3]);
        assert_eq!(local_l0(&local, &[txid(9), None]), []);
        assert_eq!(local_l0(&local, &[]), []);
        assert_eq!(local_l0(&[], &[txid(9)]), []);
    }
}
