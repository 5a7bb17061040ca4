//! What the database looked like after each commit, read from the disk without SQLite's help.
//!
//! A commit becomes visible when the wal-index header changes. The oracle looks at it before every
//! operation of anybody; new frames are laid over the image it has, and the digest of the result
//! is one more state of the history.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use crate::disk::Inner;
use crate::rng::{hash_bytes, mix};

/// What the wal-index said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    last_frame: u32,
    pages: u32,
    salts: [u8; 8],
    checksum: [u8; 8],
}

/// States of one database, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    path: PathBuf,
    wal_path: PathBuf,
    image: Image,
    seen: Option<Seen>,
    last_header: Option<[u8; 48]>,
    history: Vec<u64>,
    /// The same states as a follower's file shows them: without what follow mode writes into the header.
    followed: Vec<u64>,
    newest: HashMap<u64, usize>,
    /// The content must be read anew: the power was cut, or the file was changed outside the log.
    stale: bool,
    /// After a power cut the state is one that was committed before, not older than this.
    durable: usize,
    cut: bool,
    /// At that power cut the disk lacked what it had said it had.
    betrayed: bool,
    unsure: bool,
    /// Commits may have happened that do not show in a log.
    blind: bool,
    recovered_at: usize,
    /// The writer keeps its wal-index to itself: the files are all there is to see, and these versions of them were
    /// looked at.
    unindexed: Option<(u64, u64)>,
    /// The file has been written without its log: nothing that SQLite makes of both counts.
    file_alone: bool,
    /// Something that cannot be.
    pub(crate) broken: Option<String>,
    /// The disk lost what a sync had promised, and the database has become a mixture: nobody can do anything for
    /// it any more, and what happens from here on proves nothing.
    pub(crate) ruined: bool,
    /// Images of all states, kept only when a failure is being looked at.
    pub(crate) images: Option<Vec<Image>>,
}

/// Pages with their hashes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    pub(crate) page_size: usize,
    pub(crate) pages: Vec<Vec<u8>>,
    hashes: Vec<u64>,
    /// Of the first page, without what follow mode writes there.
    followed: u64,
}

/// A state: its digest, and that of a follower's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Digests {
    exact: u64,
    followed: u64,
}

/// Hash of a first page without journal mode, change counter, size and what goes with them: follow mode
/// has its own there.
pub(crate) fn followed_hash(page: &[u8]) -> u64 {
    let mut page = page.to_vec();
    for range in [18..20, 24..32, 40..44, 92..96] {
        page[range].fill(0);
    }
    page_hash(1, &page)
}

pub(crate) fn page_hash(pgno: usize, page: &[u8]) -> u64 {
    hash_bytes(pgno as u64, page)
}

/// Digest of a database: of its number of pages and each page's hash.
pub(crate) fn digest_of(hashes: impl ExactSizeIterator<Item = u64>) -> u64 {
    let start = mix(hashes.len() as u64);
    hashes.fold(start, u64::wrapping_add)
}

impl Image {
    fn put(&mut self, pgno: usize, page: &[u8]) {
        if pgno == 0 {
            return;
        }
        while self.pages.len() < pgno {
            self.pages.push(vec![0; self.page_size]);
            self.hashes.push(page_hash(self.pages.len(), &vec![0; self.page_size]));
        }
        self.pages[pgno - 1].clear();
        self.pages[pgno - 1].extend_from_slice(page);
        self.hashes[pgno - 1] = page_hash(pgno, page);
        if pgno == 1 {
            self.followed = followed_hash(page);
        }
    }

    fn resize(&mut self, pages: usize) {
        self.pages.truncate(pages);
        self.hashes.truncate(pages);
        while self.pages.len() < pages {
            let n = self.pages.len() + 1;
            self.put(n, &vec![0; self.page_size]);
        }
    }

    fn digest(&self) -> Digests {
        let exact = digest_of(self.hashes.iter().copied());
        let first = self.hashes.first().copied().unwrap_or(0);
        Digests { exact, followed: exact.wrapping_sub(first).wrapping_add(self.followed) }
    }
}

/// What somebody who reads the log for the first time finds in it.
fn end_of_log(wal: &[u8]) -> Seen {
    let mut end = Seen::default();
    let Some(head) = wal.get(..32) else { return end };
    let big_endian = be_word(head, 0) & 1 == 1;
    let sum = |mut sum: (u32, u32), bytes: &[u8]| {
        for pair in bytes.chunks_exact(8) {
            let word = |at: usize| match big_endian {
                true => be_word(pair, at),
                false => be_word(pair, at).swap_bytes(),
            };
            sum.0 = sum.0.wrapping_add(word(0)).wrapping_add(sum.1);
            sum.1 = sum.1.wrapping_add(word(4)).wrapping_add(sum.0);
        }
        sum
    };
    let mut chain = sum((0, 0), &head[..24]);
    if chain != (be_word(head, 24), be_word(head, 28)) {
        return end;
    }
    for (n, frame) in wal[32..].chunks_exact(be_word(head, 8) as usize + 24).enumerate() {
        chain = sum(sum(chain, &frame[..8]), &frame[24..]);
        if frame[8..16] != head[16..24] || chain != (be_word(frame, 16), be_word(frame, 20)) {
            break;
        }
        if be_word(frame, 4) != 0 {
            end.last_frame = n as u32 + 1;
            end.pages = be_word(frame, 4);
        }
    }
    end
}

