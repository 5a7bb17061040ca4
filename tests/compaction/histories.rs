//! Random histories of one target, without bytes: syncs, compactions, snapshots, retention, crashes
//! half-way through deleting, lost objects, and clocks that somebody sets. The planner of restores
//! is the judge.
//!
//! `LITESTREAM_TEST_HISTORIES=n` tries more or fewer, `LITESTREAM_TEST_SEED=n` a single one.

use std::time::Duration;

use litestream::compaction::{
    Cure, Deletion, Due, Levels, Limits, Manifest, Plan, TrustedTime, base, cure, expired, gaps, l0, local_l0, plan,
    snapshot_due, too_early,
};
use litestream::replica::FileInfo;
use litestream::restore::{self, Target};
use litestream::types::{Level, Timestamp, Txid, TxidRange};

use super::rng::{Rng, seeds};

/// Age of snapshots.
const WINDOW: Duration = Duration::from_millis(400);
const L0_AGE: Duration = Duration::from_millis(60);
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(150);
const LEVEL_INTERVALS: [u64; 3] = [20, 60, 150];

/// The target, the local files and the clocks.
struct World {
    rng: Rng,
    wall: i64,
    elapsed: u64,
    time: TrustedTime,
    position: u64,
    uploaded: u64,
    remote: Manifest,
    local: Vec<TxidRange>,
    /// Objects were taken away from outside: level 1 may have a hole.
    damaged: bool,
    log: Vec<String>,
}

fn txid(n: u64) -> Txid {
    Txid::new(n).unwrap()
}

