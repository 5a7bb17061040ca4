//! The smallest list of actions, and the plainest settings, that still break the same promise.

use litestream::db::Bounds;

use crate::local::{Outcome, run};
use crate::swarm::{Action, Swarm};

/// What is left of a failure.
#[derive(Debug)]
pub(crate) struct Shrunk {
    pub(crate) swarm: Swarm,
    pub(crate) actions: Vec<Action>,
}

/// Simplifies as long as the same promise is broken.
pub(crate) fn shrink(seed: u64, mut swarm: Swarm, mut actions: Vec<Action>, broken: &str) -> Shrunk {
    let breaks = |swarm: &Swarm, actions: &[Action]| {
        let outcome: Outcome = run(seed, swarm, actions, false);
        outcome.violation.is_some_and(|violation| violation.invariant == broken)
    };
    let plainer: [fn(&mut Swarm); 12] = [
        |s| s.interleave = 0,
        |s| s.foreign = false,
        |s| s.short_reads = false,
        |s| s.spill = false,
        |s| s.index = false,
        |s| s.reformat = false,
        |s| s.vacuum = 0,
        |s| s.auto_vacuum = 0,
        |s| s.max_sync_wal_bytes = None,
        |s| s.bounds = Bounds::default(),
        |s| s.echo = false,
        |s| s.eager = 0,
    ];
    for change in plainer {
        let mut candidate = swarm.clone();
        change(&mut candidate);
        if breaks(&candidate, &actions) {
            swarm = candidate;
        }
    }
    let mut chunk = actions.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        let mut smaller = false;
        while at < actions.len() {
            let mut candidate = actions.clone();
            candidate.drain(at..(at + chunk).min(actions.len()));
            if breaks(&swarm, &candidate) {
                actions = candidate;
                smaller = true;
            } else {
                at += chunk;
            }
        }
        if chunk == 1 && !smaller {
            break;
        }
        chunk = if chunk == 1 { 1 } else { chunk / 2 };
    }
    Shrunk { swarm, actions }
}
