//! What must hold after every action, and at the end.

use std::path::Path;
use std::sync::Arc;

use litestream::compaction::{Fault, Manifest, findings};
use litestream::replica::FileInfo;
use litestream::restore::{self, Request, Target};
use litestream::types::{Level, Timestamp, Txid};

use super::book::Broken;
use super::sim::{NEIGHBOUR, Sim};
use super::site::{Site, Stored, parse};
use crate::disk::{Class, Proc, Who};
use crate::fs::world;
use crate::oracle::{digest_of, page_hash};
use crate::rng::Rng;

const OUT: &str = "/restore/out";

/// What a restore gave.
struct Restored {
    txid: u64,
    timestamp: Timestamp,
    digest: u64,
}

impl Sim {
    /// Everything stored is right, the newest state can be restored, and it is not older than the last one that
    /// was acknowledged or is reported.
    pub(super) fn check(&self) {
        if self.is_stopped() || self.disk.lock().off {
            return;
        }
        let broken = {
            let inner = &mut *self.disk.lock();
            [&mut inner.oracle, &mut inner.other].into_iter().find_map(|oracle| oracle.broken.take())
        };
        if let Some(broken) = broken {
            return self.violate("I6 harmless", broken);
        }
        let positions = self.positions();
        for (n, site) in self.sites.iter().enumerate() {
            if let Err(broken) = self.check_site(n, site, positions.get(n).copied().flatten()) {
                return self.broken(broken);
            }
        }
    }

    fn check_site(&self, n: usize, site: &Site, reported: Option<u64>) -> Result<(), Broken> {
        let stored = site.take_stored();
        let mut contents = site.contents(&self.disk);
        let mut inner = self.disk.lock();
        let mut book = self.book_of(n).borrow_mut();
        for (key, bytes, created) in &stored {
            let Some((level, txids)) = parse(key) else {
                return Err(("I8 tidy", format!("{key} was stored")));
            };
            if level == Level::SNAPSHOT && self.first_snapshot[n].get().is_none() {
                self.first_snapshot[n].set(Some(*created));
            }
            book.learn(&inner, key, txids, bytes)?;
        }
        // What leads to a state before what follows it.
        contents.sort_by_key(|stored| (stored.file.txids.max(), stored.file.txids.min()));
        for Stored { key, version, file, bytes } in &contents {
            book.learn_once(&inner, (&format!("{n}/{key}"), *version), file.txids, bytes)?;
        }
        if self.lossy[n].get() {
            return Ok(());
        }
        let acked = self.acked[n].get();
        let files: Vec<FileInfo> = contents.iter().map(|stored| stored.file).collect();
        let plan = restore::plan(&files, Target::Latest);
        let reached = match plan {
            Ok(plan) => plan.last().map_or(0, |file| file.txids.max().get()),
            Err(err) if acked == 0 && reported.is_none() => {
                if files.is_empty() {
                    return Ok(());
                }
                return Err(("I9 retention", format!("site {n} has files, but nothing to restore: {err}")));
            }
            Err(err) => return Err(("I2 ack", format!("site {n} cannot be restored: {err}"))),
        };
        if reported.is_some_and(|reported| reached < reported) {
            return Err(("I12 truthful", format!("site {n} is said to hold {reported:?}, but holds {reached}")));
        }
        let digest = match (book.digest(reached), site) {
            (Some(digest), _) => digest,
            // Directories do not tell what was there in between.
            (None, Site::Directory(_)) => return Ok(()),
            (None, Site::Bucket(_)) => return Err(("I1 prefix", format!("nobody knows TXID {reached}"))),
        };
        if !self.is_alone() && inner.other.find(digest).is_some() {
            // It is the other's now. That this was not so when something was acknowledged, was looked at then.
            return Ok(());
        }
        match inner.oracle_of(self.db_of(n)).find(digest) {
            None => Err(("I1 prefix", format!("site {n} leads to a state that never was"))),
            Some(state) if state < acked => {
                Err(("I2 ack", format!("site {n} leads to state {state}, but {acked} was acknowledged")))
            }
            Some(_) => Ok(()),
        }
    }

