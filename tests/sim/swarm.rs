//! What one seed is made of: its settings, and the list of things that happen.

use litestream::db::Bounds;

use crate::rng::{Rng, mix};

/// Settings of one run, drawn from the seed.
#[derive(Debug, Clone)]
pub(crate) struct Swarm {
    pub(crate) page_size: u32,
    pub(crate) auto_vacuum: u32,
    pub(crate) index: bool,
    pub(crate) spill: bool,
    pub(crate) rows: u64,
    pub(crate) autocheckpoint: [u32; 3],
    pub(crate) checkpoint_modes: Vec<&'static str>,
    pub(crate) size_limit: u64,
    pub(crate) full_sync: u64,
    pub(crate) vacuum: u64,
    pub(crate) reformat: bool,
    pub(crate) foreign: bool,
    pub(crate) min_checkpoint_pages: u32,
    pub(crate) max_sync_wal_bytes: Option<u64>,
    pub(crate) truncate_pages: Option<u32>,
    pub(crate) bounds: Bounds,
    /// Small commits write what was written before.
    pub(crate) echo: bool,
    /// Of 1000 actions, how many begin a sequence that is seldom drawn one by one.
    pub(crate) sequences: u64,
    /// Of 1000 operations, how many let somebody else act first.
    pub(crate) interleave: u64,
    /// The same where the engine has just written a file, or takes a lock: a commit or a checkpoint.
    pub(crate) eager: u64,
    pub(crate) short_reads: bool,
    pub(crate) powersafe: bool,
    pub(crate) kills: bool,
    pub(crate) power_cuts: bool,
    pub(crate) faults: bool,
    pub(crate) full_disks: bool,
    /// The application keeps its wal-index to itself, and takes no locks.
    pub(crate) unindexed: bool,
    /// The application has its database in memory, and writes all of it over the file when something has changed.
    pub(crate) rewrites: bool,
    /// What it writes says that it is in WAL mode, beside the log of what was there before.
    pub(crate) keeps_wal_mode: bool,
}

/// Small enough that what happens beyond them happens.
fn draw_bounds(rng: &mut Rng, page_size: u32) -> Bounds {
    let (default, page) = (Bounds::default(), page_size as usize);
    if rng.permille(500) {
        return default;
    }
    Bounds {
        cached: rng.pick(&[default.cached, 0, 3 * page]),
        tail: rng.pick(&[default.tail, 6 * page]),
        stale: rng.pick(&[default.stale, 4 * page]),
        locked: rng.pick(&[default.locked, 0, 2 * page as u64]),
        flushed: rng.pick(&[default.flushed, 8 * page as u64]),
    }
}

/// Something that happens. The number seeds whatever is left to chance in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// The application does a few things.
    App(u64),
    /// The application commits a little, and nothing else.
    Write(u64),
    /// The application commits, has the log restarted, and commits again.
    Round(u64),
    /// Another process does a few things.
    Foreign(u64),
    /// The engine syncs.
    Sync(u64),
    /// The engine writes a snapshot.
    Snapshot(u64),
    /// The engine closes and stays closed until it syncs again.
    Stop(u64),
    /// The engine's process dies somewhere in a sync.
    KillEngine(u64),
    /// The application's process dies in the middle of something.
    KillApp(u64),
    /// The power fails somewhere in the midst of things.
    PowerCut(u64),
    /// The power fails between things.
    Cut(u64),
    /// A fault is armed, then the engine syncs.
    Fault(u64),
    /// A disk is full for one sync.
    Full(u64),
    /// Time passes.
    Pause(u64),
    /// The engine syncs, and others commit and copy the log at its very next locks.
    Squeeze(u64),
}

