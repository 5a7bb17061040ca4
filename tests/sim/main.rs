//! Deterministic simulation: the real engine and the real SQLite on a simulated disk that fails, forgets and
//! dies. One seed decides everything that happens.
//!
//! `SEED=<n>` runs one seed and tells what happened, `SEEDS=<n>` that many, `FIRST=<n>` from there on.

mod app;
mod disk;
mod fs;
mod local;
mod oracle;
mod replay;
mod rng;
mod scenario;
mod shrink;
mod squeeze;
mod store;
mod swarm;
mod tell;
mod vfs;

use std::sync::Mutex;

use litestream::sys::choose_mutant;
use local::{Outcome, run};
use shrink::shrink;
use swarm::{Swarm, actions};

/// SQLite's random numbers are global to the program: one simulation at a time.
static TURN: Mutex<()> = Mutex::new(());

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn run_seed(seed: u64) -> Outcome {
    let swarm = Swarm::draw(seed);
    run(seed, &swarm, &actions(seed, &swarm), false)
}

/// Runs a seed, and if it fails, the smallest list of actions that fails alike, telling everything.
fn replay_seed(seed: u64) -> Outcome {
    let swarm = Swarm::draw(seed);
    let list = actions(seed, &swarm);
    let outcome = run(seed, &swarm, &list, false);
    let Some(violation) = &outcome.violation else {
        return run(seed, &swarm, &list, true);
    };
    let shrunk = shrink(seed, swarm, list, violation.invariant);
    eprintln!("{:?}\n{} actions: {:?}", shrunk.swarm, shrunk.actions.len(), shrunk.actions);
    run(seed, &shrunk.swarm, &shrunk.actions, true)
}

#[test]
fn no_commit_is_lost_by_the_engine() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    vfs::register();
    choose_mutant(std::env::var("MUTANT").ok().as_deref());
    if let Some(seed) = number("SEED") {
        let outcome = replay_seed(seed);
        assert_eq!(outcome.violation, None, "seed {seed}");
        return;
    }
    let first = number("FIRST").unwrap_or(1);
    let count = number("SEEDS").unwrap_or(300);
    let mut total = Outcome::default();
    let mut failures = Vec::new();
    for seed in first..first + count {
        let outcome = run_seed(seed);
        if let Some(violation) = &outcome.violation {
            eprintln!("seed {seed}: {}: {}", violation.invariant, violation.text);
            failures.push(seed);
            if failures.len() as u64 >= number("FAILURES").unwrap_or(20) {
                break;
            }
        }
        if seed % 100 == 0 {
            let again = run_seed(seed);
            assert_eq!(outcome.trace, again.trace, "seed {seed} does not repeat itself");
        }
        total.add(&outcome);
    }
    eprintln!("{total}");
    assert!(failures.is_empty(), "seeds that failed: {failures:?}; SEED=<n> cargo test --test sim replays one");
}

#[test]
fn the_whole_program_loses_nothing_it_acknowledged() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    vfs::register();
    choose_mutant(std::env::var("MUTANT").ok().as_deref());
    store::gate();
}

impl Outcome {
    fn add(&mut self, other: &Self) {
        self.states += other.states;
        self.files += other.files;
        self.syncs += other.syncs;
        self.failed_syncs += other.failed_syncs;
        self.full_images += other.full_images;
        self.checkpoints += other.checkpoints;
        self.ruined += other.ruined;
        self.counts.add(&other.counts);
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let c = &self.counts;
        write!(
            f,
            "{} states, {} syncs ({} failed), {} files ({} full images), {} checkpoints, {} operations, {} faults, \
             {} times full, {} kills, {} power cuts ({} sectors lost), {} databases ruined by a disk that lied; faults: {}",
            self.states,
            self.syncs,
            self.failed_syncs,
            self.files,
            self.full_images,
            self.checkpoints,
            c.ops,
            c.faults.total(),
            c.full,
            c.kills,
            c.power_cuts,
            c.torn,
            self.ruined,
            c.faults
        )
    }
}
