//! Applications that do not use the log as SQLite does.

use std::path::Path;

use rusqlite::Connection;

use super::Sim;
use crate::app::DB;
use crate::disk::{Proc, acting};
use crate::rng::Rng;

impl Sim {
    /// Whether images are to be expected.
    pub(super) fn is_strange(&self) -> bool {
        self.swarm.unindexed || self.swarm.rewrites || self.app_was_killed.get()
    }

    /// Before the engine has seen a commit of such a writer it cannot know that its own first frame would do harm, nor
    /// that a log is not the file's. So they meet one after the other.
    pub(super) fn meet_stranger(&self) {
        self.interruptions.set(u32::MAX);
        self.sync();
        self.app_turn(|app, rng| app.commit_a_little(&self.swarm, rng, 1), 1);
        self.sync();
    }

    /// The application changes its database in memory, and writes it over the file.
    pub(super) fn rewrite(&self, rng: &mut Rng) {
        const MEMORY: &str = "/data/memory";
        if self.stopped.get() {
            return;
        }
        // It may be killed before it writes.
        let changed = acting(self.disk.who(Proc::App), || -> rusqlite::Result<()> {
            let conn = Connection::open(MEMORY)?;
            conn.execute_batch(&format!(
                "PRAGMA page_size = {}; CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v BLOB)",
                self.swarm.page_size
            ))?;
            for _ in 0..1 + rng.below(3) {
                let mut value = vec![0; rng.index(self.swarm.page_size as usize * 2)];
                rng.fill(&mut value);
                let id = i64::try_from(rng.below(self.swarm.rows)).unwrap_or(0);
                match rng.below(4) {
                    0 => conn.execute("DELETE FROM t WHERE id >= ?1", [id]),
                    _ => conn.execute("INSERT OR REPLACE INTO t VALUES (?1, ?2)", rusqlite::params![id, value]),
                }?;
            }
            if rng.permille(300) {
                conn.execute_batch("VACUUM")?;
            }
            Ok(())
        });
        if changed.is_err() {
            return;
        }
        let mut inner = self.disk.lock();
        let mut content = inner.file_at(Path::new(MEMORY)).map(|ino| inner.files[ino].data.clone()).unwrap_or_default();
        if self.swarm.keeps_wal_mode && content.len() > 100 {
            (content[18], content[19]) = (2, 2);
            // Another SQLite than ours wrote it: two page 1 that are the same to the last bit are no two.
            content[96..100].copy_from_slice(&3_049_001_u32.to_be_bytes());
        }
        // Longer than a modification time takes to tell two writes apart.
        inner.advance_us(1_000_000);
        let Some(ino) = inner.file_at(Path::new(DB)) else { return };
        inner.set_len(ino, 0).expect("there is room");
        inner.write(ino, &content, 0).expect("there is room");
        inner.advance_us(1_000_000);
        let log = inner.file_at(Path::new(&format!("{DB}-wal"))).map_or(0, |ino| inner.files[ino].data.len());
        inner.oracle.note_file(&content, self.swarm.keeps_wal_mode && log > 32);
    }
}
