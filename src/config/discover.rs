//! Directories of databases: which files they hold, and what each gets from its entry
//! (`spec: config` §7.4). Scanning happens at start; watching for changes is the daemon's.

use std::path::{Path, PathBuf};

use super::Surroundings;
use super::pattern;
use super::raw::RawDb;
use super::settings::{DbSettings, build_database, default_meta_path};
use crate::error::{Error, ErrorKind, Result};
use crate::settings::url::{self, Url};
use crate::settings::{ReplicaKeys, clean};
use crate::sys::{FileKind, Fs, OpenMode, read_full_at};

/// The first bytes of every database that is not empty.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Deeper trees than this are refused: a loop of mounts would never end.
const MAX_DEPTH: usize = 64;

/// One `dir:` entry.
#[derive(Debug, Clone)]
pub struct DirSettings {
    /// Absolute and clean.
    pub path: PathBuf,
    /// As written, for log lines.
    pub written: String,
    /// Of base names.
    pub pattern: String,
    /// Sub-directories too.
    pub recursive: bool,
    /// Look for databases that come and go.
    pub watch: bool,
    raw: RawDb,
}

impl DirSettings {
    pub(super) fn new(raw: &RawDb, around: Surroundings<'_>) -> Result<Self> {
        Ok(Self {
            path: around.expand(&raw.dir)?,
            written: raw.dir.clone(),
            pattern: raw.pattern.clone(),
            recursive: raw.recursive,
            watch: raw.watch,
            raw: raw.clone(),
        })
    }

    /// Whether the base name of a path matches the pattern.
    ///
    /// # Errors
    /// The pattern is malformed.
    pub fn matches(&self, path: &Path) -> Result<bool> {
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return Ok(false) };
        pattern::matches(&self.pattern, name).map_err(|bad| Error::invalid(bad.to_string()))
    }

    /// Whether a database of this path is one of the directory's.
    #[must_use]
    pub fn covers(&self, path: &Path) -> bool {
        let below =
            if self.recursive { path.starts_with(&self.path) } else { path.parent() == Some(self.path.as_path()) };
        below && self.matches(path).unwrap_or(false)
    }

    /// Whether a path is only another name of what may be one of the directory's databases: a link to it.
    #[must_use]
    pub fn repeats(&self, fs: &dyn Fs, path: &Path) -> bool {
        let target = clean(&fs.resolve(path));
        target != path && self.covers(&target)
    }

    /// The databases in the directory, in the order of a walk: names that match, with the header of a
    /// database. Files that are empty or cannot be read are passed over. Links to files are followed,
    /// unless they lead to another database of the directory; links to directories are not, the directory
    /// itself included.
    ///
    /// # Errors
    /// `failed to scan directory …`: it or one below it cannot be read, or the pattern is malformed.
    pub fn scan(&self, fs: &dyn Fs) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let walked = match entry_kind(fs, &self.path) {
            Ok(FileKind::Dir) => self.walk(fs, &self.path, 0, &mut found),
            Ok(_) => self.consider(fs, &self.path, &mut found),
            Err(err) => Err(err),
        };
        walked.map_err(|err| err.context(format!("failed to scan directory {}", self.path.display())))?;
        Ok(found)
    }

    fn walk(&self, fs: &dyn Fs, dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::invalid(format!("{}: more than {MAX_DEPTH} directories deep", dir.display())));
        }
        let mut entries = fs.list(dir)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let path = dir.join(&entry.name);
            match entry.kind {
                FileKind::Dir if self.recursive => self.walk(fs, &path, depth + 1, found)?,
                FileKind::Dir => {}
                // Not even opened: closing it would drop the locks of its database.
                FileKind::Other if self.repeats(fs, &path) => {}
                FileKind::File | FileKind::Other => self.consider(fs, &path, found)?,
            }
        }
        Ok(())
    }

    fn consider(&self, fs: &dyn Fs, path: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        if self.matches(path)? && is_database(fs, path) {
            found.push(path.to_owned());
        }
        Ok(())
    }

    /// Settings of one file below the directory: a copy of the entry, with its own place below the
    /// entry's replica and its own local state.
    ///
    /// # Errors
    /// See [`super::DbEntry::build`]; the file is not below the directory.
    pub fn database(&self, path: &Path, around: Surroundings<'_>) -> Result<DbSettings> {
        let build = || {
            let relative = path
                .strip_prefix(&self.path)
                .ok()
                .and_then(Path::to_str)
                .filter(|r| !r.is_empty())
                .ok_or_else(|| Error::invalid(format!("not a file below {}", self.path.display())))?;
            let mut raw = self.raw.clone();
            for replica in raw.replica.iter_mut().chain(raw.replicas.iter_mut().flatten()) {
                append(replica, relative)?;
            }
            let meta_path = self.meta_path(path, relative, around)?;
            build_database(&raw, path, meta_path, around)
        };
        build().map_err(|err| err.context(format!("failed to create DB for {}", path.display())))
    }

    fn meta_path(&self, path: &Path, relative: &str, around: Surroundings<'_>) -> Result<PathBuf> {
        if let Some(root) = &self.raw.meta_dir {
            return Ok(around.expand(root)?.join(format!("{relative}-litestream")));
        }
        match &self.raw.meta_path {
            Some(root) => Ok(default_meta_path(&around.expand(root)?.join(relative))),
            None => Ok(default_meta_path(path)),
        }
    }
}

