//! LTX files → database image.
//!
//! Newest file first, with a bitmap of the pages that are written: a superseded page is checked
//! (its file's checksum covers it) but not written again. Pages are decoded into batches of about
//! a megabyte, and written on a second thread while the next batch fills; what fits into one batch
//! needs no second thread.
//!
//! With a [`Base`] the files lead on from a database that is there already, and what comes out is
//! only the pages that differ.
//!
//! Nothing that comes out may be used before [`apply`] has returned `Ok`: only then every input was
//! verified, and every page found.

mod batch;
mod mark;

use std::io::Read;

pub(super) use batch::BATCH;
use batch::{Batch, Batches};
use mark::Pace;
pub(super) use mark::{Entry, Ledger, Mark, Piece};

use super::pages::PageMap;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::{Decoder, Header, Midway};
use crate::replica::FileInfo;
use crate::sys::{File, mutant};
use crate::types::{PageSize, Pgno, Timestamp, Txid};

/// Fewest bytes a page takes in an LTX file: header, length, an LZ4 block, its index entry.
const MIN_PAGE_COST: u64 = 12;

/// What [`apply`] built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Applied {
    /// State the database has now.
    pub(crate) txid: Txid,
    /// When that was, as the newest file says.
    pub(crate) timestamp: Timestamp,
    /// Size of a page.
    pub(crate) page_size: PageSize,
    /// Pages of the database.
    pub(crate) pages: u32,
}

impl Applied {
    /// Size of the database in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.pages) * u64::from(self.page_size.get())
    }
}

/// The database that files are to be applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base {
    /// Its state.
    pub(crate) txid: Txid,
    /// Size of its pages.
    pub(crate) page_size: PageSize,
    /// Number of its pages.
    pub(crate) pages: u32,
}

/// Why files could not be applied.
#[derive(Debug)]
pub(crate) struct Broken {
    /// The file at fault, if it was one.
    pub(crate) file: Option<FileInfo>,
    /// What happened.
    pub(crate) error: Error,
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self { file: None, error }
    }
}

/// What is there before the first file is read.
#[derive(Debug)]
pub(super) enum Start {
    /// Nothing: the files make up a whole database.
    Empty,
    /// A database that they lead on from. Only the pages that come from them are written.
    Base(Base),
    /// What an earlier restore has written, and verified.
    Resumed(Resumed),
}

/// An earlier restore of the same plan, up to a mark.
#[derive(Debug)]
pub(super) struct Resumed {
    /// Where it stood.
    pub(super) mark: Mark,
    /// The pages that it wrote.
    pub(super) map: PageMap,
    /// The last file that it opened.
    pub(super) oldest: FileInfo,
}

/// Writes the database that `sources` describe to `out`, each page where it belongs, and sets its
/// length. `sources` are all files of a plan from the newest to the oldest, `listed` their bytes
/// together; of a plan that was begun, those left, the first from where the mark is. Which pages came
/// from files is in the map. Marks go to `ledger`. Blocks.
///
/// # Errors
/// `Corrupt` for any input that breaks a rule, `decode database: <file>: …`; errors of the readers
/// and of `out`, whose content is worthless then unless `ledger` says otherwise.
pub(super) fn apply<R: Read>(
    sources: impl Iterator<Item = Result<(FileInfo, R)>>,
    listed: u64,
    start: Start,
    ledger: Option<&mut dyn Ledger>,
    out: &dyn File,
) -> Result<(Applied, PageMap), Broken> {
    // Both for as long as the threads live, and no longer.
    let ledger = ledger.map(|ledger| ledger as &mut dyn Ledger);
    let (applied, map) = std::thread::scope(|scope| {
        let pace = ledger.as_ref().map(|_| Pace::default());
        let mut decoding = Decoding::new(Batches::new(scope, out, ledger), listed, pace);
        let decoded = decoding.run(sources, start);
        // If the writer failed, the decoder could only notice that nobody takes its batches.
        decoding.batches.finish()?;
        decoded
    })?;
    out.set_len(applied.bytes())?;
    Ok((applied, map))
}

struct Decoding<'scope, 'env> {
    batches: Batches<'scope, 'env>,
    listed: u64,
    batch: Option<Batch>,
    /// Files that were read to their end.
    done: usize,
    /// If marks are wanted.
    pace: Option<Pace>,
}

