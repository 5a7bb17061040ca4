//! Many seeds of the whole program, and what they came to.

use super::sim::{StoreOutcome, run};
use super::swarm::{Act, StoreSwarm, acts};
use crate::number;

fn run_seed(seed: u64) -> StoreOutcome {
    let swarm = StoreSwarm::draw(seed);
    run(seed, &swarm, &acts(seed, &swarm), false)
}

/// Runs a seed, and if it fails, the smallest list of actions that fails alike, telling everything.
fn replay_seed(seed: u64) -> StoreOutcome {
    let swarm = StoreSwarm::draw(seed);
    let list = acts(seed, &swarm);
    if std::env::var_os("WHOLE_LIST").is_some() {
        return run(seed, &swarm, &list, true);
    }
    let outcome = run(seed, &swarm, &list, false);
    let Some(violation) = &outcome.violation else {
        eprintln!("{swarm:?}\n{list:?}");
        return run(seed, &swarm, &list, true);
    };
    let (swarm, list) = shrink(seed, swarm, list, violation.invariant);
    eprintln!("{swarm:?}\n{} actions: {list:?}", list.len());
    run(seed, &swarm, &list, true)
}

/// Simplifies as long as the same promise is broken.
fn shrink(seed: u64, mut swarm: StoreSwarm, mut list: Vec<Act>, broken: &str) -> (StoreSwarm, Vec<Act>) {
    let breaks = |swarm: &StoreSwarm, list: &[Act]| {
        run(seed, swarm, list, false).violation.is_some_and(|violation| violation.invariant == broken)
    };
    let plainer: [fn(&mut StoreSwarm); 11] = [
        |s| s.preemption = 0,
        |s| s.base.interleave = 0,
        |s| s.base.short_reads = false,
        |s| s.base.spill = false,
        |s| s.base.reformat = false,
        |s| s.base.vacuum = 0,
        |s| s.base.auto_vacuum = 0,
        |s| s.validation = None,
        |s| s.levels.clear(),
        |s| s.l0_retention = None,
        |s| s.sites.truncate(1),
    ];
    let mut chunk = list.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        let mut smaller = false;
        while at < list.len() {
            let mut candidate = list.clone();
            candidate.drain(at..(at + chunk).min(list.len()));
            if breaks(&swarm, &candidate) {
                list = candidate;
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
    for change in plainer {
        let mut candidate = swarm.clone();
        change(&mut candidate);
        if breaks(&candidate, &list) {
            swarm = candidate;
        }
    }
    (swarm, list)
}

/// `WHOLE_SEED=<n>` replays one, `WHOLE_SEEDS=<n>` runs that many, `WHOLE_FIRST=<n>` from there on.
///
/// # Panics
/// A seed that breaks a promise, or does not repeat itself.
pub(crate) fn gate() {
    if let Some(seed) = number("WHOLE_SEED") {
        let outcome = replay_seed(seed);
        eprintln!("{outcome}");
        assert_eq!(outcome.violation, None, "seed {seed}");
        return;
    }
    let first = number("WHOLE_FIRST").unwrap_or(1);
    let count = number("WHOLE_SEEDS").unwrap_or(60);
    let mut total = StoreOutcome::default();
    let mut failures = Vec::new();
    for seed in first..first + count {
        if std::env::var_os("WHOLE_TELL").is_some() {
            eprintln!("seed {seed}");
        }
        let outcome = run_seed(seed);
        if let Some(violation) = &outcome.violation {
            eprintln!("seed {seed}: {}: {}", violation.invariant, violation.text);
            failures.push(seed);
            if failures.len() as u64 >= number("FAILURES").unwrap_or(20) {
                break;
            }
        }
        if seed % 50 == 0 {
            let again = run_seed(seed);
            assert_eq!(outcome.trace, again.trace, "seed {seed} does not repeat itself");
        }
        total.add(&outcome);
    }
    eprintln!("{total}");
    assert!(
        failures.is_empty(),
        "seeds that failed: {failures:?}; WHOLE_SEED=<n> cargo test --test sim whole replays one"
    );
}

impl StoreOutcome {
    fn add(&mut self, other: &Self) {
        self.states += other.states;
        self.txids += other.txids;
        self.syncs += other.syncs;
        self.failed_syncs += other.failed_syncs;
        self.restores += other.restores;
        self.failed_restores += other.failed_restores;
        self.points += other.points;
        self.looks += other.looks;
        self.unchecked += other.unchecked;
        self.requests += other.requests;
        self.simulated_seconds += other.simulated_seconds;
        self.lies.add(&other.lies);
        self.counts.add(&other.counts);
    }
}

impl std::fmt::Display for StoreOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let c = &self.counts;
        write!(
            f,
            "{} states, {} TXIDs, {} syncs ({} failed), {} restores ({} failed, {} to times), {} looks at a follower, {} requests, {} disk \
             operations, {} disk faults, {} times full, {} kills, {} power cuts, {} hours; {}; {} objects unchecked; faults: {}",
            self.states,
            self.txids,
            self.syncs,
            self.failed_syncs,
            self.restores,
            self.failed_restores,
            self.points,
            self.looks,
            self.requests,
            c.ops,
            c.faults.total(),
            c.full,
            c.kills,
            c.power_cuts,
            self.simulated_seconds / 3600,
            self.lies,
            self.unchecked,
            c.faults,
        )
    }
}