/// Gives a file of a directory its own place in the replica.
fn append(replica: &mut ReplicaKeys, relative: &str) -> Result<()> {
    if replica.backend() == "nats" {
        return Err(Error::invalid(
            "a directory of databases cannot be replicated to nats: a bucket holds one database",
        ));
    }
    if replica.url.is_empty() {
        // An absent path stays an error where a path is needed.
        if !replica.path.is_empty() || !matches!(replica.backend().as_str(), "file") {
            replica.path = join(&replica.path, relative);
        }
        return Ok(());
    }
    if let Some(rest) = replica.url.strip_prefix("s3://arn:") {
        let (arn, query) = rest.split_once('?').map_or((rest, String::new()), |(a, q)| (a, format!("?{q}")));
        replica.url = format!("s3://arn:{}/{relative}{query}", arn.trim_end_matches('/'));
        return Ok(());
    }
    replica.url = Url::parse(&replica.url)?.with_appended(relative);
    Ok(())
}

fn join(base: &str, relative: &str) -> String {
    if base.is_empty() { relative.to_owned() } else { url::clean_slashes(&format!("{base}/{relative}")) }
}

/// What a path names, links not followed.
fn entry_kind(fs: &dyn Fs, path: &Path) -> Result<FileKind> {
    let stat = fs.stat_opt(path)?.ok_or_else(|| {
        let text = format!("lstat {}: no such file or directory", path.display());
        Error::new(ErrorKind::NotFound, text)
    })?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(stat.kind);
    };
    // A parent we may not list tells nothing; then the directory is taken for what it looks like.
    let listed = fs.list(parent).ok().and_then(|entries| entries.into_iter().find(|e| e.name == name));
    Ok(listed.map_or(stat.kind, |entry| entry.kind))
}

