//! What one seed is made of: its settings, and the list of things that happen.

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
    /// Of 1000 operations, how many let somebody else act first.
    pub(crate) interleave: u64,
    pub(crate) short_reads: bool,
    pub(crate) powersafe: bool,
    pub(crate) kills: bool,
    pub(crate) power_cuts: bool,
    pub(crate) faults: bool,
    pub(crate) full_disks: bool,
}

/// Something that happens. The number seeds whatever is left to chance in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// The application does a few things.
    App(u64),
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
    /// A fault is armed, then the engine syncs.
    Fault(u64),
    /// A disk is full for one sync.
    Full(u64),
    /// Time passes.
    Pause(u64),
}

impl Swarm {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(mix(seed ^ 0x005a_a53e));
        let modes: [&[&str]; 4] =
            [&["PASSIVE"], &["PASSIVE", "FULL", "RESTART", "TRUNCATE"], &["RESTART", "TRUNCATE"], &["TRUNCATE"]];
        let page_size = rng.pick(&[512, 512, 1024, 1024, 1024, 2048, 4096]);
        Self {
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
            interleave: rng.pick(&[0, 0, 2, 10, 40]),
            short_reads: rng.permille(200),
            powersafe: rng.permille(700),
            kills: rng.permille(700),
            power_cuts: rng.permille(500),
            faults: rng.permille(500),
            full_disks: rng.permille(300),
        }
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
                _ => Action::App(s),
            }
        };
        list.push(action);
    }
    list
}
