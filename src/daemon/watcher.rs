//! Databases that come and go in a directory (`spec: cli` §7.5).
//!
//! Whatever happens in the directory leads to the same thing: a survey of it, compared with what is
//! replicated. So no event needs to be understood, and none that is lost is lost for long: the
//! survey is made every few seconds anyway. The system is asked for the coming and going of names
//! only; the application's writing costs nothing here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use notify::{EventKindMask, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::config::{DirSettings, Environment, Surroundings, is_database};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;
use crate::sys::{FileKind, Fs, LogLimiter, World, blocking};

/// From the first event of a burst to the survey.
const DEBOUNCE: Duration = Duration::from_millis(250);
/// Between surveys while the system tells of changes.
const WATCHED: Duration = Duration::from_secs(10);
/// Between surveys where it does not.
const UNWATCHED: Duration = Duration::from_secs(1);
/// Between surveys while a file may become a database any moment: writing to it is no event for us.
const EXPECTING: Duration = Duration::from_millis(500);
/// For how long that is done.
const EXPECT_FOR: Duration = Duration::from_secs(60);
/// A survey is followed by so many times its duration without one.
const REST_FACTOR: u32 = 4;
/// Databases that are added or removed at the same time.
const AT_ONCE: usize = 16;
/// How long the final sync of a database that is gone may take.
const LAST_SYNC: Duration = Duration::from_secs(30);
const ERROR_SPACING: Duration = Duration::from_secs(30);
/// Deeper trees are not looked at.
const MAX_DEPTH: usize = 64;

/// What is in a directory.
#[derive(Debug, Default)]
struct Survey {
    databases: BTreeSet<PathBuf>,
    /// Files with the right name that are no databases (yet).
    candidates: BTreeSet<PathBuf>,
    /// The directory, and those below it that count.
    dirs: BTreeSet<PathBuf>,
}

