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

use std::io::Read;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use super::pages::PageMap;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::{Decoder, Header};
use crate::replica::FileInfo;
use crate::sys::File;
use crate::types::{PageSize, Pgno, Timestamp, Txid};

/// Bytes of pages written at once.
const BATCH: usize = 1 << 20;
/// Batches in flight: one filling, one being written, two between them.
const BATCHES: usize = 4;
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

/// Writes the database that `sources` describe to `out`, each page where it belongs, and sets its
/// length. `sources` are all files of a plan from the newest to the oldest, `listed` their bytes
/// together. With a `base` only the pages that come from the files are written; which ones is in the
/// map. Blocks.
///
/// # Errors
/// `Corrupt` for any input that breaks a rule, `decode database: <file>: …`; errors of the readers
/// and of `out`, whose content is worthless then.
pub(crate) fn apply<R: Read>(
    sources: impl Iterator<Item = Result<(FileInfo, R)>>,
    listed: u64,
    base: Option<Base>,
    out: &dyn File,
) -> Result<(Applied, PageMap), Broken> {
    let (applied, map) = std::thread::scope(|scope| {
        let mut decoding = Decoding::new(Batches { scope, out, writer: None }, listed, base);
        let decoded = decoding.run(sources);
        // If the writer failed, the decoder could only notice that nobody takes its batches.
        decoding.batches.finish()?;
        decoded
    })?;
    out.set_len(applied.bytes())?;
    Ok((applied, map))
}

/// Decoded pages on their way to the file.
#[derive(Debug, Default)]
struct Batch {
    data: Vec<u8>,
    /// Bytes of `data` in use.
    len: usize,
    /// Neighbouring pages: file offset, and bytes taken from `data` in order.
    runs: Vec<(u64, usize)>,
}

impl Batch {
    /// Keeps the page decoded into the slot behind `len`.
    fn push(&mut self, offset: u64, page_len: usize) {
        self.len += page_len;
        match self.runs.last_mut() {
            Some((start, len)) if *start + *len as u64 == offset => *len += page_len,
            _ => self.runs.push((offset, page_len)),
        }
    }

    /// Writes the pages, which leaves it empty.
    fn write(&mut self, out: &dyn File) -> Result<()> {
        let mut data = self.data.as_slice();
        for (offset, len) in self.runs.drain(..) {
            let (run, rest) = data.split_at(len);
            out.write_all_at(run, offset)?;
            data = rest;
        }
        self.len = 0;
        Ok(())
    }
}

fn write_batches(batches: &Receiver<Batch>, written: &Sender<Batch>, out: &dyn File) -> Result<()> {
    for mut batch in batches {
        batch.write(out)?;
        // The decoder may have finished.
        let _ = written.send(batch);
    }
    Ok(())
}

/// Where full batches go to, and empty ones come from.
struct Batches<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    out: &'scope dyn File,
    /// Since the first batch was full.
    writer: Option<Writer<'scope>>,
}

/// The writing thread, and the decoder's end of the two channels.
struct Writer<'scope> {
    full: SyncSender<Batch>,
    free: Receiver<Batch>,
    /// Batches that there are.
    made: usize,
    thread: ScopedJoinHandle<'scope, Result<()>>,
}

impl Batches<'_, '_> {
    fn take(&mut self, page_size: PageSize) -> Result<Batch> {
        let new = || Batch { data: vec![0; BATCH.max(page_size.len())], ..Batch::default() };
        let Some(writer) = &mut self.writer else { return Ok(new()) };
        if let Ok(batch) = writer.free.try_recv() {
            return Ok(batch);
        }
        if writer.made < BATCHES {
            writer.made += 1;
            return Ok(new());
        }
        writer.free.recv().map_err(|_| writer_gone())
    }

