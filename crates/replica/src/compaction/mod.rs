//! Keeping a target small, fast to restore and whole: merging files into higher levels, deleting
//! what no restore needs, finding and closing gaps.
//!
//! Guarantees:
//! 1. Level 1 holds what level 0 held, without gaps, unless a snapshot or a higher level leads
//!    across; nothing is published that was not verified.
//! 2. Every moment of the window stays restorable, and the newest state always (`retention` has
//!    the details), also when a clock is set or a pass ends half-way.
//! 3. An idle target is not listed, and no compaction needs a listing (`manifest`).
//!
//! Decisions are pure functions over a [`Manifest`]; `run` and [`Deletion::run`] carry them out. Who does
//! it when, for which databases, is the business of `store`. The database is seen only through
//! [`SnapshotSource`].

mod deletion;
mod levels;
mod manifest;
mod plan;
mod retention;
mod run;
mod snapshot;
#[cfg(test)]
mod testing;
mod trusted;
mod verify;

pub use deletion::Deletion;
pub use levels::{Levels, too_early, truncate, until_next};
pub use manifest::{Manifest, SharedManifest};
pub use plan::{Limits, Plan, plan, same_page_size};
pub use retention::{L0Decision, RetentionPolicy, base, expired, l0, local_l0};
pub use run::{Compactor, Step};
pub use snapshot::{Due, SnapshotSource, snapshot_due};
pub use trusted::TrustedTime;
pub use verify::{Cure, Fault, Finding, Gap, cure, findings, gaps, is_rooted, way};
