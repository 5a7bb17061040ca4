//! The files beside the database that SQLite creates for us: `-wal`, `-shm`, and `-journal` while the database is switched
//! to WAL mode. They must serve everybody whom the database serves, or the application is locked out of it, for good.
//!
//! 1. What this process may not write it does not open.
//! 2. Where SQLite alone would make them right, nothing is done.
//! 3. Else they are made before, empty, under a name that nobody opens, given owner and group, and only then put into
//!    place; a file that is there already is left alone. SQLite takes an empty log for none, an empty journal too, and
//!    whoever is the first to open a wal-index empties it anyway (`tests/engine/sidecars.rs`).
//! 4. Where that is impossible nothing is created: the error says who we are, what the database allows, what to grant.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::fs::with_suffix;
use crate::sys::ownership::{Identity, Making, making, serves};
use crate::sys::{File, Fs, OwnerMode, read_full_at};

const REFUSED: &str = "run as the owner of the database, or let its group read and write the database and create files in \
                       its directory, and be in that group";

/// Makes sure that this process may write the database, if there is one.
///
/// # Errors
/// `PermissionDenied` with what to grant; I/O errors.
pub(super) fn check_rights(fs: &dyn Fs, db: &Path) -> Result<()> {
    match (fs.identity(), fs.stat_opt(db)?) {
        (Some(who), Some(stat)) if !fs.may_write(db) => {
            let (me, db, is) = (me(&who), db.display(), is(stat.owner_mode));
            Err(refused(format!("{me} may not write {db}, which is {is}: chmod g+rw {db}")))
        }
        _ => Ok(()),
    }
}

/// Makes sure that opening the database creates nothing that the application could not use.
///
/// # Errors
/// `PermissionDenied` with what to grant; I/O errors.
pub(super) fn prepare(fs: &dyn Fs, db: &Path, file: &dyn File) -> Result<()> {
    let Some(who) = fs.identity() else { return Ok(()) };
    let like = file.stat()?.owner_mode;
    let me = me(&who);
    let mut missing = Vec::new();
    for path in wanted(db, file)? {
        match fs.stat_opt(&path)? {
            None => missing.push(path),
            Some(_) if fs.may_write(&path) => {}
            Some(stat) => {
                let (path, is) = (path.display(), is(stat.owner_mode));
                return Err(refused(format!("{me} may not write {path}, which is {is}: chmod g+w {path}")));
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let dir = db.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place = Place { fs, db, dir, dir_is: fs.stat(dir)?.owner_mode, like, me };
    if !fs.may_write(dir) {
        let (me, dir, is) = (&place.me, dir.display(), is(place.dir_is));
        let names = names(&missing);
        return Err(refused(format!("{me} may not create {names} in {dir}, which is {is}: chmod g+w {dir}")));
    }
    match making(&who, like, place.dir_is) {
        Making::Plain => Ok(()),
        // Then bits and groups do not tell who may do what.
        Making::Given | Making::Impossible { .. } if fs.has_default_acl(dir) => Ok(()),
        Making::Given => missing.iter().try_for_each(|path| place.put(path)),
        Making::Impossible { user, group } => {
            Err(place.lock_out(&missing, OwnerMode { owner: Some((user, group)), ..like }))
        }
    }
}

/// Files that will be there once the database is open.
fn wanted(db: &Path, file: &dyn File) -> Result<Vec<PathBuf>> {
    let mut versions = [0; 2];
    // A database that is too short to have a header is switched too.
    let is_wal = match read_full_at(file, &mut versions, 18) {
        Ok(()) => versions == [2, 2],
        Err(err) if err.kind() == ErrorKind::Corrupt => false,
        Err(err) => return Err(err),
    };
    let suffixes: &[&str] = if is_wal { &["-wal", "-shm"] } else { &["-wal", "-shm", "-journal"] };
    Ok(suffixes.iter().map(|suffix| with_suffix(db, suffix)).collect())
}

/// Where the files belong.
struct Place<'a> {
    fs: &'a dyn Fs,
    db: &'a Path,
    dir: &'a Path,
    dir_is: OwnerMode,
    like: OwnerMode,
    me: String,
}

impl Place<'_> {
    /// Puts an empty file into place, unless somebody was faster.
    fn put(&self, path: &Path) -> Result<()> {
        let temp = with_suffix(path, ".tmp");
        // Of somebody who was killed in here. The lock of the metadata directory is ours.
        self.fs.remove_file(&temp)?;
        let made = self.fs.create_empty(&temp, self.like)?;
        let placed = if serves(made.owner_mode, self.like) {
            self.fs.rename_new(&temp, path)
        } else {
            // Root without the right to give files away, say.
            Err(self.lock_out(&[path.to_owned()], made.owner_mode))
        };
        match placed {
            Ok(()) => Ok(()),
            Err(err) => {
                self.fs.remove_file(&temp)?;
                if err.kind() == ErrorKind::Exists { Ok(()) } else { Err(err) }
            }
        }
    }

    fn lock_out(&self, missing: &[PathBuf], made: OwnerMode) -> Error {
        let (db, dir) = (self.db.display(), self.dir.display());
        let group_of = |file: OwnerMode| file.owner.map(|(_, group)| group);
        let group = group_of(self.like).unwrap_or_default();
        let grant = if group_of(made) == Some(group) {
            format!("chmod g+rw {db}")
        } else if group_of(self.dir_is) == Some(group) {
            format!("chmod g+s {dir}")
        } else {
            format!("join group {group}, or chgrp {group} {dir} and chmod g+s {dir}")
        };
        let (me, names, made, like) = (&self.me, names(missing), is(made), is(self.like));
        refused(format!("{me} would create {names} {made}, which locks out who uses {db}, {like}: {grant}"))
    }
}

fn me(who: &Identity) -> String {
    format!("this process (user {}, group {})", who.user, who.group)
}

fn refused(text: String) -> Error {
    Error::new(ErrorKind::PermissionDenied, text).hint(REFUSED)
}

fn is(file: OwnerMode) -> String {
    let (user, group) = file.owner.unwrap_or_default();
    format!("of user {user}, group {group}, mode {:04o}", file.mode & 0o7777)
}

fn names(paths: &[PathBuf]) -> String {
    let names = paths.iter().filter_map(|path| path.file_name()).map(|name| name.to_string_lossy());
    names.collect::<Vec<_>>().join(", ")
}
