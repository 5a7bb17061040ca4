//! Locks on files, between processes and within one.
//!
//! `flock` belongs to the open file, not to the process: closing another descriptor of the file does
//! not drop it, and a second engine of the same process meets it too. It ends with the process,
//! however that ends. It is never taken on a database file, whose locks are SQLite's.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tracing::warn;

use super::fs::{Lock, OwnerMode};
use crate::error::{Error, ErrorKind, Result};

/// What is read of an owner's name.
const OWNER_MAX: u64 = 200;

/// The locked file. The name stays when the lock goes: removing it would let two processes lock two
/// files of one name.
#[derive(Debug)]
#[expect(dead_code, reason = "the lock lives as long as the open file")]
pub(super) struct FileLock(fs::File);

impl Lock for FileLock {}

/// See [`super::Fs::lock`].
pub(super) fn take(path: &Path, owner_mode: OwnerMode, owner: &str) -> Result<FileLock> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(owner_mode.mode);
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    let mut file = options.open(path).map_err(|e| Error::io("open lock file", e).at(path.display()))?;
    match claim(&file).map_err(|e| Error::io("lock", e).at(path.display()))? {
        Some(true) => {}
        Some(false) => return Err(in_use(&mut file).at(path.display())),
        // Then nobody can be kept out.
        None => {
            warn!(path = %path.display(), "this file system has no locks; make sure that nobody else replicates the database");
        }
    }
    // Only for people: without it the lock holds all the same.
    let _ = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).and_then(|_| file.write_all(owner.as_bytes()));
    Ok(FileLock(file))
}

/// See [`super::File::claim`].
pub(super) fn claim(file: &fs::File) -> std::io::Result<Option<bool>> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(true)),
        Err(Errno::AGAIN) => Ok(Some(false)),
        // Some network file systems.
        Err(Errno::NOLCK | Errno::NOSYS | Errno::NOTSUP) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

fn in_use(file: &mut fs::File) -> Error {
    let mut owner = String::new();
    let _ = file.take(OWNER_MAX).read_to_string(&mut owner);
    let owner: String = owner.chars().filter(|c| !c.is_control()).collect();
    let owner = if owner.is_empty() { "another process".to_owned() } else { owner };
    Error::new(ErrorKind::InUse, format!("locked by {owner}:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_says_by_whom() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = take(&path, OwnerMode::PRIVATE_FILE, "pid 7\n").unwrap();
        let err = take(&path, OwnerMode::PRIVATE_FILE, "pid 8").unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InUse);
        assert_eq!(err.to_string(), format!("locked by pid 7: {}", path.display()));
        drop(held);
        let held = take(&path, OwnerMode::PRIVATE_FILE, "pid 8").unwrap();
        assert!(take(&path, OwnerMode::PRIVATE_FILE, "").unwrap_err().to_string().contains("pid 8:"));
        drop(held);
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("victim"), "content").unwrap();
        std::os::unix::fs::symlink("victim", dir.path().join("lock")).unwrap();
        take(&dir.path().join("lock"), OwnerMode::PRIVATE_FILE, "x").unwrap_err();
        assert_eq!(std::fs::read_to_string(dir.path().join("victim")).unwrap(), "content");
    }
}
