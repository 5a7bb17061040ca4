//! What a 0.3.x replica holds, and which of it makes up a state (`spec: v3-format` §2–3).

use futures::stream::TryStreamExt;

use super::name::{GENERATIONS, is_generation, segment_position, snapshot_index};
use crate::error::Result;
use crate::replica::{Key, ReplicaClient, Stamps};
use crate::types::Timestamp;

/// A copy of the database file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Number of the log it was taken during.
    pub index: u32,
    /// The object.
    pub key: Key,
    /// Bytes as stored.
    pub size: u64,
    /// When it was stored.
    pub created: Timestamp,
}

/// A stretch of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Number of the log in its generation.
    pub index: u32,
    /// Where in the log its first byte belongs.
    pub offset: u64,
    /// The object.
    pub key: Key,
    /// Bytes as stored.
    pub size: u64,
    /// When it was stored.
    pub created: Timestamp,
}

/// One generation.
#[derive(Debug, Clone, Default)]
struct Generation {
    /// By index.
    snapshots: Vec<Snapshot>,
    /// By index and offset.
    segments: Vec<Segment>,
}

/// Everything a replica holds in this format.
#[derive(Debug, Clone, Default)]
pub struct Backups {
    generations: Vec<Generation>,
}

/// The objects of one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where to start.
    pub snapshot: Snapshot,
    /// What follows, in order.
    pub segments: Vec<Segment>,
}

/// One object of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The first.
    Snapshot(Snapshot),
    /// One that follows.
    Segment(Segment),
}

impl Piece {
    /// The object.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Snapshot(snapshot) => &snapshot.key,
            Self::Segment(segment) => &segment.key,
        }
    }

    /// Bytes as stored.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Snapshot(snapshot) => snapshot.size,
            Self::Segment(segment) => segment.size,
        }
    }
}

/// Lists everything. Empty on backends that cannot list directories.
///
/// # Errors
/// The store's; `Corrupt` for an impossible index.
pub async fn list(client: &dyn ReplicaClient) -> Result<Backups> {
    let root = Key::new(GENERATIONS)?;
    let Some(mut dirs) = client.list_dirs(&root) else { return Ok(Backups::default()) };
    let mut names = Vec::new();
    while let Some(dir) = dirs.try_next().await? {
        names.extend(dir.name_in(&root).filter(|name| is_generation(name)).map(str::to_owned));
    }
    names.sort_unstable();
    let mut generations = Vec::with_capacity(names.len());
    for name in names {
        let dir = root.join(&name)?;
        let (snapshots, segments) = futures::future::try_join(
            list_snapshots(client, dir.join("snapshots")?),
            list_segments(client, dir.join("wal")?),
        )
        .await?;
        generations.push(Generation { snapshots, segments });
    }
    Ok(Backups { generations })
}

async fn list_snapshots(client: &dyn ReplicaClient, dir: Key) -> Result<Vec<Snapshot>> {
    let mut found = Vec::new();
    let mut objects = client.list(&dir, None, Stamps::Cheap);
    while let Some(object) = objects.try_next().await? {
        let Some(name) = object.key.name_in(&dir) else { continue };
        if let Some(index) = snapshot_index(name)? {
            found.push(Snapshot { index, size: object.size, created: object.modified, key: object.key });
        }
    }
    found.sort_by_key(|snapshot| snapshot.index);
    Ok(found)
}

async fn list_segments(client: &dyn ReplicaClient, dir: Key) -> Result<Vec<Segment>> {
    let mut found = Vec::new();
    let mut objects = client.list(&dir, None, Stamps::Cheap);
    while let Some(object) = objects.try_next().await? {
        let Some(name) = object.key.name_in(&dir) else { continue };
        if let Some((index, offset)) = segment_position(name)? {
            found.push(Segment { index, offset, size: object.size, created: object.modified, key: object.key });
        }
    }
    found.sort_by_key(|segment| (segment.index, segment.offset));
    Ok(found)
}

/// Whether an object of that time may be part of the state at `at`.
///
/// The format includes an object stamped with that very time. Our times are cut to milliseconds
/// though, and an object of 0.7 ms after `at` must not come in by that: only whole seconds, the
/// stamps of object stores, are taken as exact.
fn admits(at: Option<Timestamp>, created: Timestamp) -> bool {
    at.is_none_or(|at| created < at || (created == at && created.millis().rem_euclid(1000) == 0))
}

