//! Where a restored database goes, and how it gets there.
//!
//! Protocol:
//! 1. What is at the destination is looked at before anything is fetched, and again right before
//!    publishing. Without `-force` only an absent or empty file without SQLite sidecars (`-wal`,
//!    `-journal`) will do. Sidecars count even if the database itself is missing: SQLite would
//!    replay a foreign `-wal` into the restored file (X5). An empty one cannot do that, and neither
//!    can a `-shm`: they are put aside like those of 3.
//! 2. The database is built as `<output>.<16 hex digits>.tmp`, created exclusively, links not
//!    followed; verified there; synced. Until then nothing at the destination has been touched. The
//!    name is unique: two restores to one place cannot publish each other's half of a file.
//!    What a crash left under such a name is continued or removed (`partial`).
//! 3. With `-force`: old sidecars are renamed to `<sidecar>.before-restore`, and the directory is
//!    synced, so that no power cut can bring them back beside the new file.
//! 4. The temporary file is renamed to `<output>`; the directory is synced.
//! 5. The sidecars put aside are removed.
//!
//! A failure in 3 or 4 puts the sidecars back, unless another file has the name by then. A crash
//! between 3 and 4 leaves the old database without its `-wal`, which lies beside it under the
//! other name; the reverse order would leave the new database with the old `-wal`: garbage that
//! looks restored.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::fs::with_suffix;
use crate::sys::{FileKind, FileStat, Fs, OwnerMode, Publisher, fault_point};

/// What SQLite keeps beside a database.
const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];
/// Suffix of old sidecars between steps 3 and 5.
const ASIDE: &str = ".before-restore";

/// What may be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overwrite {
    /// Nothing but an empty file.
    #[default]
    Refuse,
    /// An existing database and its sidecars (`-force`).
    Replace,
}

/// The place of a database to be.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    path: PathBuf,
    overwrite: Overwrite,
}

impl Destination {
    pub(crate) fn new(path: PathBuf, overwrite: Overwrite) -> Self {
        Self { path, overwrite }
    }

    /// Step 1. Returns what is there now.
    pub(crate) fn check(&self, fs: &dyn Fs) -> Result<Option<FileStat>> {
        let refuse = |text: String| Err(Error::new(ErrorKind::Exists, text));
        let shown = self.path.display();
        if self.path.file_name().is_none() {
            return Err(Error::invalid("output path required"));
        }
        let existing = fs.stat_opt(&self.path)?;
        match existing.map(|stat| (stat.kind, stat.len)) {
            Some((FileKind::Dir, _)) => return refuse(format!("cannot restore, output path is a directory: {shown}")),
            Some((FileKind::Other, _)) => {
                return refuse(format!("cannot restore, output path is not a regular file: {shown}"));
            }
            Some((FileKind::File, 1..)) if self.overwrite == Overwrite::Refuse => {
                return refuse(format!(
                    "cannot restore, output path already exists and is not empty: {shown}. Use -force to overwrite"
                ));
            }
            _ => {}
        }
        if self.overwrite == Overwrite::Refuse {
            for suffix in SIDECARS {
                let sidecar = with_suffix(&self.path, suffix);
                let harmful = |stat: FileStat| stat.kind != FileKind::File || (stat.len > 0 && suffix != "-shm");
                if fs.stat_opt(&sidecar)?.is_some_and(harmful) {
                    let sidecar = sidecar.display();
                    return refuse(format!(
                        "cannot restore, SQLite sidecar path already exists: {sidecar}. Use -force to overwrite"
                    ));
                }
            }
        }
        Ok(existing)
    }

    /// Creates the directory. Returns mode and owner for the new database: one that is replaced hands on
    /// its own, so that what was private stays so.
    pub(crate) fn prepare(&self, fs: &dyn Fs) -> Result<OwnerMode> {
        let existing = self.check(fs)?;
        if let Some(dir) = self.path.parent() {
            fs.create_dir_all(dir, OwnerMode::PRIVATE_DIR)?;
        }
        // Set-user-ID bits have no meaning on a database, and must not reach a new file's content.
        Ok(existing.map_or(OwnerMode::DEFAULT_FILE, |stat| OwnerMode {
            mode: stat.owner_mode.mode & 0o777,
            ..stat.owner_mode
        }))
    }

    /// Creates the temporary file.
    pub(crate) fn create<'a>(&self, fs: &'a dyn Fs, temp: PathBuf) -> Result<Publisher<'a>> {
        let owner_mode = self.prepare(fs)?;
        Publisher::create_as(fs, temp, &self.path, owner_mode)
    }

    /// Steps 2 (sync) to 5.
    pub(crate) fn publish(&self, fs: &dyn Fs, publisher: Publisher<'_>) -> Result<()> {
        publisher.file().sync()?;
        let id_of = |stat: Option<FileStat>| stat.map(|stat| stat.id);
        let before = id_of(self.check(fs)?);
        let mut aside = Aside { fs, dir: self.path.parent(), moved: Vec::new() };
        let published = aside.move_sidecars(&self.path).and_then(|()| publisher.publish(None));
        if let Err(err) = published {
            // A failed directory sync reports an error although the rename took place. Old sidecars
            // belong to the old file only.
            if fs.stat_opt(&self.path).is_ok_and(|now| id_of(now) == before) {
                aside.move_back();
            }
            return Err(err);
        }
        for suffix in SIDECARS {
            let _ = fs.remove_file(&with_suffix(&with_suffix(&self.path, suffix), ASIDE));
        }
        Ok(())
    }
}

/// Whether there is no database at `path`: nothing, or the empty file that a script or SQLite itself made
/// in its place. What cannot be looked at counts as a database.
#[must_use]
pub fn holds_no_database(fs: &dyn Fs, path: &Path) -> bool {
    match fs.stat_opt(path) {
        Ok(found) => found.is_none_or(|stat| stat.kind == FileKind::File && stat.len == 0),
        Err(_) => false,
    }
}

/// Removes what SQLite may have left, or an older crash, beside a temporary database.
pub(crate) fn remove_sidecars(fs: &dyn Fs, database: &Path) -> Result<()> {
    SIDECARS.iter().try_for_each(|suffix| fs.remove_file(&with_suffix(database, suffix)))
}

/// Old sidecars under their other names.
struct Aside<'a> {
    fs: &'a dyn Fs,
    dir: Option<&'a Path>,
    moved: Vec<(PathBuf, PathBuf)>,
}

impl Aside<'_> {
    fn move_sidecars(&mut self, database: &Path) -> Result<()> {
        for suffix in SIDECARS {
            fault_point("restore.aside")?;
            let from = with_suffix(database, suffix);
            let to = with_suffix(&from, ASIDE);
            match self.fs.rename(&from, &to) {
                Ok(()) => self.moved.push((from, to)),
                Err(err) if err.kind() == ErrorKind::NotFound => {}
                Err(err) => return Err(err),
            }
        }
        match self.dir {
            Some(dir) if !self.moved.is_empty() => self.fs.sync_dir(dir),
            _ => Ok(()),
        }
    }

    fn move_back(&mut self) {
        for (from, to) in self.moved.drain(..).rev() {
            if let Err(err) = self.fs.rename(&to, &from) {
                tracing::error!(error = %err, path = %to.display(), "cannot put sidecar back");
            }
        }
    }
}
