//! When something was known to be so.

use std::time::Duration;

use crate::store::database::Database;
use crate::types::Timestamp;

/// The time before a request, by both clocks: the one can be set, the other stands still while a machine sleeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    elapsed: Duration,
    wall: Timestamp,
}

impl Moment {
    pub(super) fn now(database: &Database) -> Self {
        let clock = &database.world.clock;
        Self { elapsed: clock.elapsed(), wall: clock.now() }
    }

    /// How long ago it was, at most.
    pub(super) fn age(self, database: &Database) -> Duration {
        let now = Self::now(database);
        let wall = u64::try_from(now.wall.millis().saturating_sub(self.wall.millis())).unwrap_or(0);
        now.elapsed.saturating_sub(self.elapsed).max(Duration::from_millis(wall))
    }
}
