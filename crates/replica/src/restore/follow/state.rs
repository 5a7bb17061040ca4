//! Which transaction the output is at, across crashes.
//!
//! `<output>-txid` holds 16 hex digits, as Litestream writes it. It is written after a batch is
//! complete, so after a crash the output may be one batch further than it says. That alone would do no
//! harm if the same batch followed; but a smaller one would put old pages beside newer ones. So the
//! batch is announced in `<output>-txid-next` before it is begun (from and to, 16 hex digits each), and
//! after a crash the next batch must reach at least as far.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys::fs::with_suffix;
use crate::sys::{OpenMode, OwnerMode, Publisher, World, fault_point, read_up_to};
use crate::types::Txid;

/// Most bytes of either file that are looked at.
const MAX_LEN: u64 = 64;

/// The two files beside the output.
#[derive(Debug, Clone)]
pub(in crate::restore) struct StateFiles {
    world: World,
    txid: PathBuf,
    next: PathBuf,
    owner_mode: OwnerMode,
}

impl StateFiles {
    pub(in crate::restore) fn new(world: &World, output: &Path, owner_mode: OwnerMode) -> Self {
        let (txid, next) = (with_suffix(output, "-txid"), with_suffix(output, "-txid-next"));
        Self { world: world.clone(), txid, next, owner_mode }
    }

    /// The state the output was last known to have; `None` if nothing is known.
    ///
    /// # Errors
    /// `Invalid` for a file that holds something else.
    pub(in crate::restore) fn load(&self) -> Result<Option<Txid>> {
        let Some(text) = self.read(&self.txid)? else { return Ok(None) };
        let parsed = text.trim().parse::<Txid>();
        parsed.map(Some).map_err(|e| e.context("parse txid file").context("read txid file for crash recovery"))
    }

    /// How far a batch that was begun at `saved` may have come. What was announced before that is
    /// forgotten.
    pub(in crate::restore) fn announced(&self, saved: Txid) -> Result<Option<Txid>> {
        let Some(text) = self.read(&self.next)? else { return Ok(None) };
        let announced = text.split_once(' ').and_then(|(from, to)| {
            let (from, to) = (from.parse::<Txid>().ok()?, to.trim().parse::<Txid>().ok()?);
            (from == saved && to > from).then_some(to)
        });
        if announced.is_none() {
            self.world.fs.remove_file(&self.next)?;
        }
        Ok(announced)
    }

    /// Announces a batch.
    pub(in crate::restore) fn announce(&self, from: Txid, to: Txid) -> Result<()> {
        self.write(&self.next, &format!("{from} {to}\n"))?;
        fault_point("follow.announced")
    }

    /// Says that the output is at `txid`.
    pub(in crate::restore) fn save(&self, txid: Txid) -> Result<()> {
        self.write(&self.txid, &format!("{txid}\n"))?;
        fault_point("follow.saved")?;
        self.world.fs.remove_file(&self.next)
    }

    fn read(&self, path: &Path) -> Result<Option<String>> {
        let fs = self.world.fs.as_ref();
        if fs.stat_opt(path)?.is_none() {
            return Ok(None);
        }
        let file = fs.open(path, OpenMode::Read)?;
        let len = file.stat()?.len.min(MAX_LEN);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let done = read_up_to(file.as_ref(), &mut bytes, 0)?;
        bytes.truncate(done);
        String::from_utf8(bytes).map(Some).map_err(|_| Error::invalid("not text").at(path.display()))
    }

    fn write(&self, path: &Path, text: &str) -> Result<()> {
        let publisher = Publisher::create(self.world.fs.as_ref(), path, self.owner_mode)?;
        publisher.file().write_all_at(text.as_bytes(), 0)?;
        publisher.publish(None)
    }
}
