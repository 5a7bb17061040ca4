//! A whole database as one LTX stream: level 9.
//!
//! A snapshot is read beside the engine, from a read transaction of its own that began at the state of
//! the newest L0 file: what it reads does not change, however long that takes. The engine goes on
//! turning commits into files meanwhile; only checkpoints wait.

use std::io::Write;

use super::encode::{PageSource, Pages};
use super::engine::{Db, Last};
use super::observe::{LogView, OpenLog};
use super::quiet::{Stamp, being_rewritten};
use super::session::Beside;
use super::sync::not_open;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::{Encoder, Header, WalPos};
use crate::types::{Checksum, PageSize, Timestamp, Txid, TxidRange};
use crate::wal::{PageMap, WalHeader};

/// Attempts to begin between two commits before the application has to wait for a moment.
const ATTEMPTS: u32 = 3;

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

/// One state of a database, readable for as long as this lives. The session it came from does not end
/// before it.
#[derive(Debug)]
pub struct SnapshotReader {
    beside: Beside,
    /// `None`: everything is in the database file.
    log: Option<OpenLog>,
    last: Last,
    timestamp: Timestamp,
    /// What the database file must still be at the end, where SQLite's locks do not see to that.
    unwritten: Option<Stamp>,
}

impl Db {
    /// Syncs, and holds on to the state of the newest local L0 file (`spec: replication` §10).
    ///
    /// # Errors
    /// `NotFound` while nothing was ever synced; `Busy` if there is no moment to begin; I/O errors.
    pub fn begin_snapshot(&mut self) -> Result<SnapshotReader> {
        for attempt in 1.. {
            self.sync_log()?;
            if self.last().is_none() {
                return Err(Error::new(ErrorKind::NotFound, "no position, waiting for data"));
            }
            let (beside, index) = if attempt < ATTEMPTS {
                // A commit after it began shows here too; then it is begun again.
                let beside = self.session.as_ref().ok_or_else(not_open)?.begin_beside()?;
                let index = beside.conn.wal_index()?;
                (beside, index)
            } else {
                self.begin_beside_locked()?
            };
            let last = self.last().cloned().ok_or_else(not_open)?;
            let unwritten = self.snapshot_guard(&last)?;
            if last.is_of_file_alone() {
                return Ok(SnapshotReader { beside, log: None, last, timestamp: self.world.clock.now(), unwritten });
            }
            // With everything copied the database file alone is that state, and it stays so: under a read
            // transaction no later frame can be copied. The log may be restarted meanwhile.
            let same = index.salts == last.salts && index.end(last.page_size) == last.end;
            let copied = index.is_empty() || (same && index.is_fully_backfilled());
            if copied || same {
                let log = match copied {
                    true => None,
                    false => LogView::of(index, &self.world, &self.config, last.page_size)?.file,
                };
                return Ok(SnapshotReader { beside, log, last, timestamp: self.world.clock.now(), unwritten });
            }
            if attempt >= ATTEMPTS {
                return Err(Error::new(ErrorKind::Busy, "wal moved on between sync and snapshot"));
            }
        }
        unreachable!("the last attempt returns")
    }

    /// See `SnapshotReader::unwritten`.
    fn snapshot_guard(&self, last: &Last) -> Result<Option<Stamp>> {
        let session = self.session.as_ref().ok_or_else(not_open)?;
        if session.kept && !last.is_of_file_alone() {
            return Ok(None);
        }
        // As it was when everything was read, if a write after that would show.
        match session.db_seen {
            Some(seen) if seen.stamp.is_settled(self.world.clock.as_ref()) => Ok(Some(seen.stamp)),
            _ => Err(being_rewritten()),
        }
    }

    /// Writes the present state as a snapshot, in one go.
    ///
    /// # Errors
    /// Those of [`Db::begin_snapshot`] and [`SnapshotReader::write`].
    pub fn snapshot<W: Write>(&mut self, out: W) -> Result<SnapshotInfo> {
        self.begin_snapshot()?.write(out)
    }
}

impl SnapshotReader {
    /// The transaction whose state this is.
    #[must_use]
    pub fn txid(&self) -> Txid {
        self.last.txid
    }

    /// Dates the snapshot from `time`, if that is earlier than when it was begun.
    pub fn date_from(&mut self, time: Timestamp) {
        self.timestamp = self.timestamp.min(time);
    }

    /// Writes the state. Blocks; the engine may be used meanwhile.
    ///
    /// # Errors
    /// `Cancelled` when the database is being closed; I/O errors. What was written is void then.
    pub fn write<W: Write>(&mut self, out: W) -> Result<SnapshotInfo> {
        let (page_size, end) = (self.last.page_size, self.last.end);
        let start = end.saturating_sub(page_size.frame_size()).max(WalHeader::SIZE);
        let salts = self.last.salts;
        let map = self.map()?;
        let commit = if self.log.is_none() { self.last.commit } else { map.commit() };
        let header = Header {
            no_checksum: true,
            page_size,
            commit,
            txids: TxidRange::up_to(self.last.txid),
            timestamp: self.timestamp,
            pre_apply: Checksum::NONE,
            wal: WalPos { offset: start, size: end.saturating_sub(start), salt1: salts.salt1, salt2: salts.salt2 },
            node_id: 0,
        };
        let source = PageSource {
            map: &map,
            wal: self.log.as_ref().map(|log| log.file.as_ref()),
            db: self.beside.file.as_ref(),
            page_size,
            db_pages: self.beside.file.stat()?.len / u64::from(page_size.get()),
            in_order: true,
            layer: self.beside.layer,
        };
        let mut encoder = Encoder::new(out, header)?;
        let pages = source.encode_while(Pages::All(commit), &mut encoder, || self.check_wanted())?;
        let (mut out, _) = encoder.finish(Checksum::NONE)?;
        out.flush().map_err(|e| Error::io("write snapshot", e))?;
        if self
            .unwritten
            .is_some_and(|stamp| self.beside.file.stat().map(|stat| Stamp::of(&stat) != stamp).unwrap_or(true))
        {
            return Err(being_rewritten());
        }
        if self.log.is_some() && self.beside.conn.wal_index()?.salts != salts {
            return Err(Error::new(ErrorKind::Changed, "wal was restarted while it was copied"));
        }
        Ok(SnapshotInfo { txids: header.txids, timestamp: header.timestamp, pages, page_size })
    }

    /// The log's newest copies of pages, up to the state.
    fn map(&self) -> Result<PageMap> {
        let mut map = PageMap::default();
        let Some(log) = &self.log else { return Ok(map) };
        let reader = log.reader(self.last.page_size, WalHeader::SIZE, log.header.checksum).bounded(self.last.end);
        let segment = map.read(reader, None)?;
        map.drop_beyond_commit();
        if segment.end != self.last.end || self.last.checksum.is_some_and(|c| c != segment.checksum) {
            return Err(Error::new(ErrorKind::Changed, "wal was restarted while it was read"));
        }
        Ok(map)
    }

    fn check_wanted(&self) -> Result<()> {
        if self.beside.pass.is_revoked() {
            return Err(Error::new(ErrorKind::Cancelled, "database is being closed"));
        }
        Ok(())
    }
}
