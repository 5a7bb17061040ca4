//! The half of `check` that looks at the machine: databases, directories, space, limits. Reads only.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::super::process;
use super::super::{App, shellwords};
use crate::config::{Config, DbSettings, Finding, HostKey, NatsAuth, ReplicaKind, SftpSettings};
use crate::server::api::UNGUARDED;
use crate::store::unguarded;
use crate::store::{DESCRIPTORS_BESIDES, DESCRIPTORS_PER_DATABASE};
use crate::sys::fs::with_suffix;
use crate::sys::ownership::{Making, making};
use crate::sys::{FileId, FileKind, Fs, OpenMode, read_full_at};

/// Compaction levels between 0 and the snapshot level.
const MAX_LEVELS: usize = 8;
/// What is wrong beyond the text of the file.
pub(super) fn examine(app: &App, config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    daemon(app, config, &mut found);
    let mut all: Vec<(String, DbSettings)> = Vec::new();
    for (i, entry) in config.dbs.iter().enumerate() {
        let at = format!("dbs[{i}]");
        // A replica that cannot be understood was reported with the file.
        if entry.replica(app.surroundings()).is_err() {
            continue;
        }
        match entry.build_all(app.surroundings()) {
            Ok(built) => all.extend(built.databases.into_iter().map(|db| (at.clone(), db))),
            Err(err) => found.push(Finding::error(format!("{at}.dir"), err.to_string())),
        }
    }
    let fs = app.world.fs.as_ref();
    for (at, db) in &all {
        database(fs, at, db, &mut found);
        replica(fs, at, db, &mut found);
        let unguarded = unguarded(fs, &db.meta_path).into_iter();
        found.extend(unguarded.map(|location| {
            Finding::warning(format!("{at}.replica"), format!("{location}: {UNGUARDED}"))
                .hint("make sure that no two databases and no two hosts write to one path there")
        }));
    }
    among(fs, &all, &mut found);
    descriptors(all.len() as u64, &mut found);
    found
}

fn daemon(app: &App, config: &Config, found: &mut Vec<Finding>) {
    if config.levels.len() > MAX_LEVELS {
        found.push(Finding::error(format!("levels[{MAX_LEVELS}]"), "compaction level cannot exceed 8"));
    }
    let mcp = config.mcp.as_ref().map(|mcp| &mcp.addr);
    for (setting, address) in [("addr", config.addr.as_ref()), ("mcp-addr", mcp)] {
        if let Some(address) = address
            && address.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err())
        {
            found.push(Finding::error(setting, format!("must specify port for bind address: {address:?}")));
        }
    }
    if let Some(line) = &config.exec {
        match shellwords::split(line) {
            Err(err) => found.push(Finding::error("exec", format!("cannot parse exec command: {err}"))),
            Ok(words) => {
                let program = words.first().map(String::as_str).unwrap_or_default();
                if let Err(err) = process::find(program, &app.env) {
                    found.push(Finding::error("exec", err.to_string()));
                }
            }
        }
    }
    let fs = app.world.fs.as_ref();
    if config.socket.enabled && !config.socket.path.parent().is_some_and(|dir| is_dir(fs, dir)) {
        let text = format!("the directory of {} does not exist", config.socket.path.display());
        found.push(Finding::error("socket.path", text));
    }
    if config.dbs.is_empty() {
        found.push(Finding::warning("dbs", "no databases specified in configuration"));
    }
}

fn database(fs: &dyn Fs, at: &str, db: &DbSettings, found: &mut Vec<Finding>) {
    let path = db.path.display();
    let setting = format!("{at}.path");
    if db.min_checkpoint_page_count == 0 {
        let setting = format!("{at}.min-checkpoint-page-count");
        found.push(Finding::error(setting, "minimum checkpoint page count required").hint("at least 1"));
    }
    match fs.stat_opt(&db.path) {
        Err(err) => found.push(Finding::error(&setting, err.to_string())),
        Ok(None) if !db.path.parent().is_some_and(|dir| is_dir(fs, dir)) => {
            found.push(Finding::warning(&setting, format!("the directory of {path} does not exist")));
        }
        Ok(None) => {
            found.push(Finding::warning(&setting, format!("{path} does not exist; the daemon will wait for it")));
        }
        Ok(Some(stat)) if stat.kind != FileKind::File => {
            found.push(Finding::error(&setting, format!("{path} is not a file")));
        }
        Ok(Some(stat)) => existing_database(fs, &setting, &fs.resolve(&db.path), stat.len, found),
    }
    let target = fs.resolve(&db.path);
    if target != db.path {
        let target = target.display();
        let text = format!("{path} is a symbolic link to {target}; the log beside that is followed");
        found.push(Finding::warning(&setting, text).hint("name the file itself, if the link is not meant to change"));
    }
    let meta = db.meta_path.display();
    if let Some(why) = not_writable(fs, &db.meta_path) {
        found.push(Finding::error(format!("{at}.meta-path"), format!("local state cannot be kept in {meta}: {why}")));
    }
}

