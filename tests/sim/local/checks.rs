//! What must hold after every action, and at the end.

use std::path::Path;

use litestream::db::Db;
use litestream::ltx::parse_file_name;

use super::{META, Sim};
use crate::disk::{Class, Entry};
use crate::replay::Layers;
use crate::rng::Rng;

/// Digest after the last local file, and each TXID with the digest after it.
type Replayed = (Option<u64>, Vec<(u64, u64)>);

impl Sim {
    /// The local files must give one state, not older than the last acknowledged.
    pub(super) fn verify(&self, when: &str) {
        if self.stopped.get() || self.disk.lock().off {
            return;
        }
        let replayed = self.replay();
        let (last, digests) = match replayed {
            Ok(replayed) => replayed,
            Err(text) => return self.violate("I1 prefix", format!("{when}: {text}")),
        };
        let acked = self.acked.get();
        let Some(digest) = last else {
            if acked > 0 {
                self.violate("I2 ack", format!("{when}: no local file, but state {acked} was acknowledged"));
            }
            return;
        };
        let found = self.disk.lock().oracle.find(digest);
        match found {
            None => self.violate("I1 prefix", format!("{when}: the files give a state that never was")),
            Some(state) if state < acked => {
                self.violate("I2 ack", format!("{when}: the files give state {state}, but {acked} was acknowledged"));
            }
            Some(_) => {}
        }
        // What was acknowledged under a TXID stays what it is. A file that was not may be written anew.
        let mut known = self.known.borrow_mut();
        let changed = digests.iter().find(|(txid, digest)| known.get(txid).is_some_and(|before| before != digest));
        if let Some((txid, _)) = changed {
            let text = format!("{when}: TXID {txid} is another state than before");
            drop(known);
            return self.violate("I3 monotone", text);
        }
        if when == "after a sync" {
            known.extend(digests);
        }
    }

    /// Digest after the last local file, and after each.
    fn replay(&self) -> Result<Replayed, String> {
        let inner = self.disk.lock();
        let dir = Path::new(META).join("ltx/0");
        let mut files: Vec<_> = inner
            .names(&dir)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, entry)| match entry {
                Entry::File(ino) => Some((parse_file_name(&name)?, ino)),
                Entry::Dir => None,
            })
            .collect();
        files.sort_unstable();
        let mut layers = Layers::default();
        let mut digests = Vec::new();
        let mut reached = None;
        for (txids, ino) in files {
            let file = &inner.files[ino];
            let content = self.cache.borrow_mut().get(ino, file.version, &file.data);
            let content = content.map_err(|e| format!("local file {txids} cannot be read: {e}"))?;
            if content.txids != txids {
                return Err(format!("local file {txids} says it is {}", content.txids));
            }
            if reached.is_some_and(|reached| txids.min().get() != reached + 1) {
                return Err(format!("local file {txids} follows {reached:?}"));
            }
            reached = Some(txids.max().get());
            layers.add(&content)?;
            digests.push((txids.max().get(), layers.digest()));
        }
        Ok((digests.last().map(|(_, digest)| *digest), digests))
    }

    pub(super) fn check_world(&self) {
        let (broken, ruined) = {
            let oracle = &mut self.disk.lock().oracle;
            (oracle.broken.take(), oracle.ruined)
        };
        if let Some(broken) = broken {
            self.violate("I6 harmless", broken);
        } else if ruined {
            self.give_up();
        }
    }

    /// Faults are over: everything must come right by itself.
    pub(super) fn settle(&self) {
        self.say(|| "faults are over".to_owned());
        self.disk.lock().forgive();
        self.app.borrow_mut().end(false);
        self.foreign.borrow_mut().end(false);
        if self.without_engine {
            if let Err(text) = self.app.borrow_mut().check() {
                self.violate("I6 harmless", format!("integrity check of the source: {text}"));
            }
            return self.check_world();
        }
        let mut last = String::new();
        let caught_up = (0..4).any(|_| {
            self.disk.lock().advance_us(61_000_000);
            match self.engine(Db::sync) {
                Some(Ok(report)) if !report.no_database => true,
                Some(Err(err)) => {
                    last = err.to_string();
                    false
                }
                other => {
                    last = format!("{other:?}");
                    false
                }
            }
        });
        if !caught_up {
            return self.violate("I7 live", format!("with all faults gone a sync still fails: {last}"));
        }
        self.exactly_now("after the faults");
        let mut rng = Rng::new(5);
        if self.swarm.rewrites {
            self.rewrite(&mut rng);
            self.sync();
            self.exactly_now("after it was written once more");
            self.stop();
            self.sync();
            self.exactly_now("after a restart");
            return self.check_world();
        }
        if let Err(text) = self.app.borrow_mut().last_words(&mut rng) {
            return self.violate("I6 harmless", format!("the application cannot write any more: {text}"));
        }
        self.sync();
        self.exactly_now("after one more commit");
        self.stop();
        if let Err(text) = self.app.borrow_mut().check() {
            return self.violate("I6 harmless", format!("integrity check of the source: {text}"));
        }
        self.sync();
        self.exactly_now("after a restart");
        let inner = self.disk.lock();
        let left = inner.walk().into_iter().find(|path| path.starts_with(META) && Class::of(path) == Class::Temp);
        drop(inner);
        if let Some(left) = left {
            self.violate("I8 tidy", format!("{} is left over", left.display()));
        }
        self.check_world();
    }

    fn exactly_now(&self, when: &str) {
        if self.stopped.get() {
            return;
        }
        self.verify(when);
        let Ok((Some(digest), _)) = self.replay() else {
            return self.violate("I7 live", format!("{when}: nothing was replicated"));
        };
        let inner = self.disk.lock();
        let now = inner.oracle.digest_at(inner.oracle.now());
        drop(inner);
        if digest != now {
            self.violate("I7 live", format!("{when}: the files do not give the present state"));
        }
    }
}
