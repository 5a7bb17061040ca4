//! One replicated database: follows its write-ahead log and turns every commit into local LTX
//! files of level 0.
//!
//! Guarantees:
//! 1. Every committed transaction is in some published L0 file, in commit order; the file of
//!    TXID n holds exactly the pages that differ between the states n−1 and n, or all pages.
//! 2. Where it cannot be proved that no commit was missed, the next file is a full image.
//! 3. The log is never read past what SQLite's own index of it says, and never short of it: a
//!    log that ends early is an error, not "nothing new". Commits that stand behind that end are
//!    either taken into the index by SQLite itself or an error (`unindexed`).
//! 4. Checkpoints never let go of a frame that was not read before.
//! 5. The application's tables are not touched. Its write lock is held for a few pages' work.
//!
//! The module decides with pure functions ([`plan()`], `checkpoint::decide`) on facts gathered
//! before. Everything here blocks: callers run it on blocking threads, one step at a time.

mod checkpoint;
mod config;
mod encode;
mod engine;
mod foreign;
mod gate;
mod image;
mod layer;
mod observe;
mod plan;
mod quiet;
mod record;
mod reset;
mod session;
mod sidecars;
mod snapshot;
mod sync;
mod unindexed;

pub use config::{Bounds, DbConfig};
pub use engine::{Counters, Db, LocalState};
pub use plan::{Beyond, Facts, LastFacts, Plan, Reason, Tail, Written, plan};
pub use reset::reset;
pub use snapshot::{SnapshotInfo, SnapshotReader};
pub use sync::SyncReport;
