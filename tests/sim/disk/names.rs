//! Directories, and what their entries are for as long as nobody has made them durable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{EEXIST, EIO, ENOENT, Entry, Inner, Inode, Mount, split, text_of};

#[derive(Debug, Clone)]
pub(super) enum DirOp {
    Link(String, Entry),
    Unlink(String),
    Rename(String, String),
}

#[derive(Debug, Default, Clone)]
pub(super) struct Dir {
    pub(super) names: BTreeMap<String, Entry>,
    pub(super) durable: BTreeMap<String, Entry>,
    pub(super) since: Vec<DirOp>,
}

impl Dir {
    pub(super) fn apply(names: &mut BTreeMap<String, Entry>, op: &DirOp) {
        match op {
            DirOp::Link(name, entry) => drop(names.insert(name.clone(), *entry)),
            DirOp::Unlink(name) => drop(names.remove(name)),
            DirOp::Rename(from, to) => {
                if let Some(entry) = names.remove(from) {
                    names.insert(to.clone(), entry);
                }
            }
        }
    }

    fn change(&mut self, op: DirOp) {
        Self::apply(&mut self.names, &op);
        self.since.push(op);
    }
}

impl Inner {
    pub(crate) fn lookup(&self, path: &Path) -> Option<Entry> {
        if text_of(path) == "/" {
            return Some(Entry::Dir);
        }
        let (dir, name) = split(text_of(path));
        self.dirs.get(dir)?.names.get(name).copied()
    }

    pub(crate) fn file_at(&self, path: &Path) -> Option<usize> {
        match self.lookup(path)? {
            Entry::File(ino) => Some(ino),
            Entry::Dir => None,
        }
    }

    pub(crate) fn create(&mut self, path: &Path, mode: u32) -> Result<usize, i32> {
        let (dir, name) = split(text_of(path));
        let ino = self.files.len();
        let parent = self.dirs.get_mut(dir).ok_or(ENOENT)?;
        if parent.names.contains_key(name) {
            return Err(EEXIST);
        }
        parent.change(DirOp::Link(name.to_owned(), Entry::File(ino)));
        let modified_ms = self.wall_ms;
        self.files.push(Inode { mode, modified_ms, mount: Mount::of(path) as u8, ..Inode::default() });
        Ok(ino)
    }

    /// A file without a name.
    pub(crate) fn create_anonymous(&mut self) -> usize {
        self.files.push(Inode { mount: Mount::Rest as u8, ..Inode::default() });
        self.files.len() - 1
    }

    pub(crate) fn unlink(&mut self, path: &Path) -> Result<(), i32> {
        let (dir, name) = split(text_of(path));
        let parent = self.dirs.get_mut(dir).ok_or(ENOENT)?;
        if !parent.names.contains_key(name) {
            return Err(ENOENT);
        }
        parent.change(DirOp::Unlink(name.to_owned()));
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), i32> {
        let ((dir, old), (other, new)) = (split(text_of(from)), split(text_of(to)));
        if dir != other {
            return Err(EIO);
        }
        let parent = self.dirs.get_mut(dir).ok_or(ENOENT)?;
        if !parent.names.contains_key(old) {
            return Err(ENOENT);
        }
        parent.change(DirOp::Rename(old.to_owned(), new.to_owned()));
        Ok(())
    }

    /// Creates one directory; says whether it is new.
    pub(crate) fn mkdir(&mut self, dir: &Path) -> Result<bool, i32> {
        if self.dirs.contains_key(text_of(dir)) {
            return Ok(false);
        }
        let (parent, name) = split(text_of(dir));
        self.dirs.get_mut(parent).ok_or(ENOENT)?.change(DirOp::Link(name.to_owned(), Entry::Dir));
        self.dirs.insert(text_of(dir).to_owned(), Dir::default());
        Ok(true)
    }

    pub(crate) fn mkdir_all(&mut self, dir: &Path) {
        if let Some(parent) = dir.parent() {
            self.mkdir_all(parent);
        }
        let _ = self.mkdir(dir);
    }

    pub(crate) fn names(&self, dir: &Path) -> Option<Vec<(String, Entry)>> {
        Some(self.dirs.get(text_of(dir))?.names.iter().map(|(name, entry)| (name.clone(), *entry)).collect())
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&mut self, dir: &Path) -> Result<(), i32> {
        let (parent, name) = split(text_of(dir));
        let gone = self.dirs.remove(text_of(dir)).ok_or(ENOENT)?;
        self.removed.insert(text_of(dir).to_owned(), gone);
        self.dirs.get_mut(parent).ok_or(ENOENT)?.change(DirOp::Unlink(name.to_owned()));
        Ok(())
    }

    pub(crate) fn sync_dir(&mut self, dir: &Path) -> Result<(), i32> {
        let dir = self.dirs.get_mut(text_of(dir)).ok_or(ENOENT)?;
        for op in std::mem::take(&mut dir.since) {
            Dir::apply(&mut dir.durable, &op);
        }
        Ok(())
    }

    /// All files with their paths.
    pub(crate) fn walk(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for (path, dir) in &self.dirs {
            for (name, entry) in &dir.names {
                if matches!(entry, Entry::File(_)) {
                    all.push(Path::new(path).join(name));
                }
            }
        }
        all
    }

    /// Removes a directory and everything below.
    pub(crate) fn remove_tree(&mut self, dir: &Path) {
        for (name, entry) in self.names(dir).unwrap_or_default() {
            let path = dir.join(name);
            match entry {
                Entry::Dir => self.remove_tree(&path),
                Entry::File(_) => drop(self.unlink(&path)),
            }
        }
        let _ = self.rmdir(dir);
    }

    /// Takes a file of the harness out as if it had never been.
    pub(crate) fn forget_file(&mut self, path: &Path) {
        let (dir, name) = split(text_of(path));
        let Some(ino) = self.file_at(path) else { return };
        if let Some(dir) = self.dirs.get_mut(dir) {
            dir.names.remove(name);
            dir.durable.remove(name);
            dir.since.clear();
        }
        self.files[ino] = Inode::default();
    }
}
