//! What each TXID of a database stands for, learnt from every object that was ever stored.
//!
//! An object is applied to the states before it by the harness's own rules. However a TXID is reached, it
//! must be one state of the database's history, and the same one for ever.

use std::collections::{BTreeMap, HashSet};

use litestream::types::TxidRange;

use crate::disk::{Inner, OTHER_DB};
use crate::replay::{Layers, decode};

/// Which promise is broken, and how.
pub(super) type Broken = (&'static str, String);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// Whose states these are, if nobody else's can be among them.
    of: Option<&'static str>,
    states: BTreeMap<u64, Known>,
    seen: HashSet<(String, u64)>,
    /// Objects that could not be checked, because no state before them is known.
    pub(super) unchecked: u64,
}

#[derive(Debug)]
struct Known {
    layers: Layers,
    digest: u64,
}

impl Book {
    /// For objects of this database alone.
    pub(super) fn of(db: &'static str) -> Self {
        Self { of: Some(db), ..Self::default() }
    }

    /// Whether there ever was such a state.
    pub(super) fn knows(&self, disk: &Inner, digest: u64) -> bool {
        match self.of {
            None => disk.was_ever(digest),
            Some(OTHER_DB) => disk.other.find(digest).is_some(),
            Some(_) => disk.oracle.find(digest).is_some(),
        }
    }

    /// Digest of the state of a TXID.
    pub(super) fn digest(&self, txid: u64) -> Option<u64> {
        self.states.get(&txid).map(|known| known.digest)
    }

    pub(super) fn txids(&self) -> Vec<u64> {
        self.states.keys().copied().collect()
    }

    /// Like [`Book::learn`], once for each version of an object.
    pub(super) fn learn_once(
        &mut self,
        disk: &Inner,
        object: (&str, u64),
        txids: TxidRange,
        bytes: &[u8],
    ) -> Result<(), Broken> {
        if !self.seen.insert((object.0.to_owned(), object.1)) {
            return Ok(());
        }
        self.learn(disk, object.0, txids, bytes)
    }

    /// Checks an object against what is known.
    pub(super) fn learn(&mut self, disk: &Inner, key: &str, txids: TxidRange, bytes: &[u8]) -> Result<(), Broken> {
        let content = decode(bytes).map_err(|e| ("I5 loud", format!("{key} was stored, but cannot be read: {e}")))?;
        if content.txids != txids {
            return Err(("I5 loud", format!("{key} was stored, but holds {}", content.txids)));
        }
        let (min, max) = (txids.min().get(), txids.max().get());
        let bases: Vec<Layers> = if min == 1 {
            vec![Layers::default()]
        } else {
            let mut before = self.states.range(min - 1..max);
            let first = before.next();
            let last = before.next_back();
            first.into_iter().chain(last).map(|(_, known)| known.layers.clone()).collect()
        };
        if bases.is_empty() {
            self.unchecked += 1;
        }
        for mut layers in bases {
            layers.add(&content).map_err(|e| ("I1 prefix", format!("{key}: {e}")))?;
            let digest = layers.digest();
            match self.states.get(&max) {
                Some(known) if known.digest != digest => {
                    return Err(("I3 monotone", format!("{key} leads to another state of {max} than known")));
                }
                Some(_) => {}
                None if !self.knows(disk, digest) => {
                    return Err(("I1 prefix", format!("{key} leads to a state that never was")));
                }
                None => drop(self.states.insert(max, Known { layers, digest })),
            }
        }
        Ok(())
    }
}
