//! Path expansion (`spec: config` §4): `sqlite://` prefix, home directory, absolute and clean.

use std::path::{Path, PathBuf};

use super::env::Environment;
use crate::error::{Error, Result};
use crate::sys::{Fs, OpenMode, read_full_at};

/// No file we read whole (configuration, user database) is larger.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// Expands a path as written in the configuration or on the command line.
///
/// # Errors
/// A home directory is asked for and there is none.
pub(super) fn expand_path(text: &str, env: &Environment, fs: &dyn Fs) -> Result<PathBuf> {
    let text = text.strip_prefix("sqlite3://").or_else(|| text.strip_prefix("sqlite://")).unwrap_or(text);
    if text == "~" || text.starts_with("~/") {
        let home = home_dir(env, fs)
            .ok_or_else(|| Error::invalid(format!("cannot expand path {text}, no home directory available")))?;
        return Ok(clean(&home.join(text[1..].trim_start_matches('/'))));
    }
    Ok(clean(&env.working_dir().join(text)))
}

/// The home directory of the user database wins over `$HOME`.
fn home_dir(env: &Environment, fs: &dyn Fs) -> Option<PathBuf> {
    let passwd = read_text(fs, Path::new("/etc/passwd")).ok();
    let entry = passwd.as_deref().and_then(|text| home_in_passwd(text, env.uid()));
    entry.or_else(|| env.get_nonempty("HOME").map(str::to_owned)).map(PathBuf::from)
}

/// `name:password:uid:gid:gecos:home:shell`
fn home_in_passwd(text: &str, uid: u32) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found = fields.next()?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (found && !home.is_empty()).then(|| home.to_owned())
    })
}

/// Removes `.`, `..`, doubled and trailing separators without looking at the disk.
#[must_use]
pub fn clean(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => match out.components().next_back() {
                Some(Component::Normal(_)) => {
                    out.pop();
                }
                Some(Component::RootDir | Component::Prefix(_)) => {}
                _ => out.push(".."),
            },
            other => out.push(other),
        }
    }
    if out.as_os_str().is_empty() { PathBuf::from(".") } else { out }
}

/// Reads a whole file of text.
///
/// # Errors
/// I/O errors; `yaml: …` for bytes that are not UTF-8, since every such file is YAML or ours to ignore.
pub fn read_text(fs: &dyn Fs, path: &Path) -> Result<String> {
    let file = fs.open(path, OpenMode::Read)?;
    let stat = file.stat()?;
    if stat.kind == crate::sys::FileKind::Dir {
        return Err(Error::invalid(format!("read {}: is a directory", path.display())));
    }
    if stat.len > MAX_TEXT_BYTES {
        return Err(Error::invalid(format!("read {}: larger than {MAX_TEXT_BYTES} bytes", path.display())));
    }
    let mut bytes = vec![0; usize::try_from(stat.len).unwrap_or(0)];
    read_full_at(file.as_ref(), &mut bytes, 0)?;
    // What was appended meanwhile, and files without a length such as pipes and /proc.
    let mut chunk = [0; 8192];
    loop {
        match file.read_at(&mut chunk, bytes.len() as u64)? {
            0 => break,
            n if bytes.len() + n > MAX_TEXT_BYTES as usize => {
                return Err(Error::invalid(format!("read {}: larger than {MAX_TEXT_BYTES} bytes", path.display())));
            }
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    }
    String::from_utf8(bytes).map_err(|err| {
        let at = err.utf8_error();
        let first = err.as_bytes().get(at.valid_up_to()).copied().unwrap_or(0);
        Error::invalid(match at.error_len() {
            None => "yaml: incomplete UTF-8 octet sequence",
            Some(_) if !(0xC2..=0xF4).contains(&first) => "yaml: invalid leading UTF-8 octet",
            Some(_) => "yaml: invalid trailing UTF-8 octet",
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::OsFs;

    #[test]
    fn paths_become_absolute_and_clean() {
        let env = Environment::new([], PathBuf::from("/srv/here"));
        for (text, want) in [
            ("app.db", "/srv/here/app.db"),
            ("./a//b/../c/", "/srv/here/a/c"),
            ("sqlite:///x.db", "/x.db"),
            ("sqlite3://x.db", "/srv/here/x.db"),
            ("sqlite:x.db", "/srv/here/sqlite:x.db"),
            ("~bob/x", "/srv/here/~bob/x"),
            ("/../x", "/x"),
            ("", "/srv/here"),
            ("/", "/"),
        ] {
            assert_eq!(expand_path(text, &env, &OsFs).unwrap(), PathBuf::from(want), "{text}");
        }
    }

    #[test]
    fn the_home_directory_comes_from_the_user_database() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nme:x:1000:1000:,,,:/home/me:/bin/sh\nbad:line\n";
        assert_eq!(home_in_passwd(passwd, 1000).as_deref(), Some("/home/me"));
        assert_eq!(home_in_passwd(passwd, 7), None);
    }

    #[test]
    fn a_directory_is_not_a_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let err = read_text(&OsFs, dir.path()).unwrap_err();
        assert_eq!(err.to_string(), format!("read {}: is a directory", dir.path().display()));
    }
}
