//! Gathers the facts that [`super::plan()`] decides on.

use std::collections::HashSet;

use super::config::DbConfig;
use super::engine::Last;
use super::plan::{Beyond, Tail};
use super::record::Record;
use super::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::{self, LocalDir, PageIndex};
use crate::sqlite::WalIndex;
use crate::sys::{BootId, File, FileId, OpenMode, World, mutant, read_up_to};
use crate::types::{Level, PageSize, TxidRange};
use crate::wal::{FrameHeader, FrameReader, PageMap, Salts, Stop, WalChecksum, WalHeader, read_slot};

/// How many frames before E are compared with the L0 file when there is no continuity record.
const COMPARED_FRAMES: usize = 4096;

/// The log at one moment.
#[derive(Debug)]
pub(super) struct LogView {
    pub(super) index: WalIndex,
    /// Where SQLite says it ends.
    pub(super) end: u64,
    /// The file, once there is one with a header.
    pub(super) file: Option<OpenLog>,
}

/// The open `-wal` file.
#[derive(Debug)]
pub(super) struct OpenLog {
    pub(super) file: Box<dyn File>,
    pub(super) header: WalHeader,
    pub(super) len: u64,
    pub(super) id: FileId,
}

impl LogView {
    /// Index first, then the file: when both name one generation, it is the present one.
    ///
    /// # Errors
    /// `Changed` if the log is being restarted right now; I/O errors.
    pub(super) fn take(world: &World, config: &DbConfig, session: &Session) -> Result<Self> {
        Self::of(session.wal_index()?, world, config, session.page_size)
    }

    /// The log that `index` describes.
    ///
    /// # Errors
    /// As [`LogView::take`].
    pub(super) fn of(index: WalIndex, world: &World, config: &DbConfig, page_size: PageSize) -> Result<Self> {
        let end = index.end(page_size);
        let file = OpenLog::open(world, config)?;
        if index.is_empty() {
            return Ok(Self { index, end, file });
        }
        match &file {
            Some(log) if log.header.salts == index.salts && log.len >= end => {}
            Some(log) if log.header.salts == index.salts => {
                return Err(Error::corrupt(format!("wal ends at {} but its index says {end}", log.len))
                    .at(config.wal_path().display()));
            }
            _ => return Err(Error::new(ErrorKind::Changed, "wal was restarted while it was looked at")),
        }
        if let Some(log) = &file
            && log.header.page_size != page_size
        {
            return Err(Error::new(ErrorKind::Changed, "page size of the wal differs from the database's"));
        }
        Ok(Self { index, end, file })
    }

    /// The file, where the plan cannot be without it.
    pub(super) fn log(&self) -> Result<&OpenLog> {
        self.file.as_ref().ok_or_else(|| Error::new(ErrorKind::Changed, "wal file is not there"))
    }
}

impl OpenLog {
    /// The file as it is now; `None` if it has no header.
    pub(super) fn open(world: &World, config: &DbConfig) -> Result<Option<Self>> {
        let Some(file) = world.fs.open_opt(&config.wal_path(), OpenMode::Read)? else { return Ok(None) };
        let stat = file.stat()?;
        let header = read_header(file.as_ref())?;
        Ok(header.map(|header| Self { file, header, len: stat.len, id: stat.id }))
    }

    /// The header as it is by now.
    pub(super) fn header_now(&self) -> Result<Option<WalHeader>> {
        read_header(self.file.as_ref())
    }

    /// A reader of this log's present generation.
    pub(super) fn reader(&self, page_size: PageSize, offset: u64, checksum: WalChecksum) -> FrameReader<'_> {
        self.reader_of(self.header.salts, page_size, offset, checksum)
    }

    /// A reader of the generation with these salts.
    pub(super) fn reader_of(
        &self,
        salts: Salts,
        page_size: PageSize,
        offset: u64,
        checksum: WalChecksum,
    ) -> FrameReader<'_> {
        FrameReader::new(self.file.as_ref(), page_size, self.header.big_endian, salts, offset, checksum)
    }
}

/// A header that is being written, or of an unused file, is no header.
fn read_header(file: &dyn File) -> Result<Option<WalHeader>> {
    let mut bytes = [0; 32];
    if read_up_to(file, &mut bytes, 0)? < bytes.len() {
        return Ok(None);
    }
    Ok(WalHeader::decode(&bytes).ok())
}

/// What an unprotected start finds out about the log around E.
#[derive(Debug)]
pub(super) struct Continuity {
    pub(super) tail: Tail,
    pub(super) beyond: Beyond,
    /// Checksum chain at E, if the tail is intact.
    pub(super) checksum: WalChecksum,
    /// Stale frames behind E, already mapped, if `beyond` found commits.
    pub(super) stale: PageMap,
    pub(super) replaced: bool,
}

/// Looks at the slots around E.
///
/// # Errors
/// I/O errors. What cannot be understood is not an error but [`Tail::Gone`].
pub(super) fn continuity(
    view: &LogView,
    last: &Last,
    record: Option<&Record>,
    local: &LocalDir,
    session: &Session,
    boot: Option<BootId>,
    stale_bytes: usize,
) -> Result<Continuity> {
    let mut found = Continuity {
        tail: Tail::Gone,
        beyond: Beyond::Unclear,
        checksum: WalChecksum::default(),
        stale: PageMap::default(),
        replaced: record.is_some_and(|r| r.inode() != session.file_id.ino),
    };
    let Some(log) = &view.file else { return Ok(found) };
    if view.index.is_empty() || last.page_size != session.page_size {
        return Ok(found);
    }
    let Some(checksum) = tail_checksum(log, last, record, local)? else { return Ok(found) };
    found.tail = Tail::Intact;
    found.checksum = checksum;
    // A power cut may have taken the log back before E, and what was committed in its stead may be
    // overwritten by now, although the slot before E still holds the frame we know. Only the record
    // can say that there was none.
    let restarted_once = (view.index.salts.follows(last.salts) || mutant("any-restart-follows"))
        && record.is_some_and(|r| {
            (r.is_of_boot(boot) || mutant("boot-ignored"))
                && (log.header.checkpoint_seq == r.seq().wrapping_add(1) || mutant("any-restart-follows"))
                && log.len >= r.wal_len()
        });
    if restarted_once {
        (found.beyond, found.stale) = beyond(log, last, checksum, view, stale_bytes)?;
    }
    Ok(found)
}