#[expect(clippy::host_endian_bytes, reason = "the wal-index is shared memory in native order")]
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn be_word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Oracle {
    pub(crate) fn new(path: &str) -> Self {
        Self {
            path: PathBuf::from(path),
            wal_path: PathBuf::from(format!("{path}-wal")),
            stale: true,
            ..Self::default()
        }
    }

    /// Number of the newest state.
    pub(crate) fn now(&self) -> usize {
        self.history.len().saturating_sub(1)
    }

    /// The newest state with this digest.
    pub(crate) fn find(&self, digest: u64) -> Option<usize> {
        self.newest.get(&digest).copied()
    }

    pub(crate) fn digest_at(&self, state: usize) -> u64 {
        self.history[state]
    }

    /// The first state from `bound` on that a follower's file with this digest can be.
    pub(crate) fn find_followed(&self, digest: u64, bound: usize) -> Option<usize> {
        let later = self.followed.get(bound..)?.iter().position(|state| *state == digest)?;
        Some(bound + later)
    }

    /// Whether a follower's file looks the same in these states.
    pub(crate) fn are_alike(&self, one: usize, other: usize) -> bool {
        self.followed.get(one) == self.followed.get(other)
    }

    /// The first state after the last power cut.
    pub(crate) fn recovered_at(&self) -> usize {
        self.recovered_at
    }

    /// The power was cut, and the database's files, `betrayed`, lacked sectors for which a sync had been called
    /// since they were written.
    pub(crate) fn power_was_cut(&mut self, betrayed: bool) {
        self.betrayed = betrayed;
        self.stale = true;
        self.unsure = false;
        self.cut = true;
        self.seen = None;
        self.last_header = None;
    }

    /// The file was changed by other means than its log.
    pub(crate) fn reread(&mut self) {
        self.stale = true;
        self.blind = true;
        self.last_header = None;
    }

    /// A sync failed, and the kernel dropped what it was to write: from here to the next power cut a later
    /// sync that succeeds promises nothing.
    pub(crate) fn cannot_rely_on_syncs(&mut self) {
        self.unsure = true;
        self.durable = 0;
    }

    /// Everything committed up to now must outlive a power cut.
    pub(crate) fn is_durable(&mut self, state: usize) {
        if !self.unsure {
            self.durable = self.durable.max(state);
        }
    }

    #[expect(clippy::host_endian_bytes, reason = "the wal-index is shared memory in native order")]
    pub(crate) fn observe(&mut self, disk: &Inner) {
        let Some(ino) = disk.file_at(&self.path) else { return };
        let file = &disk.files[ino];
        if self.file_alone {
            return;
        }
        if self.unindexed.is_some() {
            return self.observe_files(disk);
        }
        if file.data.get(18) == Some(&1) {
            // Somebody left WAL mode: what is committed now shows nowhere but in the file.
            self.reread();
            return;
        }
        let Some(region) = file.shm.regions.first() else { return };
        let mut header = [0; 96];
        for (i, word) in region.iter().take(12).enumerate() {
            let word = word.load(Ordering::Relaxed);
            header[i * 8..i * 8 + 8].copy_from_slice(&word.to_ne_bytes());
        }
        if header[..48] != header[48..] || header[12] == 0 {
            return;
        }
        let (head, _) = header.as_chunks::<48>();
        if self.last_header == Some(head[0]) {
            return;
        }
        self.last_header = Some(head[0]);
        let mut now = Seen { last_frame: word(&header, 16), pages: word(&header, 20), ..Seen::default() };
        now.salts.copy_from_slice(&header[32..40]);
        now.checksum.copy_from_slice(&header[24..32]);
        let wal = disk.file_at(&self.wal_path).map(|ino| disk.files[ino].data.as_slice()).unwrap_or_default();
        let went_on = self.seen.is_some_and(|seen| seen.salts != now.salts || seen.last_frame <= now.last_frame);
        if self.stale || !went_on {
            self.read_all(&file.data, wal, now);
        } else {
            let from = match self.seen {
                Some(seen) if seen.salts == now.salts => seen.last_frame,
                _ => 0,
            };
            self.add_frames(wal, from, now);
        }
        self.seen = Some(now);
    }

    /// From now on commits show in the files alone.
    pub(crate) fn watch_files(&mut self) {
        self.unindexed = Some((0, 0));
    }

    /// The whole file was written anew: it alone is the next state. `foreign` says whether the log beside it holds
    /// frames of what was there before.
    pub(crate) fn note_file(&mut self, disk: &[u8], foreign: bool) {
        self.file_alone = false;
        self.read_all(disk, &[], Seen::default());
        self.reread();
        self.file_alone = foreign;
    }

    fn observe_files(&mut self, disk: &Inner) {
        let Some(file) = disk.file_at(&self.path).map(|ino| &disk.files[ino]) else { return };
        let wal = disk.file_at(&self.wal_path).map(|ino| &disk.files[ino]);
        let versions = Some((file.version, wal.map_or(0, |wal| wal.version)));
        if self.unindexed == versions {
            return;
        }
        self.unindexed = versions;
        let wal = wal.map(|wal| wal.data.as_slice()).unwrap_or_default();
        self.read_all(&file.data, wal, end_of_log(wal));
    }

    fn read_all(&mut self, db: &[u8], wal: &[u8], now: Seen) {
        if db.len() < 100 && now.last_frame == 0 {
            return;
        }
        let page_size = if now.last_frame > 0 && wal.len() >= 32 {
            be_word(wal, 8) as usize
        } else {
            match u16::from_be_bytes([db[16], db[17]]) {
                1 => 65536,
                n => usize::from(n),
            }
        };
        if page_size < 512 {
            return;
        }
        let mut image = Image { page_size, ..Image::default() };
        for (n, page) in db.chunks_exact(page_size).enumerate() {
            image.put(n + 1, page);
        }
        let pages = if db.len() >= 32 { be_word(db, 28) as usize } else { 0 };
        let mut base = image.clone();
        base.resize(pages);
        let mut before = vec![base.digest()];
        self.image = if now.last_frame == 0 { base } else { image };
        if now.last_frame > 0 {
            self.lay_frames(wal, 0, now, |image| before.push(image.digest()));
        }
        // A commit that is padded to whole sectors ends in several frames that all say so.
        let digest = self.image.digest();
        let before = before.into_iter().rev().find(|state| *state != digest).unwrap_or(digest);
        self.stale = false;
        let blind = std::mem::take(&mut self.blind);
        if std::mem::take(&mut self.cut) {
            if !blind {
                self.check_recovered(before);
            }
            self.durable = 0;
            self.append(self.image.digest());
            self.recovered_at = self.now();
        } else {
            self.push();
        }
    }

    /// A power cut may take back commits that nobody had made durable, and finish one that was
    /// being written, then or when a process died, but nothing else.
    fn check_recovered(&mut self, before: Digests) {
        let digest = self.image.digest().exact;
        let finished = self.find(before.exact).is_some_and(|state| state >= self.durable);
        match self.history.iter().rposition(|d| *d == digest) {
            Some(state) if state < self.durable => {
                let durable = self.durable;
                self.broken =
                    Some(format!("a power cut took the database back to state {state}, but {durable} was durable"));
            }
            None if self.betrayed => self.ruined = true,
            None if !finished => {
                self.broken = Some("after a power cut the database is in a state it never had".to_owned());
            }
            _ => {}
        }
    }

    fn add_frames(&mut self, wal: &[u8], from: u32, now: Seen) {
        let (mut digests, mut images) = (Vec::new(), Vec::new());
        let keep = self.images.is_some();
        self.lay_frames(wal, from, now, |image| {
            digests.push(image.digest());
            if keep {
                images.push(image.clone());
            }
        });
        let mut images = images.into_iter();
        for digest in digests {
            let image = images.next();
            if self.history.last() == Some(&digest.exact) {
                continue;
            }
            self.append(digest);
            if let (Some(kept), Some(image)) = (self.images.as_mut().and_then(|all| all.last_mut()), image) {
                *kept = image;
            }
        }
    }

    /// Lays frames over the image, and tells of each commit.
    fn lay_frames(&mut self, wal: &[u8], from: u32, now: Seen, mut committed: impl FnMut(&Image)) {
        let size = self.image.page_size + 24;
        for n in from..now.last_frame {
            let at = 32 + n as usize * size;
            let Some(frame) = wal.get(at..at + size) else {
                self.broken = Some(format!("the wal-index names frame {} but the log has {} bytes", n + 1, wal.len()));
                return;
            };
            self.image.put(be_word(frame, 0) as usize, &frame[24..]);
            let commit = be_word(frame, 4);
            if commit != 0 {
                self.image.resize(commit as usize);
                committed(&self.image);
            }
        }
    }

    fn push(&mut self) {
        let digest = self.image.digest();
        if self.history.last() != Some(&digest.exact) {
            self.append(digest);
        }
    }

    fn append(&mut self, digest: Digests) {
        self.newest.insert(digest.exact, self.history.len());
        self.history.push(digest.exact);
        self.followed.push(digest.followed);
        if let Some(images) = &mut self.images {
            images.push(self.image.clone());
        }
    }
}
