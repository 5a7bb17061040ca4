//! Who may have its database open, where the limit on open files does not allow it to all at once.
//!
//! 1. As many databases are open as fit. The others wait in a line, and only those that have something to read.
//! 2. Who is first in the line gets the place of a database of which everything was read; if there is none, of the one that
//!    has had its place for longest, and for at least [`TURN`].
//! 3. Nobody is closed while a step or a snapshot of it runs.
//! 4. What is closed is closed completely, read transaction and lock included. It continues as after a restart
//!    (`docs/architecture.md` §3, rows 7 to 10).

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;

use crate::db::Db;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::fs::with_suffix;
use crate::sys::{Clock, FileId, Fs, World, blocking, descriptor_limit};
use crate::types::Timestamp;

/// Descriptors a busy database may need: connections, log, lock, a file being written, an upload.
pub const DESCRIPTORS_PER_DATABASE: u64 = 8;
/// Descriptors of everything else.
pub const DESCRIPTORS_BESIDES: u64 = 64;
/// How long a database keeps its place at least while others wait and there is always something to read.
const TURN: Duration = Duration::from_secs(2);
/// How often it is tried to find a place.
const TRY: Duration = Duration::from_millis(50);
/// A file that was written to so lately may be written to again without getting another time.
const COARSE: i64 = 50;
const RAISE: &str = "raise the limit on open files: LimitNOFILE= in a systemd unit, ulimit -n in a shell";

/// How many databases may be open under a limit.
fn places(limit: Option<u64>) -> usize {
    let Some(limit) = limit else { return usize::MAX };
    let left = limit - DESCRIPTORS_BESIDES.min(limit / 2);
    usize::try_from(left / DESCRIPTORS_PER_DATABASE).unwrap_or(usize::MAX).max(1)
}

/// Everybody who has a place, and the line.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// In the order they got their places. Also guards what changes in a [`Seat`].
    seated: Mutex<Vec<Arc<Seat>>>,
    line: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
    said: AtomicBool,
}

/// One database's place, whether it has one or not.
#[derive(Debug)]
pub(super) struct Seat {
    db: Arc<tokio::sync::Mutex<Db>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    seated: bool,
    since: Duration,
    /// Who needs it open just now.
    users: usize,
    /// How its files were when it was closed with nothing left to read.
    left: Option<Files>,
}

/// What tells whether anything was written to a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Files([Option<(FileId, u64, Timestamp)>; 2]);

/// Keeps a place for as long as it lives.
#[derive(Debug)]
pub(super) struct Turn {
    seat: Arc<Seat>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.seat.state();
        state.users = state.users.saturating_sub(1);
    }
}

