//! SIGHUP: the configuration is read again, and what differs is carried out. Databases whose entry
//! did not change are not touched. A file that cannot be used changes nothing. Everything can be
//! changed but `exec`, which names a program that runs already.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::super::App;
use super::listeners::Listeners;
use super::services::{Directories, WatchedDir, heartbeats};
use crate::config::{self, Built, Config, DbEntry, ExpandEnv};
use crate::daemon;
use crate::daemon::heartbeat::Heartbeat;
use crate::error::Result;
use crate::server::{Context, check_address};
use crate::store::UpkeepConfig;

/// What is in force.
pub(super) struct Reloader {
    pub(super) app: App,
    /// As typed.
    pub(super) config_path: String,
    pub(super) expand: ExpandEnv,
    /// What the command line says about every database.
    pub(super) restore_missing: bool,
    pub(super) config: Config,
    pub(super) context: Context,
    pub(super) directories: Directories,
    pub(super) listeners: Arc<Mutex<Listeners>>,
    pub(super) heartbeats: watch::Sender<Vec<Heartbeat>>,
}

/// Entries of `old` that are not in `new`, and the other way round. One whose replication changed is among
/// both.
fn differences<'a>(old: &'a [DbEntry], new: &'a [DbEntry]) -> (Vec<&'a DbEntry>, Vec<&'a DbEntry>) {
    let lacking = |from: &'a [DbEntry], of: &[DbEntry]| {
        from.iter().filter(|entry| !of.iter().any(|other| other.replicates_as(entry))).collect()
    };
    (lacking(old, new), lacking(new, old))
}

impl Reloader {
    /// Waits for signals until told to stop.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(err) => return error!(error = %err, "cannot catch SIGHUP, the configuration cannot be reloaded"),
        };
        while stop.run_until_cancelled(hangup.recv()).await.is_some() {
            match self.reload().await {
                Ok((gone, come)) => info!(removed = gone, added = come, "configuration reloaded"),
                Err(err) => {
                    error!(error = %err, hint = err.hint_text(), "cannot reload configuration, the old one stays in force");
                }
            }
        }
        self.directories.stop_all().await;
    }

    /// Reads, checks, and only then changes anything. How many databases went and came.
    async fn reload(&mut self) -> Result<(usize, usize)> {
        let app = self.app.embedded();
        let around = app.surroundings();
        let mut new = config::load(&self.config_path, self.expand, around)?;
        if self.restore_missing {
            new.dbs.iter_mut().for_each(DbEntry::restore_if_missing);
        }
        let all = new.build_all(around)?;
        for settings in &all {
            daemon::database(settings, &self.app.world)?;
        }
        let upkeep = daemon::upkeep(&new)?;
        let heartbeats = heartbeats(&new, around)?;
        if let Some(addr) = &new.addr {
            check_address(addr)?;
        }
        let (gone, come) = differences(&self.config.dbs, &new.dbs);
        let built = come.iter().map(|entry| entry.build_all(around)).collect::<Result<Vec<Built>>>()?;
        let mut leaving = Vec::new();
        let gone: Vec<DbEntry> = gone.into_iter().cloned().collect();
        for entry in &gone {
            leaving.extend(self.leave(entry).await?);
        }
        // Whoever comes back with other settings waits for his own last sync.
        let removed = leaving.len();
        let limit = self.config.shutdown.timeout;
        let left =
            futures::future::join_all(leaving.iter().map(|path| self.context.store.unregister(path, limit))).await;
        for (path, err) in leaving.iter().zip(left).filter_map(|(path, left)| Some((path, left.err()?))) {
            warn!(path = %path.display(), error = %err, "final sync failed");
        }
        let mut added = 0;
        for Built { databases, directory } in built {
            let found: Vec<PathBuf> = databases.iter().map(|db| db.path.clone()).collect();
            for settings in &databases {
                let database = daemon::database(settings, &self.app.world)?;
                match self.context.store.register(database).await {
                    Ok(new) => added += usize::from(new),
                    Err(err) => error!(path = %settings.path.display(), error = %err, "cannot add database"),
                }
            }
            if let Some(directory) = directory.filter(|directory| directory.watch) {
                self.directories.watch(WatchedDir { directory, found });
            }
        }
        self.heartbeats.send_replace(heartbeats);
        self.apply(&mut new, upkeep).await?;
        self.config = new;
        Ok((removed, added))
    }

    /// Settings outside `dbs`. Only what differs is touched.
    async fn apply(&self, new: &mut Config, upkeep: UpkeepConfig) -> Result<()> {
        let (old, context) = (&self.config, &self.context);
        context.store.set_shutdown(daemon::shutdown(new));
        if daemon::upkeep(old).ok().as_ref() != Some(&upkeep) {
            info!("compaction, snapshots and retention follow the new settings");
            context.store.set_upkeep(upkeep);
        }
        if old.logging != new.logging {
            self.app.set_log(&new.logging);
        }
        let mut listeners = self.listeners.lock().await;
        if old.socket != new.socket {
            listeners.change_socket(context, &new.socket).await;
        }
        if old.mcp != new.mcp {
            listeners.change_mcp(&self.app, &self.config_path, new).await;
        }
        if old.addr != new.addr && !listeners.change_endpoint(context, new.addr.as_deref()).await? {
            new.addr.clone_from(&old.addr);
        }
        if old.exec != new.exec {
            warn!(setting = "exec", "setting has changed, which takes effect at the next start");
            new.exec.clone_from(&old.exec);
        }
        Ok(())
    }

    /// The databases of an entry that is no more.
    async fn leave(&mut self, entry: &DbEntry) -> Result<Vec<PathBuf>> {
        let directory = entry.directory(self.app.surroundings())?;
        let Some(directory) = directory else {
            return Ok(entry.path().map(Path::to_owned).into_iter().collect());
        };
        self.directories.stop(&directory.path).await;
        let named = |path: &Path| self.config.dbs.iter().any(|entry| entry.path() == Some(path));
        Ok(self.context.store.paths().into_iter().filter(|path| directory.covers(path) && !named(path)).collect())
    }
}

