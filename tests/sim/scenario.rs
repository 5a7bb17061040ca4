//! Defects that seeds found, written down: what happened, step by step, whatever seeds mean by now. Each must
//! go well with the engine as it is, and go wrong with the defect put back.

use std::cell::RefCell;
use std::rc::Rc;

use litestream::db::Bounds;
use litestream::sys::choose_mutant;

use crate::disk::{Class, EIO, Fault, Keep, Op, Proc, set_hook};
use crate::local::{Outcome, Sim, run_with};
use crate::squeeze::{Squeeze, Turn};
use crate::swarm::Swarm;
use crate::{TURN, vfs};

/// One step.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The application executes statements, each by itself.
    App(&'static str),
    /// The engine syncs.
    Sync,
    /// The engine syncs, and before its first operation of a kind the application executes statements.
    SyncWhile(Op, Class, &'static str),
    /// The engine syncs, and dies before its first operation of a kind.
    SyncUntil(Op, Class),
    /// The engine syncs, and the application commits, copies the log and commits, each so many of the engine's
    /// locks later.
    SyncSqueezed(u64, u64, u64),
    /// From now on an operation fails, once.
    Arm(Fault),
    /// No fault any more.
    Disarm,
    /// The power fails, and comes back.
    Cut(Keep),
}

use Step::{App, Arm, Cut, Disarm, Sync, SyncSqueezed, SyncUntil, SyncWhile};

fn settings(min_checkpoint_pages: u32) -> Swarm {
    Swarm {
        page_size: 512,
        auto_vacuum: 0,
        index: false,
        spill: false,
        rows: 6,
        autocheckpoint: [0; 3],
        checkpoint_modes: vec!["PASSIVE"],
        size_limit: 0,
        full_sync: 0,
        vacuum: 0,
        reformat: false,
        foreign: false,
        min_checkpoint_pages,
        max_sync_wal_bytes: None,
        truncate_pages: None,
        bounds: Bounds::default(),
        echo: false,
        sequences: 1,
        interleave: 0,
        eager: 0,
        short_reads: false,
        powersafe: true,
        kills: true,
        power_cuts: true,
        faults: true,
        full_disks: false,
        unindexed: false,
        rewrites: false,
        keeps_wal_mode: false,
    }
}

/// Calls `strike` before the first operation of the engine of that kind, once.
fn before_first(op: Op, class: Class, strike: impl FnOnce() + 'static) {
    let strike = RefCell::new(Some(strike));
    set_hook(Some(Rc::new(move |proc, now, of| {
        if (proc, now, of) == (Proc::Engine, op, class)
            && let Some(strike) = strike.take()
        {
            strike();
        }
    })));
}

fn play(sim: &Rc<Sim>, steps: &[Step]) {
    for step in steps {
        match *step {
            App(sql) => sim.app.borrow_mut().sql(sql),
            Sync => sim.sync(),
            SyncWhile(op, class, sql) => {
                let other = Rc::clone(sim);
                before_first(op, class, move || other.app.borrow_mut().sql(sql));
                sim.sync();
                set_hook(None);
            }
            SyncUntil(op, class) => {
                let other = Rc::clone(sim);
                before_first(op, class, move || other.disk.lock().kill(Proc::Engine));
                sim.sync();
                set_hook(None);
            }
            SyncSqueezed(first, second, third) => {
                let turns = [(first, Turn::Commit), (second, Turn::Copy), (third, Turn::Elsewhere)];
                sim.sync_squeezed(Squeeze::of(&turns));
            }
            Arm(fault) => sim.disk.lock().faults.push(fault),
            Disarm => sim.disk.lock().faults.clear(),
            Cut(keep) => sim.cut_and(|disk| disk.reboot_keeping(keep)),
        }
    }
    if let Some(complaint) = sim.app.borrow_mut().complaint.take() {
        panic!("the scenario itself went wrong: {complaint}");
    }
}

/// Plays each list with the engine as it is, which must do well, and with the defect, which must be noticed
/// in at least one of them.
fn proves(mutant: &str, min_checkpoint_pages: u32, lists: &[Vec<Step>]) {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    vfs::register();
    let swarm = settings(min_checkpoint_pages);
    let outcome = |steps: &[Step]| -> Outcome { run_with(1, &swarm, false, |sim| play(sim, steps)) };
    choose_mutant(None);
    for steps in lists {
        assert_eq!(outcome(steps).violation, None, "{steps:?}");
    }
    choose_mutant(Some(mutant));
    let noticed = lists.iter().any(|steps| outcome(steps).violation.is_some_and(|v| v.invariant != "I13 no panic"));
    choose_mutant(None);
    assert!(noticed, "{mutant} is not noticed");
}

/// Finding 1, seed 5292: the mark stands on a log that is copied altogether while its last frames are in memory
/// only; the checkpoint fails; the application restarts the log.
#[test]
fn a_checkpoint_that_fails_under_the_write_lock_ends_protection() {
    let failing = |skip| {
        let fault = Fault {
            proc: Proc::Engine,
            op: Op::Lock,
            class: Class::Db,
            skip,
            times: 1,
            errno: EIO,
            forget: false,
            locked: true,
            flip: false,
        };
        vec![
            App("INSERT INTO t VALUES (1, 'a')"),
            Sync,
            App("INSERT INTO t VALUES (2, 'b')"),
            Arm(fault),
            SyncWhile(Op::Write, Class::Record, "INSERT INTO t VALUES (3, 'unread')"),
            Disarm,
            App("INSERT INTO u VALUES (1, 'restarts the log')"),
            Sync,
        ]
    };
    let lists: Vec<_> = (0..8).map(failing).collect();
    proves("failed-checkpoint-keeps-protection", 1, &lists);
}

/// Finding 2, seed 5661: a commit is taken back by a power cut, another one takes its place, and the last
/// frame is the same again.
#[test]
fn a_log_that_ends_alike_after_a_power_cut_is_not_taken_for_the_same() {
    let keep = Keep { log: |_| false, record: false, names: true };
    let steps = vec![
        App("INSERT INTO t VALUES (1, 'a'); INSERT INTO u VALUES (1, 'x')"),
        Sync,
        App("PRAGMA synchronous = full; INSERT INTO t VALUES (2, 'durable'); PRAGMA synchronous = normal"),
        App("REPLACE INTO t VALUES (1, 'lost')"),
        Sync,
        App("REPLACE INTO u VALUES (1, 'y')"),
        Sync,
        Cut(keep),
        App("REPLACE INTO t VALUES (1, 'instead')"),
        App("REPLACE INTO u VALUES (1, 'y')"),
        Sync,
    ];
    proves("chain-not-kept", 1000, &[steps]);
}

/// Findings 3 and 4, seeds 2839 and 7016: a file that was found at start is built upon, but its name is not
/// durable yet.
#[test]
fn a_file_that_an_earlier_life_left_is_made_durable_before_it_is_built_upon() {
    let keep = Keep { log: |_| true, record: true, names: false };
    let steps = vec![
        App("INSERT INTO t VALUES (1, 'a')"),
        Sync,
        App("INSERT INTO t VALUES (2, 'b')"),
        SyncUntil(Op::SyncDir, Class::Other),
        Sync,
        Cut(keep),
        Sync,
    ];
    proves("names-left-volatile", 1000, &[steps]);
}

/// Finding 5, seeds 42317, 43400 and 52773: a power cut takes the log back before the synced end, another
/// commit takes a slot there, a restart overwrites it, and the last synced frame is still in its slot.
#[test]
fn a_frame_that_outlived_a_power_cut_does_not_prove_what_came_after_it() {
    // Frame n begins at 32 + 536 n: the second one is torn, the sixth is whole.
    let keep = Keep { log: |sector| sector != 2, record: true, names: true };
    let steps = vec![
        App("INSERT INTO t VALUES (1, 'a'); INSERT INTO u VALUES (1, 'a')"),
        App("REPLACE INTO u VALUES (1, '1'); REPLACE INTO u VALUES (1, '2'); REPLACE INTO u VALUES (1, '3')"),
        App("REPLACE INTO u VALUES (1, '4'); REPLACE INTO u VALUES (1, '5'); REPLACE INTO u VALUES (1, '6')"),
        App("PRAGMA wal_checkpoint(RESTART)"),
        App("REPLACE INTO t VALUES (1, 'b'); REPLACE INTO t VALUES (1, 'c'); REPLACE INTO t VALUES (1, 'd')"),
        App("REPLACE INTO t VALUES (1, 'e'); REPLACE INTO t VALUES (1, 'f'); REPLACE INTO t VALUES (1, 'g')"),
        Sync,
        Cut(keep),
        App("REPLACE INTO t VALUES (2, 'overwritten')"),
        App("PRAGMA wal_checkpoint(RESTART)"),
        App("REPLACE INTO u VALUES (2, 'new')"),
        Sync,
    ];
    proves("boot-ignored", 1000, &[steps]);
}

/// Finding 6: a commit that was not read yet, a checkpoint of somebody else and a commit that restarts the log fall
/// between the locks with which the read mark moves.
#[test]
fn a_log_that_is_restarted_while_the_mark_moves_is_not_taken_for_read() {
    let mut lists = Vec::new();
    for first in 0..8 {
        for second in 0..7 {
            for third in 0..5 {
                lists.push(vec![
                    App("INSERT INTO t VALUES (1, 'a')"),
                    Sync,
                    App("INSERT INTO t VALUES (2, 'b')"),
                    SyncSqueezed(first, second, third),
                    Sync,
                ]);
            }
        }
    }
    proves("mark-ahead-forgotten", 1, &lists);
}