/// Whether a file begins like a database. What cannot be read is none.
pub fn is_database(fs: &dyn Fs, path: &Path) -> bool {
    let read = || -> Result<bool> {
        // Opening a pipe would wait for its writer.
        if fs.stat(path)?.kind != FileKind::File {
            return Ok(false);
        }
        let mut header = [0; MAGIC.len()];
        read_full_at(fs.open(path, OpenMode::Read)?.as_ref(), &mut header, 0)?;
        Ok(&header == MAGIC)
    };
    read().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment, parse};
    use crate::sys::OsFs;

    fn put(root: &Path, name: &str, content: &[u8]) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn tenants() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["t/a.db", "t/b.sqlite", "t/sub/c.db", "other/x.db"] {
            put(dir.path(), name, b"SQLite format 3\0and so on");
        }
        put(dir.path(), "t/not.db", b"hello world, not a database");
        put(dir.path(), "t/empty.db", b"");
        std::os::unix::fs::symlink("../other/x.db", dir.path().join("t/l.db")).unwrap();
        std::os::unix::fs::symlink("../other", dir.path().join("t/linkdir")).unwrap();
        dir
    }

    fn load(root: &Path, entry: &str) -> (Config, Environment) {
        let env = Environment::new([], root.to_owned());
        let config = parse(&format!("dbs: [{{{entry}}}]"), Surroundings { env: &env, fs: &OsFs }).unwrap();
        (config, env)
    }

    fn built(root: &Path, entry: &str) -> Result<Vec<(PathBuf, PathBuf, String)>> {
        let (config, env) = load(root, entry);
        let all = config.build_all(Surroundings { env: &env, fs: &OsFs })?;
        let relative = |p: &Path| p.strip_prefix(root).unwrap_or(p).to_owned();
        Ok(all.iter().map(|db| (relative(&db.path), relative(&db.meta_path), db.replica.kind.place())).collect())
    }

    #[test]
    fn databases_are_found_by_name_and_header_in_the_order_of_a_walk() {
        let dir = tenants();
        let names = |entry: &str| -> Vec<PathBuf> {
            built(dir.path(), entry).unwrap().into_iter().map(|(path, ..)| path).collect()
        };
        let all = "dir: t, pattern: '*', recursive: true, replica: {path: /r}";
        assert_eq!(names(all), ["t/a.db", "t/b.sqlite", "t/l.db", "t/sub/c.db"].map(PathBuf::from));
        assert_eq!(names("dir: t, pattern: '*.db', replica: {path: /r}"), ["t/a.db", "t/l.db"].map(PathBuf::from));
    }

    #[test]
    fn each_database_gets_its_own_place_and_state() {
        let dir = tenants();
        let only_c = |rest: &str| {
            let entry = format!("dir: t, pattern: 'c*', recursive: true, {rest}");
            built(dir.path(), &entry).unwrap().remove(0)
        };
        let (_, meta, place) = only_c("replica: {path: /r}");
        assert_eq!((meta, place), (PathBuf::from("t/sub/.c.db-litestream"), "file /r/sub/c.db".to_owned()));
        let (_, meta, place) = only_c("meta-dir: m, replica: {url: 's3://b/base?region=x'}");
        assert_eq!((meta, place), (PathBuf::from("m/sub/c.db-litestream"), "s3 aws b/base/sub/c.db".to_owned()));
        let (_, meta, place) = only_c("meta-path: m, replica: {type: s3, bucket: b}");
        assert_eq!((meta, place), (PathBuf::from("m/sub/.c.db-litestream"), "s3 aws b/sub/c.db".to_owned()));
        let (_, _, place) = only_c("replica: {url: 's3://arn:aws:s3:us-east-2:1:accesspoint/ap/x?region=y'}");
        assert_eq!(place, "s3 aws arn:aws:s3:us-east-2:1:accesspoint/ap/x/sub/c.db");
    }

    #[test]
    fn what_cannot_be_scanned_says_so() {
        let dir = tenants();
        std::os::unix::fs::symlink("t", dir.path().join("link")).unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        for (entry, want) in [
            (
                "dir: none, pattern: '*'",
                format!("failed to scan directory {0}: lstat {0}: no such file or directory", at("none")),
            ),
            ("dir: t, pattern: '[a'", format!("failed to scan directory {}: syntax error in pattern", at("t"))),
            ("dir: t, pattern: 'x*'", format!("no SQLite databases found in directory {} with pattern x*", at("t"))),
            (
                "dir: link, pattern: '*'",
                format!("no SQLite databases found in directory {} with pattern *", at("link")),
            ),
            (
                "dir: t, pattern: 'a.db', x: y",
                format!("failed to create DB for {}: must specify replica for database", at("t/a.db")),
            ),
        ] {
            let replica = if entry.contains("x: y") { "" } else { ", replica: {path: /r}" };
            assert_eq!(built(dir.path(), &format!("{entry}{replica}")).unwrap_err().to_string(), want);
        }
        assert!(built(dir.path(), "dir: t, pattern: 'x*', watch: true, replica: {path: /r}").unwrap().is_empty());
    }

    #[test]
    fn databases_never_share_local_state() {
        let dir = tenants();
        let text = "dbs: [{path: a, meta-path: m, replica: {path: /r}}, {path: b, meta-path: m, replica: {path: /s}}]";
        let env = Environment::new([], dir.path().to_owned());
        let around = Surroundings { env: &env, fs: &OsFs };
        let err = parse(text, around).unwrap().build_all(around).unwrap_err().to_string();
        assert!(err.starts_with("meta-path collision: databases "), "{err}");
    }

    #[test]
    fn nats_has_no_places_to_tell_databases_apart() {
        let dir = tenants();
        let err = built(dir.path(), "dir: t, pattern: '*', replica: {url: 'nats://h/b'}").unwrap_err().to_string();
        assert!(err.contains("a bucket holds one database"), "{err}");
    }
}
