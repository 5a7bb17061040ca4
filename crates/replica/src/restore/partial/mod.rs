//! What a restore that was killed leaves, and how the next one goes on from it.
//!
//! Beside the temporary file of a large restore lies its *record*, `<temporary file>-progress`: one line
//! of JSON for the plan and one for each [`Entry`], each followed by a checksum over it and all lines
//! before. What holds:
//!
//! 1. The record is made before the temporary file, and marked (`flock`) by whoever works on the two,
//!    for as long as he lives. Nobody touches what is marked by somebody else. Where there are no such
//!    marks there are no records.
//! 2. A line is written after what it claims was synced, and is synced itself. The last line may be torn;
//!    then it does not count.
//! 3. Nothing is believed of a record alone: every byte it claims is read back and compared with its
//!    checksum before a restore goes on from there. Then what is left of the files is read and
//!    verified as ever, the checksum of a file that was begun over all of it. If that fails, all is
//!    thrown away and the restore starts anew.
//! 4. A record of another plan, or one that does not fit its file, is removed together with it.
//! 5. The record is removed after the database was published. One that stays behind alone says nothing,
//!    and goes with the next restore to this place.

mod read;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::info;

use super::apply::{Entry, Ledger, Resumed};
use super::output::remove_sidecars;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::{Midway, crc64};
use crate::replica::FileInfo;
use crate::sys::fs::with_suffix;
use crate::sys::{File, FileKind, Fs, OpenMode, OwnerMode, World, target_of_temp};

/// Behind the name of the temporary file.
const SUFFIX: &str = "-progress";
/// A restore of fewer bytes is over before it could be worth going on from the middle.
const MIN_LISTED: u64 = if cfg!(test) { 1 } else { 16 << 20 };
/// A temporary database without a record that is this old belongs to a restore that died: living
/// ones keep writing.
const STALE_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The plan a record belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Plan {
    /// Version of the record.
    version: u32,
    /// CRC-64 of the names, sizes and times of all files.
    digest: u64,
    files: usize,
    bytes: u64,
}

impl Plan {
    fn of(newest_first: &[FileInfo], listed: u64) -> Self {
        let lines: String =
            newest_first.iter().map(|file| format!("{file} {} {}\n", file.size, file.created.millis())).collect();
        Self { version: 1, digest: crc64(lines.as_bytes()), files: newest_first.len(), bytes: listed }
    }
}

/// The record of a restore, open and marked.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    file: Box<dyn File>,
    /// Where the next line goes.
    end: u64,
    /// Checksum of the last line.
    sum: u64,
    entries: usize,
}

impl Record {
    /// Makes the record for a temporary file that is not there yet; none for a small plan or where files
    /// cannot be marked.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn create(fs: &dyn Fs, temp: &Path, files: &[FileInfo], listed: u64) -> Result<Option<Self>> {
        if listed < MIN_LISTED {
            return Ok(None);
        }
        let path = with_suffix(temp, SUFFIX);
        let file = fs.open(&path, OpenMode::CreateNew(OwnerMode::PRIVATE_FILE))?;
        let mut record = Self { path, file, end: 0, sum: 0, entries: 0 };
        // Between creation and mark somebody may have taken it for abandoned.
        if record.file.claim()? != Some(true) || !record.is_at_its_place(fs) {
            return record.remove(fs).map(|()| None);
        }
        record.line(&Plan::of(files, listed))?;
        Ok(Some(record))
    }

    /// The record that a path names, if nobody works on it.
    fn take_over(fs: &dyn Fs, path: PathBuf) -> Result<Option<Self>> {
        let file = fs.open(&path, OpenMode::ReadWrite)?;
        let record = Self { path, file, end: 0, sum: 0, entries: 0 };
        let ours = record.file.claim()? == Some(true) && record.is_at_its_place(fs);
        Ok(ours.then_some(record))
    }

    fn is_at_its_place(&self, fs: &dyn Fs) -> bool {
        let named = fs.stat(&self.path).map(|stat| stat.id);
        matches!((named, self.file.stat()), (Ok(named), Ok(open)) if named == open.id)
    }

    /// Removes it. The mark goes with the file.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn remove(self, fs: &dyn Fs) -> Result<()> {
        fs.remove_file(&self.path)
    }

    /// Whether another process could go on from here.
    pub(super) fn is_of_use(&self) -> bool {
        self.entries > 0
    }

    fn line(&mut self, content: &impl Serialize) -> Result<()> {
        let json =
            serde_json::to_string(content).map_err(|err| Error::invalid("write progress of restore").caused_by(err))?;
        let sum = chain(self.sum, &json);
        let line = format!("{json} {sum:016x}\n");
        self.file.write_all_at(line.as_bytes(), self.end)?;
        (self.end, self.sum) = (self.end + line.len() as u64, sum);
        Ok(())
    }
}

impl Ledger for Record {
    fn append(&mut self, entry: &Entry) -> Result<()> {
        self.line(entry)?;
        self.file.sync()?;
        self.entries += 1;
        Ok(())
    }
}

/// Checksum of a line that follows one with the checksum `sum`.
fn chain(sum: u64, json: &str) -> u64 {
    crc64(format!("{sum:016x} {json}").as_bytes())
}