/// Not printed: it holds the whole configuration.
impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").field("config_path", &self.config_path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Surroundings};
    use crate::sys::OsFs;

    fn entries(text: &str) -> Vec<DbEntry> {
        let env = Environment::new([], PathBuf::from("/w"));
        config::parse(text, Surroundings { env: &env, fs: &OsFs }).unwrap().dbs
    }

    fn paths(entries: &[&DbEntry]) -> Vec<String> {
        entries.iter().map(|entry| entry.path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn only_what_differs_goes_and_comes() {
        let old = entries(
            "dbs: [{path: /a, replica: {path: /r/a}}, {path: /b, replica: {path: /r/b}}, {path: /c, replica: {path: /r/c}}]",
        );
        let new = entries(
            "dbs: [{path: /d, replica: {path: /r/d}}, {path: /b, replica: {path: /r/other}}, {path: /a, replica: {path: /r/a}}]",
        );
        let (gone, come) = differences(&old, &new);
        assert_eq!(paths(&gone), ["/b", "/c"]);
        assert_eq!(paths(&come), ["/d", "/b"]);
        let (gone, come) = differences(&old, &old);
        assert!(gone.is_empty() && come.is_empty());
    }

    #[test]
    fn another_heartbeat_leaves_replication_alone() {
        let old = entries("dbs: [{path: /a, replica: {path: /r}}]");
        let new = entries("dbs: [{path: /a, heartbeat-url: 'http://x', replica: {path: /r}}]");
        let (gone, come) = differences(&old, &new);
        assert!(gone.is_empty() && come.is_empty());
        assert_eq!(new[0].heartbeat().unwrap().url, "http://x");
    }

    #[test]
    fn a_changed_default_changes_every_entry_that_uses_it() {
        let text =
            |secret: &str| format!("secret-access-key: {secret}\ndbs: [{{path: /a, replica: {{url: s3://b/a}}}}]");
        let (old, new) = (entries(&text("one")), entries(&text("two")));
        assert_eq!(paths(&differences(&old, &new).0), ["/a"]);
    }
}
