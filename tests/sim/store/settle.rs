//! The end: faults are over, and everything must come right by itself; so must what stores have lost.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use litestream::error::ErrorKind;
use litestream::replica::FileInfo;
use litestream::restore::{Target, plan};

use super::bucket::Bucket;
use super::manners::Manners;
use super::sim::Sim;
use super::site::Site;
use super::swarm::Rival;
use crate::disk::Proc;
use crate::rng::Rng;

impl Sim {
    /// Faults are over: everything must come right by itself.
    pub(super) async fn settle(&self) {
        self.say(|| "faults are over".to_owned());
        self.disk.lock().forgive();
        for bucket in self.buckets() {
            bucket.disarm();
            bucket.set_manners(Manners::PERFECT);
            bucket.outage(Duration::ZERO, None);
        }
        self.app.borrow_mut().end(false);
        self.foreign.borrow_mut().end(false);
        if let Some(app) = self.other_app.borrow_mut().as_mut() {
            app.end(false);
        }
        if let Some(rival) = self.rival.take()
            && !self.disk.is_dead(rival.who)
        {
            rival.close().await;
            self.disk.lock().end(Proc::Rival);
        }
        if self.swarm.rival == Some(Rival::OtherDatabase) {
            // Whoever starts takes the replica over; one that has lost it would only say so.
            self.stop().await;
        }
        self.ensure_daemon().await;
        self.find_losses().await;
        if let Err(text) = self.catch_up().await {
            return self.violate("I7 live", format!("with all faults gone a sync still fails: {text}"));
        }
        self.neighbour_catches_up().await;
        self.exactly_now("after the faults").await;
        let mut last_words = self.app.borrow_mut().last_words(&mut Rng::new(5));
        if let Some(app) = self.other_app.borrow_mut().as_mut().filter(|_| self.swarm.neighbour.is_some()) {
            last_words = last_words.and_then(|()| app.last_words(&mut Rng::new(6)));
        }
        if let Err(text) = last_words {
            return self.violate("I6 harmless", format!("the application cannot write any more: {text}"));
        }
        // Nobody asks for this one. What failed before may have led to a wait of five minutes.
        for _ in 0..(330 + 2 * (self.swarm.sync_interval_ms + self.swarm.monitor_ms) / 1000) {
            if self.is_stopped() || self.is_caught_up() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.exactly_now("after one more commit, by itself").await;
        self.follower_catches_up().await;
        self.lose_the_end().await;
        self.stop().await;
        if let Err(text) = self.app.borrow_mut().check() {
            return self.violate("I6 harmless", format!("integrity check of the source: {text}"));
        }
        self.ensure_daemon().await;
        if let Err(text) = self.catch_up().await {
            return self.violate("I7 live", format!("after a restart a sync fails: {text}"));
        }
        self.neighbour_catches_up().await;
        let longest = self.swarm.levels.iter().copied().chain([self.swarm.snapshot_retention]).max().unwrap_or(0);
        tokio::time::sleep(Duration::from_secs((2 * longest + 30).min(200))).await;
        self.exactly_now("after a restart").await;
        self.stop().await;
        self.tidy();
        self.check();
    }

    /// A sync must succeed at once; only whoever was led to believe in another writer may want to be restarted.
    async fn catch_up(&self) -> Result<(), String> {
        // What was asked for before the faults ended may still be failing.
        let first = self.sync(Duration::from_secs(600)).await;
        let err = match first {
            Some(Ok(())) => return Ok(()),
            Some(Err(err)) => err,
            None => return Err("the daemon is dead".to_owned()),
        };
        if err.kind() != ErrorKind::InUse {
            let again = self.sync(Duration::from_secs(600)).await;
            return match again {
                Some(Ok(())) => Ok(()),
                Some(Err(err)) => Err(err.to_string()),
                None => Err("the daemon is dead".to_owned()),
            };
        }
        let misled = |bucket: &Arc<Bucket>| bucket.lies().1.misleading() > 0;
        if self.is_alone() && !self.buckets().any(misled) {
            return Err(err.to_string());
        }
        self.stop().await;
        self.ensure_daemon().await;
        match self.sync(Duration::from_secs(600)).await {
            Some(Ok(())) => Ok(()),
            Some(Err(err)) => Err(err.to_string()),
            None => Err("the daemon is dead".to_owned()),
        }
    }

    /// Whether every target is said to hold the present state.
    fn is_caught_up(&self) -> bool {
        self.check();
        let positions = self.positions();
        positions.iter().enumerate().all(|(n, txid)| {
            let mut inner = self.disk.lock();
            let oracle = inner.oracle_of(self.db_of(n));
            let digest = txid.and_then(|txid| self.book_of(n).borrow().digest(txid));
            digest == Some(oracle.digest_at(oracle.now()))
        })
    }

    /// The newest objects are gone, and nobody commits any more: only a validation can miss them.
    async fn lose_the_end(&self) {
        let Some(interval) = self.swarm.validation.filter(|_| self.swarm.forgetful && !self.is_stopped()) else {
            return;
        };
        // Until nothing is left to do.
        tokio::time::sleep(Duration::from_secs(130)).await;
        self.buckets().for_each(|bucket| bucket.lose_newest(1 + self.disk.lock().order(2)));
        self.say(|| "  the newest objects are lost".to_owned());
        tokio::time::sleep(Duration::from_secs(2 * interval + 30)).await;
        self.exactly_now("after a validation missed the newest objects").await;
    }

    /// A store loses objects for good. Nothing is asked of that target until a start has looked at it.
    pub(super) fn lose_objects(&self, rng: &mut Rng) {
        for (n, site) in self.sites.iter().enumerate() {
            let Site::Bucket(bucket) = site else { continue };
            let lost = bucket.lose(rng, 3);
            self.say(|| format!("  site {n} has lost {lost:?}"));
            self.lossy[n].set(self.lossy[n].get() || !lost.is_empty());
        }
    }

    /// A target is emptied, or loses what is old, under the running program. Commits go on, and nothing else gives cause for
    /// a listing: within two rounds of level 1 it can be restored again, or whoever asks is told that it cannot.
    pub(super) async fn purge(&self, rng: &mut Rng) {
        let Some(level_1) = self.swarm.levels.first().copied() else { return };
        let Some(daemon) = self.ensure_daemon().await else { return };
        let mut ours = self.sites.iter().enumerate().take(self.ours);
        let Some((n, bucket)) = ours.find_map(|(n, site)| match site {
            Site::Bucket(bucket) if !self.lossy[n].get() => Some((n, bucket)),
            _ => None,
        }) else {
            return;
        };
        // What was begun may still be going on, and put objects beside the hole that nobody made yet.
        self.sync(Duration::from_secs(600)).await;
        if self.is_stopped() || self.acked[n].get() == 0 {
            return;
        }
        let held = self.sites[n].contents(&self.disk).iter().map(|stored| stored.file.txids.max()).max();
        let lost = bucket.purge(rng);
        self.say(|| format!("  site {n} has lost {lost} objects"));
        if lost == 0 {
            return;
        }
        self.lossy[n].set(true);
        let restorable = || {
            let files: Vec<FileInfo> = self.sites[n].contents(&self.disk).iter().map(|stored| stored.file).collect();
            // What it held at least: while it is uploaded again, it holds less.
            plan(&files, Target::Latest).is_ok_and(|plan| plan.last().map(|file| file.txids.max()) >= held)
        };
        // Twice the interval, and what the slowest requests take.
        let rounds = (2 * level_1 + 900) / 5;
        for _ in 0..rounds {
            self.app_steps(&self.app, rng.next(), 2);
            tokio::time::sleep(Duration::from_secs(5)).await;
            if self.is_stopped() || self.is_dead() {
                return;
            }
            if restorable() {
                self.say(|| format!("  site {n} can be restored again"));
                self.lossy[n].set(false);
                self.first_snapshot[n].set(Some(self.disk.wall()));
                return;
            }
        }
        let status = daemon.managed.status();
        let said = status.targets.get(n).is_some_and(|target| target.lost || target.trouble.is_some());
        if !said && status.local.trouble.is_none() {
            self.violate("I18 missed", format!("site {n} cannot be restored, and nobody says so"));
        }
    }

    /// Whatever stores have lost: a start finds out, or the validation of a program that runs, and leads to the
    /// present again. What was there before may be gone for good, and moments before this one with it.
    async fn find_losses(&self) {
        let lossy: Vec<bool> = self.lossy.iter().map(Cell::get).collect();
        if !lossy.contains(&true) {
            return;
        }
        match self.swarm.validation.filter(|_| !self.is_dead() && self.disk.lock().order(2) == 0) {
            Some(interval) => {
                self.say(|| "  the validation finds out".to_owned());
                tokio::time::sleep(Duration::from_secs(2 * interval + 30)).await;
                self.lossy.iter().for_each(|lossy| lossy.set(false));
                self.check();
            }
            None => {
                self.stop().await;
                self.ensure_daemon().await;
            }
        }
        if let Err(text) = self.catch_up().await {
            return self.violate("I7 live", format!("after a store has lost objects a sync fails: {text}"));
        }
        self.neighbour_catches_up().await;
        let now = self.disk.wall();
        self.lossy.iter().for_each(|lossy| lossy.set(false));
        for (lossy, first) in lossy.into_iter().zip(&self.first_snapshot) {
            if lossy {
                first.set(Some(now));
            }
        }
    }
}
