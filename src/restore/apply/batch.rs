//! Decoded pages on their way to the file: from the thread that decodes to the one that writes.

use std::sync::mpsc::{Receiver, Sender, SyncSender};

use super::mark::{Mark, Tally};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::File;
use crate::types::PageSize;

/// Bytes of pages written at once.
pub(in crate::restore) const BATCH: usize = 1 << 20;
/// Batches in flight: one filling, one being written, two between them.
pub(super) const BATCHES: usize = 4;

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
}

/// Writes batches as they come, and gives them back to be filled again.
pub(super) fn write_batches(
    batches: &Receiver<Batch>,
    written: &Sender<Batch>,
    out: &dyn File,
    mut tally: Option<Tally>,
) -> Result<()> {
    for mut batch in batches {
        let mut data = batch.data.as_slice();
        for (offset, len) in &batch.runs {
            let (run, rest) = data.split_at(*len);
            out.write_all_at(run, *offset)?;
            data = rest;
        }
        if let Some(tally) = &mut tally {
            tally.note(&batch.data[..batch.len], &batch.runs, batch.mark.take());
        }
        batch.runs.clear();
        batch.len = 0;
        // The decoder may have finished.
        let _ = written.send(batch);
    }
    Ok(())
}

/// The decoder's end of the two channels.
pub(super) struct Batches {
    full: SyncSender<Batch>,
    free: Receiver<Batch>,
    made: usize,
}

impl Batches {
    pub(super) fn new(full: SyncSender<Batch>, free: Receiver<Batch>) -> Self {
        Self { full, free, made: 0 }
    }

    pub(super) fn take(&mut self, page_size: PageSize) -> Result<Batch> {
        if let Ok(batch) = self.free.try_recv() {
            return Ok(batch);
        }
        if self.made < BATCHES {
            self.made += 1;
            return Ok(Batch { data: vec![0; BATCH.max(page_size.len())], ..Batch::default() });
        }
        self.free.recv().map_err(|_| writer_gone())
    }

    pub(super) fn send(&self, batch: Batch) -> Result<()> {
        self.full.send(batch).map_err(|_| writer_gone())
    }
}

/// Never seen by users: the writer's own error goes first.
fn writer_gone() -> Error {
    Error::new(ErrorKind::Io, "write database")
}
