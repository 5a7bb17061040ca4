//! How a file becomes visible: all of it, or not at all.
//!
//! Guarantees:
//! 1. Nobody ever sees a partly written file under its final name.
//! 2. When [`Publisher::publish`] returns, file and directory entry survive a power cut.
//! 3. When it fails, or the publisher is dropped, the temporary file is gone.
//! 4. A failed sync is final: the file is discarded, never synced again.

use std::path::{Path, PathBuf};

use super::fault::{fault_point, mutant};
use super::fs::{File, Fs, OpenMode, OwnerMode};
use super::random::Random;
use crate::error::{Error, ErrorKind, Result};
use crate::types::Timestamp;

/// Suffix of files that are not published yet.
const TEMP_SUFFIX: &str = ".tmp";

/// A temporary name for `target` that no other writer has: `<target>.<16 hex digits>.tmp`.
///
/// For places where more than one process may write the same target: under a common name one
/// would publish what the other has only begun.
#[must_use]
pub fn unique_temp_path(random: &dyn Random, target: &Path) -> PathBuf {
    super::fs::with_suffix(target, &format!(".{:016x}{TEMP_SUFFIX}", random.next_u64()))
}

/// The name of the target that `name` is a [`unique_temp_path`] of.
#[must_use]
pub fn target_of_temp(name: &str) -> Option<&str> {
    let (target, tag) = name.strip_suffix(TEMP_SUFFIX)?.rsplit_once('.')?;
    let is_tag = tag.len() == 16 && tag.bytes().all(|b| b.is_ascii_hexdigit());
    (is_tag && !target.is_empty()).then_some(target)
}

/// A file being written under a temporary name beside its final one.
#[derive(Debug)]
pub struct Publisher<'a> {
    fs: &'a dyn Fs,
    temp: PathBuf,
    target: PathBuf,
    file: Option<Box<dyn File>>,
}

impl<'a> Publisher<'a> {
    /// Creates `<target>.tmp` exclusively. A leftover of that name from a crash is removed first.
    ///
    /// # Errors
    /// I/O errors.
    pub fn create(fs: &'a dyn Fs, target: &Path, owner_mode: OwnerMode) -> Result<Self> {
        Self::create_as(fs, super::fs::with_suffix(target, ".tmp"), target, owner_mode)
    }

    /// Like [`Publisher::create`] with a temporary name of the caller's choice in the same directory.
    ///
    /// # Errors
    /// I/O errors.
    pub fn create_as(fs: &'a dyn Fs, temp: PathBuf, target: &Path, owner_mode: OwnerMode) -> Result<Self> {
        fault_point("publish.create")?;
        fs.remove_file(&temp)?;
        let file = fs.open(&temp, OpenMode::CreateNew(owner_mode))?;
        Ok(Self { fs, temp, target: target.to_owned(), file: Some(file) })
    }

    /// Goes on with a temporary file that another process left. `file` is what `temp` names.
    #[must_use]
    pub fn adopt(fs: &'a dyn Fs, temp: PathBuf, target: &Path, file: Box<dyn File>) -> Self {
        Self { fs, temp, target: target.to_owned(), file: Some(file) }
    }

    /// Leaves the temporary file, for another process to go on with.
    pub fn leave(mut self) {
        drop(self.file.take());
    }

    /// The open temporary file.
    #[must_use]
    pub fn file(&self) -> &dyn File {
        match &self.file {
            Some(file) => file.as_ref(),
            None => unreachable!("the file is taken only by publish, which consumes the publisher"),
        }
    }

    /// Where the bytes are until they are published.
    #[must_use]
    pub fn temp_path(&self) -> &Path {
        &self.temp
    }

    /// Sync, stamp if a time is given, rename, sync directory.
    ///
    /// # Errors
    /// I/O errors. Before the rename the target is untouched; a failing rename or directory sync
    /// leaves it unknown which of old and new is there.
    pub fn publish(self, stamp: Option<Timestamp>) -> Result<()> {
        self.publish_by(stamp, |fs, temp, target| fs.rename(temp, target))
    }

    /// Like [`Publisher::publish`], but does not replace a target that is there.
    ///
    /// # Errors
    /// `Exists`, with the target untouched; those of [`Publisher::publish`].
    pub fn publish_new(self, stamp: Option<Timestamp>) -> Result<()> {
        self.publish_by(stamp, |fs, temp, target| fs.rename_new(temp, target))
    }