impl Swarm {
    /// Also with applications that are not stock SQLite.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut swarm = Self::draw_stock(seed);
        // A generator of its own: what other seeds mean stays what it was.
        match Rng::new(mix(seed ^ 0x0bad_1dec)).below(100) {
            0..15 => swarm.keep_index_private(),
            15..18 => swarm.rewrite_in_place(),
            18..21 => {
                swarm.rewrite_in_place();
                swarm.keeps_wal_mode = true;
            }
            _ => {}
        }
        swarm
    }

    pub(crate) fn draw_stock(seed: u64) -> Self {
        let mut rng = Rng::new(mix(seed ^ 0x005a_a53e));
        let modes: [&[&str]; 4] =
            [&["PASSIVE"], &["PASSIVE", "FULL", "RESTART", "TRUNCATE"], &["RESTART", "TRUNCATE"], &["TRUNCATE"]];
        let page_size = rng.pick(&[512, 512, 1024, 1024, 1024, 2048, 4096]);
        let mut swarm = Self {
            page_size: if rng.permille(5) { rng.pick(&[8192, 32768, 65536]) } else { page_size },
            auto_vacuum: rng.pick(&[0, 0, 1, 2]),
            index: rng.permille(300),
            spill: rng.permille(400),
            rows: rng.pick(&[6, 20, 60]),
            autocheckpoint: rng.pick(&[[0, 0, 0], [0, 3, 12], [2, 5, 20], [1000, 1000, 0], [6, 1000, 0]]),
            checkpoint_modes: rng.pick(&modes).to_vec(),
            size_limit: rng.pick(&[0, 0, 300, 1000]),
            full_sync: rng.pick(&[0, 500, 1000]),
            vacuum: rng.pick(&[0, 200, 1000]),
            reformat: rng.permille(200),
            foreign: rng.permille(500),
            min_checkpoint_pages: rng.pick(&[1, 4, 10, 30, 1000]),
            max_sync_wal_bytes: rng.pick(&[None, Some(1), Some(u64::from(page_size) * 4)]),
            truncate_pages: rng.pick(&[None, Some(20)]),
            bounds: draw_bounds(&mut rng, page_size),
            echo: rng.permille(400),
            sequences: rng.pick(&[0, 100, 300]),
            interleave: rng.pick(&[0, 0, 2, 10, 40]),
            eager: 0,
            short_reads: rng.permille(400),
            powersafe: rng.permille(700),
            kills: rng.permille(700),
            power_cuts: rng.permille(500),
            faults: rng.permille(500),
            full_disks: rng.permille(300),
            unindexed: false,
            rewrites: false,
            keeps_wal_mode: false,
        };
        if swarm.interleave > 0 {
            swarm.eager = rng.pick(&[0, 150, 450]);
        }
        swarm
    }
}

impl Swarm {
    /// The application is one connection that nobody else knows of. Whom such a writer shares its database with,
    /// and what becomes of its commits when a disk fails, is its own affair.
    fn keep_index_private(&mut self) {
        self.unindexed = true;
        (self.foreign, self.reformat, self.power_cuts, self.faults, self.full_disks) =
            (false, false, false, false, false);
    }

    /// Nobody looks while the file is being written: that it is half-written shows only as long as its writer goes on.
    fn rewrite_in_place(&mut self) {
        self.keep_index_private();
        (self.unindexed, self.rewrites) = (false, true);
        (self.interleave, self.eager, self.sequences) = (0, 0, 0);
    }
}

/// The list of actions of a seed.
pub(crate) fn actions(seed: u64, swarm: &Swarm) -> Vec<Action> {
    let mut rng = Rng::new(mix(seed ^ 0xac71_0115));
    let count = 12 + rng.index(40);
    let mut list = Vec::with_capacity(count);
    // Some seeds sync often, some leave the engine stopped for long.
    let lazy = rng.pick(&[150, 350, 600]);
    while list.len() < count {
        if rng.permille(swarm.sequences) {
            sequence(&mut rng, swarm, &mut list);
            continue;
        }
        let s = rng.next();
        let action = if rng.permille(lazy) {
            if swarm.foreign && rng.permille(300) { Action::Foreign(s) } else { Action::App(s) }
        } else {
            match rng.below(100) {
                0..40 => Action::Sync(s),
                40..47 => Action::Snapshot(s),
                47..57 => Action::Stop(s),
                57..69 if swarm.kills => Action::KillEngine(s),
                69..73 if swarm.kills => Action::KillApp(s),
                73..80 if swarm.power_cuts => Action::PowerCut(s),
                80..88 if swarm.faults => Action::Fault(s),
                88..92 if swarm.full_disks => Action::Full(s),
                92..95 => Action::Pause(s),
                95..97 if swarm.interleave > 0 => Action::Squeeze(s),
                _ => Action::App(s),
            }
        };
        list.push(action);
    }
    list
}

/// What goes wrong only if several things come one after the other.
fn sequence(rng: &mut Rng, swarm: &Swarm, list: &mut Vec<Action>) {
    let mut add = |action: fn(u64) -> Action, rng: &mut Rng| list.push(action(rng.next()));
    let rounds = rng.below(3);
    match rng.below(10) {
        // Short files, then a power cut that may take some of them back, then others in their place.
        0..4 if swarm.power_cuts => {
            for _ in 0..rounds {
                add(Action::Round, rng);
            }
            for _ in 0..1 + rng.below(3) {
                add(Action::Write, rng);
                add(Action::Sync, rng);
            }
            add(Action::Cut, rng);
            add(if rng.permille(500) { Action::Write } else { Action::Round }, rng);
        }
        4..7 if swarm.faults => {
            add(Action::Write, rng);
            add(Action::Fault, rng);
            add(Action::Round, rng);
        }
        7..9 => {
            add(Action::Write, rng);
            add(Action::Squeeze, rng);
            add(Action::Write, rng);
        }
        _ => {
            add(Action::Write, rng);
            add(Action::Sync, rng);
            add(if swarm.kills && rng.permille(300) { Action::KillEngine } else { Action::Stop }, rng);
            for _ in 0..1 + rounds {
                add(Action::Round, rng);
            }
        }
    }
    add(Action::Sync, rng);
}
