//! Where does the next read of the log start? One pure function (`spec: replication` §13.1).
//!
//! With L the newest local L0 file, E the offset it ends at, S its salts, F the frame size and
//! W the salts SQLite uses now:
//!
//! | # | protected | facts | plan |
//! |---|---|---|---|
//! | 0 | any | the database file was written past the log, which is not its own ([`Written`]) | image of the file alone |
//! | 0 | no | a full image is due, the log is empty, and a frame of ours could do harm | image of the file alone |
//! | 1 | any | no L, other page size, database replaced or written past the log | full image |
//! | 2 | yes | W = S, log ends at E | nothing |
//! | 3 | yes | W = S, log goes on behind E | incremental from E |
//! | 4 | yes | W ≠ S, log empty | nothing |
//! | 5 | yes | W ≠ S | incremental from the head |
//! | 6 | yes | W = S, log ends before E | full image: committed frames were taken back |
//! | 7 | no | W = S, frame before E intact, log ends at or behind E | nothing or incremental from E |
//! | 8 | no | exactly one restart and no reboot, frame before E intact, nothing unseen behind E | incremental from the head |
//! | 9 | no | as 8, but commits behind E that can be proved complete | recover them, then the head |
//! | 10 | no | anything else | full image |
//! | 11 | no | neither file was written since everything was read | nothing |
//!
//! *Protected* means: our read transaction has been held since before a step that read to the
//! end of the log, and nothing was replaced meanwhile. Then no frame can have vanished unseen. A session
//! beside a writer that does not keep the wal-index ([`super::unindexed`]) is never protected; row 11 keeps
//! it from writing the same image again and again, and comes before rows 7 to 10.

use std::fmt;

use crate::sys::mutant;
use crate::types::PageSize;
use crate::wal::Salts;

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// The newest local L0 file, if there is a readable one.
    pub last: Option<LastFacts>,
    /// Page size of the database now.
    pub page_size: PageSize,
    /// Whether the database is another file than the one `last` was made from.
    pub replaced: bool,
    /// How the database file was written since the last look.
    pub written: Written,
    /// See the module head.
    pub protected: bool,
    /// Neither file was written since everything was read.
    pub settled: bool,
    /// Whether a frame of ours does no harm.
    pub may_write: bool,
    /// Salts SQLite uses now.
    pub salts: Salts,
    /// Where SQLite says the log ends.
    pub end: u64,
    /// Whether the log holds no frame.
    pub empty: bool,
    /// The frame before E. Looked at only without protection.
    pub tail: Tail,
    /// What lies behind E in a log that was restarted once. Looked at only without protection.
    pub beyond: Beyond,
}

/// What the newest L0 file says about the log.
#[derive(Debug, Clone, Copy)]
pub struct LastFacts {
    /// Its page size.
    pub page_size: PageSize,
    /// S.
    pub salts: Salts,
    /// E.
    pub end: u64,
}

/// How the database file came to be what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Not at all, or by checkpoints of the log.
    ByCheckpoints,
    /// By something else: another database was copied over it, for example.
    PastTheLog,
    /// The same, and the log beside it is not its own: the file is not in WAL mode, or its page 1 never stood in that log.
    WithoutTheLog,
}

/// The last frame that was synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Still in its slot and provably the same.
    Intact,
    /// Overwritten, cut off or never there.
    Gone,
}

/// What lies behind E after a restart of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// The slot at E was last written by an older generation: nothing was committed behind E.
    Nothing,
    /// Commits of the old generation that chain from E and provably are all of them.
    Commits,
    /// Anything that proves neither.
    Unclear,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// No commit since.
    Nothing,
    /// Read on at E.
    FromTail,
    /// Read the log from its first frame.
    FromHead,
    /// Read the stale frames behind E, then the log from its first frame, as one file.
    Recover,
    /// Write every page.
    FullImage(Reason),
    /// Write every page of the database file, without the log.
    FileImage,
}