    fn send(&mut self, batch: Batch) -> Result<()> {
        let (scope, out) = (self.scope, self.out);
        let writer = self.writer.get_or_insert_with(|| {
            let (full, to_write) = sync_channel(BATCHES);
            let (written, free) = channel();
            let thread = scope.spawn(move || write_batches(&to_write, &written, out));
            Writer { full, free, made: 1, thread }
        });
        writer.full.send(batch).map_err(|_| writer_gone())
    }

    /// Passes the last batch on.
    fn send_last(&mut self, mut batch: Batch) -> Result<()> {
        match self.writer {
            Some(_) => self.send(batch),
            None => batch.write(self.out),
        }
    }

    /// Waits until everything is written.
    fn finish(self) -> Result<()> {
        let Some(Writer { full, thread, .. }) = self.writer else { return Ok(()) };
        drop(full);
        thread.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "writer panicked")))
    }
}

/// Never seen by users: the writer's own error goes first.
fn writer_gone() -> Error {
    Error::new(ErrorKind::Io, "write database")
}

struct Decoding<'scope, 'env> {
    batches: Batches<'scope, 'env>,
    listed: u64,
    base: Option<Base>,
    batch: Option<Batch>,
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

impl<'scope, 'env> Decoding<'scope, 'env> {
    fn new(batches: Batches<'scope, 'env>, listed: u64, base: Option<Base>) -> Self {
        Self { batches, listed, base, batch: None }
    }

    fn run<R: Read>(
        &mut self,
        sources: impl Iterator<Item = Result<(FileInfo, R)>>,
    ) -> Result<(Applied, PageMap), Broken> {
        let mut image: Option<Image> = None;
        for source in sources {
            let (file, reader) = source?;
            let named = |err: Error| Broken {
                file: Some(file),
                error: err.context(file.to_string()).context("decode database"),
            };
            let mut decoder = Decoder::new(reader).map_err(|e| named(e.context("decode header")))?;
            let current = self.enter(image.take(), &file, decoder.header()).map_err(named)?;
            let current = image.insert(current);
            self.read_pages(&mut decoder, current).map_err(named)?;
            current.floor = current.floor.min(decoder.header().commit);
        }
        let image = image.ok_or_else(|| Error::new(ErrorKind::NotFound, "no matching backup files available"))?;
        if let Some(batch) = self.batch.take() {
            self.batches.send_last(batch)?;
        }
        Ok(image.finish(self.base).map_err(|err| err.context("decode database"))?)
    }

    /// Checks a header against the file's name and the newer files.
    fn enter(&self, image: Option<Image>, file: &FileInfo, header: &Header) -> Result<Image> {
        if header.txids != file.txids {
            return Err(Error::corrupt(format!("file name does not match its header, which says {}", header.txids)));
        }
        let Some(mut image) = image else {
            let pages = header.commit;
            let (there, page_size) = self.base.map_or((0, header.page_size), |base| (base.pages, base.page_size));
            if header.page_size != page_size {
                let text = format!("page size is {}, was {page_size}", header.page_size);
                return Err(Error::new(ErrorKind::Changed, text));
            }
            // Every page must be in some file: what cannot be there needs no memory to find out.
            if pages == 0 || u64::from(pages) > u64::from(there) + self.listed / MIN_PAGE_COST + 1 {
                return Err(Error::corrupt(format!("database of {pages} pages cannot be in {} bytes", self.listed)));
            }
            let map = PageMap::new(pages, header.page_size.lock_page());
            return Ok(Image { newest: *header, oldest: *file, floor: u32::MAX, map });
        };
        let (ours, theirs) = (header.page_size, image.newest.page_size);
        if ours != theirs {
            return Err(Error::corrupt(format!("input files have mismatched page sizes: {ours} != {theirs}")));
        }
        if !image.oldest.txids.extends(Some(file.txids.max())) {
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
                    self.batches.send(full)?;
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
        }
    }
}

impl Image {
    /// Whether this page of the file being read belongs into the database; notes that it is there.
    fn wants(&mut self, pgno: Pgno) -> Result<bool> {
        if pgno.get() > self.newest.commit || !self.map.insert(pgno) {
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
