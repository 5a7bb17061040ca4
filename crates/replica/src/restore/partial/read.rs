//! Reading a record, and comparing the file with what it claims.

use std::io::{BufRead, BufReader, Read};

use serde::de::DeserializeOwned;

use super::{Plan, Record, Useless, chain, user_of};
use crate::ltx::{FileReader, Header, Midway, crc64};
use crate::replica::FileInfo;
use crate::restore::apply::{BATCH, Entry, Mark, Piece, Resumed, room_for};
use crate::restore::pages::PageMap;
use crate::sys::{File, Fs, read_full_at};
use crate::types::{PageSize, Pgno};

/// Longest line that is read: that of an entry with as many runs as are kept, and some.
const MAX_LINE: u64 = 16 << 20;

/// A record being read.
struct Lines<'a> {
    reader: BufReader<FileReader<&'a dyn File>>,
    line: Vec<u8>,
    end: u64,
    sum: u64,
}

impl<'a> Lines<'a> {
    fn of(file: &'a dyn File) -> Self {
        Self { reader: BufReader::new(FileReader::new(file)), line: Vec::new(), end: 0, sum: 0 }
    }

    /// The next line; `None` behind the last one whose checksum holds.
    fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        self.line.clear();
        (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut self.line).ok()?;
        let line = std::str::from_utf8(&self.line).ok()?.strip_suffix('\n')?;
        let (json, sum) = line.rsplit_once(' ')?;
        let expected = chain(self.sum, json);
        if sum != format!("{expected:016x}") {
            return None;
        }
        let content = serde_json::from_str(json).ok()?;
        (self.end, self.sum) = (self.end + self.line.len() as u64, expected);
        Some(content)
    }
}

impl Record {
    /// Reads all lines, and compares `file` with what they claim. What is in the file, and how many bytes of
    /// the plan that stands for.
    pub(super) fn read(
        &mut self,
        fs: &dyn Fs,
        file: &dyn File,
        plan: &Plan,
        files: &[FileInfo],
    ) -> Result<(Resumed, u64), Useless> {
        // Whoever could write our records could have us take any content for verified.
        let owner = self.file.stat().ok().and_then(|stat| user_of(stat.owner_mode));
        if owner.is_none() || owner != fs.user() {
            return Err(Useless::Foreign);
        }
        let mut lines = Lines::of(self.file.as_ref());
        if lines.next::<Plan>().ok_or(Useless::Fresh)? != *plan {
            return Err(Useless::OtherPlan);
        }
        let mut claimed: Option<Claimed> = None;
        let mut buf = Vec::new();
        let mut entries = 0;
        while let Some(Entry { mark, pieces }) = lines.next::<Entry>() {
            let so_far = match claimed.take() {
                Some(so_far) if so_far.mark.newest == mark.newest => so_far,
                Some(_) => return Err(Useless::Damaged),
                None => Claimed::new(&mark, files, plan.bytes)?,
            };
            let so_far = claimed.insert(so_far);
            so_far.mark = mark;
            entries += 1;
            for piece in &pieces {
                so_far.check(piece, file, &mut buf)?;
            }
        }
        let (end, sum) = (lines.end, lines.sum);
        let Claimed { mark, map, .. } = claimed.ok_or(Useless::Fresh)?;
        // The last file opened: the one that was begun, or else the one before.
        let last = mark.done.checked_sub(usize::from(mark.midway.is_none()));
        let oldest = *last.and_then(|last| files.get(last)).ok_or(Useless::Damaged)?;
        let offset = mark.midway.as_ref().map_or(0, Midway::offset);
        let bytes = files.iter().take(mark.done).map(|file| file.size).fold(offset, u64::saturating_add);
        // A torn line goes.
        self.file.set_len(end).map_err(|_| Useless::Foreign)?;
        (self.end, self.sum, self.entries) = (end, sum, entries);
        Ok((Resumed { mark, map, oldest }, bytes))
    }
}

/// What the lines read so far claim.
struct Claimed {
    mark: Mark,
    map: PageMap,
    page_size: PageSize,
}

impl Claimed {
    fn new(mark: &Mark, files: &[FileInfo], listed: u64) -> Result<Self, Useless> {
        let newest = Header::from_hex(&mark.newest).map_err(|_| Useless::Damaged)?;
        if files.first().map(|file| file.txids) != Some(newest.txids) {
            return Err(Useless::Damaged);
        }
        let map = room_for(&newest, 0, listed).map_err(|_| Useless::Damaged)?;
        Ok(Self { mark: mark.clone(), map, page_size: newest.page_size })
    }

    /// Compares the file with one piece, and takes its pages for there.
    fn check(&mut self, piece: &Piece, file: &dyn File, buf: &mut Vec<u8>) -> Result<(), Useless> {
        let total = piece.runs.iter().try_fold(0_usize, |sum, (_, len)| sum.checked_add(*len));
        let total = total.filter(|total| *total <= BATCH.max(self.page_size.len())).ok_or(Useless::Damaged)?;
        buf.resize(total, 0);
        let mut rest = buf.as_mut_slice();
        for (offset, len) in &piece.runs {
            let (run, behind) = rest.split_at_mut(*len);
            read_full_at(file, run, *offset).map_err(|_| Useless::Damaged)?;
            self.take(*offset, *len).ok_or(Useless::Damaged)?;
            rest = behind;
        }
        if crc64(buf) == piece.crc { Ok(()) } else { Err(Useless::Damaged) }
    }

    /// Adds the pages of a run, which must all be new.
    fn take(&mut self, offset: u64, len: usize) -> Option<()> {
        let (size, len) = (u64::from(self.page_size.get()), len as u64);
        if !offset.is_multiple_of(size) || !len.is_multiple_of(size) {
            return None;
        }
        let first = u32::try_from(offset / size).ok()?.checked_add(1)?;
        let behind = first.checked_add(u32::try_from(len / size).ok()?)?;
        (first..behind).all(|pgno| Pgno::new(pgno).is_some_and(|pgno| self.map.insert(pgno))).then_some(())
    }
}