/// What the files read so far say.
struct Image {
    /// Header of the newest file: it decides size and state.
    newest: Header,
    /// Where the last file read begins; the next older one must lead there.
    oldest: FileInfo,
    /// Smallest commit of the files read: pages beyond it were cut off by one of them, and cannot
    /// come from an older one.
    floor: u32,
    map: PageMap,
}

/// Room for the pages of a database, on top of those that are `there`. Every page must be in some file:
/// what cannot be there needs no memory to find out.
///
/// # Errors
/// `Corrupt` for more pages than `listed` bytes can hold.
pub(super) fn room_for(newest: &Header, there: u32, listed: u64) -> Result<PageMap> {
    let pages = newest.commit;
    if pages == 0 || u64::from(pages) > u64::from(there) + listed / MIN_PAGE_COST + 1 {
        return Err(Error::corrupt(format!("database of {pages} pages cannot be in {listed} bytes")));
    }
    Ok(PageMap::new(pages, newest.page_size.lock_page()))
}

impl<'scope, 'env> Decoding<'scope, 'env> {
    fn new(batches: Batches<'scope, 'env>, listed: u64, pace: Option<Pace>) -> Self {
        Self { batches, listed, batch: None, done: 0, pace }
    }

    fn run<R: Read>(
        &mut self,
        sources: impl Iterator<Item = Result<(FileInfo, R)>>,
        start: Start,
    ) -> Result<(Applied, PageMap), Broken> {
        let base = if let Start::Base(base) = &start { Some(*base) } else { None };
        let (mut image, mut midway) = match start {
            Start::Resumed(resumed) => self.resume(resumed)?,
            Start::Empty | Start::Base(_) => (None, None),
        };
        for source in sources {
            let (file, reader) = source?;
            let named = |err: Error| Broken {
                file: Some(file),
                error: err.context(file.to_string()).context("decode database"),
            };
            let decoder = match midway.take() {
                Some(midway) => Decoder::resume(reader, &midway),
                None => Decoder::new(reader),
            };
            let mut decoder = decoder.map_err(|e| named(e.context("decode header")))?;
            let current = self.enter(image.take(), &file, decoder.header(), base).map_err(named)?;
            let current = image.insert(current);
            self.read_pages(&mut decoder, current).map_err(named)?;
            current.floor = current.floor.min(decoder.header().commit);
            self.leave(decoder.bytes_read(), current)?;
        }
        let image = image.ok_or_else(|| Error::new(ErrorKind::NotFound, "no matching backup files available"))?;
        if let Some(batch) = self.batch.take() {
            self.batches.send_last(batch)?;
        }
        Ok(image.finish(base).map_err(|err| err.context("decode database"))?)
    }

    /// Takes over where an earlier restore stood.
    fn resume(&mut self, from: Resumed) -> Result<(Option<Image>, Option<Midway>)> {
        let Resumed { mark: Mark { done, midway, newest, floor }, map, oldest } = from;
        let newest = Header::from_hex(&newest)?;
        self.done = done;
        if let (Some(pace), Some(midway)) = (&mut self.pace, &midway) {
            pace.marked(midway.offset());
        }
        Ok((Some(Image { newest, oldest, floor, map }), midway))
    }

    /// Checks a header against the file's name and the newer files.
    fn enter(&self, image: Option<Image>, file: &FileInfo, header: &Header, base: Option<Base>) -> Result<Image> {
        if header.txids != file.txids {
            return Err(Error::corrupt(format!("file name does not match its header, which says {}", header.txids)));
        }
        let Some(mut image) = image else {
            let (there, page_size) = base.map_or((0, header.page_size), |base| (base.pages, base.page_size));
            if header.page_size != page_size {
                let text = format!("page size is {}, was {page_size}", header.page_size);
                return Err(Error::new(ErrorKind::Changed, text));
            }
            let map = room_for(header, there, self.listed)?;
            return Ok(Image { newest: *header, oldest: *file, floor: u32::MAX, map });
        };
        let (ours, theirs) = (header.page_size, image.newest.page_size);
        if ours != theirs {
            return Err(Error::corrupt(format!("input files have mismatched page sizes: {ours} != {theirs}")));
        }
        // A file that was begun before is its own neighbour.
        if image.oldest != *file && !image.oldest.txids.extends(Some(file.txids.max())) {
            let newer = image.oldest.txids;
            return Err(Error::corrupt(format!(
                "non-contiguous transaction ids in input files: ({},{}) -> ({},{})",
                file.txids.min(),
                file.txids.max(),
                newer.min(),
                newer.max()
            )));
        }
        image.oldest = *file;
        Ok(image)
    }

