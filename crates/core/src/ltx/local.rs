//! The LTX files beside a database: `<meta>/ltx/<level>/<min>-<max>.ltx`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::name::{file_name, parse_file_name};
use crate::error::{ErrorKind, Result};
use crate::sys::{File, FileKind, Fs, OpenMode, World};
use crate::types::{Level, TxidRange};

/// The local LTX directory of one database.
#[derive(Debug, Clone)]
pub struct LocalDir {
    fs: Arc<dyn Fs>,
    meta: PathBuf,
}

impl LocalDir {
    /// The directory below `meta`, which need not exist.
    #[must_use]
    pub fn new(world: &World, meta: PathBuf) -> Self {
        Self { fs: Arc::clone(&world.fs), meta }
    }

    /// `<meta>/ltx`.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.meta.join("ltx")
    }

    /// `<meta>/ltx/<level>`.
    #[must_use]
    pub fn level_dir(&self, level: Level) -> PathBuf {
        self.root().join(level.to_string())
    }

    /// Where the file of a range is or would be.
    #[must_use]
    pub fn path(&self, level: Level, range: TxidRange) -> PathBuf {
        self.level_dir(level).join(file_name(range))
    }

    /// The files of a level, ascending by first, then last TXID. A missing directory is empty;
    /// other names, and anything but regular files, are left out.
    ///
    /// # Errors
    /// I/O errors.
    pub fn list(&self, level: Level) -> Result<Vec<TxidRange>> {
        let entries = match self.fs.list(&self.level_dir(level)) {
            Err(err) if err.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let files = entries.iter().filter(|e| e.kind == FileKind::File);
        let mut ranges: Vec<TxidRange> = files.filter_map(|e| parse_file_name(&e.name)).collect();
        ranges.sort_unstable();
        Ok(ranges)
    }

    /// The file of a level with the highest last TXID; of several, the one that starts last.
    ///
    /// # Errors
    /// I/O errors.
    pub fn newest(&self, level: Level) -> Result<Option<TxidRange>> {
        Ok(self.list(level)?.into_iter().max_by_key(|&range| (range.max(), range.min())))
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// `NotFound`; I/O errors.
    pub fn open(&self, level: Level, range: TxidRange) -> Result<Box<dyn File>> {
        self.fs.open(&self.path(level, range), OpenMode::Read)
    }

    /// Removes a file. Removing an absent one succeeds.
    ///
    /// # Errors
    /// I/O errors.
    pub fn remove(&self, level: Level, range: TxidRange) -> Result<()> {
        self.fs.remove_file(&self.path(level, range))
    }

    /// Makes the names of a level's files durable, and the directories they are in. A process that
    /// died between a rename and the sync of the directory, or between creating a directory and the
    /// sync of its parent, leaves names that a power cut can still take away.
    ///
    /// # Errors
    /// I/O errors.
    pub fn make_durable(&self, level: Level) -> Result<()> {
        let (level, root) = (self.level_dir(level), self.root());
        let dirs = [Some(level.as_path()), Some(root.as_path()), Some(self.meta.as_path()), self.meta.parent()];
        dirs.into_iter().flatten().try_for_each(|dir| self.fs.sync_dir(dir))
    }

    /// Removes `<meta>/ltx` and everything below.
    ///
    /// # Errors
    /// I/O errors.
    pub fn clear(&self) -> Result<()> {
        self.fs.remove_dir_all(&self.root())
    }

    /// Removes what a crash left half-written: every `*.tmp` below `<meta>`, as far as possible.
    pub fn remove_temp_files(&self) {
        let mut dirs = vec![self.meta.clone()];
        while let Some(dir) = dirs.pop() {
            self.remove_temp_files_in(&dir, &mut dirs);
        }
    }

    fn remove_temp_files_in(&self, dir: &Path, below: &mut Vec<PathBuf>) {
        // Best effort: a leftover costs space, not correctness, and is tried again at the next start.
        for entry in self.fs.list(dir).unwrap_or_default() {
            let path = dir.join(&entry.name);
            match entry.kind {
                FileKind::Dir => below.push(path),
                _ if entry.name.ends_with(".tmp") => drop(self.fs.remove_file(&path)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Txid;

    fn range(min: u64, max: u64) -> TxidRange {
        TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap()
    }

    fn put(dir: &LocalDir, level: Level, name: &str) {
        std::fs::create_dir_all(dir.level_dir(level)).unwrap();
        std::fs::write(dir.level_dir(level).join(name), name).unwrap();
    }

    #[test]
    fn listing_is_ordered_and_leaves_other_names_out() {
        let temp = tempfile::tempdir().unwrap();
        let dir = LocalDir::new(&World::system(), temp.path().join("meta"));
        assert_eq!(dir.list(Level::L0).unwrap(), []);
        assert_eq!(dir.newest(Level::L0).unwrap(), None);
        for r in [range(16, 17), range(1, 9), range(3, 3), range(1, 2)] {
            put(&dir, Level::L0, &file_name(r));
        }
        put(&dir, Level::L0, "notes.txt");
        put(&dir, Level::L0, "0000000000000099-0000000000000099.ltx.tmp");
        std::fs::create_dir(dir.path(Level::L0, range(40, 41))).unwrap();
        put(&dir, Level::SNAPSHOT, &file_name(range(1, 50)));
        assert_eq!(dir.list(Level::L0).unwrap(), [range(1, 2), range(1, 9), range(3, 3), range(16, 17)]);
        assert_eq!(dir.newest(Level::L0).unwrap(), Some(range(16, 17)));
        assert_eq!(dir.path(Level::L0, range(1, 2)), temp.path().join("meta/ltx/0").join(file_name(range(1, 2))));
    }

    #[test]
    fn files_can_be_opened_and_removed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = LocalDir::new(&World::system(), temp.path().into());
        put(&dir, Level::L0, &file_name(range(1, 1)));
        assert_eq!(dir.open(Level::L0, range(1, 1)).unwrap().stat().unwrap().len, 37);
        dir.remove(Level::L0, range(1, 1)).unwrap();
        dir.remove(Level::L0, range(1, 1)).unwrap();
        assert_eq!(dir.open(Level::L0, range(1, 1)).unwrap_err().kind(), ErrorKind::NotFound);
        dir.clear().unwrap();
        dir.clear().unwrap();
        assert!(!dir.root().exists());
    }

    #[test]
    fn only_temporary_files_are_swept() {
        let temp = tempfile::tempdir().unwrap();
        let dir = LocalDir::new(&World::system(), temp.path().into());
        put(&dir, Level::L0, &file_name(range(1, 1)));
        put(&dir, Level::L0, "a.ltx.tmp");
        std::fs::write(temp.path().join("b.tmp"), "").unwrap();
        std::fs::create_dir(temp.path().join("c.tmp")).unwrap();
        dir.remove_temp_files();
        assert_eq!(dir.list(Level::L0).unwrap(), [range(1, 1)]);
        assert_eq!(std::fs::read_dir(dir.level_dir(Level::L0)).unwrap().count(), 1);
        assert!(!temp.path().join("b.tmp").exists());
        assert!(temp.path().join("c.tmp").exists());
    }
}
