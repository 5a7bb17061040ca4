//! Page sizes and page numbers of SQLite databases.

use std::fmt;

use crate::error::{Error, Result};

/// Size of a database page in bytes: a power of two, 512…65536.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// Largest page SQLite knows.
    pub const MAX: u32 = 65536;

    /// # Errors
    /// Not a power of two in 512…65536.
    pub fn new(bytes: u32) -> Result<Self> {
        if !(512..=Self::MAX).contains(&bytes) || !bytes.is_power_of_two() {
            return Err(Error::corrupt(format!("invalid page size: {bytes}")));
        }
        Ok(Self(bytes))
    }

    /// Bytes.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Bytes, for slices.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0 as usize
    }

    /// Never true; here because `len` is.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }

    /// The page that holds SQLite's lock bytes at 1 GiB. It is never replicated.
    #[must_use]
    pub const fn lock_page(self) -> Pgno {
        Pgno(0x4000_0000 / self.0 + 1)
    }

    /// Bytes of one WAL frame: 24-byte header and page.
    #[must_use]
    pub const fn frame_size(self) -> u64 {
        self.0 as u64 + 24
    }

    /// Byte offset of a page in the database file.
    #[must_use]
    pub const fn offset_of(self, pgno: Pgno) -> u64 {
        (pgno.0 as u64 - 1) * self.0 as u64
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Page number, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pgno(u32);

impl Pgno {
    /// The first page, which holds the database header.
    pub const FIRST: Self = Self(1);

    /// `None` for zero.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        if value == 0 { None } else { Some(Self(value)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Pages `from..=to` of a database, without the lock page.
    pub fn range(from: u32, to: u32, page_size: PageSize) -> impl Iterator<Item = Self> + Clone {
        let lock = page_size.lock_page();
        (from.max(1)..=to).map(Self).filter(move |p| *p != lock)
    }
}

impl fmt::Display for Pgno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_from_512_to_64k_are_page_sizes() {
        let good: Vec<u32> = (0..=70_000).filter(|n| PageSize::new(*n).is_ok()).collect();
        assert_eq!(good, [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]);
    }

    #[test]
    fn the_lock_page_is_left_out_of_ranges() {
        let size = PageSize::new(65536).unwrap();
        assert_eq!(size.lock_page().get(), 16385);
        let pages: Vec<u32> = Pgno::range(16384, 16386, size).map(Pgno::get).collect();
        assert_eq!(pages, [16384, 16386]);
    }
}