/// What an earlier restore of the same plan left: everything to go on from there.
#[derive(Debug)]
pub(super) struct Left {
    /// The temporary file.
    pub(super) temp: PathBuf,
    /// Open to read and write.
    pub(super) file: Box<dyn File>,
    /// The record, at its last entry.
    pub(super) record: Record,
    /// What is in the temporary file.
    pub(super) resumed: Resumed,
    /// Bytes of the plan that need not be read again.
    pub(super) bytes: u64,
}

impl Left {
    /// Files that need not be read again, from the newest.
    pub(super) fn done(&self) -> usize {
        self.resumed.mark.done
    }

    /// Where to go on in the file that comes next.
    pub(super) fn offset(&self) -> u64 {
        self.resumed.mark.midway.as_ref().map_or(0, Midway::offset)
    }
}

/// Looks for what earlier restores to `output` left: takes over what fits the plan, removes what nobody works
/// on any more, and says so. `existing` are mode and owner of the database that is to be replaced. Best
/// effort: what cannot be looked at is left alone. Blocks, for as long as reading what was written takes.
pub(super) fn look(
    world: &World,
    output: &Path,
    existing: Option<OwnerMode>,
    newest_first: &[FileInfo],
    listed: u64,
) -> Option<Left> {
    let fs = world.fs.as_ref();
    let (dir, name) = (output.parent()?, output.file_name()?.to_str()?);
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let entries = fs.list(dir).unwrap_or_default();
    let names = entries.iter().filter(|entry| entry.kind == FileKind::File).map(|entry| entry.name.as_str());
    let recorded: Vec<&str> = names.clone().filter_map(|name| name.strip_suffix(SUFFIX)).collect();
    for temp in names.filter(|temp| target_of_temp(temp) == Some(name) && !recorded.contains(temp)) {
        sweep(world, &dir.join(temp));
    }
    let plan = Plan::of(newest_first, listed);
    let mut found = None;
    for temp in recorded.into_iter().filter(|temp| target_of_temp(temp) == Some(name)).map(|temp| dir.join(temp)) {
        let Ok(Some(mut record)) = Record::take_over(fs, with_suffix(&temp, SUFFIX)) else { continue };
        let attempt = match &found {
            None => open(fs, &temp, existing).and_then(|file| {
                let read = record.read(fs, file.as_ref(), &plan, newest_first)?;
                Ok((file, read))
            }),
            Some(_) => Err(Useless::Spare),
        };
        match attempt {
            Ok((file, (resumed, bytes))) => {
                info!(path = %temp.display(), bytes, total = listed, "continuing an interrupted restore");
                found = Some(Left { temp, file, record, resumed, bytes });
            }
            Err(why) => {
                if let Some(reason) = why.text() {
                    info!(path = %temp.display(), reason, "an interrupted restore cannot be continued, starting anew");
                }
                let _ =
                    fs.remove_file(&temp).and_then(|()| remove_sidecars(fs, &temp)).and_then(|()| record.remove(fs));
            }
        }
    }
    found
}

/// Removes a temporary file without a record once it is old. Best effort.
fn sweep(world: &World, temp: &Path) {
    let (fs, before) = (world.fs.as_ref(), world.clock.now().minus(STALE_AFTER));
    if fs.stat(temp).is_ok_and(|stat| stat.modified < before) {
        let _ = fs.remove_file(temp).and_then(|()| remove_sidecars(fs, temp));
    }
}

/// Why a restore cannot be continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Useless {
    /// There is another one.
    Spare,
    /// It had noted nothing yet, or was complete.
    Fresh,
    /// Its file is another user's, or has other permissions than the database is to have.
    Foreign,
    /// It was a restore of other files.
    OtherPlan,
    /// What it wrote is not there any more.
    Damaged,
}

impl Useless {
    /// What there is to say about it.
    fn text(self) -> Option<&'static str> {
        match self {
            Self::Spare | Self::Fresh => None,
            Self::Foreign => Some("its file has another owner or mode"),
            Self::OtherPlan => Some("the files to restore from are others now"),
            Self::Damaged => Some("its file does not hold what was written"),
        }
    }
}

/// Opens the temporary file, if it is one that we could have made.
fn open(fs: &dyn Fs, temp: &Path, existing: Option<OwnerMode>) -> Result<Box<dyn File>, Useless> {
    let file = fs.open(temp, OpenMode::ReadWrite).map_err(|err| match err.kind() {
        // Killed before it was made, or after it was published.
        ErrorKind::NotFound => Useless::Fresh,
        _ => Useless::Foreign,
    })?;
    let stat = file.stat().map_err(|_| Useless::Foreign)?;
    let mode = stat.owner_mode.mode;
    let mode_fits = match existing {
        Some(existing) => mode == existing.mode & 0o777,
        None => mode & !OwnerMode::DEFAULT_FILE.mode == 0,
    };
    let owner = user_of(stat.owner_mode);
    let owner_fits = owner.is_some() && (owner == fs.user() || owner == existing.and_then(user_of));
    if stat.kind == FileKind::File && mode_fits && owner_fits { Ok(file) } else { Err(Useless::Foreign) }
}

fn user_of(file: OwnerMode) -> Option<u32> {
    file.owner.map(|(user, _)| user)
}

#[cfg(test)]
mod tests;
