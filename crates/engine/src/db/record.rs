//! The continuity record: what we know about the log beyond what an L0 file can say.
//!
//! One small file in the metadata directory, rewritten after each sync. It makes the decision
//! after downtime exact. It is safe to lose: it is ignored unless its own checksum holds and it
//! speaks of the newest L0 file, hence it is written in place and never synced. Litestream 0.5
//! ignores it.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::quiet::Stamp;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::crc64;
use crate::sys::{BootId, OpenMode, OwnerMode, World, read_up_to, rewrite};
use crate::types::{Timestamp, Txid};
use crate::wal::{Salts, WalChecksum};

pub(super) const FILE_NAME: &str = "continuity";
const MAX_BYTES: usize = 4096;

/// Facts at the end of the newest L0 file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The file this speaks of.
    txid: u64,
    salt1: u32,
    salt2: u32,
    end: u64,
    /// Checksum chain at `end`.
    s0: u32,
    s1: u32,
    /// Checkpoint sequence in the WAL header.
    seq: u32,
    /// Length of the WAL file. A shorter one later has lost its end.
    wal_len: u64,
    /// Inode of the database. The device number is left out: it changes with a reboot.
    inode: u64,
    /// Run of the operating system. After another start commits may have been taken back.
    #[serde(default)]
    boot: Option<BootId>,
    /// The database file as it was: length, modification time in milliseconds, checksum of page 1.
    #[serde(default)]
    db: Option<(u64, i64, u64)>,
}

/// Where the log stood when the file was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings {
    pub(super) seq: u32,
    pub(super) wal_len: u64,
    pub(super) inode: u64,
    pub(super) boot: Option<BootId>,
    pub(super) db: Option<(Stamp, u64)>,
}

impl Record {
    pub(super) fn new(txid: Txid, salts: Salts, end: u64, checksum: WalChecksum, at: Surroundings) -> Self {
        Self {
            txid: txid.get(),
            salt1: salts.salt1,
            salt2: salts.salt2,
            end,
            s0: checksum.s0,
            s1: checksum.s1,
            seq: at.seq,
            wal_len: at.wal_len,
            inode: at.inode,
            boot: at.boot,
            db: at.db.map(|(stamp, page1)| (stamp.len, stamp.modified.millis(), page1)),
        }
    }

    /// Whether it speaks of the file `txid` that ends at `end` in generation `salts`.
    pub(super) fn is_about(&self, txid: Txid, salts: Salts, end: u64) -> bool {
        (self.txid, self.salt1, self.salt2, self.end) == (txid.get(), salts.salt1, salts.salt2, end)
    }

    pub(super) fn checksum(&self) -> WalChecksum {
        WalChecksum { s0: self.s0, s1: self.s1 }
    }

    pub(super) fn seq(&self) -> u32 {
        self.seq
    }

    pub(super) fn wal_len(&self) -> u64 {
        self.wal_len
    }

    /// Whether it was written since the machine was started, `now` naming that.
    pub(super) fn is_of_boot(&self, now: Option<BootId>) -> bool {
        now.is_some() && self.boot == now
    }

    /// The database file as it was, and the checksum of its page 1.
    pub(super) fn db(&self) -> Option<(Stamp, u64)> {
        let (len, modified, sum) = self.db?;
        Some((Stamp { len, modified: Timestamp::from_millis(modified) }, sum))
    }

    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    fn path(meta: &Path) -> PathBuf {
        meta.join(FILE_NAME)
    }

    /// `None` if it is absent, torn, unreadable or of another make.
    pub(super) fn load(world: &World, meta: &Path) -> Option<Self> {
        load_sealed(world, &Self::path(meta)).ok().flatten()
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// I/O errors; the old record may be torn then, which its checksum shows.
    pub(super) fn store(&self, world: &World, meta: &Path, owner_mode: OwnerMode) -> Result<()> {
        store_sealed(world, &Self::path(meta), self, owner_mode)
    }
}

/// Leaves a note that carries its own checksum.
///
/// # Errors
/// I/O errors.
pub(super) fn store_sealed<T: Serialize>(world: &World, path: &Path, note: &T, owner_mode: OwnerMode) -> Result<()> {
    let json = serde_json::to_string(note).map_err(|e| Error::new(ErrorKind::Internal, "encode note").caused_by(e))?;
    rewrite(world.fs.as_ref(), path, format!("{json}\n{}", seal(&json)).as_bytes(), owner_mode)
}

/// Such a note; `None` if it is absent, torn or of another make.
///
/// # Errors
/// I/O errors.
pub(super) fn load_sealed<T: DeserializeOwned>(world: &World, path: &Path) -> Result<Option<T>> {
    let Some(file) = world.fs.open_opt(path, OpenMode::Read)? else { return Ok(None) };
    let mut bytes = vec![0; MAX_BYTES];
    let len = read_up_to(file.as_ref(), &mut bytes, 0)?;
    let text = std::str::from_utf8(&bytes[..len]).unwrap_or_default();
    let json = text.split_once('\n').filter(|(json, sum)| *sum == seal(json)).map(|(json, _)| json);
    Ok(json.and_then(|json| serde_json::from_str(json).ok()))
}

fn seal(json: &str) -> String {
    format!("{:016x}\n", crc64(json.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_record_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::system();
        let at = Surroundings { seq: 5, wal_len: 8272, inode: 6, boot: Some(BootId(u128::MAX)), db: None };
        let record = Record::new(Txid::FIRST, Salts { salt1: 1, salt2: 2 }, 4152, WalChecksum { s0: 3, s1: 4 }, at);
        record.store(&world, dir.path(), OwnerMode::DEFAULT_FILE).unwrap();
        assert_eq!(Record::load(&world, dir.path()), Some(record));
        let path = Record::path(dir.path());
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(Record::load(&world, dir.path()), None, "flip at {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert_eq!(Record::load(&world, dir.path()), None, "cut at {at}");
        }
    }

    #[test]
    fn a_shorter_record_replaces_a_longer_one() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::system();
        let of = |n: u64| {
            let at = Surroundings { seq: 5, wal_len: n, inode: n, boot: None, db: None };
            Record::new(Txid::new(n).unwrap(), Salts { salt1: 1, salt2: 2 }, n, WalChecksum { s0: 3, s1: 4 }, at)
        };
        of(1 << 60).store(&world, dir.path(), OwnerMode::DEFAULT_FILE).unwrap();
        of(1).store(&world, dir.path(), OwnerMode::DEFAULT_FILE).unwrap();
        assert_eq!(Record::load(&world, dir.path()), Some(of(1)));
    }
}
