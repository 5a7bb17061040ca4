//! The machine's file system.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown};
use std::path::{Path, PathBuf};

use super::file_lock;
use super::fs::{DirEntry, File, FileId, FileKind, FileStat, Fs, Lock, OpenMode, OwnerMode};
use super::ownership::Identity;
use crate::error::{Error, Result};
use crate::types::Timestamp;

/// [`Fs`] of the operating system.
#[derive(Debug, Clone, Copy)]
pub struct OsFs;

#[derive(Debug)]
struct OsFile {
    file: fs::File,
    path: PathBuf,
}

fn stat_of(meta: &fs::Metadata) -> FileStat {
    let kind = if meta.is_file() {
        FileKind::File
    } else if meta.is_dir() {
        FileKind::Dir
    } else {
        FileKind::Other
    };
    FileStat {
        kind,
        len: meta.len(),
        changed: Timestamp::from_millis(meta.ctime() * 1000 + meta.ctime_nsec() / 1_000_000),
        modified: meta.modified().map_or(Timestamp::from_millis(0), Timestamp::from_system),
        id: FileId { dev: meta.dev(), ino: meta.ino() },
        owner_mode: OwnerMode { mode: meta.mode() & 0o7777, owner: Some((meta.uid(), meta.gid())) },
    }
}

/// Owners can only be given away by root; everybody else keeps what they create, and gives it to a group they are in.
/// By descriptor or without following links: whoever owns the directory could put one in the place of the new name.
fn give(owner: Option<(u32, u32)>, chown: impl Fn(Option<u32>, Option<u32>) -> io::Result<()>) {
    if let Some((uid, gid)) = owner
        && chown(Some(uid), Some(gid)).is_err()
    {
        let _ = chown(None, Some(gid));
    }
}

fn give_file(file: &fs::File, owner: Option<(u32, u32)>) {
    give(owner, |uid, gid| fchown(file, uid, gid));
}

fn give_name(path: &Path, owner: Option<(u32, u32)>) {
    give(owner, |uid, gid| lchown(path, uid, gid));
}

impl File for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        loop {
            match self.file.read_at(buf, offset) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map_err(|e| Error::io("read", e).at(self.path.display())),
            }
        }
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(buf, offset).map_err(|e| Error::io("write", e).at(self.path.display()))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|e| Error::io("truncate", e).at(self.path.display()))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io("sync", e).at(self.path.display()))
    }

    fn claim(&self) -> Result<Option<bool>> {
        file_lock::claim(&self.file).map_err(|e| Error::io("lock", e).at(self.path.display()))
    }

    fn stat(&self) -> Result<FileStat> {
        let meta = self.file.metadata().map_err(|e| Error::io("stat", e).at(self.path.display()))?;
        Ok(stat_of(&meta))
    }

    fn set_modified(&self, at: Timestamp) -> Result<()> {
        let times = fs::FileTimes::new().set_accessed(at.to_system()).set_modified(at.to_system());
        self.file.set_times(times).map_err(|e| Error::io("set time of", e).at(self.path.display()))
    }
}

impl Fs for OsFs {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Box<dyn File>> {
        let mut options = fs::OpenOptions::new();
        match mode {
            OpenMode::Read => options.read(true),
            OpenMode::ReadWrite => options.read(true).write(true),
            // O_EXCL never follows a link in the last component.
            OpenMode::CreateNew(om) => options.read(true).write(true).create_new(true).mode(om.mode),
        };
        let file = options.open(path).map_err(|e| Error::io("open", e).at(path.display()))?;
        if let OpenMode::CreateNew(om) = mode {
            give_file(&file, om.owner);
        }
        Ok(Box::new(OsFile { file, path: path.to_owned() }))
    }

    fn stat(&self, path: &Path) -> Result<FileStat> {
        let meta = fs::metadata(path).map_err(|e| Error::io("stat", e).at(path.display()))?;
        Ok(stat_of(&meta))
    }

