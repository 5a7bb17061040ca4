//! The program dies, or the power fails.

use std::time::Duration;

use super::sim::Sim;
use crate::disk::Proc;
use crate::local::skewed;
use crate::rng::Rng;

impl Sim {
    pub(super) async fn kill(&self, rng: &mut Rng) {
        self.ensure_daemon().await;
        let bucket = self.buckets().nth(rng.index(self.sites.len()));
        match bucket.filter(|_| rng.permille(600)) {
            Some(bucket) => bucket.kill_after(Proc::Engine, rng.below(12), rng.permille(500)),
            None => self.disk.lock().kill_after(Proc::Engine, skewed(rng)),
        }
        for _ in 0..3 {
            if !self.is_dead() {
                self.live_and_sync(rng).await;
            }
        }
        self.buckets().for_each(|bucket| bucket.disarm());
        self.disk.lock().disarm();
        if !self.is_dead() {
            self.disk.lock().kill(Proc::Engine);
        }
        self.bury().await;
        self.app_steps(&self.app, rng.next(), rng.clone().below(5));
    }

    pub(super) async fn power_cut(&self, rng: &mut Rng) {
        if rng.permille(800) {
            self.ensure_daemon().await;
        }
        self.disk.lock().power_after(skewed(rng) * 3);
        match rng.below(3) {
            0 => self.app_steps(&self.app, rng.next(), 6),
            1 => drop(self.sync(Duration::from_secs(30)).await),
            _ => self.live_and_sync(rng).await,
        }
        {
            let mut inner = self.disk.lock();
            inner.disarm();
            if !inner.off {
                inner.power_off();
            }
        }
        self.kill_follower();
        // A journal that was removed may come back, and the state before with it, as with SQLite's own.
        self.followed.set(0);
        self.bury().await;
        let apps = [&self.app, &self.foreign];
        let bury = || {
            apps.iter().filter_map(|app| app.try_borrow_mut().ok()).for_each(|mut app| app.bury());
            if let Some(app) = self.other_app.borrow_mut().as_mut() {
                app.bury();
            }
        };
        bury();
        self.disk.lock().reboot();
        bury();
        self.check();
        self.app_steps(&self.app, rng.next(), rng.clone().below(4));
    }
}
