//! Decoded pages on their way to the file: from the thread that decodes to the one that writes.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use super::mark::{Ledger, Mark, Tally, keep_entries};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::File;
use crate::types::PageSize;

/// Bytes of pages written at once.
pub(in crate::restore) const BATCH: usize = 1 << 20;
/// Batches in flight: one filling, one being written, two between them.
const BATCHES: usize = 4;

/// Pages, and where they belong.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) data: Vec<u8>,
    /// Bytes of `data` in use.
    pub(super) len: usize,
    /// Neighbouring pages: file offset, and bytes taken from `data` in order.
    runs: Vec<(u64, usize)>,
    /// Where the decoder stands once this is written.
    pub(super) mark: Option<Mark>,
}

impl Batch {
    /// Keeps the page decoded into the slot behind `len`.
    pub(super) fn push(&mut self, offset: u64, page_len: usize) {
        self.len += page_len;
        match self.runs.last_mut() {
            Some((start, len)) if *start + *len as u64 == offset => *len += page_len,
            _ => self.runs.push((offset, page_len)),
        }
    }

    fn write(&self, out: &dyn File) -> Result<()> {
        let mut data = self.data.as_slice();
        for (offset, len) in &self.runs {
            let (run, rest) = data.split_at(*len);
            out.write_all_at(run, *offset)?;
            data = rest;
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.runs.clear();
        self.len = 0;
    }
}

/// Writes batches as they come, and gives them back to be filled again.
fn write_batches(
    batches: &Receiver<Batch>,
    written: &Sender<Batch>,
    out: &dyn File,
    mut tally: Option<Tally>,
) -> Result<()> {
    for mut batch in batches {
        batch.write(out)?;
        if let Some(tally) = &mut tally {
            tally.note(&batch.data[..batch.len], &batch.runs, batch.mark.take());
        }
        batch.clear();
        // The decoder may have finished.
        let _ = written.send(batch);
    }
    Ok(())
}

/// Where full batches go to, and empty ones come from.
pub(super) struct Batches<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    out: &'env dyn File,
    /// Until the first batch is full.
    ledger: Option<&'env mut (dyn Ledger + 'env)>,
    /// Since then.
    writer: Option<Writer<'scope>>,
}

/// The writing thread, and the decoder's end of the two channels.
struct Writer<'scope> {
    full: SyncSender<Batch>,
    free: Receiver<Batch>,
    /// Batches that there are.
    made: usize,
    thread: ScopedJoinHandle<'scope, Result<()>>,
    /// The thread that keeps entries, if there is a ledger.
    keeper: Option<ScopedJoinHandle<'scope, Result<()>>>,
}

impl<'scope, 'env> Batches<'scope, 'env> {
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        out: &'env dyn File,
        ledger: Option<&'env mut (dyn Ledger + 'env)>,
    ) -> Self {
        Self { scope, out, ledger, writer: None }
    }

    pub(super) fn take(&mut self, page_size: PageSize) -> Result<Batch> {
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

    pub(super) fn send(&mut self, batch: Batch) -> Result<()> {
        let (scope, out, ledger) = (self.scope, self.out, self.ledger.take());
        let writer = self.writer.get_or_insert_with(|| {
            let (full, to_write) = sync_channel(BATCHES);
            let (written, free) = channel();
            let (tally, keeper) = ledger
                .map(|ledger| {
                    let (entries, to_keep) = sync_channel(1);
                    (Tally::new(entries), scope.spawn(move || keep_entries(&to_keep, out, ledger)))
                })
                .unzip();
            let thread = scope.spawn(move || write_batches(&to_write, &written, out, tally));
            Writer { full, free, made: 1, thread, keeper }
        });
        writer.full.send(batch).map_err(|_| writer_gone())
    }

    /// Passes the last batch on.
    pub(super) fn send_last(&mut self, batch: Batch) -> Result<()> {
        match self.writer {
            Some(_) => self.send(batch),
            None => batch.write(self.out),
        }
    }

    /// Waits until everything is written.
    pub(super) fn finish(self) -> Result<()> {
        let Some(Writer { full, thread, keeper, .. }) = self.writer else { return Ok(()) };
        drop(full);
        let panicked = || Err(Error::new(ErrorKind::Internal, "writer panicked"));
        let written = thread.join().unwrap_or_else(|_| panicked());
        let kept = keeper.map_or(Ok(()), |keeper| keeper.join().unwrap_or_else(|_| panicked()));
        written.and(kept)
    }
}

/// Never seen by users: the writer's own error goes first.
fn writer_gone() -> Error {
    Error::new(ErrorKind::Io, "write database")
}
