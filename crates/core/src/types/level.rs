//! Compaction levels.

use std::fmt;

/// Level of an LTX file: 0 = one file per sync, 1…8 = compacted, 9 = snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// One file per sync.
    pub const L0: Self = Self(0);
    /// Highest level that is compacted from the one below.
    pub const MAX_COMPACTED: Self = Self(8);
    /// Full snapshots.
    pub const SNAPSHOT: Self = Self(9);

    /// `None` above 9.
    #[must_use]
    pub const fn new(value: u8) -> Option<Self> {
        if value <= 9 { Some(Self(value)) } else { None }
    }

    /// The number, 0…9.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// All levels, ascending.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..=9).map(Self)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
