//! Transaction IDs and inclusive ranges of them (`spec: ltx-format` §7.4, §9).

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Transaction ID. "None yet" is `Option<Txid>`; zero exists only on the wire and in flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid(NonZeroU64);

impl Txid {
    /// The first transaction of a database.
    pub const FIRST: Self = Self(NonZeroU64::MIN);
    /// Largest ID we accept from outside. Leaves room to count on, so that one
    /// hostile file name cannot end replication for good.
    pub const MAX: Self = match NonZeroU64::new(u64::MAX >> 1) {
        Some(n) => Self(n),
        None => unreachable!(),
    };

    /// `None` for zero.
    #[must_use]
    pub const fn new(value: u64) -> Option<Self> {
        match NonZeroU64::new(value) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The ID after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The ID that follows `prev`, where `None` means an empty history.
    #[must_use]
    pub fn after(prev: Option<Self>) -> Self {
        prev.map_or(Self::FIRST, Self::next)
    }
}

/// The form used in file names and logs: 16 lower-case hex digits.
impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.get())
    }
}

impl FromStr for Txid {
    type Err = Error;

    /// Exactly 16 hex digits of either case, not zero.
    fn from_str(text: &str) -> Result<Self> {
        if text.len() != 16 {
            return Err(Error::invalid(format!("invalid formatted transaction id length: {text:?}")));
        }
        let bad = || Error::invalid(format!("invalid transaction id format: {text:?}"));
        if !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let value = u64::from_str_radix(text, 16).map_err(|_| bad())?;
        Self::new(value).ok_or_else(|| Error::invalid("transaction id required"))
    }
}

/// Inclusive. `min <= max` holds because the fields are private and `new` checks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxidRange {
    min: Txid,
    max: Txid,
}

impl TxidRange {
    /// # Errors
    /// `min > max`.
    pub fn new(min: Txid, max: Txid) -> Result<Self> {
        if min > max {
            return Err(Error::corrupt(format!("transaction ids out of order: ({},{})", min.get(), max.get())));
        }
        Ok(Self { min, max })
    }

    /// The range of one transaction.
    #[must_use]
    pub const fn single(txid: Txid) -> Self {
        Self { min: txid, max: txid }
    }

    /// `1..=max`, the range of a snapshot.
    #[must_use]
    pub const fn up_to(max: Txid) -> Self {
        Self { min: Txid::FIRST, max }
    }

    /// First transaction covered.
    #[must_use]
    pub const fn min(self) -> Txid {
        self.min
    }

    /// Last transaction covered.
    #[must_use]
    pub const fn max(self) -> Txid {
        self.max
    }

    /// Whether a file of this range starts a database, i.e. must hold every page.
    #[must_use]
    pub fn is_snapshot(self) -> bool {
        self.min == Txid::FIRST
    }

    /// May a file with this range follow a state at `prev`? Overlap is fine, a gap or a repeat is not.
    #[must_use]
    pub fn extends(self, prev: Option<Txid>) -> bool {
        self.min <= Txid::after(prev) && Some(self.max) > prev
    }
}

impl fmt::Display for TxidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(min: u64, max: u64) -> TxidRange {
        TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap()
    }

    #[test]
    fn text_is_sixteen_hex_digits_both_ways() {
        let txid: Txid = "00000000000000FF".parse().unwrap();
        assert_eq!(txid.to_string(), "00000000000000ff");
        assert!("ff".parse::<Txid>().is_err());
        assert!("+0000000000000ff".parse::<Txid>().is_err());
        assert!("0000000000000000".parse::<Txid>().is_err());
    }

    #[test]
    fn a_file_may_overlap_but_not_skip_or_repeat() {
        assert!(range(1, 3).extends(None));
        assert!(range(2, 5).extends(Txid::new(3)));
        assert!(range(4, 5).extends(Txid::new(3)));
        assert!(!range(5, 5).extends(Txid::new(3)));
        assert!(!range(1, 3).extends(Txid::new(3)));
    }

    #[test]
    fn a_reversed_range_cannot_be_made() {
        assert!(TxidRange::new(Txid::new(2).unwrap(), Txid::FIRST).is_err());
    }
}
