//! Whether what was uploaded is still there.
//!
//! Uploads, compaction and retention rely on what is remembered of a target, so nothing of theirs would notice that a lifecycle
//! rule, a `sync --delete` or another disk in its place has taken it away: increments would go on without a base. So before
//! each round of level 1, in an idle database once an hour, and for `sync -wait`, the file that every restore begins with is
//! looked at, and one more of those that lead to the present, each time another one. That costs two reads of 100 bytes.

use std::sync::atomic::Ordering;

use tracing::{error, info};

use super::Target;
use crate::compaction::{Manifest, is_rooted, way};
use crate::error::{Error, ErrorKind, Result};
use crate::replica::FileInfo;
use crate::store::database::Database;
use crate::sys::mutant;

const HINT: &str = "something else deletes what belongs to the replica (a lifecycle rule, another program), or another disk \
                    or bucket is in its place";

impl Target {
    /// Sees whether the target still holds what was uploaded, and if not, uploads what it takes to restore it again.
    ///
    /// # Errors
    /// The store's; then whoever asks is told that it could not be seen, or that the target cannot be restored.
    pub(in crate::store) async fn see(&self, database: &Database) -> Result<()> {
        {
            let mut known = self.state.lock().await;
            self.check_ours()?;
            // After an upload that failed nothing is remembered, and everything is listed.
            if !self.is_gone(database).await? {
                return Ok(());
            }
            known.position = None;
        }
        self.sync(database, None).await.map(drop)
    }

    /// Whether something that was uploaded is gone. Says so, and forgets what was believed to be there.
    pub(super) async fn is_gone(&self, database: &Database) -> Result<bool> {
        let health = database.health();
        match self.missed(database).await {
            Ok(None) => {
                self.is_whole(database);
                Ok(false)
            }
            Ok(Some(missed)) => {
                self.manifest.forget();
                if health.unseen(&database.world, self.n, &missed, true) {
                    error!(system = "store", db = %database.name(), replica = self.replica().kind(), error = %missed,
                        hint = missed.hint_text(), "replica cannot be restored, uploading what is missing");
                }
                Ok(true)
            }
            Err(err) => {
                health.unseen(&database.world, self.n, &err, false);
                Err(err)
            }
        }
    }

    /// Everything that a restore of the present state needs was found.
    pub(super) fn is_whole(&self, database: &Database) {
        if database.health().seen(self.n) {
            info!(system = "store", db = %database.name(), replica = self.replica().kind(), "replica can be restored again");
        }
    }

    async fn missed(&self, database: &Database) -> Result<Option<Error>> {
        if mutant("store-never-looks") {
            return Ok(None);
        }
        let gone = |what: String| {
            let place = self.replica().client().location();
            Ok(Some(Error::new(ErrorKind::NotFound, format!("{what} is gone from")).at(place).hint(HINT)))
        };
        let ours = self.known_ours();
        let look = |manifest: &Manifest| (is_rooted(manifest) && manifest.max_txid() >= ours, way(manifest));
        let (whole, way) = self.manifest.read(self.replica(), look).await?;
        if !whole {
            return gone("what was uploaded".to_owned());
        }
        let turn = self.looks.fetch_add(1, Ordering::Relaxed);
        let others = way.len().saturating_sub(1).max(1);
        for file in [way.first(), way.get(1 + turn % others)].into_iter().flatten() {
            match self.replica().header(file.level, file.txids).await {
                Err(err) if err.kind() == ErrorKind::NotFound && self.is_remembered(file) => {
                    return gone(format!("ltx file {file}"));
                }
                // Replaced by a newer one meanwhile; or damaged, which is another matter.
                Err(err) if matches!(err.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {}
                Err(err) => return Err(err.context(format!("look at replica of {}", database.name()))),
                Ok(_) => {}
            }
        }
        Ok(None)
    }

    fn is_remembered(&self, file: &FileInfo) -> bool {
        self.manifest.peek(|manifest| manifest.level(file.level).iter().any(|f| f.txids == file.txids)) != Some(false)
    }
}
