//! Which page may come next: the same rules for what we write and what we read.

use super::header::Header;
use crate::error::{Error, Result};
use crate::types::Pgno;

/// Checks the page numbers of one file, in order (`spec: ltx-format` §4.4).
#[derive(Debug)]
pub(super) struct PageOrder {
    /// Min TXID 1: the file must hold every page.
    snapshot: bool,
    commit: u32,
    lock_page: Pgno,
    last: Option<Pgno>,
}

impl PageOrder {
    pub(super) fn new(header: &Header) -> Self {
        Self {
            snapshot: header.txids.is_snapshot(),
            commit: header.commit,
            lock_page: header.page_size.lock_page(),
            last: None,
        }
    }

    /// The same after `last` was accepted.
    pub(super) fn behind(header: &Header, last: Option<Pgno>) -> Self {
        Self { last, ..Self::new(header) }
    }

    /// The last page accepted.
    #[inline]
    pub(super) fn last(&self) -> Option<Pgno> {
        self.last
    }

    /// Lets `pgno` be the next page.
    ///
    /// # Errors
    /// `Corrupt` when it may not; the state is unchanged then.
    #[inline]
    pub(super) fn accept(&mut self, pgno: Pgno) -> Result<()> {
        if pgno.get() > self.commit {
            let commit = self.commit;
            return Err(Error::corrupt(format!("page number {pgno} out-of-bounds for commit size {commit}")));
        }
        if pgno == self.lock_page {
            return Err(Error::corrupt(format!("cannot encode lock page: pgno={pgno}")));
        }
        match self.last {
            None if self.snapshot && pgno != Pgno::FIRST => {
                return Err(Error::corrupt("snapshot transaction file must start with page number 1"));
            }
            Some(last) if self.snapshot && Some(pgno) != self.after(last) => {
                let skipped = if self.skips_lock_page(last) { " (skip lock page)" } else { "" };
                let message = format!("nonsequential page numbers in snapshot transaction{skipped}: {last},{pgno}");
                return Err(Error::corrupt(message));
            }
            Some(last) if pgno <= last => {
                return Err(Error::corrupt(format!("out-of-order page numbers: {last},{pgno}")));
            }
            _ => {}
        }
        self.last = Some(pgno);
        Ok(())
    }

    /// Lets the page block end here.
    ///
    /// # Errors
    /// `Corrupt` when a snapshot has not reached its last page.
    pub(super) fn end(&self) -> Result<()> {
        let last = self.last.map_or(0, Pgno::get);
        let next = self.last.map_or(Some(Pgno::FIRST), |last| self.after(last));
        match next {
            Some(next) if self.snapshot && next.get() <= self.commit => Err(Error::corrupt(format!(
                "snapshot transaction file ends with page number {last}, commit size is {}",
                self.commit
            ))),
            _ => Ok(()),
        }
    }

    fn skips_lock_page(&self, last: Pgno) -> bool {
        last.get().checked_add(1) == Some(self.lock_page.get())
    }

    fn after(&self, last: Pgno) -> Option<Pgno> {
        let step = if self.skips_lock_page(last) { 2 } else { 1 };
        Pgno::new(last.get().checked_add(step)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PageSize;

    fn order(snapshot: bool, commit: u32) -> PageOrder {
        // The lock page of the largest page size has the smallest number: 16385.
        let lock_page = PageSize::new(65536).unwrap().lock_page();
        PageOrder { snapshot, commit, lock_page, last: None }
    }

    fn error_of(mut order: PageOrder, pages: impl IntoIterator<Item = u32>) -> String {
        let result = pages.into_iter().try_for_each(|p| order.accept(Pgno::new(p).unwrap()));
        result.and_then(|()| order.end()).map_or_else(|e| e.to_string(), |()| "fine".into())
    }

    #[test]
    fn a_snapshot_holds_every_page_in_order() {
        assert_eq!(error_of(order(true, 3), [1, 2, 3]), "fine");
        assert_eq!(error_of(order(true, 3), [2]), "snapshot transaction file must start with page number 1");
        assert_eq!(error_of(order(true, 3), [1, 3]), "nonsequential page numbers in snapshot transaction: 1,3");
        assert_eq!(error_of(order(true, 3), [1, 1]), "nonsequential page numbers in snapshot transaction: 1,1");
        assert_eq!(
            error_of(order(true, 3), [1, 2]),
            "snapshot transaction file ends with page number 2, commit size is 3"
        );
        assert_eq!(error_of(order(true, 1), []), "snapshot transaction file ends with page number 0, commit size is 1");
    }

    #[test]
    fn a_snapshot_steps_over_the_lock_page() {
        assert_eq!(error_of(order(true, 16386), (1..=16384).chain([16386])), "fine");
        assert_eq!(error_of(order(true, 16385), 1..=16384), "fine");
        assert_eq!(error_of(order(true, 16386), 1..=16385), "cannot encode lock page: pgno=16385");
        assert_eq!(
            error_of(order(true, 16387), (1..=16384).chain([16387])),
            "nonsequential page numbers in snapshot transaction (skip lock page): 16384,16387"
        );
        assert_eq!(
            error_of(order(true, 16386), 1..=16384),
            "snapshot transaction file ends with page number 16384, commit size is 16386"
        );
    }

    #[test]
    fn other_files_hold_any_ascending_pages_up_to_commit() {
        assert_eq!(error_of(order(false, 9), []), "fine");
        assert_eq!(error_of(order(false, 9), [2, 5, 9]), "fine");
        assert_eq!(error_of(order(false, 9), [2, 2]), "out-of-order page numbers: 2,2");
        assert_eq!(error_of(order(false, 9), [2, 1]), "out-of-order page numbers: 2,1");
        assert_eq!(error_of(order(false, 9), [10]), "page number 10 out-of-bounds for commit size 9");
        assert_eq!(error_of(order(false, u32::MAX), [u32::MAX]), "fine");
        assert_eq!(error_of(order(false, 20_000), [16385]), "cannot encode lock page: pgno=16385");
    }
}