    fn read_pages<R: Read>(&mut self, decoder: &mut Decoder<R>, image: &mut Image) -> Result<()> {
        let page_size = image.newest.page_size;
        let page_len = page_size.len();
        loop {
            let mut batch = match self.batch.take() {
                Some(batch) if batch.data.len() - batch.len >= page_len => batch,
                Some(full) => {
                    self.send(full)?;
                    self.batches.take(page_size)?
                }
                None => self.batches.take(page_size)?,
            };
            let slot = &mut batch.data[batch.len..batch.len + page_len];
            let page = decoder.next_page(slot)?;
            if let Some(pgno) = page
                && image.wants(pgno)?
            {
                batch.push(page_size.offset_of(pgno), page_len);
            }
            self.batch = Some(batch);
            if page.is_none() {
                return Ok(());
            }
            let read = decoder.bytes_read();
            if self.pace.as_ref().is_some_and(|pace| pace.is_due(read)) {
                self.mark(image, decoder.midway(), read)?;
            }
        }
    }

    /// A file was read to its end.
    fn leave(&mut self, read: u64, image: &Image) -> Result<()> {
        self.done += 1;
        if let Some(pace) = &mut self.pace {
            pace.before += read;
            if pace.is_due(0) {
                self.mark(image, None, 0)?;
            }
        }
        Ok(())
    }

    /// Has it noted that everything up to here was decoded, once it is written.
    fn mark(&mut self, image: &Image, midway: Option<Midway>, read: u64) -> Result<()> {
        let Some(mut batch) = self.batch.take() else { return Ok(()) };
        let newest = image.newest.to_hex();
        batch.mark = Some(Mark { done: self.done, midway, newest, floor: image.floor });
        self.send(batch)?;
        if let Some(pace) = &mut self.pace {
            pace.marked(read);
        }
        Ok(())
    }

    fn send(&mut self, batch: Batch) -> Result<()> {
        if let Some(pace) = &mut self.pace {
            pace.written += batch.len as u64;
        }
        self.batches.send(batch)
    }
}

impl Image {
    /// Whether this page of the file being read belongs into the database; notes that it is there.
    fn wants(&mut self, pgno: Pgno) -> Result<bool> {
        let known = pgno.get() <= self.newest.commit && !self.map.insert(pgno) && !mutant("store-older-page-wins");
        if pgno.get() > self.newest.commit || known {
            return Ok(false);
        }
        if pgno.get() > self.floor {
            return Err(Error::corrupt(format!(
                "page {pgno} was cut off by a later transaction (commit {}) and is in none after it",
                self.floor
            )));
        }
        Ok(true)
    }

    fn finish(self, base: Option<Base>) -> Result<(Applied, PageMap)> {
        let kept = match base {
            None if !self.oldest.txids.is_snapshot() => {
                return Err(Error::corrupt("cannot decode non-snapshot LTX file to SQLite database"));
            }
            Some(base) if self.oldest.txids.min() > base.txid.next() => {
                let (state, next) = (base.txid, self.oldest.txids.min());
                return Err(Error::corrupt(format!("database is at {state} but next file starts at {next}")));
            }
            None => 0,
            // Pages that no file has cut off are still there.
            Some(base) => base.pages.min(self.floor),
        };
        match self.map.first_gap(kept) {
            None => {}
            Some((0, _)) => return Err(Error::corrupt("snapshot transaction file must start with page number 1")),
            Some((last, Some(next))) => {
                return Err(Error::corrupt(format!(
                    "nonsequential page numbers in snapshot transaction: {last},{next}"
                )));
            }
            Some((last, None)) => {
                return Err(Error::corrupt(format!(
                    "snapshot transaction file ends with page number {last}, commit size is {}",
                    self.newest.commit
                )));
            }
        }
        let applied = Applied {
            txid: self.newest.txids.max(),
            timestamp: self.newest.timestamp,
            page_size: self.newest.page_size,
            pages: self.newest.commit,
        };
        Ok((applied, self.map))
    }
}

#[cfg(test)]
mod tests;
