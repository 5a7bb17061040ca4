//! Which pages of a database are there: one bit each.

use crate::types::Pgno;

/// A set of page numbers up to a bound.
#[derive(Debug)]
pub(crate) struct PageMap {
    words: Vec<u64>,
    pages: u32,
    lock_page: Pgno,
    missing: u32,
}

impl PageMap {
    /// An empty set of the pages `1..=pages`. The lock page is never missed.
    pub(crate) fn new(pages: u32, lock_page: Pgno) -> Self {
        let missing = pages - u32::from(lock_page.get() <= pages);
        Self { words: vec![0; pages.div_ceil(64) as usize], pages, lock_page, missing }
    }

    /// Adds a page; `false` if it was there or is out of bounds.
    pub(crate) fn insert(&mut self, pgno: Pgno) -> bool {
        let bit = pgno.get() - 1;
        let Some(word) = self.words.get_mut(bit as usize / 64) else { return false };
        let mask = 1 << (bit % 64);
        if *word & mask != 0 || pgno.get() > self.pages || pgno == self.lock_page {
            return false;
        }
        *word |= mask;
        self.missing -= 1;
        true
    }

    /// Whether a page is there.
    pub(crate) fn has(&self, pgno: u32) -> bool {
        let bit = pgno.wrapping_sub(1);
        self.words.get(bit as usize / 64).is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }

    /// Whether no page is missing.
    pub(crate) fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// The pages that are there, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Pgno> + Clone {
        let bits = self.words.iter().zip(0_u32..).filter(|(word, _)| **word != 0);
        bits.flat_map(|(word, at)| (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| at * 64 + bit + 1))
            .filter_map(Pgno::new)
    }

    /// Of the pages behind `after`: the last one before the first that is missing (0: the first page
    /// is missing), and the next one that is there again.
    pub(crate) fn first_gap(&self, after: u32) -> Option<(u32, Option<u32>)> {
        if self.missing == 0 {
            return None;
        }
        let gap = (after + 1..=self.pages).find(|pgno| *pgno != self.lock_page.get() && !self.has(*pgno))?;
        Some((gap - 1, (gap..=self.pages).find(|pgno| self.has(*pgno))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map_of(pages: u32, lock_page: u32, there: impl IntoIterator<Item = u32>) -> PageMap {
        let mut map = PageMap::new(pages, Pgno::new(lock_page).unwrap());
        for pgno in there {
            assert!(map.insert(Pgno::new(pgno).unwrap()), "{pgno}");
        }
        map
    }

    #[test]
    fn the_first_gap_is_found_and_the_lock_page_is_none() {
        assert_eq!(map_of(130, 64, (1..=130).filter(|n| *n != 64)).first_gap(0), None);
        assert_eq!(map_of(63, 64, 1..=63).first_gap(0), None);
        assert_eq!(map_of(130, 1000, 2..=130).first_gap(0), Some((0, Some(2))));
        assert_eq!(map_of(130, 1000, (1..=130).filter(|n| !(65..=70).contains(n))).first_gap(0), Some((64, Some(71))));
        assert_eq!(map_of(130, 1000, 1..=129).first_gap(0), Some((129, None)));
        assert_eq!(map_of(130, 1000, (1..=130).filter(|n| *n != 3)).first_gap(2), Some((2, Some(4))));
        assert_eq!(map_of(130, 1000, (1..=130).filter(|n| *n != 3)).first_gap(3), None);
    }

    #[test]
    fn what_was_added_comes_out_in_order() {
        let map = map_of(200, 1000, [130, 1, 64, 65, 200]);
        assert_eq!(map.iter().map(Pgno::get).collect::<Vec<_>>(), [1, 64, 65, 130, 200]);
        assert!(map.has(64) && !map.has(63) && !map.has(0) && !map.has(201) && !map.has(u32::MAX));
    }

    #[test]
    fn a_page_is_added_once_and_only_within_bounds() {
        let mut map = map_of(10, 5, [3]);
        for pgno in [3, 5, 11, 64, 65, u32::MAX] {
            assert!(!map.insert(Pgno::new(pgno).unwrap()), "{pgno}");
        }
    }
}
