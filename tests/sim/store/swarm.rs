//! What one seed of the whole program is made of.

use super::manners::{Lie, Manners};
use super::site::Kind;
use crate::rng::{Rng, mix};
use crate::swarm::Swarm;

/// Another program that writes to the same replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rival {
    /// The same configuration, started twice.
    Twin,
    /// The same database, with its local state elsewhere.
    OtherState,
    /// Another database.
    OtherDatabase,
}

/// Settings of one run.
#[derive(Debug, Clone)]
pub(crate) struct StoreSwarm {
    /// Of the database, the applications and the disk.
    pub(crate) base: Swarm,
    pub(crate) sites: Vec<Kind>,
    pub(crate) manners: Manners,
    /// Intervals of levels 1, 2, … in seconds.
    pub(crate) levels: Vec<u64>,
    pub(crate) snapshot_interval: u64,
    pub(crate) snapshot_retention: u64,
    pub(crate) l0_retention: Option<u64>,
    pub(crate) l0_check: u64,
    pub(crate) validation: Option<u64>,
    pub(crate) verify_compaction: bool,
    pub(crate) sync_interval_ms: u64,
    pub(crate) monitor_ms: u64,
    pub(crate) max_files: Option<usize>,
    /// Of 1000 operations on files in a step, how many leave it for a while.
    pub(crate) preemption: u64,
    pub(crate) clock_steps: bool,
    pub(crate) lost_state: bool,
    pub(crate) rival: Option<Rival>,
    /// Stores lose what they have acknowledged. Not where local state is lost too: then nobody knows what there was.
    pub(crate) forgetful: bool,
    /// The program has a second database, with a target of its own.
    pub(crate) neighbour: Option<Kind>,
    /// Somebody follows the first target, whose page size stays and which keeps what it has.
    pub(crate) followed: bool,
}

/// Something that happens. The number seeds whatever is left to chance in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// The application does a few things, in no time.
    App(u64),
    /// Another process does.
    Foreign(u64),
    /// Time passes, and the application works.
    Live(u64),
    /// Much time passes, and hardly anything happens.
    Idle(u64),
    /// `sync -wait`.
    Sync(u64),
    /// A restore to some point.
    Restore(u64),
    /// The daemon ends; `replicate -once`.
    Once(u64),
    /// The daemon ends.
    Stop(u64),
    /// The daemon dies at some operation or request.
    Kill(u64),
    /// The application dies.
    KillApp(u64),
    /// The power fails.
    PowerCut(u64),
    /// Operations on the disk fail for a while.
    Fault(u64),
    /// A disk is full for a while.
    Full(u64),
    /// The stores behave worse for a while.
    BadDay(u64),
    /// The stores are out of reach for a while.
    Outage(u64),
    /// Somebody sets the clock.
    Clock(u64),
    /// The daemon ends, and its local state is lost.
    LoseState(u64),
    /// The other program does something.
    Rival(u64),
    /// A store loses some of what it has acknowledged.
    LoseObjects(u64),
    /// Somebody follows the first target.
    Follow(u64),
    /// Something happens to the second database of the program.
    Neighbour(u64),
}

impl Act {
    pub(super) fn seed(self) -> u64 {
        match self {
            Self::App(s)
            | Self::Foreign(s)
            | Self::Live(s)
            | Self::Idle(s)
            | Self::Sync(s)
            | Self::Restore(s)
            | Self::Once(s)
            | Self::Stop(s)
            | Self::Kill(s)
            | Self::KillApp(s)
            | Self::PowerCut(s)
            | Self::Fault(s)
            | Self::Full(s)
            | Self::BadDay(s)
            | Self::Outage(s)
            | Self::Clock(s)
            | Self::LoseState(s)
            | Self::Rival(s)
            | Self::LoseObjects(s)
            | Self::Follow(s)
            | Self::Neighbour(s) => s,
        }
    }
}

