//! A second database of the same program, with a replica of its own: each fares as if it were alone, whatever
//! happens to the other, and whether or not that one is stopped, taken out and put back meanwhile.

use std::path::Path;
use std::time::Duration;

use litestream::error::Result;
use litestream::store::{Managed, Synced};

use super::daemon::Daemon;
use super::sim::Sim;
use crate::disk::OTHER_DB;
use crate::rng::Rng;

impl Sim {
    /// Its application works, and it is synced, stopped, started, or taken out and put back.
    pub(super) async fn neighbour_acts(&self, rng: &mut Rng) {
        let Some(daemon) = self.ensure_daemon().await else { return };
        self.other_app_steps(rng, 6);
        let Some(managed) = daemon.store.find(Path::new(OTHER_DB)) else {
            return self.violate("I7 live", "the second database is gone");
        };
        let limit = Duration::from_secs(rng.pick(&[1, 30, 600]));
        match rng.below(8) {
            0..4 => drop(self.sync_neighbour(&managed, limit).await),
            4 => {
                let stopped = self.unless_dead(managed.stop(limit)).await;
                self.say(|| format!("  the second database is stopped: {stopped:?}"));
                self.other_app_steps(rng, 6);
            }
            5 => {
                let started = self.unless_dead(managed.start(Some(limit))).await;
                self.say(|| format!("  the second database is started: {started:?}"));
            }
            6 => self.move_out_and_in(&daemon, &managed, limit, rng).await,
            _ => {}
        }
        self.check();
        self.live(rng, 2, 2000).await;
    }

    /// It is taken out, and comes back before that has ended, or afterwards.
    async fn move_out_and_in(&self, daemon: &Daemon, managed: &Managed, limit: Duration, rng: &mut Rng) {
        let config = managed.config().clone();
        let leaving = daemon.store.take_out(Path::new(OTHER_DB), limit);
        let both = async {
            if rng.permille(500) {
                let (left, came) = tokio::join!(leaving, daemon.store.register(config));
                (left.map(drop), came)
            } else {
                (leaving.await.map(drop), daemon.store.register(config).await)
            }
        };
        let done = self.unless_dead(Box::pin(both)).await;
        self.say(|| format!("  the second database moves out and in: {done:?}"));
        if let Some((_, Err(err))) = done {
            self.violate("I7 live", format!("a database cannot come back: {err}"));
        }
    }

    /// `sync -wait` of the second database, and what it promised. `None`: the program died.
    async fn sync_neighbour(&self, managed: &Managed, limit: Duration) -> Option<Result<Option<Synced>>> {
        let before = self.disk.lock().oracle_of(OTHER_DB).now();
        let synced = self.unless_dead(managed.sync(true, Some(limit))).await;
        self.outcome.borrow_mut().syncs += 1;
        self.say(|| format!("  sync of the second database: {synced:?}"));
        match &synced {
            Some(Ok(Some(synced))) if synced.txid.is_some() => self.acknowledged(OTHER_DB, before),
            Some(Err(_)) => self.outcome.borrow_mut().failed_syncs += 1,
            _ => {}
        }
        synced
    }

    /// With all faults gone it may be started, and then a sync must succeed.
    pub(super) async fn neighbour_catches_up(&self) {
        if self.swarm.neighbour.is_none() || self.is_stopped() {
            return;
        }
        let Some(daemon) = self.ensure_daemon().await else { return };
        let Some(managed) = daemon.store.find(Path::new(OTHER_DB)) else {
            return self.violate("I7 live", "the second database is gone");
        };
        let hour = Duration::from_secs(3600);
        if let Some(Err(err)) = self.unless_dead(managed.start(Some(hour))).await {
            return self.violate("I7 live", format!("with all faults gone the second database does not start: {err}"));
        }
        // What was asked for before the faults ended may still be failing.
        let mut last = String::new();
        for _ in 0..2 {
            match self.sync_neighbour(&managed, Duration::from_secs(600)).await {
                Some(Ok(Some(_))) => return,
                other => last = format!("{other:?}"),
            }
        }
        self.violate("I7 live", format!("with all faults gone a sync of the second database fails: {last}"));
    }
}