/// Counts somebody in the line, until dropped.
struct InLine<'a>(&'a AtomicUsize);

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Seat {
    pub(super) fn new(db: &Arc<tokio::sync::Mutex<Db>>) -> Arc<Self> {
        Arc::new(Self { db: Arc::clone(db), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing was written since it was closed with nothing left to read.
    pub(super) fn is_untouched(&self, fs: &dyn Fs, path: &Path) -> bool {
        let Some(left) = self.state().left else { return false };
        Files::of(fs, path).is_ok_and(|files| files == left)
    }
}

impl Files {
    fn of(fs: &dyn Fs, path: &Path) -> Result<Self> {
        let one = |path: &Path| -> Result<_> { Ok(fs.stat_opt(path)?.map(|stat| (stat.id, stat.len, stat.modified))) };
        Ok(Self([one(path)?, one(&with_suffix(path, "-wal"))?]))
    }

    /// Whether any later write would show.
    fn are_quiet(&self, now: Timestamp) -> bool {
        self.0.iter().flatten().all(|(.., modified)| now.millis().saturating_sub(modified.millis()) > COARSE)
    }
}

impl Turns {
    fn seated(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        self.seated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why somebody waits.
    pub(super) fn why() -> Error {
        Error::new(ErrorKind::Busy, "waits for its turn: too few open files are allowed for all databases at once")
            .hint(RAISE)
    }

    /// Whether a database has a place.
    pub(super) fn has(seat: &Seat) -> bool {
        seat.state().seated
    }

    /// A place, if there is one and nobody waits for it.
    pub(super) fn take_now(&self, seat: &Arc<Seat>, clock: &dyn Clock) -> Option<Turn> {
        let free = if self.waiting.load(Ordering::Acquire) == 0 { places(descriptor_limit()) } else { 0 };
        self.sit(seat, free, clock)
    }

    /// A place, waiting for it in line.
    pub(super) async fn take(&self, seat: &Arc<Seat>, world: &World) -> Turn {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let _in_line = InLine(&self.waiting);
        let _first = self.line.lock().await;
        loop {
            let places = places(descriptor_limit());
            if let Some(turn) = self.sit(seat, places, world.clock.as_ref()) {
                return turn;
            }
            if !self.said.swap(true, Ordering::AcqRel) {
                warn!(
                    system = "store",
                    limit = descriptor_limit(),
                    databases_at_once = places,
                    hint = RAISE,
                    "too few open files are allowed for all databases at once, they take turns"
                );
            }
            if !self.make_room(world).await {
                tokio::time::sleep(TRY).await;
            }
        }
    }

    /// The database is closed for good.
    pub(super) fn leave(&self, seat: &Arc<Seat>) {
        let mut seated = self.seated();
        if std::mem::take(&mut seat.state().seated) {
            seated.retain(|other| !Arc::ptr_eq(other, seat));
        }
    }

    fn sit(&self, seat: &Arc<Seat>, places: usize, clock: &dyn Clock) -> Option<Turn> {
        let mut seated = self.seated();
        let mut state = seat.state();
        if !state.seated {
            if seated.len() >= places {
                return None;
            }
            seated.push(Arc::clone(seat));
            state.seated = true;
            state.since = clock.elapsed();
            state.left = None;
        }
        state.users += 1;
        drop(state);
        Some(Turn { seat: Arc::clone(seat) })
    }

    /// Closes one database, if one can be closed.
    async fn make_room(&self, world: &World) -> bool {
        let candidates: Vec<Arc<Seat>> = self.seated().clone();
        for everything_read in [true, false] {
            for seat in &candidates {
                let (users, since) = {
                    let state = seat.state();
                    (state.users, state.since)
                };
                let had = world.clock.elapsed().saturating_sub(since);
                if users > 0 || (!everything_read && had < TURN) {
                    continue;
                }
                let Ok(mut db) = Arc::clone(&seat.db).try_lock_owned() else { continue };
                // Looked at first: what is written after that shows in the files.
                let files = Files::of(world.fs.as_ref(), &db.config().path).ok();
                if everything_read && db.needs_step() {
                    continue;
                }
                let left = files.filter(|files| everything_read && files.are_quiet(world.clock.now()));
                if !self.unseat(seat, left) {
                    continue;
                }
                let closed = blocking(move || {
                    db.close();
                    Ok(())
                });
                return closed.await.is_ok();
            }
        }
        false
    }

    /// Takes a place away, unless somebody has begun to use it.
    fn unseat(&self, seat: &Arc<Seat>, left: Option<Files>) -> bool {
        let mut seated = self.seated();
        let mut state = seat.state();
        if state.users > 0 {
            return false;
        }
        state.left = left;
        state.seated = false;
        drop(state);
        seated.retain(|other| !Arc::ptr_eq(other, seat));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::DbConfig;
    use crate::sqlite::SystemSqlite;
    use crate::sys::ManualClock;

    #[test]
    fn as_many_are_open_as_the_limit_has_room_for() {
        let limits = [None, Some(1_048_576), Some(1024), Some(512), Some(64), Some(8), Some(0)];
        assert_eq!(limits.map(places), [usize::MAX, 131_064, 120, 56, 4, 1, 1]);
    }

    /// With a clock that is later than that of the files.
    fn world() -> (World, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::starting_at(Timestamp::from_millis(4_000_000_000_000)));
        (World { clock: clock.clone(), ..World::system() }, clock)
    }

    fn seat(world: &World, dir: &Path, name: &str) -> (Arc<Seat>, rusqlite::Connection) {
        let path = dir.join(name);
        let app = rusqlite::Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t(x)").unwrap();
        let config = DbConfig::new(path, dir.join(format!("{name}-meta")));
        let db = Db::new(world.clone(), Arc::new(SystemSqlite), config);
        (Seat::new(&Arc::new(tokio::sync::Mutex::new(db))), app)
    }

    async fn sync(seat: &Seat) {
        seat.db.lock().await.sync().unwrap();
    }

    #[tokio::test]
    async fn an_idle_one_makes_room_and_nobody_who_is_used() {
        let ((world, clock), dir, turns) = (world(), tempfile::tempdir().unwrap(), Turns::default());
        let (a, app_a) = seat(&world, dir.path(), "a");
        let (b, app_b) = seat(&world, dir.path(), "b");
        let using = [&a, &b].map(|seat| turns.sit(seat, 2, world.clock.as_ref()).unwrap());
        for seat in [&a, &b] {
            sync(seat).await;
        }
        assert!(!turns.make_room(&world).await, "both are used");
        drop(using);
        app_a.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        assert!(turns.make_room(&world).await, "everything of one was read");
        assert!(Turns::has(&a) && !Turns::has(&b));
        assert!(b.db.lock().await.needs_step(), "it is closed");
        assert!(!turns.make_room(&world).await, "the other one has something to read, and its turn has just begun");
        clock.advance(TURN);
        assert!(turns.make_room(&world).await, "its turn is over");
        assert!(!Turns::has(&a));
        // Who was closed with something left to read wants to be opened again; who was not, once something is written.
        assert!(!a.is_untouched(world.fs.as_ref(), &dir.path().join("a")));
        app_b.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        assert!(!b.is_untouched(world.fs.as_ref(), &dir.path().join("b")));
        // It goes on where it was, without a full image.
        let _turn = turns.sit(&a, 1, world.clock.as_ref()).unwrap();
        let report = a.db.lock().await.sync().unwrap();
        assert_eq!((report.files, report.full_images), (1, 0));
        assert!(turns.take_now(&b, world.clock.as_ref()).is_some(), "there is room");
    }

    #[tokio::test]
    async fn who_was_closed_with_nothing_to_read_is_untouched_until_something_is_written() {
        let ((world, clock), dir, turns) = (world(), tempfile::tempdir().unwrap(), Turns::default());
        let (a, app) = seat(&world, dir.path(), "a");
        let path = dir.path().join("a");
        drop(turns.sit(&a, 1, world.clock.as_ref()).unwrap());
        sync(&a).await;
        sync(&a).await;
        clock.advance(Duration::from_secs(1));
        assert!(turns.make_room(&world).await);
        assert!(a.is_untouched(world.fs.as_ref(), &path));
        app.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        assert!(!a.is_untouched(world.fs.as_ref(), &path));
    }
}
