//! What a replica holds in both formats, and which of them has the wanted state (`spec: restore` X10,
//! `spec: v3-format` §5).

use super::plan::{Target, plan};
use crate::error::{Error, ErrorKind, Result};
use crate::replica::{FileInfo, Replica, Stamps};
use crate::types::{Timestamp, Txid};
use crate::v3;

/// Everything that could be restored.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// LTX files of all levels.
    pub files: Vec<FileInfo>,
    /// Backups of 0.3.x.
    pub v3: v3::Backups,
}

/// The objects of one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// LTX files, oldest first.
    Ltx(Vec<FileInfo>),
    /// A backup of 0.3.x.
    V3(v3::Plan),
}

impl Plan {
    /// The LTX files, oldest first; none for a backup of 0.3.x.
    #[must_use]
    pub fn files(&self) -> &[FileInfo] {
        match self {
            Self::Ltx(files) => files,
            Self::V3(_) => &[],
        }
    }

    /// The state, where states have numbers.
    #[must_use]
    pub fn txid(&self) -> Option<Txid> {
        self.files().last().map(|file| file.txids.max())
    }

    /// Number of objects, and their bytes.
    #[must_use]
    pub fn size(&self) -> (usize, u64) {
        match self {
            Self::Ltx(files) => (files.len(), files.iter().map(|file| file.size).fold(0, u64::saturating_add)),
            Self::V3(plan) => (plan.segments.len() + 1, plan.size()),
        }
    }
}

/// Lists what can matter for `target`.
///
/// # Errors
/// The store's.
pub async fn survey(replica: &Replica, target: Target) -> Result<Survey> {
    let stamps = if matches!(target, Target::Before(_)) { Stamps::Exact } else { Stamps::Cheap };
    let backups = async {
        match target {
            // The old format has no TXIDs.
            Target::Txid(_) => Ok(v3::Backups::default()),
            Target::Latest | Target::Before(_) => v3::list(replica.client().as_ref()).await,
        }
    };
    let (files, v3) = futures::future::try_join(replica.list_all(stamps), backups).await?;
    Ok(Survey { files, v3 })
}

impl Survey {
    /// Refuses times outside of what the replica covers.
    ///
    /// # Errors
    /// `NotFound`: before the oldest object, after the newest, or nothing at all.
    pub fn check_time(&self, time: Timestamp) -> Result<()> {
        let missing = |text| Err(Error::new(ErrorKind::NotFound, text));
        let newest = self.files.iter().map(|file| file.created).max().max(self.v3.newest());
        let begun = self.files.iter().any(|file| file.created <= time) || self.v3.reaches_back_to(time);
        match newest {
            None => missing("no backups found"),
            Some(newest) if time > newest || !begun => missing("timestamp does not exist"),
            Some(_) => Ok(()),
        }
    }

    /// The objects to apply.
    ///
    /// The format whose newest state is the later one wins, LTX if both are of the same time. The
    /// other one is no way out when the winner turns out to be incomplete: that would be an older
    /// state than the one asked for.
    ///
    /// # Errors
    /// As [`plan`]; `Invalid` if there are only backups that are too young.
    pub fn plan(&self, target: Target) -> Result<Plan> {
        let files = plan(&self.files, target);
        let at = match target {
            Target::Txid(_) => return files.map(Plan::Ltx),
            Target::Latest => None,
            Target::Before(time) => Some(time),
        };
        let admitted = self.files.iter().filter(|file| target.admits(file));
        let newest_file = admitted.map(|file| file.created).max();
        let backup = self.v3.plan(at);
        match (files, backup) {
            (Ok(files), Some(backup)) if newest_file >= Some(self.v3_time(target, &backup)) => Ok(Plan::Ltx(files)),
            (Ok(files), None) => Ok(Plan::Ltx(files)),
            (Ok(_), Some(backup)) => Ok(Plan::V3(backup)),
            // There are files, but they begin with a gap: nothing of theirs can be restored.
            (Err(err), Some(backup)) if err.kind() == ErrorKind::NotFound => Ok(Plan::V3(backup)),
            (Err(_), Some(backup)) if Some(self.v3_time(target, &backup)) > newest_file => Ok(Plan::V3(backup)),
            (Err(err), None) if err.kind() == ErrorKind::NotFound && self.files.is_empty() && !self.v3.is_empty() => {
                Err(Error::invalid("no snapshots available"))
            }
            (Err(err), _) => Err(err),
        }
    }

    /// The latest state's objects may belong to a generation whose snapshot never arrived: they show
    /// all the same that 0.3.x was the last to write.
    fn v3_time(&self, target: Target, backup: &v3::Plan) -> Timestamp {
        match target {
            Target::Latest => self.v3.newest().unwrap_or_else(|| backup.time()),
            _ => backup.time(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Level, TxidRange};

    fn file(level: u8, min: u64, max: u64, created: i64) -> FileInfo {
        let txids = TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap();
        let created = Timestamp::from_millis(created);
        FileInfo { level: Level::new(level).unwrap(), txids, size: 200, created }
    }

    #[test]
    fn times_outside_of_the_replica_are_refused_when_asked_for() {
        let files = vec![file(9, 1, 3, 30), file(0, 4, 4, 40)];
        let survey = Survey { files, ..Survey::default() };
        let check = |millis| survey.check_time(Timestamp::from_millis(millis));
        assert!(check(30).is_ok() && check(40).is_ok());
        for millis in [29, 41] {
            assert_eq!(check(millis).unwrap_err().to_string(), "timestamp does not exist");
        }
        let empty = Survey::default().check_time(Timestamp::from_millis(1)).unwrap_err();
        assert_eq!(empty.to_string(), "no backups found");
    }
}
