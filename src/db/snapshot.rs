//! A whole database as one LTX stream: level 9.

use std::io::Write;

use super::encode::{PageSource, Pages};
use super::engine::Db;
use super::observe::LogView;
use super::sync::not_open;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::{Encoder, Header, WalPos};
use crate::types::{Checksum, PageSize, Timestamp, TxidRange};
use crate::wal::{PageMap, WalHeader};

/// What a snapshot stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// `1..=n`.
    pub txids: TxidRange,
    /// When it was started.
    pub timestamp: Timestamp,
    /// Pages in it.
    pub pages: u64,
    /// Page size.
    pub page_size: PageSize,
}

impl Db {
    /// Writes the state of the newest local L0 file as a snapshot. Syncs first, so that database
    /// and log are at that state (`spec: replication` §10).
    ///
    /// # Errors
    /// `NotFound` while nothing was ever synced; I/O errors. What was written is void then.
    pub fn snapshot<W: Write>(&mut self, out: W) -> Result<SnapshotInfo> {
        self.sync_log()?;
        let last =
            self.last().cloned().ok_or_else(|| Error::new(ErrorKind::NotFound, "no position, waiting for data"))?;
        let session = self.session.as_mut().ok_or_else(not_open)?;
        let view = LogView::take(&self.world, &self.config, session)?;
        let page_size = session.page_size;
        let mut map = PageMap::default();
        let mut wal = WalPos { offset: WalHeader::SIZE, size: 0, salt1: last.salts.salt1, salt2: last.salts.salt2 };
        // With everything copied the database file alone is that state, and it stays so: under our
        // read transaction no later frame can be copied. The log may be restarted meanwhile.
        let copied = view.index.is_empty()
            || (view.index.salts == last.salts && view.end == last.end && view.index.is_fully_backfilled());
        let commit = if copied {
            wal.offset = last.end.saturating_sub(page_size.frame_size()).max(WalHeader::SIZE);
            wal.size = last.end.saturating_sub(wal.offset);
            last.commit
        } else {
            if view.index.salts != last.salts || view.end < last.end {
                return Err(Error::new(ErrorKind::Changed, "wal moved on between sync and snapshot"));
            }
            // Frames behind the synced position belong to a later TXID.
            let head = view.log()?.header.checksum;
            let reader = view.log()?.reader(page_size, WalHeader::SIZE, head).bounded(last.end);
            let segment = map.read(reader, None)?;
            map.drop_beyond_commit();
            if segment.end != last.end || last.checksum.is_some_and(|c| c != segment.checksum) {
                return Err(Error::new(ErrorKind::Changed, "wal was restarted while it was read"));
            }
            wal.offset = last.end.saturating_sub(page_size.frame_size()).max(WalHeader::SIZE);
            wal.size = last.end - wal.offset;
            map.commit()
        };
        let header = Header {
            no_checksum: true,
            page_size,
            commit,
            txids: TxidRange::up_to(last.txid),
            timestamp: self.world.clock.now(),
            pre_apply: Checksum::NONE,
            wal,
            node_id: 0,
        };
        let session = self.session.as_ref().ok_or_else(not_open)?;
        let source = PageSource {
            map: &map,
            wal: view.file.as_ref().map(|l| l.file.as_ref()),
            db: session.file(),
            page_size,
            db_pages: session.file_pages()?,
            in_order: true,
        };
        let mut encoder = Encoder::new(out, header)?;
        let pages = source.encode(Pages::All(commit), &mut encoder)?;
        let (mut out, _) = encoder.finish(Checksum::NONE)?;
        out.flush().map_err(|e| Error::io("write snapshot", e))?;
        if !copied && session.wal_index()?.salts != view.index.salts {
            return Err(Error::new(ErrorKind::Changed, "wal was restarted while it was copied"));
        }
        Ok(SnapshotInfo { txids: header.txids, timestamp: header.timestamp, pages, page_size })
    }
}