    fn publish_by(
        mut self,
        stamp: Option<Timestamp>,
        rename: impl FnOnce(&dyn Fs, &Path, &Path) -> Result<()>,
    ) -> Result<()> {
        let Some(file) = self.file.take() else { unreachable!("publish runs once") };
        let sealed = (|| {
            fault_point("publish.sync")?;
            if !mutant("publish-without-sync") {
                file.sync()?;
            }
            if let Some(at) = stamp {
                file.set_modified(at)?;
            }
            drop(file);
            fault_point("publish.rename")?;
            rename(self.fs, &self.temp, &self.target)
        })();
        if let Err(err) = sealed {
            let _ = self.fs.remove_file(&self.temp);
            return Err(err);
        }
        fault_point("publish.sync_dir")?;
        if let Some(dir) = self.target.parent().filter(|_| !mutant("publish-without-dirsync")) {
            self.fs.sync_dir(dir)?;
        }
        fault_point("publish.done")
    }

    /// Syncs and closes the temporary file, and leaves it for the caller to rename or remove.
    ///
    /// # Errors
    /// I/O errors; the file is gone then.
    pub fn seal(mut self) -> Result<PathBuf> {
        let Some(file) = self.file.take() else { unreachable!("seal runs once") };
        if let Err(err) = file.sync() {
            let _ = self.fs.remove_file(&self.temp);
            return Err(err);
        }
        Ok(self.temp.clone())
    }
}

impl Drop for Publisher<'_> {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = self.fs.remove_file(&self.temp);
        }
    }
}

/// Fills `buf` from `offset`, or says at which byte the file ended.
///
/// # Errors
/// I/O errors; `Corrupt` when the file ends before `buf` is full.
pub fn read_full_at(file: &dyn File, buf: &mut [u8], offset: u64) -> Result<()> {
    match read_up_to(file, buf, offset)? {
        done if done < buf.len() => Err(Error::corrupt(format!("unexpected EOF at offset {}", offset + done as u64))),
        _ => Ok(()),
    }
}

/// Makes `bytes` the content of a file, in place: for notes that are safe to lose, and whose readers notice a torn one.
///
/// # Errors
/// I/O errors; the old content may be torn then.
pub fn rewrite(fs: &dyn Fs, path: &Path, bytes: &[u8], owner_mode: OwnerMode) -> Result<()> {
    let file = match fs.open(path, OpenMode::ReadWrite) {
        Err(err) if err.kind() == ErrorKind::NotFound => fs.open(path, OpenMode::CreateNew(owner_mode))?,
        opened => opened?,
    };
    file.write_all_at(bytes, 0)?;
    file.set_len(bytes.len() as u64)
}

/// Fills `buf` from `offset` as far as the file goes. Says how many bytes that were.
///
/// # Errors
/// I/O errors.
pub fn read_up_to(file: &dyn File, buf: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::super::OsFs;
    use super::*;

    #[test]
    fn nothing_is_left_behind_when_publishing_is_abandoned() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x.ltx");
        let publisher = Publisher::create(&OsFs, &target, OwnerMode::DEFAULT_FILE).unwrap();
        publisher.file().write_all_at(b"half", 0).unwrap();
        drop(publisher);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn publishing_replaces_the_old_content_and_sets_the_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x.ltx");
        std::fs::write(&target, b"old").unwrap();
        let publisher = Publisher::create(&OsFs, &target, OwnerMode::PRIVATE_FILE).unwrap();
        publisher.file().write_all_at(b"new", 0).unwrap();
        publisher.publish(Some(Timestamp::from_millis(1_500))).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        let stat = OsFs.stat(&target).unwrap();
        assert_eq!(stat.modified, Timestamp::from_millis(1_500));
        assert_eq!(super::super::os_fs::mode_of(&target), 0o600);
    }

    #[test]
    fn unique_temporary_names_tell_their_target() {
        let target = Path::new("/x/app.db");
        let temp = unique_temp_path(&super::super::OsRandom, target);
        assert_ne!(temp, unique_temp_path(&super::super::OsRandom, target));
        assert_eq!(temp.parent(), target.parent());
        assert_eq!(target_of_temp(temp.file_name().unwrap().to_str().unwrap()), Some("app.db"));
        for other in ["app.db.tmp", "app.db", ".0123456789abcdef.tmp", "x.0123456789abcdeg.tmp", "x.0123456789abcdef"] {
            assert_eq!(target_of_temp(other), None, "{other}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_planted_at_the_temporary_name_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, b"precious").unwrap();
        let target = dir.path().join("out");
        std::os::unix::fs::symlink(&victim, dir.path().join("out.tmp")).unwrap();
        let publisher = Publisher::create(&OsFs, &target, OwnerMode::DEFAULT_FILE).unwrap();
        publisher.file().write_all_at(b"data", 0).unwrap();
        publisher.publish(None).unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }
}