    /// Restores, and compares with what the TXID is known to be.
    async fn restore(
        &self,
        n: usize,
        honest: bool,
        target: Target,
    ) -> Result<litestream::error::Result<Restored>, Broken> {
        let site = &self.sites[n];
        let harness = Who { proc: Proc::Harness, life: 0 };
        let replica = if honest { site.honest_replica(&self.disk) } else { site.replica(&self.disk, harness, 1) };
        let request = Request { target, ..Request::new(OUT) };
        let world = world(&self.disk, harness, 1);
        let done = restore::run(&world, &replica, &request, Arc::new(|_, _| Ok(()))).await;
        self.outcome.borrow_mut().restores += 1;
        let bytes = self.take_output();
        let report = match done {
            Ok(report) => report,
            Err(err) => {
                self.say(|| format!("  restore of {target:?} failed: {err}"));
                self.outcome.borrow_mut().failed_restores += 1;
                if bytes.is_some() {
                    return Err(("I5 loud", format!("a restore that failed left an output: {err}")));
                }
                return Ok(Err(err));
            }
        };
        let bytes = bytes.ok_or_else(|| ("I5 loud", "a restore that succeeded left nothing".to_owned()))?;
        let pages = bytes.chunks(report.page_size.len()).enumerate();
        let digest = digest_of(pages.map(|(n, page)| page_hash(n + 1, page)));
        let txid = report.txid.map_or(0, Txid::get);
        let known = self.book_of(n).borrow().digest(txid);
        self.say(|| format!("  restored {target:?}: TXID {txid} of {}", report.timestamp));
        if !self.book_of(n).borrow().knows(&self.disk.lock(), digest) {
            return Err(("I1 prefix", format!("a restore of {target:?} gave a state that never was")));
        }
        if known.is_some_and(|known| known != digest) {
            return Err(("I4 exact", format!("a restore of {target:?} gave another state than TXID {txid} is")));
        }
        Ok(Ok(Restored { txid, timestamp: report.timestamp, digest }))
    }

    /// The restored file, which is removed.
    fn take_output(&self) -> Option<Vec<u8>> {
        let mut inner = self.disk.lock();
        let ino = inner.file_at(Path::new(OUT))?;
        let bytes = std::mem::take(&mut inner.files[ino].data);
        inner.forget_file(Path::new(OUT));
        Some(bytes)
    }

    /// A restore to a random point of a random target, with and without faults.
    pub(super) async fn restore_somewhere(&self, rng: &mut Rng) {
        let n = rng.index(self.sites.len());
        let honest = rng.permille(600);
        let now = self.disk.wall();
        let retention = self.swarm.snapshot_retention * 1000;
        let back = i64::try_from(rng.below(retention + 1)).unwrap_or(0);
        let target = match rng.below(3) {
            0 => Target::Latest,
            1 => {
                let known = self.book_of(n).borrow().txids();
                let Some(txid) = (!known.is_empty()).then(|| rng.pick(&known)).and_then(Txid::new) else { return };
                Target::Txid(txid)
            }
            _ => Target::Before(Timestamp::from_millis(now.millis() - back)),
        };
        let contents = self.sites[n].contents(&self.disk);
        let acked = self.acked[n].get();
        let restored = match self.restore(n, honest, target).await {
            Ok(restored) => restored,
            Err(broken) => return self.broken(broken),
        };
        if !honest || self.lossy[n].get() {
            return;
        }
        let verdict = match (target, restored) {
            (Target::Latest, Ok(restored)) => {
                let mut inner = self.disk.lock();
                let state = inner.oracle_of(self.db_of(n)).find(restored.digest).unwrap_or(0);
                let others = !self.is_alone() && inner.other.find(restored.digest).is_some();
                drop(inner);
                (state < acked && !others)
                    .then(|| ("I2 ack", format!("a restore gave state {state}, {acked} was acknowledged")))
            }
            (Target::Latest, Err(err)) => (acked > 0).then(|| ("I2 ack", format!("a restore failed: {err}"))),
            (Target::Txid(txid), Ok(restored)) => (restored.txid != txid.get())
                .then(|| ("I4 exact", format!("a restore of TXID {txid} gave {}", restored.txid))),
            (Target::Txid(_), Err(_)) => None,
            (Target::Before(time), restored) => self.check_time(n, time, restored, &contents),
        };
        if let Some(broken) = verdict {
            self.broken(broken);
        }
    }

