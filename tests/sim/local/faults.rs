//! When something fails, and what.

use crate::disk::{Class, EIO, EMFILE, ENOSPC, Fault, Op, Proc};
use crate::rng::Rng;

/// Mostly few, sometimes many.
pub(crate) fn skewed(rng: &mut Rng) -> u64 {
    let bound = rng.pick(&[10, 40, 120, 400]);
    rng.below(bound)
}

pub(crate) fn draw_fault(rng: &mut Rng) -> Fault {
    // Under the write lock more is at stake than elsewhere, and less happens.
    let locked = rng.permille(250);
    let class = match locked {
        true => rng.pick(&[Class::Wal, Class::Db, Class::Db]),
        false => rng.pick(&[
            Class::Wal,
            Class::Wal,
            Class::Wal,
            Class::Db,
            Class::Db,
            Class::Temp,
            Class::Ltx,
            Class::Record,
            Class::Other,
        ]),
    };
    let op = match class {
        Class::Temp => rng.pick(&[Op::Create, Op::Write, Op::Sync, Op::Sync, Op::Rename, Op::Remove]),
        Class::Other => rng.pick(&[Op::SyncDir, Op::Mkdir, Op::List]),
        Class::Ltx => rng.pick(&[Op::Open, Op::Peek, Op::Stat]),
        Class::Record => rng.pick(&[Op::Open, Op::Peek, Op::Write, Op::Create]),
        Class::Wal => rng.pick(&[Op::Open, Op::Read, Op::Peek, Op::Peek, Op::Peek, Op::Stat, Op::Sync, Op::Write]),
        Class::Db => {
            rng.pick(&[Op::Open, Op::Read, Op::Peek, Op::Stat, Op::Sync, Op::Write, Op::Lock, Op::Lock, Op::Shm])
        }
    };
    let bound = match op {
        _ if locked => rng.pick(&[1, 6]),
        Op::Lock | Op::Shm => rng.pick(&[4, 20, 80]),
        // Where reads are short there are many of them.
        Op::Peek => rng.pick(&[1, 8, 30]),
        _ => rng.pick(&[1, 4, 20]),
    };
    Fault {
        proc: Proc::Engine,
        op,
        class,
        skip: u32::try_from(rng.below(bound)).unwrap_or(0),
        times: rng.pick(&[1, 1, 3, u32::MAX]),
        errno: if op == Op::Open { rng.pick(&[EIO, EMFILE]) } else { rng.pick(&[EIO, EIO, ENOSPC]) },
        forget: rng.permille(500),
        locked,
        // Pages of the database carry no checksum.
        flip: op == Op::Peek && class != Class::Db && rng.permille(500),
    }
}
