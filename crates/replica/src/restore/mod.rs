//! Bringing databases back: files of a replica → database file.
//!
//! Guarantees:
//! 1. A restore that returns `Ok` has put the exact state of one transaction at the destination.
//! 2. Every other outcome leaves what was at the destination as it was (`output` has the protocol).
//! 3. What cannot be proved whole is an error: gaps, wrong names, damaged files, missing pages.
//! 4. Memory is bounded, whatever the size of the database (but for one bit per page).

mod apply;
mod fetch;
mod follow;
mod output;
mod pages;
mod partial;
mod plan;
mod progress;
mod run;
mod salvage;
mod survey;

pub use follow::{ExclusiveConn, ExclusiveDb, Following, Milestone, follow};
pub use output::{Overwrite, holds_no_database};
pub use plan::{Target, plan};
pub use progress::Progress;
pub use run::{Check, Report, Request, plan_for, run};
pub use salvage::{Failed, Point, Salvaged, run_or_explain, salvage};
pub use survey::{Plan, Survey, survey};

use std::path::Path;

use crate::replica::FileInfo;
use crate::sys::{OwnerMode, World};

/// Reads what lies beside `output` as a follower and a restore of `newest_first` do when they start, and says how
/// many of these files need not be read again. Only for the fuzzer: what was read is of use in here alone.
#[doc(hidden)]
pub fn read_leftovers(world: &World, output: &Path, newest_first: &[FileInfo], listed: u64) -> Option<usize> {
    let state = follow::StateFiles::new(world, output, OwnerMode::PRIVATE_FILE);
    if let Ok(Some(saved)) = state.load() {
        let _ = state.announced(saved);
    }
    partial::look(world, output, None, newest_first, listed).map(|left| left.done())
}
