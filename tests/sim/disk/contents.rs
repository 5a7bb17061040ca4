//! Bytes of files, and which of them a sync has made durable.

use super::names::{Dir, DirOp};
use super::{EIO, ENOSPC, Entry, Inner, SECTOR, Who};

impl Inner {
    /// How many of `more` bytes still fit.
    fn room(&mut self, ino: usize, more: usize) -> usize {
        let slot = usize::from(self.files[ino].mount);
        let Some(left) = &mut self.budgets[slot] else { return more };
        let granted = more.min(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= granted as u64;
        if granted < more {
            self.counts.full += 1;
        }
        granted
    }

    pub(crate) fn write(&mut self, ino: usize, bytes: &[u8], offset: u64) -> Result<(), i32> {
        let offset = usize::try_from(offset).map_err(|_| EIO)?;
        let end = offset + bytes.len();
        let more = end.saturating_sub(self.files[ino].data.len());
        let granted = self.room(ino, more);
        let len = bytes.len() - (more - granted).min(bytes.len());
        let now = self.wall_ms;
        let file = &mut self.files[ino];
        if len > 0 {
            let end = offset + len;
            if file.data.len() < end {
                let old = file.data.len();
                file.data.resize(end, 0);
                file.dirty.extend(old / SECTOR..end.div_ceil(SECTOR));
                file.len_changed = true;
            }
            file.data[offset..end].copy_from_slice(&bytes[..len]);
            file.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
        }
        file.modified_ms = now;
        file.version += 1;
        if granted < more { Err(ENOSPC) } else { Ok(()) }
    }

    pub(crate) fn set_len(&mut self, ino: usize, len: u64) -> Result<(), i32> {
        let len = usize::try_from(len).map_err(|_| EIO)?;
        let old = self.files[ino].data.len();
        let more = len.saturating_sub(old);
        if self.room(ino, more) < more {
            return Err(ENOSPC);
        }
        let now = self.wall_ms;
        let file = &mut self.files[ino];
        file.data.resize(len, 0);
        let (low, high) = (old.min(len), old.max(len));
        file.dirty.extend(low / SECTOR..high.div_ceil(SECTOR));
        file.len_changed |= old != len;
        if len < old {
            file.shortest = Some(file.shortest.map_or(len, |shortest| shortest.min(len)));
        }
        file.modified_ms = now;
        file.version += 1;
        Ok(())
    }

    pub(crate) fn sync(&mut self, ino: usize) {
        // The creation of a file is durable with its content, as on the file systems people use. A
        // rename is not.
        for dir in self.dirs.values_mut() {
            let made = dir.since.iter().position(|op| matches!(op, DirOp::Link(_, Entry::File(n)) if *n == ino));
            if let Some(at) = made {
                let op = dir.since.remove(at);
                Dir::apply(&mut dir.durable, &op);
                // What the name was before is of no account any more.
                let DirOp::Link(name, _) = op else { continue };
                let mut n = 0;
                dir.since.retain(|op| {
                    n += 1;
                    n > at || !matches!(op, DirOp::Link(old, _) | DirOp::Unlink(old) if *old == name)
                });
            }
        }
        let file = &mut self.files[ino];
        if file.dirty.is_empty() && !file.len_changed {
            return;
        }
        file.durable.resize(file.data.len(), 0);
        for &sector in &file.dirty {
            let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(file.data.len()));
            if from < to {
                file.durable[from..to].copy_from_slice(&file.data[from..to]);
            }
        }
        file.dirty.clear();
        file.len_changed = false;
        file.shortest = None;
    }

    /// A sync that failed and will never be made good: the pages count as clean from now on.
    pub(crate) fn forget_dirty(&mut self, ino: usize) {
        self.files[ino].dirty.clear();
        self.oracle.cannot_rely_on_syncs();
        self.other.cannot_rely_on_syncs();
    }

    /// Part of a write that was cut off by a kill.
    pub(crate) fn write_half(&mut self, who: Who, ino: usize, bytes: &[u8], offset: u64) {
        let len = self.rng.index(bytes.len() + 1);
        let _ = self.write(ino, &bytes[..len], offset);
        self.kill(who.proc);
    }

    /// Everything on the disk is durable now.
    pub(crate) fn sync_all(&mut self) {
        for ino in 0..self.files.len() {
            self.sync(ino);
        }
        for dir in self.dirs.values_mut() {
            dir.durable = dir.names.clone();
            dir.since.clear();
        }
        self.removed.clear();
    }
}