fn level(n: u8) -> Level {
    Level::new(n).unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let wall = 1_700_000_000_000;
        let time = TrustedTime::new(Timestamp::from_millis(wall), Duration::ZERO);
        let (rng, log) = (Rng(seed), Vec::new());
        let (local, remote) = (Vec::new(), Manifest::default());
        Self { rng, wall, elapsed: 0, time, position: 0, uploaded: 0, remote, local, damaged: false, log }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.wall)
    }

    /// First moment of the window.
    fn window(&self) -> Timestamp {
        self.time.cutoff(WINDOW)
    }

    fn file(&self, n: u8, min: u64, max: u64, created: Timestamp) -> FileInfo {
        FileInfo { level: level(n), txids: TxidRange::new(txid(min), txid(max)).unwrap(), size: 200, created }
    }

    /// One thing that may happen; `true` if it must not have made any moment unrestorable. A
    /// transaction stamped before its predecessor, by a clock that was set back, does.
    fn step(&mut self) -> bool {
        let what = self.rng.below(20);
        match what {
            0..=6 => self.sync(),
            7 | 8 => self.pass(1),
            9 => self.pass(2),
            10 => self.pass(3),
            11 => self.snapshot(),
            12 | 13 => self.retain_snapshots(),
            14..=16 => self.retain_l0(),
            17 => self.tick(50, 300),
            18 if self.rng.one_in(3) => self.set_clock(),
            19 if self.rng.one_in(6) => self.lose_object(),
            _ => self.tick(1, 30),
        }
        !matches!(what, 0..=6 | 19)
    }

    fn tick(&mut self, at_least: u64, spread: u64) {
        let by = at_least + self.rng.below(spread);
        self.elapsed += by;
        self.wall += i64::try_from(by).unwrap();
        self.log.push(format!("tick {by}"));
    }

    fn set_clock(&mut self) {
        // Beyond the slack of the trusted clock, or it would take this for drift.
        let by = i64::try_from(1500 + self.rng.below(5000)).unwrap();
        self.wall += if self.rng.one_in(2) { by } else { -by };
        self.log.push(format!("clock {by} -> {}", self.wall));
    }

    fn sync(&mut self) {
        for _ in 0..=self.rng.below(3) {
            self.tick(1, 10);
            self.position += 1;
            self.local.push(TxidRange::single(txid(self.position)));
        }
        // Sometimes the target is out of reach for a while.
        if self.rng.one_in(4) {
            return;
        }
        while self.uploaded < self.position {
            self.uploaded += 1;
            let file = self.file(0, self.uploaded, self.uploaded, self.now());
            self.remote.insert(file);
            self.tick(1, 2);
        }
        self.log.push(format!("sync -> {}", self.uploaded));
    }

    fn pass(&mut self, dest: u8) {
        let interval = Duration::from_millis(LEVEL_INTERVALS[usize::from(dest) - 1]);
        if too_early(self.remote.newest(level(dest)).map(|f| f.created), self.now(), interval) {
            return;
        }
        let limits = Limits { inputs: 1 + usize::try_from(self.rng.below(12)).unwrap(), ..Limits::default() };
        let mut crash = false;
        while !crash {
            match plan(&self.remote, level(dest), limits).unwrap() {
                Plan::Nothing => break,
                Plan::Gap(_) => {
                    assert!(self.damaged, "a gap out of nowhere");
                    self.heal();
                }
                Plan::Merge(inputs) => {
                    let (first, last) = (inputs.first().unwrap(), inputs.last().unwrap());
                    let made = self.file(dest, first.txids.min().get(), last.txids.max().get(), last.created);
                    self.log.push(format!("compact {made}"));
                    self.remote.insert(made);
                    self.check_levels();
                }
            }
            crash = self.rng.one_in(20);
        }
    }

    /// D8: every gap is closed, from local files or by a snapshot.
    fn heal(&mut self) {
        for gap in gaps(&self.remote) {
            match cure(gap, &self.local) {
                Cure::Upload(files) => {
                    for file in files {
                        let made = self.file(0, file.min().get(), file.max().get(), self.now());
                        self.log.push(format!("heal {made}"));
                        self.remote.insert(made);
                    }
                }
                Cure::Snapshot => self.write_snapshot(),
                Cure::Accept => {}
            }
        }
        assert!(gaps(&self.remote).iter().all(|gap| gap.bridged));
    }

    fn snapshot(&mut self) {
        let newest = self.remote.newest(Level::SNAPSHOT);
        if snapshot_due(newest, Txid::new(self.position), self.now(), SNAPSHOT_INTERVAL) == Due::Now {
            self.write_snapshot();
        }
    }

    fn write_snapshot(&mut self) {
        let made = self.file(9, 1, self.position, self.now());
        self.log.push(format!("snapshot {made}"));
        self.remote.insert(made);
    }

    fn retain_snapshots(&mut self) {
        self.time.observe(self.now(), Duration::from_millis(self.elapsed));
        let gone = expired(&self.remote, self.window());
        let (snapshots, others): (Vec<FileInfo>, Vec<FileInfo>) =
            gone.into_iter().partition(|file| file.level == Level::SNAPSHOT);
        if self.delete(&others.into_iter().collect()) {
            self.delete(&snapshots.into_iter().collect());
        }
    }

    fn retain_l0(&mut self) {
        self.time.observe(self.now(), Duration::from_millis(self.elapsed));
        let from = base(&self.remote, self.window()).map(|f| f.txids.max());
        let decision = l0(&self.remote, self.time.cutoff(L0_AGE), from);
        if !self.delete(&decision.delete) {
            return;
        }
        for file in local_l0(&self.local, &[decision.local]) {
            self.local.retain(|f| *f != file);
        }
        assert_eq!(self.local.last(), Txid::new(self.position).map(TxidRange::single).as_ref());
    }

    /// Step by step, the files of a step in any order, looking after each; `false` if it ended half-way.
    fn delete(&mut self, deletion: &Deletion) -> bool {
        for mut step in deletion.steps() {
            while !step.is_empty() {
                let pick = self.rng.below(u64::try_from(step.len()).unwrap());
                let file = step.swap_remove(usize::try_from(pick).unwrap());
                self.log.push(format!("delete {file}"));
                let before = self.remote.clone();
                self.remote.remove(&[file]);
                self.compare(&before);
                if self.rng.one_in(12) {
                    return false;
                }
            }
        }
        true
    }

    /// Somebody deletes an L0 object that was not compacted yet, or one that was.
    fn lose_object(&mut self) {
        let files = self.remote.level(Level::L0);
        // The newest one is the position: losing it is the uploader's business.
        let Some(n) = u64::try_from(files.len()).unwrap().checked_sub(1).filter(|n| *n > 0) else { return };
        let victim = files[usize::try_from(self.rng.below(n)).unwrap()];
        self.log.push(format!("lose {victim}"));
        self.remote.remove(&[victim]);
        self.damaged = true;
        if self.rng.one_in(2) {
            self.local.retain(|f| *f != victim.txids);
        }
        // What cannot be reached now is the fault of whoever did that.
        self.heal();
    }

    /// Level 1 has no gap that no higher level or snapshot leads across.
    fn check_levels(&self) {
        if self.damaged {
            return;
        }
        for pair in self.remote.level(level(1)).windows(2) {
            let (next, after) = (pair[0].txids.max().next(), pair[1].txids.min());
            let mut higher = self.remote.iter().filter(|file| file.level > level(1));
            let bridged = higher.any(|file| file.txids.min() <= next && file.txids.max().next() >= after);
            assert!(next == after || bridged, "level 1 has a gap: {next} to {after}");
        }
    }

    fn files(&self) -> Vec<FileInfo> {
        self.remote.iter().copied().collect()
    }

    /// What could be restored before, for every moment of the window, can be restored now.
    fn compare(&mut self, before: &Manifest) {
        if self.remote == *before {
            return;
        }
        let (files, earlier) = (self.files(), before.iter().copied().collect::<Vec<_>>());
        self.check_newest(&files);
        let window = self.window();
        let mut moments: Vec<Timestamp> = earlier
            .iter()
            .flat_map(|f| [f.created, Timestamp::from_millis(f.created.millis() + 1)])
            .chain([window, self.now(), Timestamp::from_millis(i64::MAX)])
            .filter(|t| *t >= window)
            .collect();
        // All of them would take long; any of them may be the one.
        let some = 3.min(moments.len());
        for n in 0..some {
            let pick = n + usize::try_from(self.rng.below(u64::try_from(moments.len() - n).unwrap())).unwrap();
            moments.swap(n, pick);
        }
        for moment in &moments[..some] {
            let target = Target::Before(*moment);
            let Ok(was) = restore::plan(&earlier, target) else { continue };
            // Before the first snapshot or compacted file there are only single syncs, which are
            // meant to go.
            if was[0].level == Level::L0 {
                continue;
            }
            let is = restore::plan(&files, target);
            assert!(is.is_ok(), "{moment:?} of window {window:?}: {is:?}\nwas {was:?}");
        }
    }

    fn check_newest(&self, files: &[FileInfo]) {
        let newest = files.iter().map(|f| f.txids.max()).max();
        let Some(newest) = newest else { return };
        let latest = restore::plan(files, Target::Latest).unwrap_or_else(|e| panic!("latest: {e}"));
        assert_eq!(latest.last().unwrap().txids.max(), newest);
        assert!(restore::plan(files, Target::Txid(newest)).is_ok());
    }
}