impl StoreSwarm {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(mix(seed ^ 0x0570_4e00));
        let mut base = Swarm::draw_stock(rng.next());
        // What fits into one batch of a restore stays on one thread.
        base.page_size = rng.pick(&[512, 512, 1024, 1024, 2048, 4096]);
        base.rows = rng.pick(&[6, 20, 40]);
        base.interleave = rng.pick(&[0, 0, 2, 10]);
        let sites: &[Kind] = rng.pick(&[
            [Kind::Bucket].as_slice(),
            &[Kind::Bucket],
            &[Kind::Bucket],
            &[Kind::Directory],
            &[Kind::Bucket, Kind::Bucket],
            &[Kind::Bucket, Kind::Directory],
        ]);
        let levels: &[u64] = rng.pick(&[[2, 10, 60].as_slice(), &[5], &[30, 120], &[1, 2, 3, 4, 5, 6, 7, 8], &[]]);
        let rival = rng.pick(&[Rival::Twin, Rival::OtherState, Rival::OtherDatabase, Rival::OtherDatabase]);
        let rival = rng.permille(200).then_some(rival);
        // What a TXID stands for is a matter of each replica then.
        let sites = if rival.is_some() { &sites[..1] } else { sites };
        let snapshot_interval = rng.pick(&[10, 60, 200, 5000]);
        let manners = Manners::draw_from(&mut rng);
        // What a loser has taken back must stay away.
        let manners = if rival.is_some() { manners.without(Lie::Reappears) } else { manners };
        // Level 0 is where two writers meet: what is there must stay for longer than a request can take.
        let l0_retention: &[Option<u64>] = match (rival, manners.is_slow()) {
            (None, _) => &[None, Some(1), Some(20), Some(300)],
            (Some(_), false) => &[None, Some(20), Some(300)],
            (Some(_), true) => &[None, Some(300)],
        };
        let lost_state = rng.permille(300);
        let forgetful = rng.permille(150) && rival.is_none() && !lost_state;
        let reformat = base.reformat;
        let neighbour = rng.pick(&[Kind::Bucket, Kind::Bucket, Kind::Directory]);
        let neighbour = (rng.permille(250) && rival.is_none()).then_some(neighbour);
        Self {
            base,
            sites: sites.to_vec(),
            manners,
            levels: levels.to_vec(),
            snapshot_interval,
            snapshot_retention: snapshot_interval * rng.pick(&[1, 2, 4]),
            l0_retention: rng.pick(l0_retention),
            l0_check: rng.pick(&[2, 15]),
            validation: rng.pick(&[None, Some(20), Some(120)]),
            verify_compaction: rng.permille(300),
            sync_interval_ms: rng.pick(&[10, 200, 1000, 5000]),
            monitor_ms: rng.pick(&[100, 1000, 1000, 5000]),
            max_files: rng.pick(&[None, None, Some(1), Some(3)]),
            preemption: rng.pick(&[0, 0, 5, 50]),
            clock_steps: rng.permille(200),
            lost_state,
            rival,
            forgetful,
            neighbour,
            followed: rng.permille(200) && rival.is_none() && !forgetful && !reformat,
        }
    }
}

/// What happens in a run of this seed.
pub(crate) fn acts(seed: u64, swarm: &StoreSwarm) -> Vec<Act> {
    let mut rng = Rng::new(mix(seed ^ 0x0ac7_5010));
    let count = 8 + rng.index(28);
    let mut list = Vec::with_capacity(count);
    let base = &swarm.base;
    while list.len() < count {
        let s = rng.next();
        list.push(match rng.below(100) {
            0..16 => Act::Live(s),
            16..22 => Act::Idle(s),
            22..36 => Act::Sync(s),
            36..46 => Act::Restore(s),
            46..50 => Act::Stop(s),
            50..53 => Act::Once(s),
            53..63 if base.kills => Act::Kill(s),
            63..65 if base.kills => Act::KillApp(s),
            65..71 if base.power_cuts => Act::PowerCut(s),
            71..76 if base.faults => Act::Fault(s),
            76..78 if base.full_disks => Act::Full(s),
            78..83 => Act::BadDay(s),
            83..86 => Act::Outage(s),
            86..88 if swarm.clock_steps => Act::Clock(s),
            88..91 if swarm.lost_state => Act::LoseState(s),
            91..96 if swarm.rival.is_some() => Act::Rival(s),
            91..94 if swarm.forgetful => Act::LoseObjects(s),
            94..100 if swarm.followed => Act::Follow(s),
            88..94 if swarm.neighbour.is_some() => Act::Neighbour(s),
            91..94 if base.foreign => Act::Foreign(s),
            _ => Act::App(s),
        });
    }
    list
}
