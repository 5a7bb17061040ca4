//! The database that is followed: readers have it open while we change it.
//!
//! Protocol of one batch:
//! 1. An exclusive transaction of SQLite's: no reader is inside, none comes in (`lock`). This also undoes
//!    what a killed follower had begun.
//! 2. The old content of every page that will change, or be cut off, goes into `<output>-journal`,
//!    durably. Only then the database is touched.
//! 3. The pages are written in place, the file is cut, and made durable.
//! 4. The journal is removed, durably: that is the commit.
//! 5. The lock is given back.
//!
//! A failure or a crash before 4 leaves the journal: the next one who opens the database, whoever it
//! is, gets the old state back from SQLite. Readers therefore see whole batches only.
//!
//! The output is in rollback-journal mode, whatever the source is in, and has fields of page 1 of its own:
//!
//! | Offset | Field | Value |
//! |---|---|---|
//! | 18 | write and read version | 1, 1: rollback journal |
//! | 24 | change counter | goes up with each batch: readers' caches are stale |
//! | 28 | pages | those of the batch |
//! | 40 | schema cookie | goes up if the schema may have changed (`schema`): readers read it anew |
//! | 92 | version-valid-for | the change counter: else SQLite would not believe the number of pages |
//!
//! All of them are derived from what the output holds, so they go on after a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::exclusive::{ExclusiveConn, ExclusiveDb};
use super::journal;
use super::schema::{Schema, cookie};
use crate::error::{Error, ErrorKind, Result};
use crate::restore::apply::Base;
use crate::restore::pages::PageMap;
use crate::sys::fs::with_suffix;
use crate::sys::{File, FileId, OpenMode, World, fault_point, mutant, read_full_at};
use crate::types::{PageSize, Pgno, Txid};

/// Pages are copied in stretches of about so many bytes.
const STRETCH: usize = 1 << 20;
/// Bytes of the database header.
pub(super) const HEADER: usize = 100;

/// The open output.
#[derive(Debug)]
pub(super) struct Live {
    // Dropped before `file`: closing that one drops all locks of this process on the database.
    /// Not there while the output is in WAL mode; opened when needed.
    pub(super) conn: Option<Box<dyn ExclusiveConn>>,
    pub(super) file: Box<dyn File>,
    pub(super) sqlite: Arc<dyn ExclusiveDb>,
    pub(super) world: World,
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    page_size: PageSize,
    /// Change counter and length as we found or left them; `None` after a batch that failed.
    pub(super) left: Option<(u32, u64)>,
    /// It was said that readers turn the output to WAL mode.
    pub(super) wal_mode_said: bool,
    schema: Schema,
}

impl Live {
    /// Opens the output, and undoes a batch that was not completed. Blocks.
    ///
    /// # Errors
    /// `Changed` if somebody has written to it; SQLite's and the file system's.
    pub(super) fn open(world: &World, path: &Path, sqlite: Arc<dyn ExclusiveDb>) -> Result<Self> {
        let file = world.fs.open(path, OpenMode::ReadWrite)?;
        let mut head = [0; HEADER];
        read_full_at(file.as_ref(), &mut head, 0).map_err(|e| e.context("read database header"))?;
        let mut live = Self {
            conn: None,
            id: file.stat()?.id,
            file,
            sqlite,
            world: world.clone(),
            path: path.to_owned(),
            page_size: page_size(&head)?,
            left: None,
            wal_mode_said: false,
            schema: Schema::default(),
        };
        // A log with content is somebody's writing: we have no use for one.
        live.refuse_writing(0)?;
        live.roll_back()?;
        if !live.is_in_order()? {
            match live.leave_wal_mode() {
                // Before the first batch it is tried again, with more patience.
                Err(err) if err.kind() == ErrorKind::Busy => {}
                other => other?,
            }
        }
        // What was rolled back may have had another first page.
        read_full_at(live.file.as_ref(), &mut head, 0).map_err(|e| e.context("read database header"))?;
        live.page_size = page_size(&head)?;
        live.left = Some((change_counter(&head), live.file.stat()?.len));
        Ok(live)
    }

