//! What is missing on a target, and how it gets there again.

use tracing::warn;

use super::Target;
use crate::compaction::{Cure, Gap, Manifest, cure, gaps, is_rooted};
use crate::error::Result;
use crate::store::database::Database;
use crate::sys::{blocking, mutant};
use crate::types::Level;

impl Target {
    /// Looks for what is missing, from the beginning to the end, and puts it there again.
    ///
    /// # Errors
    /// Those of reading the database and of the store.
    pub(in crate::store) async fn heal(&self, database: &Database) -> Result<()> {
        {
            let mut known = self.state.lock().await;
            self.check_ours()?;
            self.close_gaps(database).await?;
            let Some(uploaded) = known.position.and_then(|position| position.txid) else { return Ok(()) };
            let end = self.manifest.read(self.replica(), Manifest::max_txid).await?;
            if end >= Some(uploaded) || mutant("store-end-not-missed") {
                return Ok(());
            }
            warn!(system = "store", db = %database.name(), replica = self.replica().kind(),
                "txid.replica" = end.map(tracing::field::display), "txid.uploaded" = %uploaded,
                "newest ltx files are missing on the replica, uploading them again");
            known.position = None;
        }
        self.sync(database, None).await.map(drop)
    }

    pub(super) async fn close_gaps(&self, database: &Database) -> Result<()> {
        let (gaps, mut rooted) = self.manifest.read(self.replica(), |m| (gaps(m), is_rooted(m))).await?;
        if !gaps.is_empty() {
            if self.fill(database, gaps).await? {
                return Ok(());
            }
            // A gap of level 0 is not all that may be missing.
            rooted = self.manifest.read(self.replica(), is_rooted).await?;
        }
        if rooted || mutant("store-root-not-missed") {
            return Ok(());
        }
        warn!(system = "store", db = %database.name(), replica = self.replica().kind(),
            "nothing on the replica leads to its newest ltx file, starting from a snapshot");
        self.snapshot(database).await.map(drop)
    }

    /// Uploads again what is missing of level 0. `true`: some of it is gone, so a snapshot leads across everything
    /// now; what can be filled is, next time.
    async fn fill(&self, database: &Database, gaps: Vec<Gap>) -> Result<bool> {
        let local = database.local().clone();
        let local = blocking(move || local.list(Level::L0)).await?;
        for gap in gaps {
            match cure(gap, &local) {
                Cure::Upload(files) => {
                    warn!(system = "store", db = %database.name(), replica = self.replica().kind(), min_txid = %gap.txids.min(),
                        max_txid = %gap.txids.max(), "ltx files are missing on the replica, uploading them again");
                    for file in files {
                        self.put(database, file).await?;
                    }
                }
                Cure::Snapshot => {
                    warn!(system = "store", db = %database.name(), replica = self.replica().kind(), min_txid = %gap.txids.min(),
                        max_txid = %gap.txids.max(), "ltx files are missing on the replica, bridging the gap with a snapshot");
                    self.snapshot(database).await?;
                    return Ok(true);
                }
                Cure::Accept => {}
            }
        }
        Ok(false)
    }
}