fn run(seed: u64, steps: u64) {
    let mut world = World::new(seed);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..steps {
            let before = world.remote.clone();
            let kept = world.step();
            world.time.observe(world.now(), Duration::from_millis(world.elapsed));
            match kept {
                true => world.compare(&before),
                false => world.check_newest(&world.files()),
            }
        }
    }));
    if let Err(panic) = outcome {
        eprintln!("seed {seed}\n{}", world.log.join("\n"));
        for file in world.files() {
            eprintln!("{file} at {}", file.created.millis());
        }
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn what_could_be_restored_still_can_be_after_anything() {
    let seeds = seeds(100_000);
    std::thread::scope(|scope| {
        for half in seeds.chunks(seeds.len().div_ceil(2)) {
            scope.spawn(move || half.iter().for_each(|seed| run(*seed, 10 + seed % 60)));
        }
    });
}

#[test]
fn retention_keeps_a_target_small() {
    // No clock is set here, and nothing lost: nothing may be kept for longer than it takes.
    for seed in seeds(200) {
        let mut world = World::new(seed);
        let mut most = 0;
        for _ in 0..400 {
            world.sync();
            for dest in 1..=3 {
                world.pass(dest);
            }
            world.snapshot();
            world.retain_snapshots();
            world.retain_l0();
            world.tick(1, 20);
            most = most.max(world.remote.iter().count());
        }
        assert!(most < 300, "{most} files with seed {seed}");
        assert!(world.local.len() < 80, "{} local files with seed {seed}", world.local.len());
    }
}

#[test]
fn levels_of_the_histories_are_legal() {
    assert!(Levels::new(LEVEL_INTERVALS.map(Duration::from_millis).to_vec()).is_ok());
}
