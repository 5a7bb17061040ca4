//! What others do between two given locks of the engine: some defects need a commit here, a checkpoint at the
//! next lock and a commit at the one after that, which chance alone hardly ever brings about.

use std::collections::VecDeque;

use crate::disk::{Class, Op, Proc};
use crate::rng::Rng;

/// One thing the application does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// A small commit.
    Commit,
    /// A small commit to other pages, so that what an earlier one did is not written again.
    Elsewhere,
    /// Copies what it can out of the log.
    Copy,
}

/// Turns, each after that many more of the engine's locks.
#[derive(Debug, Default)]
pub(crate) struct Squeeze {
    /// Nothing counts before the engine has written its record, which is when it goes on to its checkpoint.
    after_record: bool,
    turns: VecDeque<(u64, Turn)>,
}

impl Squeeze {
    /// These turns, counted from when the engine goes on to its checkpoint.
    pub(crate) fn of(turns: &[(u64, Turn)]) -> Self {
        Self { after_record: true, turns: turns.iter().copied().collect() }
    }

    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let orders: [&[Turn]; 4] = [
            &[Turn::Commit, Turn::Copy, Turn::Elsewhere],
            &[Turn::Commit, Turn::Copy, Turn::Elsewhere],
            &[Turn::Elsewhere, Turn::Copy, Turn::Commit],
            &[Turn::Commit, Turn::Elsewhere],
        ];
        let mut turns: VecDeque<_> = rng.pick(&orders).iter().map(|&turn| (rng.below(5), turn)).collect();
        if let Some((first, _)) = turns.front_mut() {
            *first = rng.below(24);
        }
        Self { after_record: rng.permille(700), turns }
    }

    /// The turn that is due before this operation, if there is one.
    pub(crate) fn next(&mut self, proc: Proc, op: Op, class: Class) -> Option<Turn> {
        if proc != Proc::Engine {
            return None;
        }
        if self.after_record {
            self.after_record = (op, class) != (Op::Write, Class::Record);
            return None;
        }
        let (left, turn) =
            self.turns.front_mut().filter(|_| matches!((op, class), (Op::Lock | Op::Unlock, Class::Db)))?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        let turn = *turn;
        self.turns.pop_front();
        Some(turn)
    }
}
