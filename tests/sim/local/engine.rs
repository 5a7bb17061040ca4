//! The engine's turn: it is opened, syncs, writes a snapshot, ends; and what it promised by that.

use std::sync::Arc;
use std::time::Duration;

use litestream::db::{Db, DbConfig};
use litestream::error::Result as DbResult;
use litestream::sqlite::SystemSqlite;

use super::{META, Sim};
use crate::app::DB;
use crate::disk::{Proc, acting};
use crate::fs::world;
use crate::replay::{self, Layers};

impl Sim {
    /// Runs a step of the engine. `None` if its process died, or somebody is in the middle of one.
    pub(super) fn engine<T>(&self, step: impl FnOnce(&mut Db) -> DbResult<T>) -> Option<DbResult<T>> {
        if self.without_engine {
            return None;
        }
        let mut engine = self.engine.try_borrow_mut().ok()?;
        if self.disk.lock().off {
            return None;
        }
        let who = match &engine.db {
            Some(_) => engine.who,
            None => self.disk.who(Proc::Engine),
        };
        engine.who = who;
        let result = acting(who, || {
            if engine.db.is_none() {
                let seed = self.disk.lock().oracle.now() as u64;
                let db = Db::new(world(&self.disk, who, seed), Arc::new(SystemSqlite), self.config());
                engine.db = Some(db);
            }
            engine.db.as_mut().map(step)
        });
        if self.disk.is_dead(who) {
            acting(who, || engine.db = None);
            return None;
        }
        result
    }

    fn config(&self) -> DbConfig {
        DbConfig {
            busy_timeout: Duration::from_millis(3),
            checkpoint_interval: Some(Duration::from_secs(60)),
            min_checkpoint_pages: self.swarm.min_checkpoint_pages,
            truncate_pages: self.swarm.truncate_pages,
            max_sync_wal_bytes: self.swarm.max_sync_wal_bytes,
            bounds: self.swarm.bounds,
            ..DbConfig::new(DB.into(), META.into())
        }
    }

    pub(super) fn drop_engine(&self) {
        self.drop_engine_if(false);
    }

    pub(super) fn drop_engine_if(&self, kill: bool) {
        let Ok(mut engine) = self.engine.try_borrow_mut() else { return };
        self.steady.set(false);
        if kill && engine.db.is_some() {
            self.disk.lock().kill(Proc::Engine);
        }
        let who = engine.who;
        acting(who, || engine.db = None);
    }

    pub(crate) fn stop(&self) {
        let Ok(mut engine) = self.engine.try_borrow_mut() else { return };
        self.steady.set(false);
        let who = engine.who;
        acting(who, || engine.db = None);
        self.disk.lock().end(Proc::Engine);
    }

    /// One sync, and what it promised.
    pub(crate) fn sync(&self) {
        if self.engine.try_borrow_mut().is_err() {
            return;
        }
        let before = self.disk.lock().oracle.now();
        let steady = self.steady.replace(false) && self.swarm.interleave == 0 && self.disk.lock().faults.is_empty();
        let result = self.engine(Db::sync);
        if self.stopped.get() {
            return;
        }
        let mut outcome = self.outcome.borrow_mut();
        outcome.syncs += 1;
        match result {
            Some(Ok(report)) if !report.no_database => {
                outcome.files += u64::from(report.files);
                outcome.full_images += u64::from(report.full_images);
                outcome.checkpoints += u64::from(report.checkpointed);
                drop(outcome);
                self.say(|| format!("  sync: {report:?}"));
                self.steady.set(true);
                if steady && report.full_images > 0 && !self.is_strange() {
                    self.violate("I17 frugal", "a full image although nothing had gone wrong since the last sync");
                }
                let bound = before.max(self.disk.lock().oracle.recovered_at());
                self.acked.set(self.acked.get().max(bound));
                self.verify("after a sync");
            }
            Some(Ok(_)) => {}
            Some(Err(err)) => {
                outcome.failed_syncs += 1;
                drop(outcome);
                self.say(|| format!("  sync failed: {err}"));
                self.verify("after a failed sync");
            }
            None => {
                drop(outcome);
                self.say(|| "  the engine is dead".to_owned());
                if !self.disk.lock().off {
                    self.verify("after a kill");
                }
            }
        }
    }

    pub(super) fn snapshot(&self) {
        let mut bytes = Vec::new();
        let before = self.disk.lock().oracle.now();
        let Some(Ok(info)) = self.engine(|db| db.snapshot(&mut bytes)) else { return };
        if self.stopped.get() {
            return;
        }
        let content = match replay::decode(&bytes) {
            Ok(content) => content,
            Err(err) => {
                return self.violate("I5 loud", format!("a snapshot that reported success cannot be read: {err}"));
            }
        };
        let mut layers = Layers::default();
        if let Err(err) = layers.add(&content) {
            return self.violate("I1 prefix", format!("snapshot: {err}"));
        }
        let digest = layers.digest();
        let found = self.disk.lock().oracle.find(digest);
        match found {
            None => self.violate("I1 prefix", format!("the snapshot of {} is a state that never was", info.txids)),
            Some(state) if state < before => {
                self.violate(
                    "I2 ack",
                    format!("the snapshot is state {state}, but {before} was committed before it began"),
                );
            }
            Some(_) => self.verify("after a snapshot"),
        }
        if let Some(&known) = self.known.borrow().get(&info.txids.max().get())
            && known != digest
        {
            self.violate("I4 exact", format!("the snapshot of {} differs from its files", info.txids));
        }
    }
}
