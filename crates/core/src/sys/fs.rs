//! The file system as a trait: what the engine, the file replica and restore need of it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::ownership::Identity;
use crate::error::Result;
use crate::types::Timestamp;

/// Identity of a file: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else.
    Other,
}

/// Permission bits and owner, to be copied from the database to what we create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerMode {
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Owner and group; `None` leaves the creator's.
    pub owner: Option<(u32, u32)>,
}

impl OwnerMode {
    /// Only the owner may read and write.
    pub const PRIVATE_FILE: Self = Self { mode: 0o600, owner: None };
    /// Only the owner may enter.
    pub const PRIVATE_DIR: Self = Self { mode: 0o700, owner: None };
    /// Whatever the umask leaves.
    pub const DEFAULT_FILE: Self = Self { mode: 0o666, owner: None };
}

/// Modes and owners for files and directories that are made on behalf of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// For files: the database's own.
    pub file: OwnerMode,
    /// For directories: those of the directory the database is in.
    pub dir: OwnerMode,
}

impl Default for Modes {
    /// Private to whoever runs the program.
    fn default() -> Self {
        Self { file: OwnerMode::PRIVATE_FILE, dir: OwnerMode::PRIVATE_DIR }
    }
}

/// Facts about a file.
#[derive(Debug, Clone, Copy)]
pub struct FileStat {
    /// What it is.
    pub kind: FileKind,
    /// Length in bytes.
    pub len: u64,
    /// Last modification, or what [`File::set_modified`] made of it.
    pub modified: Timestamp,
    /// When content or any of these facts last changed; nobody can set this.
    pub changed: Timestamp,
    /// Identity.
    pub id: FileId,
    /// Permission bits and owner.
    pub owner_mode: OwnerMode,
}

/// One name in a directory.
#[derive(Debug, Clone)]
pub struct DirEntry {
    /// The name, without its directory. Names that are not UTF-8 are left out of listings.
    pub name: String,
    /// What it names.
    pub kind: FileKind,
}

/// How to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    ReadWrite,
    /// A new file; fails if the name exists and never follows a link. Mode and owner as given.
    CreateNew(OwnerMode),
}

/// An open file. Reads and writes are positioned; there is no cursor.
pub trait File: fmt::Debug + Send + Sync {
    /// Reads at most `buf.len()` bytes; 0 means end of file. Interruptions are retried.
    ///
    /// # Errors
    /// I/O errors.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;
    /// Writes all of `buf`.
    ///
    /// # Errors
    /// I/O errors; part of it may have been written.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()>;
    /// Cuts or extends with zeros.
    ///
    /// # Errors
    /// I/O errors.
    fn set_len(&self, len: u64) -> Result<()>;
    /// Makes content and length durable. After an error the file must be thrown away.
    ///
    /// # Errors
    /// I/O errors.
    fn sync(&self) -> Result<()>;
    /// Marks the file as being worked on for as long as it is open, however that ends. `None` where
    /// the file system has no such marks; `Some(false)` if somebody else has marked it.
    ///
    /// # Errors
    /// I/O errors.
    fn claim(&self) -> Result<Option<bool>> {
        Ok(None)
    }
    /// Facts about the open file, whatever its path names now.
    ///
    /// # Errors
    /// I/O errors.
    fn stat(&self) -> Result<FileStat>;
    /// Sets access and modification time.
    ///
    /// # Errors
    /// I/O errors.
    fn set_modified(&self, at: Timestamp) -> Result<()>;
}

/// A lock that is held. Dropping it gives it back.
pub trait Lock: fmt::Debug + Send + Sync {}