/// Why a full image is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There is no local file to continue from.
    FirstSync,
    /// Page size differs from the last file's.
    PageSizeChanged,
    /// Another file is at the database's path.
    DatabaseReplaced,
    /// The database file was written by something else than checkpoints of its log.
    DatabaseRewritten,
    /// The log was emptied or is gone.
    LogGone,
    /// The synced frames are not in the log any more.
    TailGone,
    /// The log was restarted more than once, or commits may have been overwritten.
    RestartedUnseen,
    /// Frames at or before E were replaced within one generation.
    Diverged,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstSync => "no local ltx file to continue from",
            Self::PageSizeChanged => "page size changed",
            Self::DatabaseReplaced => "database file was replaced",
            Self::DatabaseRewritten => "database file was rewritten in place",
            Self::LogGone => "wal was truncated or removed",
            Self::TailGone => "last synced frame is no longer in the wal",
            Self::RestartedUnseen => "wal was restarted and commits may have been overwritten",
            Self::Diverged => "wal no longer continues what was synced",
        })
    }
}

/// The decision.
#[must_use]
pub fn plan(facts: &Facts) -> Plan {
    if facts.written == Written::WithoutTheLog && !mutant("rewriting-ignored") {
        return Plan::FileImage;
    }
    match proved(facts) {
        Plan::FullImage(reason) => image(facts, reason),
        other => other,
    }
}

/// The image that a reason calls for. One of log and file needs a first frame to go on from.
pub(super) fn image(facts: &Facts, reason: Reason) -> Plan {
    if facts.empty && !facts.may_write { Plan::FileImage } else { Plan::FullImage(reason) }
}

/// Rows 1 to 11.
fn proved(facts: &Facts) -> Plan {
    let Some(last) = facts.last else { return Plan::FullImage(Reason::FirstSync) };
    if facts.settled && !facts.protected {
        return Plan::Nothing;
    }
    if last.page_size != facts.page_size {
        return Plan::FullImage(Reason::PageSizeChanged);
    }
    if facts.replaced {
        return Plan::FullImage(Reason::DatabaseReplaced);
    }
    if facts.written == Written::PastTheLog && !mutant("rewriting-ignored") {
        return Plan::FullImage(Reason::DatabaseRewritten);
    }
    let same_generation = last.salts == facts.salts;
    if facts.protected {
        return match (same_generation, facts.empty) {
            (true, _) if facts.end < last.end && !mutant("shorter-log-means-nothing") => {
                Plan::FullImage(Reason::Diverged)
            }
            (true, _) => read_on(facts, last),
            (false, true) => Plan::Nothing,
            (false, false) if mutant("restart-read-from-tail") => Plan::FromTail,
            (false, false) => Plan::FromHead,
        };
    }
    if facts.empty {
        if mutant("empty-log-means-nothing") {
            return Plan::Nothing;
        }
        return Plan::FullImage(Reason::LogGone);
    }
    if facts.tail == Tail::Gone && !mutant("lost-tail-ignored") {
        return Plan::FullImage(Reason::TailGone);
    }
    if same_generation {
        let shorter = facts.end < last.end && !mutant("shorter-log-means-nothing");
        return if shorter { Plan::FullImage(Reason::Diverged) } else { read_on(facts, last) };
    }
    if !facts.salts.follows(last.salts) && !mutant("any-restart-follows") {
        return Plan::FullImage(Reason::RestartedUnseen);
    }
    match facts.beyond {
        Beyond::Nothing => Plan::FromHead,
        Beyond::Commits => Plan::Recover,
        Beyond::Unclear => Plan::FullImage(Reason::RestartedUnseen),
    }
}