/// The chain at E, if the frame before E is the one that was synced.
fn tail_checksum(log: &OpenLog, last: &Last, record: Option<&Record>, local: &LocalDir) -> Result<Option<WalChecksum>> {
    if last.end == WalHeader::SIZE {
        // Nothing was read yet in that generation; nothing can prove what was in it.
        return Ok((log.header.salts == last.salts).then_some(log.header.checksum));
    }
    let frame_size = last.page_size.frame_size();
    let aligned = last.end > WalHeader::SIZE && (last.end - WalHeader::SIZE).is_multiple_of(frame_size);
    if !aligned {
        return Ok(None);
    }
    let mut frame = Vec::new();
    let slot = read_slot(log.file.as_ref(), last.page_size, last.end - frame_size, &mut frame)?;
    let Some(slot) = slot.filter(|s| s.salts == last.salts) else { return Ok(None) };
    let same = match record.map(Record::checksum).or(last.chain.filter(|_| !mutant("chain-not-kept"))) {
        Some(chain) => chain == slot.checksum || mutant("tail-not-compared"),
        None => frames_match_file(log, last, local)?,
    };
    Ok(same.then_some(slot.checksum))
}

/// Compares the frames before E, newest first, with the pages of the L0 file that was made from
/// them, and each frame's checksum with the frame before it.
fn frames_match_file(log: &OpenLog, last: &Last, local: &LocalDir) -> Result<bool> {
    let file = local.open(Level::L0, TxidRange::single(last.txid))?;
    let index = PageIndex::open(file.as_ref())?;
    let frame_size = last.page_size.frame_size();
    let first = last.start.max(WalHeader::SIZE);
    let mut seen = HashSet::new();
    let mut page = vec![0; last.page_size.len()];
    let (mut frame, mut next): (Vec<u8>, Option<Vec<u8>>) = (Vec::new(), None);
    let mut offset = last.end;
    for _ in 0..COMPARED_FRAMES {
        if offset < first + frame_size {
            break;
        }
        offset -= frame_size;
        let Some(slot) = read_slot(log.file.as_ref(), last.page_size, offset, &mut frame)? else { return Ok(false) };
        if slot.salts != last.salts {
            // Overwritten by the next generation; what is left was the same so far.
            return Ok(offset + frame_size < last.end);
        }
        if let Some(next) = &next
            && chain(slot.checksum, log.header.big_endian, next) != head_of(next).checksum
        {
            return Ok(false);
        }
        let Some(pgno) = slot.pgno else { return Ok(false) };
        if pgno.get() <= last.commit && seen.insert(pgno) {
            let Some(at) = index.find(pgno) else { return Ok(false) };
            ltx::read_page(file.as_ref(), at, pgno, last.page_size, &mut page)?;
            if page != frame[FrameHeader::SIZE..] {
                return Ok(false);
            }
        }
        next = Some(std::mem::take(&mut frame));
    }
    Ok(true)
}

fn head_of(frame: &[u8]) -> FrameHeader {
    let mut head = [0; FrameHeader::SIZE];
    head.copy_from_slice(&frame[..FrameHeader::SIZE]);
    FrameHeader::decode(&head)
}

fn chain(before: WalChecksum, big_endian: bool, frame: &[u8]) -> WalChecksum {
    before.update(big_endian, &frame[..8]).update(big_endian, &frame[FrameHeader::SIZE..])
}

/// Follows the old generation behind E after one restart.
///
/// The new generation ends before E, or the frame before E would not be intact. So a whole slot
/// behind E that the chain does not reach, and that carries neither the old nor the new salts,
/// holds what was there before the old generation came by: the chain found everything there was. Both
/// salts must differ from the old ones: of a damaged slot that cannot be said.
///
/// The end of the file proves nothing. A restart cuts the file to the `journal_size_limit` of
/// whoever restarts it, and with it commits that nobody but the database remembers. Nor does a slot
/// with the old salts that does not continue the chain.
fn beyond(
    log: &OpenLog,
    last: &Last,
    checksum: WalChecksum,
    view: &LogView,
    stale_bytes: usize,
) -> Result<(Beyond, PageMap)> {
    // Stale frames can be overwritten at any time: only what is in memory counts.
    let mut stale = PageMap::caching(stale_bytes);
    let reader = log.reader_of(last.salts, last.page_size, last.end, checksum);
    let segment = stale.read(reader, None)?;
    let of_another = |s: Salts| s != view.index.salts && s.salt1 != last.salts.salt1 && s.salt2 != last.salts.salt2;
    let proved = matches!(segment.stop, Some(Stop::OtherSalts(salts)) if of_another(salts));
    let proved = proved || (mutant("end-of-file-proves") && matches!(segment.stop, Some(Stop::EndOfFile { .. })));
    let proved = proved || mutant("anything-proves");
    let verdict = match (proved && stale.is_in_memory(), segment.commits) {
        (true, 0) => Beyond::Nothing,
        (true, _) if mutant("stale-commits-skipped") => Beyond::Nothing,
        (true, _) => Beyond::Commits,
        (false, _) => Beyond::Unclear,
    };
    Ok((verdict, stale))
}