/// A file system.
pub trait Fs: fmt::Debug + Send + Sync + 'static {
    /// Opens a file.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `PermissionDenied`, I/O errors.
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Box<dyn File>>;
    /// Facts about what the path names, links followed.
    ///
    /// # Errors
    /// `NotFound`, I/O errors.
    fn stat(&self, path: &Path) -> Result<FileStat>;
    /// The path of the file itself, where the last name of `path` is a link, or a link to a link; it need not
    /// be there. Any other path as it is. This is where SQLite keeps what belongs to a database.
    fn resolve(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }
    /// Names in a directory, in no order.
    ///
    /// # Errors
    /// `NotFound`, I/O errors.
    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>>;
    /// Creates the directory and its missing parents; existing ones are left alone.
    ///
    /// # Errors
    /// I/O errors.
    fn create_dir_all(&self, dir: &Path, owner_mode: OwnerMode) -> Result<()>;
    /// Renames, replacing what `to` named.
    ///
    /// # Errors
    /// I/O errors.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Renames unless `to` names something, which is told from the rename itself and not before it.
    /// Where the file system cannot do that, it is looked at before.
    ///
    /// # Errors
    /// `Exists`, with `from` still there; I/O errors.
    fn rename_new(&self, from: &Path, to: &Path) -> Result<()>;
    /// Takes the lock that the file stands for, creating it if need be, for as long as the result
    /// lives. `owner` is left in the file for whoever finds it locked.
    ///
    /// # Errors
    /// `InUse` if somebody has it, in this process or another; I/O errors.
    fn lock(&self, path: &Path, owner_mode: OwnerMode, owner: &str) -> Result<Box<dyn Lock>>;
    /// Removes a file. Removing an absent one succeeds.
    ///
    /// # Errors
    /// I/O errors.
    fn remove_file(&self, path: &Path) -> Result<()>;
    /// Removes a directory and everything below. Removing an absent one succeeds.
    ///
    /// # Errors
    /// I/O errors.
    fn remove_dir_all(&self, dir: &Path) -> Result<()>;
    /// Whose the files are that are created here; `None` where that means nothing.
    fn user(&self) -> Option<u32> {
        self.identity().map(|who| who.user)
    }
    /// Who creates files here; `None` where that means nothing.
    fn identity(&self) -> Option<Identity> {
        None
    }
    /// Whether this process is allowed to write what the path names. Only rights count: what is mounted read-only, or
    /// is not there, is not forbidden.
    fn may_write(&self, _path: &Path) -> bool {
        true
    }
    /// Whether an access control list decides who may use what is created in a directory.
    fn has_default_acl(&self, _dir: &Path) -> bool {
        false
    }
    /// Creates an empty file with exactly this mode, whatever the umask, and with owner and group as far as this process
    /// may give them. Returns what it became.
    ///
    /// # Errors
    /// `Exists`, `PermissionDenied`, I/O errors.
    fn create_empty(&self, path: &Path, owner_mode: OwnerMode) -> Result<FileStat> {
        self.open(path, OpenMode::CreateNew(owner_mode))?.stat()
    }
    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// I/O errors.
    fn sync_dir(&self, dir: &Path) -> Result<()>;

    /// Like [`Fs::create_dir_all`], and makes the entries of `dir` and of `above - 1` directories above it
    /// durable, whoever created them: somebody may have been killed, or have met an error, between
    /// creating one and syncing its parent.
    ///
    /// # Errors
    /// I/O errors.
    fn create_durable_dir(&self, dir: &Path, owner_mode: OwnerMode, above: usize) -> Result<()> {
        self.create_dir_all(dir, owner_mode)?;
        dir.ancestors().skip(1).take(above).try_for_each(|parent| self.sync_dir(parent))
    }

    /// Like [`Fs::stat`], with `None` for a missing path.
    ///
    /// # Errors
    /// I/O errors.
    fn stat_opt(&self, path: &Path) -> Result<Option<FileStat>> {
        match self.stat(path) {
            Ok(stat) => Ok(Some(stat)),
            Err(err) if err.kind() == crate::error::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Like [`Fs::open`], with `None` for a missing file.
    ///
    /// # Errors
    /// I/O errors.
    fn open_opt(&self, path: &Path, mode: OpenMode) -> Result<Option<Box<dyn File>>> {
        match self.open(path, mode) {
            Ok(file) => Ok(Some(file)),
            Err(err) if err.kind() == crate::error::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }
}

/// `path` with `suffix` appended to its file name: `app.db` + `-wal`.
#[must_use]
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