    /// What files must lead on from, if the output is at `txid`.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn base(&self, txid: Txid) -> Result<Base> {
        let pages = self.file.stat()?.len / u64::from(self.page_size.get());
        let pages = u32::try_from(pages).map_err(|_| Error::corrupt("database too large"))?;
        Ok(Base { txid, page_size: self.page_size, pages })
    }

    /// Replaces the pages in `map` by those of `image`, where they lie at their place, and makes the
    /// database `pages` long. Blocks, also for readers to finish.
    ///
    /// # Errors
    /// `Busy` if readers do not finish; `Cancelled`; `Changed` if the output is not ours any more;
    /// the file system's. In every case the old state is there, or comes back by itself.
    pub(super) fn apply(
        &mut self,
        image: &dyn File,
        map: &PageMap,
        pages: u32,
        stop: &CancellationToken,
    ) -> Result<()> {
        self.lock(stop)?;
        let result = self.apply_locked(image, map, pages);
        let Some(conn) = &mut self.conn else { return Err(Error::new(ErrorKind::Internal, "no connection")) };
        let unlocked = conn.execute("ROLLBACK");
        if result.is_err() {
            (self.left, self.schema) = (None, Schema::default());
            // If there is a journal, this plays it back; if it cannot, the next reader will.
            let _ = conn.query("PRAGMA schema_version");
        }
        result.and(unlocked)
    }

    fn apply_locked(&mut self, image: &dyn File, map: &PageMap, pages: u32) -> Result<()> {
        let (fs, page_size) = (self.world.fs.as_ref(), self.page_size);
        self.refuse_writing(0)?;
        let stat = self.file.stat()?;
        let old_pages = u32::try_from(stat.len / u64::from(page_size.get())).unwrap_or(u32::MAX);
        let mut old = vec![0; page_size.len()];
        read_full_at(self.file.as_ref(), &mut old, 0)?;
        let mut first_page = old.clone();
        if map.has(1) {
            read_full_at(image, &mut first_page, 0)?;
        }
        let moved = self.schema.may_change(self.file.as_ref(), page_size, map, &old, &first_page)?;
        let moved = moved && !mutant("follow-keeps-cookie");
        let counter = change_counter(&old).wrapping_add(1);
        stamp(&mut first_page, counter, pages, cookie(&old).wrapping_add(u32::from(moved)));

        let first = std::iter::once(Pgno::FIRST).filter(|_| !map.has(1));
        let changed = first.clone().chain(map.iter()).take_while(|pgno| pgno.get() <= pages);
        let kept = changed.clone().filter(|pgno| pgno.get() <= old_pages);
        let cut = Pgno::range(pages.saturating_add(1), old_pages, page_size);
        let journal_path = with_suffix(&self.path, "-journal");
        fs.remove_file(&journal_path)?;
        let journal = fs.open(&journal_path, OpenMode::CreateNew(stat.owner_mode))?;
        let nonce = self.world.random.next_u64() as u32;
        let dir = self.path.parent().unwrap_or_else(|| Path::new("."));
        let written = match mutant("follow-without-journal") {
            true => Ok(()),
            false => journal::write(journal.as_ref(), nonce, self.file.as_ref(), page_size, old_pages, kept.chain(cut)),
        };
        let journalled = written.and_then(|()| fs.sync_dir(dir)).and_then(|()| fault_point("follow.journal"));
        drop(journal);
        if let Err(err) = journalled {
            // Nothing has been touched yet.
            let _ = fs.remove_file(&journal_path);
            return Err(err);
        }

        self.copy(image, map, pages)?;
        fault_point("follow.pages")?;
        self.file.write_all_at(&first_page, 0)?;
        let len = u64::from(pages) * u64::from(page_size.get());
        self.file.set_len(len)?;
        if !mutant("follow-not-synced") {
            self.file.sync()?;
        }
        fault_point("follow.commit")?;
        fs.remove_file(&journal_path)?;
        fs.sync_dir(dir)?;
        self.left = Some((counter, len));
        fault_point("follow.done")
    }

    /// Copies all pages but the first.
    fn copy(&self, image: &dyn File, map: &PageMap, pages: u32) -> Result<()> {
        let page_len = self.page_size.len();
        let most = (STRETCH / page_len).max(1);
        let mut wanted = map.iter().filter(|pgno| *pgno != Pgno::FIRST && pgno.get() <= pages).peekable();
        let mut buf = Vec::new();
        while let Some(start) = wanted.next() {
            let mut count = 1;
            while count < most && wanted.next_if(|pgno| pgno.get() as usize == start.get() as usize + count).is_some() {
                count += 1;
            }
            buf.resize(count * page_len, 0);
            let offset = self.page_size.offset_of(start);
            read_full_at(image, &mut buf, offset)?;
            self.file.write_all_at(&buf, offset)?;
        }
        Ok(())
    }
}

/// Makes the first page of the source the first page of the output.
pub(super) fn stamp(page: &mut [u8], counter: u32, pages: u32, cookie: u32) {
    page[18..20].copy_from_slice(&[1, 1]);
    page[24..28].copy_from_slice(&counter.to_be_bytes());
    page[28..32].copy_from_slice(&pages.to_be_bytes());
    page[40..44].copy_from_slice(&cookie.to_be_bytes());
    page[92..96].copy_from_slice(&counter.to_be_bytes());
}

pub(super) fn change_counter(head: &[u8]) -> u32 {
    u32::from_be_bytes([head[24], head[25], head[26], head[27]])
}

fn page_size(head: &[u8; HEADER]) -> Result<PageSize> {
    if !head.starts_with(b"SQLite format 3\0") {
        return Err(Error::corrupt("not a SQLite database"));
    }
    match u16::from_be_bytes([head[16], head[17]]) {
        1 => PageSize::new(PageSize::MAX),
        bytes => PageSize::new(u32::from(bytes)),
    }
}
