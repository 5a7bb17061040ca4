//! The positional argument of `ltx` and `restore`: a replica URL, or a database of the configuration.

use std::path::PathBuf;

use super::flags::Matches;
use super::{App, Failure};
use crate::config::{self, DbSettings};
use crate::replica::{self, Replica};

/// Where to read from.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) replica: Replica,
    /// The database, when it was named by its path.
    pub(super) db: Option<PathBuf>,
}

impl Source {
    /// A replica named by its URL: no configuration is involved, and must not be asked for.
    pub(super) fn of_url(app: &App, url: &str) -> Result<Self, Failure> {
        let settings = config::replica_from_url(url, app.surroundings())?;
        Ok(Self { replica: replica::build(&settings, &app.world)?, db: None })
    }

    /// The replica of a database in the configuration. Only that database is looked at.
    pub(super) fn of_database(app: &App, matches: &Matches, path: &str) -> Result<Self, Failure> {
        let config = app.load_config(matches)?;
        let path = app.surroundings().expand(path)?;
        let entry = config
            .find(&path)
            .ok_or_else(|| Failure::new(format!("database not found in config: {}", path.display())))?;
        let DbSettings { path, replica, .. } = entry.build(app.surroundings())?;
        Ok(Self { replica: replica::build(&replica, &app.world)?, db: Some(path) })
    }
}

/// Refuses `-config` beside a replica URL.
pub(super) fn refuse_config(matches: &Matches) -> Result<(), Failure> {
    if matches.text("config").is_empty() {
        return Ok(());
    }
    Err(Failure::new("cannot specify a replica URL and the -config flag"))
}