impl Backups {
    /// Whether there is nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.times().next().is_none()
    }

    fn times(&self) -> impl Iterator<Item = Timestamp> {
        self.generations.iter().flat_map(|generation| {
            let snapshots = generation.snapshots.iter().map(|snapshot| snapshot.created);
            snapshots.chain(generation.segments.iter().map(|segment| segment.created))
        })
    }

    /// Time of the newest object.
    #[must_use]
    pub fn newest(&self) -> Option<Timestamp> {
        self.times().max()
    }

    /// Whether any object is from that time or before.
    #[must_use]
    pub fn reaches_back_to(&self, time: Timestamp) -> bool {
        self.times().any(|created| admits(Some(time), created))
    }

    /// The newest snapshot that is not younger than `at`, and the segments of its generation that
    /// follow it and are not younger either. `None` without such a snapshot.
    ///
    /// Whether the segments are complete shows when they are read: their lengths are not known before.
    #[must_use]
    pub fn plan(&self, at: Option<Timestamp>) -> Option<Plan> {
        let snapshots = self
            .generations
            .iter()
            .flat_map(|generation| generation.snapshots.iter().map(move |snapshot| (snapshot, generation)));
        let (snapshot, generation) = snapshots
            .filter(|(snapshot, _)| admits(at, snapshot.created))
            .max_by_key(|(snapshot, _)| (snapshot.created, snapshot.index))?;
        let segments = generation.segments.iter();
        let segments = segments.filter(|s| s.index >= snapshot.index && admits(at, s.created)).cloned().collect();
        Some(Plan { snapshot: snapshot.clone(), segments })
    }
}

impl Plan {
    /// Time of the state, as far as the objects tell.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        self.segments.iter().map(|segment| segment.created).fold(self.snapshot.created, Ord::max)
    }

    /// Bytes of all objects.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size).fold(self.snapshot.size, u64::saturating_add)
    }

    /// The objects in the order they are applied.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        let segments = self.segments.iter().cloned().map(Piece::Segment);
        std::iter::once(Piece::Snapshot(self.snapshot.clone())).chain(segments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    fn snapshot(index: u32, created: i64) -> Snapshot {
        Snapshot { index, key: key(&format!("s{index}")), size: 1, created: Timestamp::from_millis(created) }
    }

    fn segment(index: u32, offset: u64, created: i64) -> Segment {
        let key = key(&format!("w{index}_{offset}"));
        Segment { index, offset, key, size: 1, created: Timestamp::from_millis(created) }
    }

    fn backups() -> Backups {
        let first = Generation {
            snapshots: vec![snapshot(0, 10), snapshot(2, 30)],
            segments: vec![segment(0, 0, 11), segment(1, 0, 20), segment(2, 0, 31), segment(2, 50, 40)],
        };
        let second = Generation { snapshots: vec![snapshot(0, 60)], segments: vec![segment(0, 0, 61)] };
        Backups { generations: vec![first, second] }
    }

    /// Index of the snapshot, time of the state, positions of the segments.
    type Planned = (u32, i64, Vec<(u32, u64)>);

    fn planned(at: Option<i64>) -> Option<Planned> {
        let plan = backups().plan(at.map(Timestamp::from_millis))?;
        let segments = plan.segments.iter().map(|s| (s.index, s.offset)).collect();
        Some((plan.snapshot.index, plan.time().millis(), segments))
    }

    #[test]
    fn the_newest_snapshot_not_younger_than_the_time_decides_the_generation() {
        assert_eq!(planned(None), Some((0, 61, vec![(0, 0)])));
        assert_eq!(planned(Some(59)), Some((2, 40, vec![(2, 0), (2, 50)])));
        assert_eq!(planned(Some(35)), Some((2, 31, vec![(2, 0)])));
        assert_eq!(planned(Some(25)), Some((0, 20, vec![(0, 0), (1, 0)])));
        assert_eq!(planned(Some(10)), None);
        assert!(Backups::default().plan(None).is_none());
    }

    #[test]
    fn stamps_of_whole_seconds_are_exact_and_others_were_cut() {
        let at = |created, at| admits(Some(Timestamp::from_millis(at)), Timestamp::from_millis(created));
        assert!(at(2000, 2000) && at(1999, 2000) && at(-1000, -1000));
        assert!(!at(2001, 2001) && !at(2001, 2000));
    }
}
