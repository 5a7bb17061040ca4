//! Targets that do not refuse a second writer: a note beside the local files, for whoever has no daemon to ask
//! (`status`, `check`). Rewritten when that changes, which is once per life of a storage server.

use std::path::Path;
use std::sync::Mutex;

use tracing::warn;

use super::database::Database;
use crate::error::Result;
use crate::replica::Exclusion;
use crate::sys::{Fs, OpenMode, OwnerMode, blocking, read_up_to, rewrite};

/// In the directory of local state.
const FILE_NAME: &str = "second-writer-not-noticed";
/// Bytes read of a note.
const MAX_BYTES: usize = 4096;

/// What the note says of one target.
pub(super) type Noted = Mutex<Option<Exclusion>>;

/// The locations of the targets that the last run found to be so.
#[must_use]
pub fn unguarded(fs: &dyn Fs, meta: &Path) -> Vec<String> {
    let read = || -> Result<Vec<u8>> {
        let file = fs.open(&meta.join(FILE_NAME), OpenMode::Read)?;
        let mut bytes = vec![0; MAX_BYTES];
        let len = read_up_to(file.as_ref(), &mut bytes, 0)?;
        bytes.truncate(len);
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).lines().map(str::to_owned).collect()
}

/// Tells whoever asks, after an object was put to target `n`. Best effort.
pub(super) async fn note(database: &Database, n: usize, noted: &Noted) {
    let Some(target) = database.targets().get(n) else { return };
    let found = target.replica().client().exclusion();
    {
        let mut noted = noted.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *noted == Some(found) {
            return;
        }
        *noted = Some(found);
    }
    database.health().guarded(n, found != Exclusion::Missing);
    let all = database.targets().iter().map(|target| target.replica().client());
    let lines: Vec<String> =
        all.filter(|client| client.exclusion() == Exclusion::Missing).map(|client| client.location()).collect();
    let (fs, owner_mode) = (database.world.fs.clone(), database.seen().modes.unwrap_or_default().file);
    let Some(path) = database.local().root().parent().map(|meta| meta.join(FILE_NAME)) else { return };
    if let Err(err) = blocking(move || write(fs.as_ref(), &path, &lines, owner_mode)).await {
        warn!(system = "store", db = %database.name(), error = %err, "cannot note that a second writer is not noticed");
    }
}

fn write(fs: &dyn Fs, path: &Path, lines: &[String], owner_mode: OwnerMode) -> Result<()> {
    if lines.is_empty() {
        return match fs.stat_opt(path)? {
            Some(_) => fs.remove_file(path),
            None => Ok(()),
        };
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    rewrite(fs, path, text.as_bytes(), owner_mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::World;

    #[test]
    fn the_note_is_written_rewritten_and_removed() {
        let (dir, fs) = (tempfile::tempdir().unwrap(), World::system().fs);
        let keep = |lines: &[&str]| {
            let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            write(fs.as_ref(), &dir.path().join(FILE_NAME), &lines, OwnerMode::PRIVATE_FILE).unwrap();
            assert_eq!(unguarded(fs.as_ref(), dir.path()), lines);
        };
        keep(&[]);
        keep(&["s3://a-long-name/x", "sftp://u@h/y"]);
        keep(&["s3://b/x"]);
        keep(&[]);
        assert!(!dir.path().join(FILE_NAME).exists());
    }
}
