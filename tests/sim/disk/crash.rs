//! What a power cut leaves of what was not durable.

use std::collections::BTreeMap;
use std::path::Path;

use super::names::Dir;
use super::{Class, Entry, Inner, Inode, OTHER_DB, Proc, SECTOR, split, text_of};
use crate::app::DB;
use crate::rng::Rng;

/// What outlives a power cut, where that is said rather than drawn: of everything else, all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    /// Whether a sector of the log that was not synced is kept.
    pub(crate) log: fn(usize) -> bool,
    pub(crate) record: bool,
    /// Names that no sync of their directory made durable.
    pub(crate) names: bool,
}

impl Inode {
    /// Whether sectors differ from what is durable and nobody is going to write them back.
    fn lacks_sectors(&self) -> bool {
        let len = self.data.len();
        (0..len.div_ceil(SECTOR)).filter(|sector| !self.dirty.contains(sector)).any(|sector| {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(len);
            self.durable.get(range.clone()) != Some(&self.data[range])
        })
    }
}

impl Inner {
    /// The power comes back: what was not durable is kept, lost or torn.
    pub(crate) fn reboot(&mut self) {
        let betrayed = [Path::new(DB), Path::new(OTHER_DB)].map(|db| self.betrays(db));
        let mut rng = self.rng.clone();
        for ino in 0..self.files.len() {
            self.crash_file(ino, &mut rng);
        }
        self.reboot_dirs(betrayed, |dir| crash_dir(dir, &mut rng));
        self.rng = rng;
    }

    /// The power comes back, and what is lost is as `keep` says.
    pub(crate) fn reboot_keeping(&mut self, keep: Keep) {
        let paths = self.walk();
        let classes: BTreeMap<usize, Class> =
            paths.iter().filter_map(|path| Some((self.file_at(path)?, Class::of(path)))).collect();
        for (ino, file) in self.files.iter_mut().enumerate() {
            let class = classes.get(&ino).copied();
            let mut image = std::mem::take(&mut file.durable);
            let len = if class == Some(Class::Record) && !keep.record { image.len() } else { file.data.len() };
            image.resize(len, 0);
            for &sector in &file.dirty {
                let kept = match class {
                    Some(Class::Wal) => (keep.log)(sector),
                    Some(Class::Record) => keep.record,
                    _ => true,
                };
                let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(len));
                if kept && from < to {
                    image[from..to].copy_from_slice(&file.data[from..to]);
                }
            }
            file.data.clone_from(&image);
            file.durable = image;
            file.dirty.clear();
            (file.len_changed, file.shortest) = (false, None);
            file.version += 1;
        }
        self.reboot_dirs([false; 2], |dir| {
            match keep.names {
                true => dir.durable.clone_from(&dir.names),
                false => dir.names.clone_from(&dir.durable),
            }
            dir.since.clear();
        });
    }

    /// Whether a failed sync dropped sectors of a database or its log that nothing has written since.
    fn betrays(&self, db: &Path) -> bool {
        let wal = format!("{}-wal", text_of(db));
        [db, Path::new(&wal)]
            .into_iter()
            .filter_map(|path| self.file_at(path))
            .any(|ino| self.files[ino].lacks_sectors())
    }

    fn reboot_dirs(&mut self, [db, other]: [bool; 2], mut crash: impl FnMut(&mut Dir)) {
        for proc in Proc::ALL {
            self.end(proc);
        }
        self.disarm();
        self.off = false;
        for (path, dir) in std::mem::take(&mut self.removed) {
            self.dirs.entry(path).or_insert(dir);
        }
        self.dirs.values_mut().for_each(&mut crash);
        self.drop_orphans();
        self.oracle.power_was_cut(db);
        self.other.power_was_cut(other);
    }

    fn crash_file(&mut self, ino: usize, rng: &mut Rng) {
        let file = &mut self.files[ino];
        if file.dirty.is_empty() && !file.len_changed {
            return;
        }
        let style = rng.below(5);
        if let Some(shortest) = file.shortest.take() {
            if style == 0 || rng.below(2) == 0 {
                file.data.clone_from(&file.durable);
                file.dirty.clear();
                file.len_changed = false;
                file.version += 1;
                return;
            }
            file.durable.truncate(shortest);
        }
        let (old, new) = (file.durable.len(), file.data.len());
        let len = match style {
            0 => old,
            1 => new,
            _ => match rng.below(3) {
                0 => old,
                1 => new,
                _ => (old.min(new) + rng.index(old.abs_diff(new) + 1)).div_ceil(SECTOR) * SECTOR,
            },
        }
        .min(old.max(new));
        let mut image = std::mem::take(&mut file.durable);
        image.resize(len, 0);
        let keep_first = rng.index(file.dirty.len() + 1);
        for (n, &sector) in file.dirty.iter().enumerate() {
            let kept = match style {
                0 => false,
                1 => true,
                2 => n < keep_first,
                3 => rng.below(8) != 0,
                _ => rng.below(2) == 0,
            };
            let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(len).min(file.data.len()));
            if kept && from < to {
                image[from..to].copy_from_slice(&file.data[from..to]);
            }
            self.counts.torn += u64::from(!kept);
        }
        file.data.clone_from(&image);
        file.durable = image;
        file.dirty.clear();
        file.len_changed = false;
        file.version += 1;
        file.locks.clear();
    }

    /// Directories whose entry was lost are gone with everything below.
    fn drop_orphans(&mut self) {
        loop {
            let orphan = self.dirs.keys().find(|path| {
                let (parent, name) = split(path);
                *path != "/" && !self.dirs.get(parent).is_some_and(|dir| dir.names.get(name) == Some(&Entry::Dir))
            });
            let Some(orphan) = orphan.cloned() else { return };
            self.dirs.remove(&orphan);
        }
    }
}

fn crash_dir(dir: &mut Dir, rng: &mut Rng) {
    if dir.since.is_empty() {
        return;
    }
    let any_subset = rng.below(4) == 0;
    let keep_first = rng.index(dir.since.len() + 1);
    let mut names = std::mem::take(&mut dir.durable);
    for (n, op) in dir.since.iter().enumerate() {
        if if any_subset { rng.below(2) == 0 } else { n < keep_first } {
            Dir::apply(&mut names, op);
        }
    }
    dir.names.clone_from(&names);
    dir.durable = names;
    dir.since.clear();
}