/// Walks the directory. Of files that are `known` to be databases only the name is looked at.
fn survey(fs: &dyn Fs, directory: &DirSettings, known: &BTreeSet<PathBuf>) -> Result<Survey> {
    let mut found = Survey::default();
    let mut todo = vec![(directory.path.clone(), 0)];
    while let Some((dir, depth)) = todo.pop() {
        let entries = match fs.list(&dir) {
            // It went while we walked, or is not there any more.
            Err(err) if err.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries {
            let path = dir.join(&entry.name);
            if entry.kind == FileKind::Dir {
                if directory.recursive && depth < MAX_DEPTH && !is_local_state(&entry.name) {
                    todo.push((path, depth + 1));
                }
            } else if !is_sidecar(&entry.name) && directory.matches(&path)? {
                if entry.kind == FileKind::Other && directory.repeats(fs, &path) {
                    continue;
                }
                if known.contains(&path) || is_database(fs, &path) {
                    found.databases.insert(path);
                } else {
                    found.candidates.insert(path);
                }
            }
        }
        found.dirs.insert(dir);
    }
    Ok(found)
}

/// Our own directories are many, and change all the time.
fn is_local_state(name: &str) -> bool {
    name.ends_with("-litestream")
}

fn is_sidecar(name: &str) -> bool {
    ["-wal", "-shm", "-journal"].iter().any(|suffix| name.ends_with(suffix))
}

/// Watches one directory.
#[derive(Debug)]
pub struct DirWatcher {
    store: Store,
    world: World,
    env: Arc<Environment>,
    directory: DirSettings,
    /// What this watcher has added.
    ours: BTreeSet<PathBuf>,
    /// Candidates, and when they were first seen.
    expected: BTreeMap<PathBuf, Duration>,
    limiter: LogLimiter,
    /// Final syncs that still run.
    leaving: TaskTracker,
}

impl DirWatcher {
    /// `found` are the databases of the directory that the store has been given already.
    #[must_use]
    pub fn new(store: Store, env: Arc<Environment>, directory: DirSettings, found: Vec<PathBuf>) -> Self {
        Self {
            world: store.world().clone(),
            store,
            env,
            directory,
            ours: found.into_iter().collect(),
            expected: BTreeMap::new(),
            limiter: LogLimiter::new(ERROR_SPACING),
            leaving: TaskTracker::new(),
        }
    }

    /// Follows the directory until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut events = Events::new(&self.directory.path);
        let clock = Arc::clone(&self.world.clock);
        while !stop.is_cancelled() {
            let began = clock.elapsed();
            let mut pause = match self.look().await {
                Ok(dirs) if events.watch(&dirs) => Duration::ZERO,
                Ok(_) => self.patience(&events, clock.elapsed()),
                Err(err) => {
                    if self.limiter.allow(clock.elapsed(), &err) {
                        error!(dir = %self.directory.path.display(), error = %err, "directory watcher error");
                    }
                    WATCHED
                }
            };
            let took = clock.elapsed().saturating_sub(began);
            let rest = DEBOUNCE.max(took * REST_FACTOR);
            pause = pause.max(took * REST_FACTOR);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = events.next() => {
                    // Let the burst pass.
                    if stop.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
                        break;
                    }
                    events.clear();
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.leaving.close();
        self.leaving.wait().await;
    }

    fn patience(&self, events: &Events, now: Duration) -> Duration {
        let fresh = self.expected.values().any(|since| now.saturating_sub(*since) < EXPECT_FOR);
        match (events.works(), fresh) {
            (_, true) => EXPECTING,
            (true, false) => WATCHED,
            (false, false) => UNWATCHED,
        }
    }

    /// One survey and what follows from it. Returns the directories that should be watched.
    async fn look(&mut self) -> Result<BTreeSet<PathBuf>> {
        let (fs, directory, known) = (Arc::clone(&self.world.fs), self.directory.clone(), self.ours.clone());
        let found = blocking(move || survey(fs.as_ref(), &directory, &known)).await?;
        let gone: Vec<PathBuf> = self.ours.difference(&found.databases).cloned().collect();
        for path in gone {
            self.remove(path);
        }
        let new: Vec<PathBuf> = found.databases.difference(&self.ours).cloned().collect();
        let added: Vec<(PathBuf, bool)> = {
            let this = &*self;
            futures::stream::iter(new)
                .map(|path| async move { this.add(&path).await.then_some((path, true)) })
                .buffered(AT_ONCE)
                .filter_map(futures::future::ready)
                .collect()
                .await
        };
        self.ours.extend(added.into_iter().map(|(path, _)| path));
        let now = self.world.clock.elapsed();
        self.expected.retain(|path, _| found.candidates.contains(path));
        for path in found.candidates {
            self.expected.entry(path).or_insert(now);
        }
        Ok(found.dirs)
    }

    /// Gives a database to the store. `false`: it will be tried again, or somebody else has it.
    async fn add(&self, path: &Path) -> bool {
        let (dir, around) =
            (self.directory.path.display(), Surroundings { env: &self.env, fs: self.world.fs.as_ref() });
        let settings = self.directory.database(path, around);
        let config = match settings.and_then(|settings| super::database(&settings, &self.world)) {
            Ok(config) => config,
            Err(err) => return self.failed("configure database", path, &err),
        };
        match self.store.register(config).await {
            Ok(true) => {
                info!(dir = %dir, path = %path.display(), "added database to replication");
                true
            }
            Ok(false) => false,
            Err(err) => self.failed("register database with store", path, &err),
        }
    }

    fn failed(&self, what: &str, path: &Path, err: &Error) -> bool {
        error!(dir = %self.directory.path.display(), path = %path.display(), error = %err, hint = err.hint_text(), "{what}");
        false
    }

    /// Takes a database from the store at once; its final sync must not keep others waiting.
    fn remove(&mut self, path: PathBuf) {
        self.ours.remove(&path);
        let (store, dir) = (self.store.clone(), self.directory.path.clone());
        info!(dir = %dir.display(), path = %path.display(), "removed database from replication");
        let leaving = store.take_out(&path, LAST_SYNC);
        self.leaving.spawn(async move {
            if let Err(err) = leaving.await {
                error!(dir = %dir.display(), path = %path.display(), error = %err, "unregister database from store");
            }
        });
    }
}

/// The system's word that names came or went.
struct Events {
    /// `None`: it does not tell.
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    came: Arc<Notify>,
    /// A directory could not be watched.
    incomplete: bool,
}

impl Events {
    fn new(dir: &Path) -> Self {
        let came = Arc::new(Notify::new());
        let tell = Arc::clone(&came);
        let kinds = EventKindMask::CREATE | EventKindMask::REMOVE | EventKindMask::MODIFY_NAME;
        let config = notify::Config::default().with_event_kinds(kinds).with_follow_symlinks(false);
        // An error is a reason to look, too.
        let watcher = RecommendedWatcher::new(move |_| tell.notify_one(), config);
        if let Err(err) = &watcher {
            warn!(dir = %dir.display(), error = %err, "cannot watch directory, looking at it every second instead");
        }
        Self { watcher: watcher.ok(), watched: BTreeSet::new(), came, incomplete: false }
    }

    fn works(&self) -> bool {
        self.watcher.is_some() && !self.incomplete
    }

    /// Watches exactly these directories. `true`: there are new ones, which must be looked at again,
    /// since something may have happened in them before they were watched.
    fn watch(&mut self, dirs: &BTreeSet<PathBuf>) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        for gone in self.watched.difference(dirs) {
            // The system dropped it with the directory.
            let _ = watcher.unwatch(gone);
        }
        self.watched.retain(|dir| dirs.contains(dir));
        let mut added = false;
        let complained = self.incomplete;
        self.incomplete = false;
        for dir in dirs {
            if self.watched.contains(dir) {
                continue;
            }
            match watcher.watch(dir, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    debug!(dir = %dir.display(), "watching directory");
                    self.watched.insert(dir.clone());
                    added = true;
                }
                Err(err) => {
                    if !complained && !self.incomplete {
                        warn!(dir = %dir.display(), error = %err, "add directory watch");
                    }
                    self.incomplete = true;
                }
            }
        }
        added
    }

    /// Something happened since [`Events::clear`].
    async fn next(&self) {
        self.came.notified().await;
    }

    /// Forgets what is going to be looked at anyway.
    fn clear(&self) {
        // A stored permit, if there is one, is taken.
        let _ = futures::FutureExt::now_or_never(self.came.notified());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use crate::sys::OsFs;

    fn directory(root: &Path, entry: &str) -> DirSettings {
        let env = Environment::new([], root.to_owned());
        let around = Surroundings { env: &env, fs: &OsFs };
        let config = parse(&format!("dbs: [{{{entry}, replica: {{path: /r}}}}]"), around).unwrap();
        config.dbs[0].directory(around).unwrap().unwrap()
    }

    fn put(root: &Path, name: &str, content: &[u8]) -> PathBuf {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    const DB: &[u8] = b"SQLite format 3\0 and so on";

    #[test]
    fn a_survey_tells_databases_from_what_may_become_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let db = put(root, "t/a.db", DB);
        let below = put(root, "t/s/c.db", DB);
        let empty = put(root, "t/empty.db", b"");
        put(root, "t/a.db-wal", b"x");
        put(root, "t/note.txt", DB);
        put(root, "t/.a.db-litestream/b.db", DB);
        let flat = directory(root, "dir: t, pattern: '*.db'");
        let found = survey(&OsFs, &flat, &BTreeSet::new()).unwrap();
        assert_eq!(found.databases, BTreeSet::from([db.clone()]));
        assert_eq!(found.candidates, BTreeSet::from([empty]));
        let deep = directory(root, "dir: t, pattern: '*.db', recursive: true");
        let found = survey(&OsFs, &deep, &BTreeSet::new()).unwrap();
        assert_eq!(found.databases, BTreeSet::from([db, below]));
        assert_eq!(found.dirs, BTreeSet::from([root.join("t"), root.join("t/s")]));
    }

    #[test]
    fn what_is_known_is_not_read_again_and_what_is_gone_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let known = put(root, "t/a.db", b"no longer a header");
        let all = directory(root, "dir: t, pattern: '*'");
        let found = survey(&OsFs, &all, &BTreeSet::from([known.clone(), root.join("t/gone.db")])).unwrap();
        assert_eq!(found.databases, BTreeSet::from([known]));
        std::fs::remove_dir_all(root.join("t")).unwrap();
        assert!(survey(&OsFs, &all, &BTreeSet::new()).unwrap().databases.is_empty());
    }
}
