//! Forgetting the local state of one database.

use std::path::Path;

use super::engine::LOCK_FILE;
use super::record::FILE_NAME;
use crate::error::{ErrorKind, Result};
use crate::ltx::LocalDir;
use crate::sys::{Modes, World};

/// Removes all local LTX files and the continuity record below `meta`: the next sync begins with a
/// whole image.
///
/// # Errors
/// `InUse` while somebody replicates the database; I/O errors.
pub fn reset(world: &World, meta: &Path) -> Result<()> {
    let owner = format!("process {}", std::process::id());
    let _lock =
        world.fs.lock(&meta.join(LOCK_FILE), Modes::default().file, &owner).map_err(|err| match err.kind() {
            ErrorKind::InUse => err
                .context("database is being replicated")
                .hint("stop it first: litestream stop PATH, or stop the daemon"),
            _ => err,
        })?;
    LocalDir::new(world, meta.to_owned()).clear().map_err(|err| err.context("remove ltx directory"))?;
    match world.fs.remove_file(&meta.join(FILE_NAME)) {
        Err(err) if err.kind() != ErrorKind::NotFound => Err(err.context("remove continuity record")),
        _ => Ok(()),
    }
}