fn existing_database(fs: &dyn Fs, setting: &str, path: &Path, len: u64, found: &mut Vec<Finding>) {
    let shown = path.display();
    if len > 0 {
        match first_bytes(fs, path) {
            Err(err) => return found.push(Finding::error(setting, err)),
            Ok(header) if !header.starts_with(b"SQLite format 3\0") => {
                return found.push(Finding::error(setting, format!("{shown} is not a SQLite database")));
            }
            // Version numbers of reading and writing: 2 is WAL.
            Ok(header) if header[18..20] != [2, 2] => found.push(
                Finding::warning(setting, format!("{shown} is not in WAL mode; the daemon will switch it"))
                    .hint("run 'pragma journal_mode = wal' in the application"),
            ),
            Ok(_) => {}
        }
    }
    if rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK).is_err() {
        found.push(
            Finding::error(setting, format!("{shown} cannot be read and written by this user"))
                .hint("replication needs both: it holds locks and checkpoints the log"),
        );
    }
    if let Some(dir) = path.parent()
        && rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_err()
    {
        found.push(Finding::error(setting, format!("{} cannot be written by this user", dir.display())));
    }
    if locks_others_out(fs, path) {
        found.push(
            Finding::error(setting, format!("files that this user creates beside {shown} would lock out others that use it"))
                .hint("run as its owner, or join its group and let that read and write (chmod g+rw, chmod g+s on the directory)"),
        );
    }
}

/// Whether `-wal` and `-shm` are still to be made, and could not be made so that they serve whom the database serves.
fn locks_others_out(fs: &dyn Fs, path: &Path) -> bool {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let there = |suffix| fs.stat(&with_suffix(path, suffix)).is_ok();
    if there("-wal") && there("-shm") || fs.has_default_acl(dir) {
        return false;
    }
    let (Some(who), Ok(db), Ok(dir)) = (fs.identity(), fs.stat(path), fs.stat(dir)) else { return false };
    matches!(making(&who, db.owner_mode, dir.owner_mode), Making::Impossible { .. })
}

fn first_bytes(fs: &dyn Fs, path: &Path) -> Result<[u8; 20], String> {
    let mut header = [0; 20];
    let read = fs.open(path, OpenMode::Read).and_then(|file| read_full_at(file.as_ref(), &mut header, 0));
    read.map(|()| header).map_err(|err| err.to_string())
}

/// What an SFTP server will be measured by.
fn host_key(sftp: &SftpSettings, setting: String, found: &mut Vec<Finding>) {
    match sftp.host_key {
        HostKey::Any => found.push(
            Finding::warning(setting, "sftp host key not verified").hint("set host-key to the server's public key"),
        ),
        #[cfg(feature = "sftp")]
        HostKey::Known => match crate::replica::sftp::is_known(sftp) {
            Ok(true) => {}
            Ok(false) => found.push(
                Finding::error(setting, format!("{} is in no known_hosts file, so it would be refused", sftp.host))
                    .hint("ssh-keyscan shows its keys: add one to ~/.ssh/known_hosts, or set host-key to it"),
            ),
            Err(err) => found.push(Finding::error(setting, err.to_string())),
        },
        _ => {}
    }
}

fn replica(fs: &dyn Fs, at: &str, db: &DbSettings, found: &mut Vec<Finding>) {
    let setting = |key: &str| format!("{at}.replica.{key}");
    let mut missing_file = |key: &str, file: &str| {
        if let Err(err) = fs.stat(Path::new(file)) {
            found.push(Finding::error(setting(key), err.to_string()));
        }
    };
    match &db.replica.kind {
        ReplicaKind::File(file) => directory_replica(fs, at, db, &file.path, found),
        ReplicaKind::S3(s3) => {
            if let Err(err) = s3.encryption() {
                found.push(Finding::error(setting("sse-customer-key"), err.to_string()));
            }
        }
        ReplicaKind::Abs(abs) => {
            if let Err(err) = abs.check() {
                found.push(Finding::error(setting("account-key"), err.to_string()));
            }
        }
        ReplicaKind::Sftp(sftp) => {
            if let Some(key) = &sftp.key_path {
                missing_file("key-path", key);
            }
            host_key(sftp, setting("host-key"), found);
        }
        ReplicaKind::Nats(nats) => {
            nats.root_cas.iter().for_each(|file| missing_file("root-cas", file));
            if let Some(pair) = &nats.client_certificate {
                missing_file("client-cert", &pair.certificate);
                missing_file("client-key", &pair.key);
            }
            match &nats.auth {
                NatsAuth::CredentialsFile(file) => missing_file("creds", file),
                NatsAuth::Nkey { seed: None } => {
                    found.push(Finding::error(setting("nkey"), "nkey defined without a signature handler"));
                }
                _ => {}
            }
        }
        ReplicaKind::Gs(_) | ReplicaKind::Oss(_) | ReplicaKind::Webdav(_) => {}
    }
}

