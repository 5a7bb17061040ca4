//! Another program on the same replica, or on the same database.

use std::time::Duration;

use litestream::types::Txid;

use super::daemon::{Daemon, Place};
use super::sim::{NEIGHBOUR, PLACE, Sim};
use super::swarm::Rival;
use crate::app::DB;
use crate::disk::Proc;
use crate::rng::Rng;

impl Sim {
    /// If what was acknowledged just now is the newest of the replica, or that was `before` already what it is now,
    /// it is not the other database's.
    pub(super) fn must_be_ours(&self, txid: Txid, before: Option<Txid>, others: bool) {
        self.check();
        if self.is_stopped() || self.swarm.rival != Some(Rival::OtherDatabase) {
            return;
        }
        let newest = self.newest();
        // A list that does not show what is there may show nobody else either.
        let misled = self.buckets().any(|bucket| bucket.lies().1.misleading() > 0);
        if newest != Some(txid) && (newest != before || misled) {
            return;
        }
        let Some(digest) = newest.and_then(|newest| self.books[0].borrow().digest(newest.get())) else { return };
        let inner = self.disk.lock();
        let oracle = if others { &inner.other } else { &inner.oracle };
        let found = oracle.find(digest).is_some();
        drop(inner);
        if !found {
            self.violate("I10 exclusive", format!("TXID {txid} was acknowledged, and is another database's"));
        }
    }

    /// Another program on the same replica, or on the same database.
    pub(super) async fn rival_acts(&self, rng: &mut Rng) {
        let Some(kind) = self.swarm.rival else { return };
        let others = kind == Rival::OtherDatabase;
        let place = match kind {
            Rival::Twin => PLACE,
            Rival::OtherState => Place { db: DB, meta: "/data/.twin-litestream" },
            Rival::OtherDatabase => NEIGHBOUR,
        };
        self.other_app_steps(rng, 4);
        let running = self.rival.borrow().clone().filter(|rival| !self.disk.is_dead(rival.who));
        let rival = match running {
            Some(rival) => rival,
            None => match Daemon::open(&self.swarm, &[(place, &self.sites)], &self.disk, Proc::Rival).await {
                Ok(rival) => {
                    self.say(|| "  the other program starts".to_owned());
                    rival.store.start();
                    self.rival.replace(Some(rival.clone()));
                    rival
                }
                Err(err) => return self.violate("I7 live", format!("the other program does not start: {err}")),
            },
        };
        if rng.permille(600) {
            let newest = self.newest();
            let before = self.disk.lock().oracle_of(place.db).now();
            let synced = rival.managed.sync(true, Some(Duration::from_secs(30))).await;
            self.say(|| format!("  the other's sync: {synced:?}"));
            let txid = synced.ok().flatten().and_then(|synced| synced.txid);
            if let Some(txid) = txid.filter(|_| !self.disk.is_dead(rival.who)) {
                match others {
                    true => self.must_be_ours(txid, newest, true),
                    false => self.acknowledged(DB, before),
                }
            }
        }
        match rng.below(4) {
            0 => {
                drop(self.rival.take());
                rival.close().await;
                self.disk.lock().end(Proc::Rival);
            }
            1 => {
                self.disk.lock().kill(Proc::Rival);
                drop((rival, self.rival.take()));
            }
            _ => self.live(rng, 3, 2000).await,
        }
    }
}
