//! What the first bytes of a database file say about who else works on its pages.
//!
//! | Seen | Whose | What we do |
//! |---|---|---|
//! | bytes 18 and 19 are 3 | WAL2 | refused |
//! | they are 255 | Turso's MVCC mode | refused |
//! | no `SQLite format 3` at the start | SQLCipher and other ciphers, Turso's encryption, DoltLite, no database | refused |
//! | byte 20 (reserved bytes per page) is not 0 | a layer below SQLite: checksums, time stamps, a cipher with a plain header | followed, never checkpointed, nothing written to it |
//! | and page 1 ends in the checksum of SQLite's checksum VFS | that VFS, which writes checksums only when it checkpoints | pages from the log get theirs |

use crate::error::Error;

/// Bytes of the database header.
pub(super) const HEADER: usize = 100;
/// What they begin with.
pub(super) const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Bytes that the checksum VFS reserves in each page.
const SUM: usize = 8;

/// The layer between SQLite and the file, as far as page 1 shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    /// None.
    None,
    /// Something that owns the last bytes of each page.
    Reserving(u8),
    /// SQLite's checksum VFS.
    Checksums,
}

impl Layer {
    /// `page_1` as it is in the database file; it may be cut off.
    pub(super) fn of(page_1: &[u8]) -> Self {
        match page_1.get(20) {
            None | Some(0) => Self::None,
            Some(8) if has_checksum(page_1) => Self::Checksums,
            Some(reserved) => Self::Reserving(*reserved),
        }
    }

    /// Whether checkpoints, and any other writing, must be left to the application.
    pub(super) fn is_somebodys(self) -> bool {
        self != Self::None
    }
}

/// Whether the page ends in the checksum of the rest.
fn has_checksum(page: &[u8]) -> bool {
    let Some(at) = page.len().checked_sub(SUM).filter(|at| at % 8 == 0 && *at > 0) else { return false };
    page[at..] == checksum(&page[..at])
}

/// Writes the checksum of the page into its last bytes.
pub(super) fn put_checksum(page: &mut [u8]) {
    let at = page.len() - SUM;
    let sum = checksum(&page[..at]);
    page[at..].copy_from_slice(&sum);
}

/// Two sums over little-endian words, each fed by the other.
fn checksum(bytes: &[u8]) -> [u8; SUM] {
    let (mut one, mut two) = (0_u32, 0_u32);
    for pair in bytes.chunks_exact(8) {
        let word = |at: usize| u32::from_le_bytes([pair[at], pair[at + 1], pair[at + 2], pair[at + 3]]);
        one = one.wrapping_add(word(0)).wrapping_add(two);
        two = two.wrapping_add(word(4)).wrapping_add(one);
    }
    let mut out = [0; SUM];
    out[..4].copy_from_slice(&one.to_le_bytes());
    out[4..].copy_from_slice(&two.to_le_bytes());
    out
}

/// Why SQLite cannot follow a file that begins like this; `None` if its header is one we know.
pub(super) fn refusal(head: &[u8]) -> Option<Error> {
    let invalid = |what: &str, hint: &'static str| Some(Error::invalid(what).hint(hint));
    if head.is_empty() {
        return None;
    }
    if head.len() < HEADER || &head[..16] != MAGIC {
        return match head {
            _ if head.starts_with(b"Turso") => invalid(
                "database is encrypted by Turso and cannot be followed",
                "replicate it with Turso's own means, or keep it unencrypted",
            ),
            _ if head.starts_with(b"CTLD") => invalid("file is a DoltLite database and cannot be followed", ONLY_SQLITE),
            // SQLite's own words for it.
            _ => Some(Error::corrupt("file is not a database (26)").hint(
                "encrypted databases (SQLCipher, SQLite3 Multiple Ciphers and the like) cannot be followed; if it should be a \
                 plain SQLite database, it is damaged",
            )),
        };
    }
    match (head[18], head[19]) {
        (3, _) | (_, 3) => invalid("database is in WAL2 mode and cannot be followed", "PRAGMA journal_mode = wal"),
        (255, _) | (_, 255) => {
            invalid("database is in Turso's MVCC mode and cannot be followed", "PRAGMA journal_mode = wal, in Turso")
        }
        (1 | 2, 1 | 2) => None,
        _ => invalid("database has a file format that SQLite does not know", ONLY_SQLITE),
    }
}

const ONLY_SQLITE: &str = "only databases of SQLite in WAL mode can be followed";

#[cfg(test)]
mod tests {
    use super::*;

    fn header(versions: u8, reserved: u8) -> Vec<u8> {
        let mut page = vec![7; 4096];
        page[..16].copy_from_slice(MAGIC);
        (page[18], page[19], page[20]) = (versions, versions, reserved);
        page
    }

    #[test]
    fn each_strange_header_has_a_line_of_its_own() {
        let text = |head: &[u8]| refusal(head).map(|err| err.to_string());
        assert_eq!(text(&header(2, 0)), None);
        assert_eq!(text(&[]), None);
        assert!(text(&header(3, 0)).unwrap().contains("WAL2"));
        assert!(text(&header(255, 0)).unwrap().contains("MVCC"));
        assert!(text(b"Turso\0\x03\0 and so on").unwrap().contains("encrypted by Turso"));
        assert!(refusal(&[9; 4096]).unwrap().hint_text().unwrap().contains("encrypted"));
        assert!(text(b"short").unwrap().contains("not a database"));
    }

    #[test]
    fn the_checksum_tells_the_checksum_vfs_from_other_layers() {
        let mut page = header(2, 8);
        assert_eq!(Layer::of(&page), Layer::Reserving(8));
        put_checksum(&mut page);
        assert_eq!(Layer::of(&page), Layer::Checksums);
        assert_eq!(Layer::of(&header(2, 0)), Layer::None);
        assert_eq!(Layer::of(&header(2, 48)), Layer::Reserving(48));
        assert_eq!(Layer::of(&page[..100]), Layer::Reserving(8));
    }
}