    fn resolve(&self, path: &Path) -> PathBuf {
        // As many as the system itself follows; whoever opens a circle gets an error from it.
        const MAX_LINKS: usize = 40;
        let mut at = path.to_owned();
        for _ in 0..MAX_LINKS {
            let Ok(target) = fs::read_link(&at) else { return at };
            at = at.parent().unwrap_or(Path::new("")).join(target);
        }
        path.to_owned()
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        let fail = |e| Error::io("open", e).at(dir.display());
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let kind = match entry.file_type() {
                Ok(t) if t.is_file() => FileKind::File,
                Ok(t) if t.is_dir() => FileKind::Dir,
                _ => FileKind::Other,
            };
            entries.push(DirEntry { name, kind });
        }
        Ok(entries)
    }

    fn create_dir_all(&self, dir: &Path, om: OwnerMode) -> Result<()> {
        if dir.as_os_str().is_empty() || dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = dir.parent() {
            self.create_dir_all(parent, om)?;
        }
        match fs::DirBuilder::new().mode(om.mode).create(dir) {
            Ok(()) => {
                give_name(dir, om.owner);
                // The new entry must survive a power cut as surely as the files put below it.
                match dir.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => self.sync_dir(parent),
                    _ => Ok(()),
                }
            }
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
            Err(err) => Err(Error::io("mkdir", err).at(dir.display())),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that renames")]
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|e| Error::io("rename", e).at(format!("{} {}", from.display(), to.display())))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        let fail = |e: io::Error| Error::io("rename", e).at(format!("{} {}", from.display(), to.display()));
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // The kernel or this file system does not know the flag. A link does not replace either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            Err(err) => return Err(fail(err.into())),
        }
        match fs::hard_link(from, to) {
            Ok(()) => self.remove_file(from),
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Err(fail(err)),
            // Nor does it know links: all that is left is to look first.
            Err(_) if self.stat_opt(to)?.is_some() => Err(fail(io::ErrorKind::AlreadyExists.into())),
            Err(_) => self.rename(from, to),
        }
    }

    fn lock(&self, path: &Path, owner_mode: OwnerMode, owner: &str) -> Result<Box<dyn Lock>> {
        let lock = file_lock::take(path, owner_mode, owner)?;
        give_name(path, owner_mode.owner);
        Ok(Box::new(lock))
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        match fs::remove_file(path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", err).at(path.display())),
            _ => Ok(()),
        }
    }

    fn remove_dir_all(&self, dir: &Path) -> Result<()> {
        match fs::remove_dir_all(dir) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", err).at(dir.display())),
            _ => Ok(()),
        }
    }

    fn identity(&self) -> Option<Identity> {
        use rustix::process::{getegid, geteuid, getgroups};
        let groups = getgroups().unwrap_or_default().into_iter().map(|group| group.as_raw()).collect();
        Some(Identity { user: geteuid().as_raw(), group: getegid().as_raw(), groups })
    }

    fn may_write(&self, path: &Path) -> bool {
        use rustix::fs::{Access, access};
        use rustix::io::Errno;
        !matches!(access(path, Access::READ_OK | Access::WRITE_OK), Err(Errno::ACCESS | Errno::PERM))
    }

    fn has_default_acl(&self, dir: &Path) -> bool {
        rustix::fs::getxattr(dir, "system.posix_acl_default", &mut [0_u8; 0][..]).is_ok_and(|len| len > 0)
    }

    fn create_empty(&self, path: &Path, om: OwnerMode) -> Result<FileStat> {
        let fail = |e| Error::io("create", e).at(path.display());
        let made = fs::OpenOptions::new().write(true).create_new(true).mode(om.mode).open(path).map_err(fail)?;
        give_file(&made, om.owner);
        // After the owner was changed, which may take bits away, and in spite of the umask.
        made.set_permissions(fs::Permissions::from_mode(om.mode & 0o777)).map_err(fail)?;
        Ok(stat_of(&made.metadata().map_err(fail)?))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        // The parent of a bare file name is "", which cannot be opened.
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let fail = |e| Error::io("sync directory", e).at(dir.display());
        fs::File::open(dir).map_err(fail)?.sync_all().map_err(fail)
    }
}

/// The permission bits a new file got, for tests of ownership rules.
#[cfg(test)]
pub(crate) fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).map(|m| m.mode() & 0o777).unwrap_or(0)
}
