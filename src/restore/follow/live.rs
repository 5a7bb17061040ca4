//! The database that is followed: readers have it open while we change it.
//!
//! Protocol of one batch:
//! 1. An exclusive transaction of SQLite's: no reader is inside, none comes in. This also undoes what
//!    a killed follower had begun.
//! 2. The old content of every page that will change, or be cut off, goes into `<output>-journal`,
//!    durably. Only then the database is touched.
//! 3. The pages are written in place, the file is cut, and made durable.
//! 4. The journal is removed, durably: that is the commit.
//! 5. The lock is given back.
//!
//! A failure or a crash before 4 leaves the journal: the next one who opens the database, whoever it
//! is, gets the old state back from SQLite. Readers therefore see whole batches only.
//!
//! The output is in rollback-journal mode, whatever the source is in, and its change counter goes up
//! with each batch: that is how readers know that their caches are stale.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::journal;
use crate::error::{Error, ErrorKind, Result};
use crate::restore::apply::Base;
use crate::restore::pages::PageMap;
use crate::sqlite::{Conn, Sqlite, leave_wal_mode};
use crate::sys::fs::with_suffix;
use crate::sys::{File, FileId, OpenMode, World, fault_point, mutant, read_full_at};
use crate::types::{PageSize, Pgno, Txid};

/// How long one attempt to get the database for ourselves may take.
const LOCK_ATTEMPT: Duration = Duration::from_millis(250);
/// Between attempts readers that wait may come in.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// A round gives up after this: readers hold the database all the time.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// Pages are copied in stretches of about so many bytes.
const STRETCH: usize = 1 << 20;
/// Bytes of the database header.
const HEADER: usize = 100;

/// The open output.
#[derive(Debug)]
pub(super) struct Live {
    // Dropped before `file`: closing that one drops all locks of this process on the database.
    conn: Box<dyn Conn>,
    file: Box<dyn File>,
    world: World,
    path: PathBuf,
    id: FileId,
    page_size: PageSize,
    /// Change counter and length as we left them.
    left: Option<(u32, u64)>,
}

impl Live {
    /// Opens the output, and undoes a batch that was not completed. Blocks.
    ///
    /// # Errors
    /// `Changed` if somebody has written to it; SQLite's and the file system's.
    pub(super) fn open(world: &World, path: &Path, sqlite: &dyn Sqlite) -> Result<Self> {
        let fs = world.fs.as_ref();
        // A log with content is somebody's writing: we have no use for one.
        let wal = with_suffix(path, "-wal");
        match fs.stat_opt(&wal)? {
            Some(stat) if stat.len > 0 => return Err(foreign().at(wal.display())),
            _ => {}
        }
        let file = fs.open(path, OpenMode::ReadWrite)?;
        let mut head = [0; HEADER];
        read_full_at(file.as_ref(), &mut head, 0).map_err(|e| e.context("read database header"))?;
        if head[18] != 1 || head[19] != 1 {
            drop(file);
            leave_wal_mode(path, LOCK_PATIENCE)?;
        } else {
            drop(file);
            // Empty, and a reader would take it for a sign that there is a log.
            fs.remove_file(&wal)?;
            fs.remove_file(&with_suffix(path, "-shm"))?;
        }
        let file = fs.open(path, OpenMode::ReadWrite)?;
        let mut conn = sqlite.open(path, LOCK_ATTEMPT)?;
        // Reading is what makes SQLite look for a journal. Readers may be rolling it back just now.
        let began = world.clock.elapsed();
        loop {
            match conn.query("PRAGMA schema_version") {
                Err(err) if err.kind() == ErrorKind::Busy => {
                    if world.clock.elapsed().saturating_sub(began) > LOCK_PATIENCE {
                        return Err(err.context("readers hold the database without a pause"));
                    }
                    world.clock.pause(LOCK_PAUSE);
                }
                other => {
                    other?;
                    break;
                }
            }
        }
        read_full_at(file.as_ref(), &mut head, 0).map_err(|e| e.context("read database header"))?;
        let page_size = page_size(&head)?;
        let id = file.stat()?.id;
        Ok(Self { conn, file, world: world.clone(), path: path.to_owned(), id, page_size, left: None })
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
        let unlocked = self.conn.execute("ROLLBACK");
        if result.is_err() {
            self.left = None;
            // If there is a journal, this plays it back; if it cannot, the next reader will.
            let _ = self.conn.query("PRAGMA schema_version");
        }
        result.and(unlocked)
    }

    fn lock(&mut self, stop: &CancellationToken) -> Result<()> {
        let began = self.world.clock.elapsed();
        loop {
            if stop.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "follow mode was stopped"));
            }
            match self.conn.execute("BEGIN EXCLUSIVE") {
                Err(err) if err.kind() == ErrorKind::Busy => {
                    if self.world.clock.elapsed().saturating_sub(began) > LOCK_PATIENCE {
                        return Err(err.context("readers hold the database without a pause"));
                    }
                    self.world.clock.pause(LOCK_PAUSE);
                }
                other => return other,
            }
        }
    }

    fn apply_locked(&mut self, image: &dyn File, map: &PageMap, pages: u32) -> Result<()> {
        let (fs, page_size) = (self.world.fs.as_ref(), self.page_size);
        let mut head = [0; HEADER];
        read_full_at(self.file.as_ref(), &mut head, 0)?;
        let (counter, stat) = (change_counter(&head), self.file.stat()?);
        let old_pages = u32::try_from(stat.len / u64::from(page_size.get())).unwrap_or(u32::MAX);
        let same_file = fs.stat_opt(&self.path)?.is_some_and(|now| now.id == self.id);
        if !same_file || self.left.is_some_and(|left| left != (counter, stat.len)) {
            return Err(foreign().at(self.path.display()));
        }

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

        let counter = counter.wrapping_add(1);
        self.copy(image, map, pages)?;
        fault_point("follow.pages")?;
        let mut page = vec![0; page_size.len()];
        let source = if map.has(1) { image } else { self.file.as_ref() };
        read_full_at(source, &mut page, 0)?;
        stamp(&mut page, counter, pages);
        self.file.write_all_at(&page, 0)?;
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

fn foreign() -> Error {
    Error::new(ErrorKind::Changed, "another program has changed the output of follow mode")
        .hint("readers must open it read-only; delete it and its -txid file to restore it again")
}

/// Makes the first page of the source the first page of the output.
pub(in crate::restore) fn stamp(page: &mut [u8], counter: u32, pages: u32) {
    page[18..20].copy_from_slice(&[1, 1]);
    page[24..28].copy_from_slice(&counter.to_be_bytes());
    page[28..32].copy_from_slice(&pages.to_be_bytes());
    page[92..96].copy_from_slice(&counter.to_be_bytes());
}

pub(in crate::restore) fn change_counter(head: &[u8]) -> u32 {
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
