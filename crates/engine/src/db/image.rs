//! Images of a database file that may be written past its log: by a program that replaces its content in
//! place, or by the checkpoints of one that does not keep the wal-index. Neither looks at our read transaction. So
//! such an image counts only if the file had not been written for a moment when reading began, and was not
//! written until reading ended: what a modification time shows.

use std::time::Duration;

use tracing::{info, warn};

use super::encode::{PageSource, Pages};
use super::engine::{Db, Last};
use super::layer::Layer;
use super::observe::LogView;
use super::plan::{Reason, Written};
use super::quiet::{DbSeen, Page1, Places, Settled, Stamp, being_rewritten, db_header};
use super::session::Session;
use super::sync::not_open;
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::{Header, WalPos};
use crate::sys::mutant;
use crate::types::{Checksum, TxidRange};
use crate::wal::{PageMap, Salts};

/// How long to wait for a file that is being written, before the step is started over.
const PAUSE: Duration = Duration::from_millis(60);

impl Session {
    /// Whether the database file is still what it was, or checkpoints explain what became of it.
    ///
    /// # Errors
    /// `Changed` if neither is so; I/O errors.
    pub(super) fn check_unwritten(&self, begun: Option<DbSeen>) -> Result<()> {
        let Some(begun) = begun else { return Ok(()) };
        if Stamp::of(&self.file().stat()?) == begun.stamp || mutant("half-written-image") {
            return Ok(());
        }
        // Beside our read transaction a checkpoint copies only what the log held when the image was begun.
        if self.kept && begun.checkpointed_since(&self.wal_index()?) { Ok(()) } else { Err(being_rewritten()) }
    }

    /// Whether the database file is still what it was. No checkpoint is an excuse for an image without the log.
    ///
    /// # Errors
    /// `Changed` if it is not; I/O errors.
    fn check_untouched(&self, begun: Stamp) -> Result<()> {
        let untouched = Stamp::of(&self.file().stat()?) == begun || mutant("half-written-image");
        if untouched { Ok(()) } else { Err(being_rewritten()) }
    }
}

impl Db {
    /// How the database file was when the image was begun; `None` where SQLite's locks alone see to it.
    pub(super) fn guard_of(&self, full: Option<Reason>, view: &LogView, places: &Places) -> Option<DbSeen> {
        let unkept = self.session.as_ref().is_some_and(|session| !session.kept);
        let guarded = full.is_some_and(|reason| unkept || reason == Reason::DatabaseRewritten);
        guarded.then(|| DbSeen::at(&places.db, &view.index, Page1::default()))
    }

    /// Before an image is read that [`Db::guard_of`] guards.
    ///
    /// # Errors
    /// `Changed` if it cannot begin now.
    pub(super) fn prepare_image(&mut self, reason: Reason, view: &LogView, places: &Places) -> Result<()> {
        if self.guard_of(Some(reason), view, places).is_none() {
            return Ok(());
        }
        self.wait_until_unwritten(places)?;
        let unkept = self.session.as_ref().is_some_and(|session| !session.kept);
        // The file may hold what the log holds, and nothing that came behind it.
        if unkept && self.finds_commit_behind(view)? {
            return Err(Error::new(ErrorKind::Changed, "wal went on while it was looked at"));
        }
        Ok(())
    }

    fn wait_until_unwritten(&self, places: &Places) -> Result<()> {
        if Stamp::of(&places.db).is_settled(self.world.clock.as_ref()) || mutant("half-written-image") {
            return Ok(());
        }
        self.world.clock.pause(PAUSE);
        Err(being_rewritten())
    }

    /// Makes the database file alone the next file (row 0): the log is not its own, or holds nothing.
    pub(super) fn publish_file_alone(&mut self, places: &Places, view: &LogView, written: Written) -> Result<()> {
        // The log too: what is written to it from now on must show, since nothing else would tell.
        let settled = Settled::at(places, &view.index);
        if !settled.is_certain(self.world.clock.as_ref()) {
            self.world.clock.pause(PAUSE);
            return Err(being_rewritten());
        }
        let session = self.session.as_ref().ok_or_else(not_open)?;
        let head = db_header(session.file(), &places.db)?;
        let commit = u32::try_from(head.page_count).map_err(|_| being_rewritten())?;
        let txid = self.next_txid();
        let header = Header {
            no_checksum: true,
            page_size: head.page_size,
            commit,
            txids: TxidRange::single(txid),
            timestamp: self.world.clock.now(),
            pre_apply: Checksum::NONE,
            // No place in the log: a commit that shows there makes the next file a full image.
            wal: WalPos { offset: 0, size: 0, salt1: 0, salt2: 0 },
            node_id: 0,
        };
        self.prepare_level_0()?;
        let foreign = written == Written::WithoutTheLog;
        if foreign {
            self.note_foreign(view)?;
        }
        let session = self.session.as_ref().ok_or_else(not_open)?;
        let map = PageMap::default();
        let source = PageSource {
            map: &map,
            wal: None,
            db: session.file(),
            page_size: head.page_size,
            db_pages: head.page_count,
            in_order: true,
            layer: Layer::None,
        };
        let begun = Stamp::of(&places.db);
        self.write_file(header, Pages::All(commit), &source, || session.check_untouched(begun))
            .map_err(|e| e.context(format!("write ltx file for txid {txid}")))?;
        if foreign && !view.index.is_empty() {
            warn!(system = "store", db = %self.config.name(), txid = %txid, pages = commit, hint = HINT_FOREIGN_LOG,
                "database file was rewritten past its wal, replicated without it");
        } else {
            info!(system = "store", db = %self.config.name(), txid = %txid, pages = commit,
                "database file was rewritten past its wal, replicated as a whole");
        }
        let last = Last {
            txid,
            page_size: head.page_size,
            commit,
            start: 0,
            end: 0,
            salts: Salts::default(),
            checksum: None,
            chain: None,
        };
        self.set_last(last.clone());
        self.force_full = None;
        self.checkpoints.note_change();
        self.unprotect();
        let session = self.session.as_mut().ok_or_else(not_open)?;
        session.account_for(&places.db, &view.index)?;
        session.settled = Some(settled);
        self.remember(&last, view);
        Ok(())
    }
}

const HINT_FOREIGN_LOG: &str = "the wal beside it holds frames of what was there before, which SQLite would still read: before \
    a program that uses SQLite opens this database, stop every program that has it open, this one too, and remove its \
    -wal and -shm files; replace databases by renaming a complete file";
