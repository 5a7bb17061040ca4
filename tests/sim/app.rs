//! Applications: connections that write, read, checkpoint, vacuum, and come and go.

use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::disk::{Disk, Proc, Who, acting};
use crate::rng::Rng;
use crate::squeeze::Turn;
use crate::swarm::Swarm;
use crate::vfs;

pub(crate) const DB: &str = "/data/db";

/// One connection.
struct Session {
    conn: Connection,
    in_transaction: bool,
    full_sync: bool,
}

/// A process with some connections to the database.
pub(crate) struct App {
    disk: Arc<Disk>,
    who: Who,
    path: &'static str,
    sessions: Vec<Session>,
    /// What SQLite reported that cannot come from a fault.
    pub(crate) complaint: Option<String>,
    pub(crate) commits: u64,
}

impl App {
    pub(crate) fn new(disk: &Arc<Disk>, proc: Proc) -> Self {
        Self::of(disk, proc, DB)
    }

    /// With the database at `path`.
    pub(crate) fn of(disk: &Arc<Disk>, proc: Proc, path: &'static str) -> Self {
        Self { disk: Arc::clone(disk), who: disk.who(proc), path, sessions: Vec::new(), complaint: None, commits: 0 }
    }

    /// Creates the database.
    pub(crate) fn create(&mut self, swarm: &Swarm) {
        let (who, path) = (self.who, self.path);
        acting(who, || {
            let conn = Connection::open(path).expect("create the database");
            conn.execute_batch(&format!(
                "PRAGMA page_size = {}; PRAGMA auto_vacuum = {}; PRAGMA journal_mode = wal; PRAGMA synchronous = full;
                 CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB); CREATE TABLE u(id INTEGER PRIMARY KEY, v BLOB)",
                swarm.page_size, swarm.auto_vacuum
            ))
            .expect("create the schema");
            if swarm.index {
                conn.execute_batch("CREATE INDEX ti ON t(v)").expect("create the index");
            }
        });
    }

    /// The process ends: at once, or closing its connections first.
    pub(crate) fn end(&mut self, kill: bool) {
        if kill {
            self.disk.lock().kill(self.who.proc);
        }
        let who = self.who;
        acting(who, || self.sessions.clear());
        self.disk.lock().end(self.who.proc);
        self.who = self.disk.who(self.who.proc);
    }

    /// Connections of a process that is dead already.
    pub(crate) fn bury(&mut self) {
        let who = self.who;
        acting(who, || self.sessions.clear());
        self.who = self.disk.who(self.who.proc);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.disk.is_dead(self.who)
    }

    /// One thing that an application does.
    pub(crate) fn step(&mut self, swarm: &Swarm, rng: &mut Rng) {
        let who = self.who;
        acting(who, || self.act(swarm, rng));
        if self.disk.is_dead(who) {
            self.bury();
        }
    }

    fn open(&mut self, swarm: &Swarm, rng: &mut Rng) -> rusqlite::Result<()> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = match swarm.unindexed {
            true => {
                let conn = Connection::open_with_flags_and_vfs(self.path, flags, vfs::ALONE)?;
                conn.query_row("PRAGMA locking_mode = exclusive", [], |_| Ok(()))?;
                conn
            }
            false => Connection::open_with_flags(self.path, flags)?,
        };
        conn.busy_timeout(std::time::Duration::from_millis(rng.pick(&[0, 0, 3, 10])))?;
        let full_sync = rng.permille(swarm.full_sync);
        let settings = format!(
            "PRAGMA synchronous = {}; PRAGMA temp_store = memory; PRAGMA cache_size = {}; PRAGMA wal_autocheckpoint = {}",
            if full_sync { "full" } else { "normal" },
            if swarm.spill { 4 } else { 200 },
            rng.pick(&swarm.autocheckpoint),
        );
        conn.execute_batch(&settings)?;
        if rng.permille(swarm.size_limit) {
            let limit = rng.below(8) * u64::from(swarm.page_size);
            conn.query_row(&format!("PRAGMA journal_size_limit = {limit}"), [], |_| Ok(()))?;
        }
        self.sessions.push(Session { conn, in_transaction: false, full_sync });
        Ok(())
    }

    fn act(&mut self, swarm: &Swarm, rng: &mut Rng) {
        let room = if swarm.unindexed { 1 } else { 3 };
        if self.sessions.is_empty() || (self.sessions.len() < room && rng.permille(30)) {
            let opened = self.open(swarm, rng);
            self.judge(opened);
            return;
        }
        let at = rng.index(self.sessions.len());
        let roll = rng.below(1000);
        let done = match roll {
            0..420 => self.write(at, swarm, rng),
            420..520 => self.toggle(at, rng),
            520..600 => self.read(at, rng),
            600..700 => self.checkpoint(at, swarm, rng),
            700..730 => self.sessions[at].conn.execute("DELETE FROM t WHERE id % 3 = 1", []).map(drop),
            730..760 if rng.permille(swarm.vacuum) => self.sessions[at].conn.execute_batch("VACUUM"),
            760..780 => self.sessions[at].conn.execute_batch("PRAGMA incremental_vacuum(3)"),
            780..830 => {
                drop(self.sessions.swap_remove(at));
                Ok(())
            }
            830..850 => {
                self.sessions.clear();
                Ok(())
            }
            850..860 if swarm.reformat && swarm.interleave == 0 && !swarm.power_cuts => self.reformat(swarm, rng),
            _ => self.write(at, swarm, rng),
        };
        if self.disk.lock().tell {
            eprintln!("  {:?} connection {at} roll {roll}: {done:?}", self.who.proc);
        }
        self.judge(done);
    }

    /// Errors that a fault cannot explain are not for an application to see.
    fn judge(&mut self, done: rusqlite::Result<()>) {
        let Err(rusqlite::Error::SqliteFailure(failure, message)) = &done else { return };
        if matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) && !self.is_dead() {
            self.complaint = Some(format!("the application was told: {failure} {message:?}"));
        }
        // A failed statement may have ended the transaction.
        for session in &mut self.sessions {
            session.in_transaction = !session.conn.is_autocommit();
        }
    }

    fn write(&mut self, at: usize, swarm: &Swarm, rng: &mut Rng) -> rusqlite::Result<()> {
        let session = &mut self.sessions[at];
        let table = if rng.permille(700) { "t" } else { "u" };
        let id = i64::try_from(rng.below(swarm.rows)).unwrap_or(0);
        let len = match rng.below(10) {
            0 => rng.index(swarm.page_size as usize * 5 / 2),
            1..4 => rng.index(swarm.page_size as usize / 2),
            _ => rng.index(60),
        };
        let mut value = vec![0; len.min(20_000)];
        rng.fill(&mut value);
        let before = self.disk.lock().oracle_of(self.path).now();
        match rng.below(10) {
            0 => session.conn.execute(&format!("DELETE FROM {table} WHERE id = ?1"), [id])?,
            1 => session.conn.execute(
                &format!("UPDATE {table} SET v = ?2 WHERE id > ?1 AND id < ?1 + 6"),
                rusqlite::params![id, value],
            )?,
            _ => session
                .conn
                .execute(&format!("INSERT OR REPLACE INTO {table} VALUES (?1, ?2)"), rusqlite::params![id, value])?,
        };
        let (done, full_sync) = (session.conn.is_autocommit(), session.full_sync);
        self.commits += u64::from(done);
        self.note_commit(swarm, before, done && full_sync);
        Ok(())
    }

    /// Runs statements, on one connection for all of them that syncs nothing and checkpoints only when told.
    pub(crate) fn sql(&mut self, statements: &str) {
        let who = self.who;
        let done = acting(who, || {
            if self.sessions.is_empty() {
                let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let conn = Connection::open_with_flags(DB, flags)?;
                conn.execute_batch("PRAGMA synchronous = normal; PRAGMA wal_autocheckpoint = 0")?;
                self.sessions.push(Session { conn, in_transaction: false, full_sync: false });
            }
            statements.split_inclusive(';').try_for_each(|one| {
                let done = self.sessions[0].conn.execute_batch(one);
                self.disk.observe();
                done
            })
        });
        if let Err(err) = &done
            && !self.is_dead()
        {
            self.complaint = Some(format!("{statements}: {err}"));
        }
    }

    /// Only commits, small ones.
    pub(crate) fn commit_a_little(&mut self, swarm: &Swarm, rng: &mut Rng, commits: u64) {
        self.by_itself(swarm, rng, |app, rng| (0..commits).try_for_each(|_| app.small_commit(swarm, rng)));
    }

    /// One commit, or a checkpoint that waits for nobody.
    pub(crate) fn nudge(&mut self, swarm: &Swarm, rng: &mut Rng) {
        let turn = if rng.permille(500) { Turn::Commit } else { Turn::Copy };
        self.take(turn, swarm, rng);
    }

    /// Does one thing.
    pub(crate) fn take(&mut self, turn: Turn, swarm: &Swarm, rng: &mut Rng) {
        self.by_itself(swarm, rng, |app, rng| match turn {
            Turn::Commit => app.small_commit(swarm, rng),
            Turn::Elsewhere => app.commit_elsewhere(swarm, rng),
            Turn::Copy => app.sessions[0].conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())),
        });
    }

    /// Commits, a checkpoint that lets the log start anew, and commits.
    pub(crate) fn round(&mut self, swarm: &Swarm, rng: &mut Rng) {
        self.by_itself(swarm, rng, |app, rng| {
            for _ in 0..rng.pick(&[0, 1, 3, 25]) {
                app.small_commit(swarm, rng)?;
            }
            let mode = rng.pick(&["RESTART", "RESTART", "TRUNCATE", "PASSIVE"]);
            let conn = &app.sessions[0].conn;
            conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))?;
            for _ in 0..rng.pick(&[1, 1, 2, 4]) {
                app.small_commit(swarm, rng)?;
            }
            Ok(())
        });
    }

    /// Does `work` on the first connection, with no transaction of this process open.
    fn by_itself(
        &mut self,
        swarm: &Swarm,
        rng: &mut Rng,
        work: impl FnOnce(&mut Self, &mut Rng) -> rusqlite::Result<()>,
    ) {
        let who = self.who;
        acting(who, || {
            for session in self.sessions.iter().filter(|session| !session.conn.is_autocommit()) {
                let _ = session.conn.execute_batch("COMMIT");
            }
            let opened = if self.sessions.is_empty() { self.open(swarm, rng) } else { Ok(()) };
            let done = opened.and_then(|()| work(self, rng));
            self.judge(done);
        });
        if self.disk.is_dead(who) {
            self.bury();
        }
    }

    fn small_commit(&mut self, swarm: &Swarm, rng: &mut Rng) -> rusqlite::Result<()> {
        let mut value = vec![0; 8];
        rng.fill(&mut value);
        let (table, id) = match swarm.echo {
            true if rng.permille(500) => {
                value.fill(u8::try_from(rng.below(2)).unwrap_or(0));
                ("u", 1)
            }
            true => ("t", 1),
            false => ("t", i64::try_from(rng.below(swarm.rows)).unwrap_or(0)),
        };
        self.replace(swarm, table, id, value)
    }

    /// A commit that rewrites no page of those before.
    fn commit_elsewhere(&mut self, swarm: &Swarm, rng: &mut Rng) -> rusqlite::Result<()> {
        let mut value = vec![0; 8];
        rng.fill(&mut value);
        self.replace(swarm, "u", 1, value)
    }

    fn replace(&mut self, swarm: &Swarm, table: &str, id: i64, value: Vec<u8>) -> rusqlite::Result<()> {
        let session = &self.sessions[0];
        let before = self.disk.lock().oracle_of(self.path).now();
        let sql = format!("INSERT OR REPLACE INTO {table} VALUES (?1, ?2)");
        session.conn.execute(&sql, rusqlite::params![id, value])?;
        let durable = session.full_sync;
        self.commits += 1;
        self.note_commit(swarm, before, durable);
        Ok(())
    }

    /// What was committed with a sync outlives a power cut. With others in between, who committed what is
    /// not known here.
    fn note_commit(&self, swarm: &Swarm, before: usize, full_sync: bool) {
        let mut inner = self.disk.lock();
        inner.observe();
        let now = inner.oracle_of(self.path).now();
        if full_sync && swarm.interleave == 0 && now > before && !inner.is_dead(self.who) {
            inner.oracle_of(self.path).is_durable(now);
        }
    }

    fn toggle(&mut self, at: usize, rng: &mut Rng) -> rusqlite::Result<()> {
        let session = &mut self.sessions[at];
        if session.conn.is_autocommit() {
            let begin = if rng.permille(500) { "BEGIN IMMEDIATE" } else { "BEGIN" };
            session.conn.execute_batch(begin)?;
            session.in_transaction = true;
        } else {
            let end = if rng.permille(800) { "COMMIT" } else { "ROLLBACK" };
            session.conn.execute_batch(end)?;
            session.in_transaction = false;
            self.commits += 1;
        }
        Ok(())
    }

    fn read(&mut self, at: usize, rng: &mut Rng) -> rusqlite::Result<()> {
        let session = &mut self.sessions[at];
        let sql = if rng.permille(500) { "SELECT count(v) FROM t" } else { "SELECT count(*) FROM u" };
        session.conn.query_row(sql, [], |_| Ok(()))
    }

    fn checkpoint(&mut self, at: usize, swarm: &Swarm, rng: &mut Rng) -> rusqlite::Result<()> {
        let mode = rng.pick(&swarm.checkpoint_modes);
        let session = &mut self.sessions[at];
        session.conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
    }

    /// Leaves WAL mode, perhaps changes the page size, and comes back. Works only if nobody else is
    /// there, and nobody looks in meanwhile; not where the power fails, because commits made outside
    /// WAL mode are not in the oracle's history. May leave the database in rollback mode, if the way back fails.
    /// Begins and ends with fresh connections: with a warm cache one seed of a million (380410) ends with an index
    /// that is short of entries.
    fn reformat(&mut self, swarm: &Swarm, rng: &mut Rng) -> rusqlite::Result<()> {
        let size = rng.pick(&[512, 1024, 2048, 4096]);
        self.sessions.clear();
        self.open(swarm, rng)?;
        self.disk.lock().oracle_of(self.path).reread();
        let Some(session) = self.sessions.first_mut() else { return Ok(()) };
        let mode: String = session.conn.query_row("PRAGMA journal_mode = delete", [], |row| row.get(0))?;
        if mode != "delete" {
            return Ok(());
        }
        if rng.permille(500) {
            let _ = session.conn.execute_batch(&format!("PRAGMA page_size = {size}; VACUUM"));
        } else {
            session.conn.execute("INSERT OR REPLACE INTO u VALUES (1, ?1)", [size])?;
        }
        self.disk.lock().oracle_of(self.path).reread();
        self.sessions.clear();
        self.open(swarm, rng)?;
        let Some(session) = self.sessions.first_mut() else { return Ok(()) };
        let _: String = session.conn.query_row("PRAGMA journal_mode = wal", [], |row| row.get(0))?;
        session.conn.execute("INSERT OR REPLACE INTO u VALUES (0, 0)", []).map(drop)
    }

    /// Ends all transactions, then lets SQLite look at everything.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        let (who, path) = (self.who, self.path);
        acting(who, || {
            self.sessions.clear();
            let conn = Connection::open(path).map_err(|e| e.to_string())?;
            let text: String =
                conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(|e| e.to_string())?;
            if text == "ok" { Ok(()) } else { Err(text) }
        })
    }

    /// One more commit that nothing keeps from succeeding.
    pub(crate) fn last_words(&mut self, rng: &mut Rng) -> Result<(), String> {
        let (who, path) = (self.who, self.path);
        acting(who, || {
            self.sessions.clear();
            let conn = Connection::open(path).map_err(|e| e.to_string())?;
            conn.execute_batch("PRAGMA wal_autocheckpoint = 0").map_err(|e| e.to_string())?;
            let id = i64::try_from(rng.below(1000)).unwrap_or(0);
            conn.execute("INSERT OR REPLACE INTO u VALUES (?1, 'last')", [id]).map_err(|e| e.to_string())?;
            self.disk.observe();
            Ok(())
        })
    }
}
