//! How badly a store behaves.

use std::time::Duration;

use crate::rng::Rng;

/// One way to behave badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lie {
    /// The answer takes up to a minute and a half.
    Slow,
    /// An error, and nothing has happened.
    Refused,
    /// Refused because the whole store is out of reach for a while.
    Outage,
    /// Refused because one kind of request is not allowed for a while.
    Denied,
    /// An error, although it has happened.
    LostAnswer,
    /// `Exists` for an object that this very request has made.
    Conflict,
    /// A list of up to two minutes ago.
    StaleList,
    /// A list in another order.
    UnorderedList,
    /// A list without one of its pages.
    MissedPage,
    /// A list that holds one of its pages twice.
    RepeatedPage,
    /// A list that ends in an error.
    BrokenList,
    /// A body that ends early without an error.
    ShortBody,
    /// A body that ends early in an error.
    BrokenBody,
    /// A deletion that is acknowledged and was done in part or not at all.
    Undeleted,
    /// A deletion that fails when some of it is done.
    HalfDeleted,
    /// A deletion that is done, and some time later what was deleted is there again.
    Reappears,
}

impl Lie {
    pub(super) const ALL: [Self; 16] = [
        Self::Slow,
        Self::Refused,
        Self::Outage,
        Self::Denied,
        Self::LostAnswer,
        Self::Conflict,
        Self::StaleList,
        Self::UnorderedList,
        Self::MissedPage,
        Self::RepeatedPage,
        Self::BrokenList,
        Self::ShortBody,
        Self::BrokenBody,
        Self::Undeleted,
        Self::HalfDeleted,
        Self::Reappears,
    ];

    /// Whether a list does not show what is there: what others have to say about it is void then.
    fn misleads(self) -> bool {
        matches!(self, Self::StaleList | Self::MissedPage)
    }
}

/// How often each has happened.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lies([u64; Lie::ALL.len()]);

impl Lies {
    pub(super) fn count(&mut self, lie: Lie) {
        self.0[lie as usize] += 1;
    }

    pub(super) fn of(&self, lie: Lie) -> u64 {
        self.0[lie as usize]
    }

    /// How often a list did not show what is there.
    pub(super) fn misleading(&self) -> u64 {
        Lie::ALL.into_iter().filter(|lie| lie.misleads()).map(|lie| self.of(lie)).sum()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

impl std::fmt::Display for Lies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sep = "";
        for lie in Lie::ALL {
            write!(f, "{sep}{lie:?} {}", self.of(lie))?;
            sep = ", ";
        }
        Ok(())
    }
}

/// Of 1000 requests, how many meet with what; and how long answers take.
#[derive(Debug, Clone)]
pub(crate) struct Manners {
    permille: u64,
    /// Which of [`Lie::ALL`] this store is capable of.
    kinds: Vec<Lie>,
    pause_ms: u64,
}

impl Manners {
    /// A store that does as it is asked, at once.
    pub(super) const PERFECT: Self = Self { permille: 0, kinds: Vec::new(), pause_ms: 0 };

    pub(super) fn draw_from(rng: &mut Rng) -> Self {
        let kinds = Lie::ALL.into_iter().filter(|lie| !matches!(lie, Lie::Outage | Lie::Denied));
        // Most stores show what is there: with those more can be asked of us.
        let misleading = rng.permille(300);
        let kinds = kinds.filter(|lie| misleading || !lie.misleads()).filter(|_| rng.permille(600)).collect();
        Self { permille: rng.pick(&[0, 10, 50, 200]), kinds, pause_ms: rng.pick(&[0, 1, 20, 300, 3000]) }
    }

    /// Whether a request can take longer than a few seconds.
    pub(super) fn is_slow(&self) -> bool {
        self.kinds.contains(&Lie::Slow)
    }

    /// A store that is never seen to behave badly in this way.
    pub(super) fn without(mut self, lie: Lie) -> Self {
        self.kinds.retain(|kind| *kind != lie);
        self
    }

    /// The same store on a bad day.
    pub(super) fn worse(&self) -> Self {
        Self { permille: 400, ..self.clone() }
    }

    /// What becomes of a request that `special` can happen to, besides being slow or refused.
    pub(super) fn draw(&self, rng: &mut Rng, special: &[Lie]) -> Option<Lie> {
        if !rng.permille(self.permille) {
            return None;
        }
        let general = [Lie::Slow, Lie::Refused, Lie::Refused];
        let possible: Vec<Lie> =
            general.iter().chain(special).chain(special).copied().filter(|lie| self.kinds.contains(lie)).collect();
        (!possible.is_empty()).then(|| rng.pick(&possible))
    }

    pub(super) fn pause(&self, rng: &mut Rng) -> Option<Duration> {
        let millis = rng.below(self.pause_ms + 1);
        (millis > 0).then(|| Duration::from_millis(millis))
    }
}
