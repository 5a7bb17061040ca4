//! How far a restore is, noted so that another process can go on from there.
//!
//! The decoder sends a [`Mark`] with the batch that ends there. The writer adds what it wrote since the last
//! one, as places and checksums; a third thread syncs the file and only then has it noted. So an
//! [`Entry`] never claims what a power cut could take back, and whoever reads it can tell whether the
//! file still holds what was written. Nobody waits for any of this: while one is being synced, the
//! next ones are left out.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError};

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ltx::{Midway, crc64};
use crate::sys::File;

/// Bytes read of the replica between two marks.
const EVERY_READ: u64 = if cfg!(test) { 2 << 10 } else { 16 << 20 };
/// Bytes written between two marks, if pages compress so well that this comes first.
const EVERY_WRITTEN: u64 = 64 << 20;
/// Runs that are remembered for one entry. Beyond that the writer waits for the disk after all.
const MAX_RUNS: usize = 200_000;

/// Where the decoding of a plan stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::restore) struct Mark {
    /// Files that were read to their end, from the newest.
    pub(in crate::restore) done: usize,
    /// Inside of the next one.
    pub(in crate::restore) midway: Option<Midway>,
    /// Header of the newest file, in hexadecimal digits.
    pub(in crate::restore) newest: String,
    /// Smallest commit of the files that are done.
    pub(in crate::restore) floor: u32,
}

/// Pages that were written together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::restore) struct Piece {
    /// CRC-64 of their bytes, in this order.
    pub(in crate::restore) crc: u64,
    /// File offset and number of bytes of neighbouring pages.
    pub(in crate::restore) runs: Vec<(u64, usize)>,
}

/// What became durable since the entry before, and where the decoder stood then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::restore) struct Entry {
    pub(in crate::restore) mark: Mark,
    pub(in crate::restore) pieces: Vec<Piece>,
}

/// Where entries are kept.
pub(in crate::restore) trait Ledger: Send {
    /// Keeps an entry, durably.
    ///
    /// # Errors
    /// I/O errors; then no further one may come.
    fn append(&mut self, entry: &Entry) -> Result<()>;
}

/// When the next mark is due.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Bytes of the files before the current one.
    pub(super) before: u64,
    /// Bytes read at the last mark.
    pub(super) read: u64,
    /// Bytes sent to be written since.
    pub(super) written: u64,
}

impl Pace {
    /// `read` bytes of the current file are read.
    pub(super) fn is_due(&self, read: u64) -> bool {
        (self.before + read).saturating_sub(self.read) >= EVERY_READ || self.written >= EVERY_WRITTEN
    }

    pub(super) fn marked(&mut self, read: u64) {
        (self.read, self.written) = (self.before + read, 0);
    }
}

/// The writer's part.
pub(super) struct Tally {
    /// `None` once entries cannot be kept any more.
    entries: Option<SyncSender<Entry>>,
    pieces: Vec<Piece>,
    runs: usize,
}

impl Tally {
    pub(super) fn new(entries: SyncSender<Entry>) -> Self {
        Self { entries: Some(entries), pieces: Vec::new(), runs: 0 }
    }

    /// `data` was written to `runs`.
    pub(super) fn note(&mut self, data: &[u8], runs: &[(u64, usize)], mark: Option<Mark>) {
        let Some(entries) = &self.entries else { return };
        if !data.is_empty() {
            self.pieces.push(Piece { crc: crc64(data), runs: runs.to_vec() });
            self.runs += runs.len();
        }
        let Some(mark) = mark else { return };
        let entry = Entry { mark, pieces: std::mem::take(&mut self.pieces) };
        // In unit tests no entry may depend on how fast the disk is.
        let sent = if cfg!(test) || self.runs >= MAX_RUNS {
            entries.send(entry).map_err(|gone| TrySendError::Disconnected(gone.0))
        } else {
            entries.try_send(entry)
        };
        match sent {
            Ok(()) => self.runs = 0,
            // It goes with the next one.
            Err(TrySendError::Full(entry)) => self.pieces = entry.pieces,
            Err(TrySendError::Disconnected(_)) => self.entries = None,
        }
    }
}

/// Keeps entries as they come. One that cannot be kept ends that, and nothing else.
///
/// # Errors
/// Those of syncing `out`, which is worthless then.
pub(super) fn keep_entries(entries: &Receiver<Entry>, out: &dyn File, ledger: &mut dyn Ledger) -> Result<()> {
    for entry in entries {
        out.sync()?;
        if let Err(err) = ledger.append(&entry) {
            tracing::debug!(error = %err, "a killed restore will not be continued from here");
            return Ok(());
        }
    }
    Ok(())
}