fn directory_replica(fs: &dyn Fs, at: &str, db: &DbSettings, path: &Path, found: &mut Vec<Finding>) {
    let setting = format!("{at}.replica.path");
    let shown = path.display();
    if fs.stat_opt(path).ok().flatten().is_some_and(|stat| stat.kind != FileKind::Dir) {
        return found.push(Finding::error(setting, format!("{shown} is not a directory")));
    }
    if let Some(why) = not_writable(fs, path) {
        return found.push(Finding::error(setting, format!("{shown} cannot be used: {why}")));
    }
    if path.starts_with(&db.meta_path) || db.meta_path.starts_with(path) {
        let text = format!("replica {shown} and local state {} are inside each other", db.meta_path.display());
        found.push(Finding::error(&setting, text));
    }
    let size = fs.stat_opt(&db.path).ok().flatten().map_or(0, |stat| stat.len);
    if let Some(free) = free_bytes(fs, path)
        && free < size
    {
        let text = format!("{free} bytes are free at {shown}; a snapshot needs up to {size}");
        found.push(Finding::error(setting, text));
    }
}

/// What databases do to each other.
fn among(fs: &dyn Fs, all: &[(String, DbSettings)], found: &mut Vec<Finding>) {
    let mut places: HashMap<String, &Path> = HashMap::new();
    let mut metas: HashMap<&Path, &Path> = HashMap::new();
    let mut files: HashMap<FileId, &Path> = HashMap::new();
    let mut directories: Vec<(&Path, &Path)> = Vec::new();
    for (at, db) in all {
        if let Some(other) = places.insert(db.replica.kind.place(), &db.path) {
            let text = format!("{} and {} would be written to the same replica", other.display(), db.path.display());
            let hint = "each database needs a replica path of its own";
            found.push(Finding::error(format!("{at}.replica"), text).hint(hint));
        } else if let ReplicaKind::File(file) = &db.replica.kind {
            for (path, other) in &directories {
                if file.path.starts_with(path) || path.starts_with(&file.path) {
                    let text = format!(
                        "the replicas of {} and {} are inside each other: {} and {}",
                        other.display(),
                        db.path.display(),
                        path.display(),
                        file.path.display()
                    );
                    found.push(Finding::warning(format!("{at}.replica"), text));
                }
            }
            directories.push((&file.path, &db.path));
        }
        if let Some(other) = metas.insert(&db.meta_path, &db.path) {
            let text = format!(
                "{} and {} would share local state in {}",
                other.display(),
                db.path.display(),
                db.meta_path.display()
            );
            found.push(Finding::error(format!("{at}.meta-path"), text));
        }
        if let Ok(Some(stat)) = fs.stat_opt(&db.path)
            && let Some(other) = files.insert(stat.id, &db.path)
            && other != db.path
        {
            let text = format!("{} and {} are the same file", other.display(), db.path.display());
            found.push(Finding::error(format!("{at}.path"), text));
        }
    }
}

fn descriptors(databases: u64, found: &mut Vec<Finding>) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let needed = needed_descriptors(databases);
    if let Some(limit) = limit.filter(|limit| *limit < needed) {
        let text = format!(
            "{databases} databases may need {needed} open files; the limit is {limit}, so they may have to take turns"
        );
        found.push(Finding::warning("dbs", text).hint("raise it: ulimit -n, or LimitNOFILE= in a systemd unit"));
    }
}

fn needed_descriptors(databases: u64) -> u64 {
    databases.saturating_mul(DESCRIPTORS_PER_DATABASE).saturating_add(DESCRIPTORS_BESIDES)
}

fn is_dir(fs: &dyn Fs, path: &Path) -> bool {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    fs.stat(path).is_ok_and(|stat| stat.kind == FileKind::Dir)
}

/// The nearest thing above a path, or the path itself, that exists.
fn existing(fs: &dyn Fs, path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|p| fs.stat(p).is_ok()).map(Path::to_owned)
}

/// Why a directory could not be made and written, if so.
fn not_writable(fs: &dyn Fs, path: &Path) -> Option<String> {
    let nearest = existing(fs, path)?;
    if !is_dir(fs, &nearest) {
        return Some(format!("{} is not a directory", nearest.display()));
    }
    let allowed = rustix::fs::access(&nearest, Access::WRITE_OK | Access::EXEC_OK);
    allowed.err().map(|_| format!("{} cannot be written by this user", nearest.display()))
}

fn free_bytes(fs: &dyn Fs, path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(existing(fs, path)?).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_grow_with_the_databases_and_never_overflow() {
        assert_eq!(needed_descriptors(0), DESCRIPTORS_BESIDES);
        assert_eq!(needed_descriptors(100), 100 * DESCRIPTORS_PER_DATABASE + DESCRIPTORS_BESIDES);
        assert_eq!(needed_descriptors(u64::MAX), u64::MAX);
    }
}