    /// Where a deletion ended half-way, every moment just behind a level-0 file that is there can be restored.
    pub(super) async fn moments_of_level_0(&self) {
        for n in 0..self.sites.len() {
            let cut = matches!(&self.sites[n], Site::Bucket(bucket) if bucket.take_cut());
            if !cut || self.lossy[n].get() || self.is_stopped() {
                continue;
            }
            let since = self.disk.wall().millis() - i64::try_from(self.swarm.snapshot_retention * 1000).unwrap_or(0);
            let contents = self.sites[n].contents(&self.disk);
            let level_0 = contents.iter().filter(|stored| stored.file.level == Level::L0);
            let moments: Vec<i64> =
                level_0.map(|stored| stored.file.created.millis() + 1).filter(|at| *at >= since).collect();
            for moment in moments.into_iter().take(40) {
                let moment = Timestamp::from_millis(moment);
                let broken = match self.restore(n, true, Target::Before(moment)).await {
                    Ok(restored) => self.check_time(n, moment, restored, &contents),
                    Err(broken) => Some(broken),
                };
                if let Some(broken) = broken {
                    return self.broken(broken);
                }
            }
        }
    }

    /// Every moment of the window can be restored, up to the last compacted file before it at least.
    fn check_time(
        &self,
        n: usize,
        time: Timestamp,
        restored: litestream::error::Result<Restored>,
        contents: &[Stored],
    ) -> Option<Broken> {
        self.outcome.borrow_mut().points += 1;
        if let Ok(restored) = &restored
            && restored.timestamp >= time
        {
            return Some(("I4 exact", format!("a restore of {time} gave the state of {}", restored.timestamp)));
        }
        if self.clock_was_set.get() {
            return None;
        }
        let coarse = contents.iter().filter(|stored| stored.file.level != Level::L0 && stored.file.created < time);
        let bound = coarse.map(|stored| stored.file.txids.max().get()).max().unwrap_or(0);
        let begun = self.first_snapshot[n].get().is_some_and(|first| first < time);
        match restored {
            Err(err) if begun => Some(("I9 retention", format!("nothing can be restored for {time}: {err}"))),
            Err(_) => None,
            Ok(restored) if restored.txid < bound => {
                Some(("I9 retention", format!("a restore of {time} gave {}, but {bound} is older", restored.txid)))
            }
            Ok(_) => None,
        }
    }

    /// A restore gives the present state.
    pub(super) async fn exactly_now(&self, when: &str) {
        self.check();
        for n in 0..self.sites.len() {
            if self.is_stopped() {
                return;
            }
            let db = self.db_of(n);
            let now = self.disk.lock().oracle_of(db).now();
            match self.restore(n, true, Target::Latest).await {
                Err(broken) => self.broken(broken),
                Ok(Err(err)) => self.violate("I7 live", format!("{when}: site {n} cannot be restored: {err}")),
                // The program itself may commit meanwhile.
                Ok(Ok(restored)) if self.disk.lock().oracle_of(db).find(restored.digest) < Some(now) => {
                    self.violate("I7 live", format!("{when}: site {n} does not give the present state"));
                }
                Ok(Ok(_)) => {}
            }
        }
    }

    /// Nothing is left over, and levels have no gaps but those a higher level leads across.
    pub(super) fn tidy(&self) {
        if self.is_stopped() {
            return;
        }
        let left = {
            let inner = self.disk.lock();
            // What the other program leaves, it finds when it starts again.
            let places = ["/data/.db-litestream", "/backup", NEIGHBOUR.meta];
            let places = if self.is_alone() { &places[..] } else { &places[..2] };
            let ours = |path: &std::path::PathBuf| places.iter().any(|place| path.starts_with(place));
            let temp = |path: &&std::path::PathBuf| Class::of(path) == Class::Temp && ours(path);
            inner.walk().iter().find(temp).cloned()
        };
        if let Some(left) = left {
            let old = self.disk.elapsed_us() > 3_700_000_000;
            // A replica may have several writers: what one of them left is removed once it is old.
            if !left.starts_with("/backup") || old {
                return self.violate("I8 tidy", format!("{} is left over", left.display()));
            }
        }
        // What a store has lost is not put back into every level.
        let whole = self.sites.iter().enumerate().filter(|(_, site)| !self.swarm.forgetful && !site.is_haunted());
        for (n, site) in whole {
            let contents = site.contents(&self.disk);
            let manifest = Manifest::new(contents.iter().map(|stored| stored.file));
            for level in Level::all().filter(|level| *level != Level::SNAPSHOT) {
                let gap = findings(manifest.level(level)).find(|finding| finding.fault == Fault::Gap);
                let Some(gap) = gap else { continue };
                let (from, to) = (gap.prev.txids.max(), gap.next.txids.min());
                let bridged = manifest
                    .iter()
                    .any(|file| file.level > level && file.txids.min() <= from.next() && file.txids.max().next() >= to);
                if !bridged {
                    return self
                        .violate("I8 tidy", format!("site {n}: level {level} has nothing between {from} and {to}"));
                }
            }
        }
    }
}
