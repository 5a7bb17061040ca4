//! What can still be had of a damaged replica.
//!
//! The newest state that the files which are whole lead to. It may be much older than what was asked
//! for: that is why nobody gets it without asking, and never without being told what is lost.

use std::collections::BTreeMap;

use super::apply::Broken;
use super::plan::{Target, furthest};
use super::run::{Check, Report, Request, check_destination, run_plan, run_whole};
use super::survey::Plan;
use crate::error::{Error, ErrorKind, Result};
use crate::replica::{FileInfo, Replica, Stamps};
use crate::sys::World;
use crate::types::{Timestamp, Txid};

/// Most damaged files that are stepped over.
const MAX_DAMAGED: usize = 1000;

/// A state of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Its number.
    pub txid: Txid,
    /// The time of the file that ends there.
    pub created: Timestamp,
}

/// A restore that did not succeed.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: Error,
    /// The newest state that the other files seem to lead to.
    pub restorable: Option<Point>,
}

/// What a salvage brought back, and what not.
#[derive(Debug)]
pub struct Salvaged {
    /// The restore.
    pub report: Report,
    /// The state that was wanted, as far as the replica's names show; `None` if that is the one restored.
    pub lost_up_to: Option<Point>,
    /// Files that could not be used, and why.
    pub damaged: Vec<(FileInfo, String)>,
}

/// As [`super::run`]; a failure that is the replica's tells what could be restored instead.
///
/// # Errors
/// As [`super::run`].
pub async fn run_or_explain(
    world: &World,
    replica: &Replica,
    request: &Request,
    check: Check,
) -> Result<Report, Failed> {
    let Broken { file, error } = match run_whole(world, replica, request, check).await {
        Ok(report) => return Ok(report),
        Err(broken) => broken,
    };
    if error.kind() != ErrorKind::Corrupt {
        return Err(Failed { error, restorable: None });
    }
    // Best effort: the failure itself is what counts.
    let files = replica.list_all(Stamps::Cheap).await.unwrap_or_default();
    let others: Vec<FileInfo> = files.into_iter().filter(|other| Some(*other) != file).collect();
    let restorable = furthest(&others, request.target).last().map(point);
    Err(Failed { error, restorable })
}

/// Restores the newest state not after the target that whole files lead to.
///
/// # Errors
/// `NotFound` if there is none; errors that are not the replica's, as [`super::run`].
pub async fn salvage(world: &World, replica: &Replica, request: &Request, check: Check) -> Result<Salvaged> {
    check_destination(world, request).await?;
    let stamps = if matches!(request.target, Target::Before(_)) { Stamps::Exact } else { Stamps::Cheap };
    let mut files = replica.list_all(stamps).await?;
    let wanted = files.iter().filter(|file| request.target.admits(file)).max_by_key(|file| file.txids.max()).map(point);
    let mut damaged = BTreeMap::new();
    loop {
        let plan = furthest(&files, request.target);
        if plan.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "nothing of the replica can be restored"));
        }
        let attempt = run_plan(world, replica, request, check.clone(), Plan::Ltx(plan), None).await;
        let Broken { file, error } = match attempt {
            Ok(report) => {
                let lost_up_to = wanted.filter(|wanted| Some(wanted.txid) > report.txid);
                return Ok(Salvaged { report, lost_up_to, damaged: damaged.into_iter().collect() });
            }
            Err(broken) => broken,
        };
        match file {
            // Deleted since it was listed, or damaged: either way it cannot be had.
            Some(file)
                if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) && damaged.len() < MAX_DAMAGED =>
            {
                tracing::warn!(file = %file, error = %error, "file cannot be used");
                files.retain(|other| *other != file);
                damaged.insert(file, error.to_string());
            }
            _ => return Err(error),
        }
    }
}

fn point(file: &FileInfo) -> Point {
    Point { txid: file.txids.max(), created: file.created }
}