fn read_on(facts: &Facts, last: LastFacts) -> Plan {
    let nothing = facts.end == last.end || (facts.end < last.end && mutant("shorter-log-means-nothing"));
    if nothing { Plan::Nothing } else { Plan::FromTail }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Salts = Salts { salt1: 7, salt2: 70 };
    const NEXT: Salts = Salts { salt1: 8, salt2: 71 };
    const LATER: Salts = Salts { salt1: 9, salt2: 72 };

    fn size(bytes: u32) -> PageSize {
        PageSize::new(bytes).unwrap()
    }

    fn base() -> Facts {
        Facts {
            last: Some(LastFacts { page_size: size(4096), salts: S, end: 8272 }),
            page_size: size(4096),
            replaced: false,
            written: Written::ByCheckpoints,
            protected: false,
            settled: false,
            may_write: true,
            salts: S,
            end: 8272,
            empty: false,
            tail: Tail::Intact,
            beyond: Beyond::Nothing,
        }
    }

    #[test]
    fn every_row_of_the_decision_table() {
        let b = base();
        let p = Facts { protected: true, ..b };
        let full = Plan::FullImage;
        let rows: &[(&str, Facts, Plan)] = &[
            ("0", Facts { written: Written::WithoutTheLog, ..p }, Plan::FileImage),
            ("0 no file", Facts { written: Written::WithoutTheLog, last: None, ..b }, Plan::FileImage),
            ("0 unkept", Facts { may_write: false, empty: true, end: 32, ..b }, Plan::FileImage),
            ("1 no file", Facts { last: None, ..p }, full(Reason::FirstSync)),
            ("1 page size", Facts { page_size: size(8192), ..p }, full(Reason::PageSizeChanged)),
            ("1 replaced", Facts { replaced: true, ..p }, full(Reason::DatabaseReplaced)),
            ("1 rewritten", Facts { written: Written::PastTheLog, ..p }, full(Reason::DatabaseRewritten)),
            ("2", p, Plan::Nothing),
            ("3", Facts { end: 12392, ..p }, Plan::FromTail),
            ("4", Facts { salts: LATER, end: 32, empty: true, ..p }, Plan::Nothing),
            ("5", Facts { salts: NEXT, end: 4152, ..p }, Plan::FromHead),
            ("5 many restarts of an empty log", Facts { salts: LATER, end: 4152, ..p }, Plan::FromHead),
            ("6", Facts { end: 4152, ..p }, full(Reason::Diverged)),
            ("7 idle", b, Plan::Nothing),
            ("7 appended", Facts { end: 12392, ..b }, Plan::FromTail),
            ("8", Facts { salts: NEXT, end: 4152, ..b }, Plan::FromHead),
            ("9", Facts { salts: NEXT, end: 4152, beyond: Beyond::Commits, ..b }, Plan::Recover),
            ("10 unclear", Facts { salts: NEXT, beyond: Beyond::Unclear, ..b }, full(Reason::RestartedUnseen)),
            ("10 two restarts", Facts { salts: LATER, end: 4152, ..b }, full(Reason::RestartedUnseen)),
            ("10 tail gone", Facts { tail: Tail::Gone, end: 12392, ..b }, full(Reason::TailGone)),
            ("10 tail gone, restarted", Facts { tail: Tail::Gone, salts: NEXT, ..b }, full(Reason::TailGone)),
            ("10 log shorter", Facts { end: 4152, ..b }, full(Reason::Diverged)),
            ("10 log empty", Facts { empty: true, end: 32, ..b }, full(Reason::LogGone)),
            ("11", Facts { settled: true, tail: Tail::Gone, ..b }, Plan::Nothing),
            ("11 other page size", Facts { settled: true, page_size: size(8192), ..b }, Plan::Nothing),
            ("11 says nothing of a protected session", Facts { settled: true, end: 12392, ..p }, Plan::FromTail),
        ];
        for (name, facts, want) in rows {
            assert_eq!(plan(facts), *want, "row {name}");
        }
    }

    #[test]
    fn salt_1_wraps_around() {
        let last = LastFacts { salts: Salts { salt1: u32::MAX, salt2: 1 }, ..base().last.unwrap() };
        let facts = Facts { last: Some(last), salts: Salts { salt1: 0, salt2: 9 }, end: 4152, ..base() };
        assert_eq!(plan(&facts), Plan::FromHead);
    }

    #[test]
    fn without_protection_nothing_short_of_proof_is_incremental() {
        for salts in [S, NEXT, LATER] {
            for tail in [Tail::Intact, Tail::Gone] {
                for beyond in [Beyond::Nothing, Beyond::Commits, Beyond::Unclear] {
                    let facts = Facts { salts, tail, beyond, end: 4152, ..base() };
                    let incremental = matches!(plan(&facts), Plan::FromHead | Plan::FromTail | Plan::Recover);
                    let proved = tail == Tail::Intact && salts == NEXT && beyond != Beyond::Unclear;
                    assert_eq!(incremental, proved, "{facts:?}");
                }
            }
        }
    }
}
