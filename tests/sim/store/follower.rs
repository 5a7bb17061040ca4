//! Somebody follows the first target (`restore -f`), and others read what comes of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use litestream::error::{Error, ErrorKind, Result};
use litestream::restore::{Following, Request, follow};
use litestream::sqlite::Exclusive;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::sim::Sim;
use super::site::Site;
use super::sqlite::ProcessSqlite;
use crate::disk::{Entry, Proc, Who, acting};
use crate::fs::world;
use crate::local::skewed;
use crate::oracle::{digest_of, followed_hash, page_hash};
use crate::rng::Rng;

/// The database that follows.
const FOLLOWED: &str = "/follow/db";
const READER: Who = Who { proc: Proc::Harness, life: 0 };

/// One life of a follower. It has the process of a rival, which such a seed has none of.
pub(super) struct Follower {
    who: Who,
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Sim {
    /// The follower works for a while, may die, and others look at its database all the time.
    pub(super) async fn follow_for_a_while(&self, rng: &mut Rng) {
        self.ensure_daemon().await;
        self.ensure_follower();
        match (rng.below(4), &self.sites[0]) {
            (0, _) => self.disk.lock().kill_after(Proc::Rival, skewed(rng)),
            (1, Site::Bucket(bucket)) => bucket.kill_after(Proc::Rival, rng.below(8), rng.permille(500)),
            _ => {}
        }
        for _ in 0..1 + rng.below(8) {
            self.live(rng, 1, 4000).await;
            self.look_at_followed();
        }
        self.disk.lock().disarm();
        self.buckets().for_each(|bucket| bucket.disarm());
        match rng.below(4) {
            0 => self.end_follower().await,
            1 => self.kill_follower(),
            _ => {}
        }
        self.look_at_followed();
    }

    fn ensure_follower(&self) {
        let running = self
            .follower
            .borrow()
            .as_ref()
            .is_some_and(|follower| !follower.task.is_finished() && !self.disk.is_dead(follower.who));
        if running || self.is_stopped() {
            return;
        }
        self.kill_follower();
        let who = self.disk.who(Proc::Rival);
        let seed = self.disk.lock().seed_of_life(who);
        self.say(|| "  a follower starts".to_owned());
        let (world, replica) = (world(&self.disk, who, seed), self.sites[0].replica(&self.disk, who, seed));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let following = Following { request: Request::new(FOLLOWED), interval: Duration::from_secs(1) };
        let task = tokio::spawn(async move {
            let sqlite = Arc::new(Exclusive(ProcessSqlite(who)));
            follow(&world, &replica, &following, Arc::new(|_, _| Ok(())), sqlite, &stopped, |_| {}).await
        });
        self.follower.replace(Some(Follower { who, stop, task }));
    }

    /// It dies, if it lives.
    pub(super) fn kill_follower(&self) {
        let Some(follower) = self.follower.take() else { return };
        if !self.disk.is_dead(follower.who) {
            self.disk.lock().kill(Proc::Rival);
        }
        follower.task.abort();
    }

    /// It ends in good order.
    pub(super) async fn end_follower(&self) {
        let Some(follower) = self.follower.take() else { return };
        if self.disk.is_dead(follower.who) {
            return follower.task.abort();
        }
        follower.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(600), follower.task).await;
        self.say(|| format!("  the follower has ended: {ended:?}"));
        if ended.is_err() {
            self.violate("I14 follow", "a follower does not end");
        }
        if !self.disk.is_dead(follower.who) {
            self.disk.lock().end(Proc::Rival);
        }
    }

    /// What a reader of the followed database sees: one state of the history, and never an older one than before.
    pub(super) fn look_at_followed(&self) {
        let there = matches!(self.disk.lock().lookup(Path::new(FOLLOWED)), Some(Entry::File(_)));
        if !there || self.is_stopped() || self.disk.lock().off {
            return;
        }
        match acting(READER, || self.read_followed()) {
            Ok(None) => {}
            Ok(Some(digest)) => {
                let bound = self.followed.get();
                let found = self.disk.lock().oracle.find_followed(digest, bound);
                match found {
                    Some(state) => {
                        self.say(|| format!("  a reader of the follower sees state {state}"));
                        self.outcome.borrow_mut().looks += 1;
                        self.followed.set(state);
                    }
                    None => {
                        let ever = self.disk.lock().oracle.find_followed(digest, 0);
                        self.violate("I14 follow", format!("a reader sees state {ever:?} after {bound}"));
                    }
                }
            }
            Err(err) => self.violate("I14 follow", format!("a reader of the follower: {err}")),
        }
    }

    /// Digest of the followed database below a read lock; `None` if somebody is at work there.
    fn read_followed(&self) -> rusqlite::Result<Option<u64>> {
        // Not read-only: whoever comes first after a crash rolls back.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(FOLLOWED, flags)?;
        conn.busy_timeout(Duration::ZERO)?;
        let begun = conn
            .execute_batch("BEGIN")
            .and_then(|()| conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)));
        match begun {
            Err(rusqlite::Error::SqliteFailure(err, _)) if err.code == ErrorCode::DatabaseBusy => return Ok(None),
            other => other?,
        };
        let inner = self.disk.lock();
        let Some(ino) = inner.file_at(Path::new(FOLLOWED)) else { return Ok(None) };
        let data = &inner.files[ino].data;
        let page_size = match u16::from_be_bytes([data[16], data[17]]) {
            1 => 65536,
            n => usize::from(n),
        };
        let hash = |(n, page): (usize, &[u8])| if n == 0 { followed_hash(page) } else { page_hash(n + 1, page) };
        Ok(Some(digest_of(data.chunks(page_size).enumerate().map(hash))))
    }

    /// With all faults gone a follower gets to the present state.
    pub(super) async fn follower_catches_up(&self) {
        if !self.swarm.followed || self.is_stopped() {
            return;
        }
        self.kill_follower();
        self.ensure_follower();
        for _ in 0..400 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.look_at_followed();
            let ended = self.follower.borrow().as_ref().is_none_or(|follower| follower.task.is_finished());
            if self.is_stopped() || ended || self.followed_is_present() {
                break;
            }
        }
        if !self.is_stopped() && !self.followed_is_present() {
            let follower = self.follower.take();
            let ended = match follower.filter(|follower| follower.task.is_finished()) {
                Some(follower) => {
                    follower.task.await.unwrap_or_else(|err| Err(Error::new(ErrorKind::Internal, err.to_string())))
                }
                None => Ok(()),
            };
            let (at, now) = (self.followed.get(), self.disk.lock().oracle.now());
            self.violate("I14 follow", format!("with all faults gone it stays at state {at} of {now}: {ended:?}"));
        }
        self.end_follower().await;
    }

    fn followed_is_present(&self) -> bool {
        let inner = self.disk.lock();
        inner.oracle.are_alike(self.followed.get(), inner.oracle.now())
    }
}
