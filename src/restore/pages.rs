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

    /// The last page before the first one that is missing (0: the first page is), and the next one
    /// that is there again.
    pub(crate) fn first_gap(&self) -> Option<(u32, Option<u32>)> {
        if self.missing == 0 {
            return None;
        }
        let has = |pgno: u32| self.words[(pgno as usize - 1) / 64] & (1 << ((pgno - 1) % 64)) != 0;
        let gap = (1..=self.pages).find(|pgno| *pgno != self.lock_page.get() && !has(*pgno))?;
        Some((gap - 1, (gap..=self.pages).find(|pgno| has(*pgno))))
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
        assert_eq!(map_of(130, 64, (1..=130).filter(|n| *n != 64)).first_gap(), None);
        assert_eq!(map_of(63, 64, 1..=63).first_gap(), None);
        assert_eq!(map_of(130, 1000, 2..=130).first_gap(), Some((0, Some(2))));
        assert_eq!(map_of(130, 1000, (1..=130).filter(|n| !(65..=70).contains(n))).first_gap(), Some((64, Some(71))));
        assert_eq!(map_of(130, 1000, 1..=129).first_gap(), Some((129, None)));
    }

    #[test]
    fn a_page_is_added_once_and_only_within_bounds() {
        let mut map = map_of(10, 5, [3]);
        for pgno in [3, 5, 11, 64, 65, u32::MAX] {
            assert!(!map.insert(Pgno::new(pgno).unwrap()), "{pgno}");
        }
    }
}
