//! What is said of failures that repeat: one line for all databases that a store fails in the same way.

use std::time::Duration;

use super::database::Database;
use crate::error::ErrorKind;
use crate::replica::store_of;
use crate::sys::{Repeats, Standing};
use crate::telemetry::duration;
use crate::types::Level;

/// Between two lines about one outage.
const SPACING: Duration = Duration::from_secs(30);

/// What is tried again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Failing {
    /// Reading the log.
    Sync,
    /// Sending files to a target.
    Upload,
    /// Filling a level, or writing a snapshot: level 9.
    Compaction(u8),
    /// Deleting snapshots and what they stand for.
    SnapshotRetention,
    /// Deleting level-0 files.
    L0Retention,
    /// Looking for gaps.
    Validation,
    /// Looking whether what was uploaded is still there.
    Look,
    /// The last sync before the end.
    FinalSync,
}

impl Failing {
    /// For log lines.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Upload => "upload",
            Self::Compaction(level) if level == Level::SNAPSHOT.get() => "snapshot",
            Self::Compaction(_) => "compaction",
            Self::SnapshotRetention => "retention",
            Self::L0Retention => "l0 retention",
            Self::Validation => "validation",
            Self::Look => "look at the replica",
            Self::FinalSync => "final sync",
        }
    }
}

/// What fails alike: the same work, at the same store or else of the same database, in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct What {
    failing: Failing,
    place: String,
    kind: ErrorKind,
}

/// What fails in one process.
#[derive(Debug)]
pub(super) struct Repeated(Repeats<What>);

impl Default for Repeated {
    fn default() -> Self {
        Self(Repeats::new(SPACING))
    }
}

impl Repeated {
    /// Counts a failure at monotonic time `now`; `target` is the one that failed, if one did. How it stands, if that is
    /// to be told.
    pub(super) fn failed(
        &self,
        now: Duration,
        failing: Failing,
        database: &Database,
        target: Option<usize>,
        kind: ErrorKind,
    ) -> Option<Standing> {
        let place = match target.and_then(|n| database.targets().get(n)) {
            Some(target) => store_of(&target.replica().client().location()),
            None => database.path().to_string_lossy().into_owned(),
        };
        self.0.failed(now, What { failing, place, kind }, &database.path().to_string_lossy())
    }

    /// A database got through with `concerned`. The outage that is over with that, if one is; the longest of them.
    pub(super) fn succeeded(
        &self,
        now: Duration,
        database: &Database,
        concerned: impl Fn(Failing) -> bool,
    ) -> Option<Standing> {
        let over = self.0.succeeded(now, &database.path().to_string_lossy(), |what| concerned(what.failing));
        over.into_iter().map(|(_, standing)| standing).max_by_key(|standing| standing.lasted)
    }
}

/// What a line about an outage adds once it is more than one failure: databases, failures, how long it has lasted.
pub(super) fn counted(standing: Standing) -> (Option<usize>, Option<u64>, Option<i128>) {
    let repeated = (!standing.is_first()).then_some(standing);
    (
        repeated.map(|standing| standing.failing),
        repeated.map(|standing| standing.failures),
        repeated.map(|standing| duration(standing.lasted)),
    )
}
