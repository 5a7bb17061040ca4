//! Replica in a directory (`spec: backends` §4).
//!
//! A put goes through [`Publisher`]: temporary name, write, sync, stamp, rename, sync directory.
//! The temporary name is unique, so two writers of one object cannot tear each other's file;
//! what a crash left behind is swept on the first put into the directory, once it is old.
//!
//! `list` reads and sorts the whole directory: there is no cheaper order to be had.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::{Mutex, mpsc};

use super::client::{ByteStream, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
use super::exclusion::Exclusion;
use super::stream as byte_stream;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{
    File, FileKind, OpenMode, OwnerMode, Publisher, World, begin, blocking, read_up_to, target_of_temp,
    unique_temp_path, wait,
};

/// Bytes handed to the writing thread at once.
const BATCH: usize = 512 * 1024;
/// Suffix of files that are not objects yet.
const TEMP_SUFFIX: &str = ".tmp";
/// A temporary file this old belongs to a writer that died.
const STALE_AFTER: Duration = Duration::from_secs(3600);
/// Directories remembered as prepared; a replica has ten.
const MAX_PREPARED: usize = 64;

/// A replica below a directory of a file system.
#[derive(Debug)]
pub struct FileClient {
    world: World,
    root: PathBuf,
    prepared: Arc<Mutex<HashSet<PathBuf>>>,
}

impl FileClient {
    /// A replica below `root`, which is created by the first put.
    #[must_use]
    pub fn new(world: World, root: PathBuf) -> Self {
        Self { world, root, prepared: Arc::default() }
    }

    /// The replica's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }
}

#[async_trait]
impl ReplicaClient for FileClient {
    fn kind(&self) -> &'static str {
        "file"
    }

    fn location(&self) -> String {
        format!("file://{}", self.root.display())
    }

    fn exclusion(&self) -> Exclusion {
        Exclusion::Exact
    }

    async fn init(&self) -> Result<()> {
        if self.root.as_os_str().is_empty() {
            return Err(Error::invalid("file replica path required"));
        }
        Ok(())
    }

    fn list(&self, prefix: &Key, after: Option<&Key>, _stamps: Stamps) -> BoxStream<'_, Result<ObjectMeta>> {
        let (world, dir) = (self.world.clone(), self.path(prefix));
        let (prefix, after) = (prefix.clone(), after.cloned());
        let listing = async move {
            match blocking(move || list_dir(&world, &dir, &prefix, after.as_ref())).await {
                Ok(objects) => stream::iter(objects.into_iter().map(Ok)).left_stream(),
                Err(err) => stream::iter([Err(err)]).right_stream(),
            }
        };
        stream::once(listing).flatten().boxed()
    }

    fn list_dirs(&self, prefix: &Key) -> Option<BoxStream<'_, Result<Key>>> {
        let inside = prefix.clone();
        Some(dirs(&self.world, self.path(prefix), move |name| inside.join(name)))
    }

    fn list_root_dirs(&self) -> Option<BoxStream<'_, Result<Key>>> {
        Some(dirs(&self.world, self.root.clone(), |name| Key::new(name)))
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let (world, path) = (self.world.clone(), self.path(key));
        let (file, range, first) = blocking(move || {
            open_object(&world, &path, range).map_err(|err| err.context("open ltx file").at(path.display()))
        })
        .await?;
        Ok(byte_stream::of_file(file, range, first))
    }

    /// One visit to the pool for all of them.
    fn get_small(&self, objects: &[(Key, usize)]) -> Option<BoxFuture<'static, Vec<Option<Bytes>>>> {
        let world = self.world.clone();
        let paths: Vec<_> = objects.iter().map(|(key, size)| (self.path(key), *size)).collect();
        Some(Box::pin(async move {
            let none = vec![None; paths.len()];
            let read =
                move || Ok(paths.iter().map(|(path, size)| read_small(&world, path, *size).ok().flatten()).collect());
            blocking(read).await.unwrap_or(none)
        }))
    }

    async fn put(&self, key: &Key, mut body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
        if key.name().ends_with(TEMP_SUFFIX) {
            return Err(Error::invalid(format!("object name is reserved: {key}")));
        }
        let job = PutJob {
            world: self.world.clone(),
            path: self.path(key),
            prepared: self.prepared.clone(),
            root: self.root.clone(),
            opts,
        };
        // Nothing is created before the first batch is here. A small object costs one visit to the pool.
        let (tx, rx) = mpsc::channel(2);
        let mut batch = next_batch(&mut body).await?;
        let writer = begin(move || job.run(rx));
        let fed = async {
            loop {
                let last = batch.len() < BATCH;
                // A closed channel means the writer failed; it will say why.
                if tx.send(Step::Write(batch)).await.is_err() {
                    return Ok(());
                }
                if last {
                    let _ = tx.send(Step::Publish).await;
                    return Ok(());
                }
                batch = next_batch(&mut body).await?;
            }
        }
        .await;
        // Without a publish step the writer throws its file away. It is awaited in any case, so
        // that nothing is left once the error is out.
        drop(tx);
        let written = writer.await;
        fed?;
        Ok(ObjectMeta { key: key.clone(), size: written?, modified: opts.stamp })
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let (world, paths) = (self.world.clone(), keys.iter().map(|key| self.path(key)).collect::<Vec<_>>());
        blocking(move || paths.iter().try_for_each(|path| world.fs.remove_file(path))).await
    }
}

/// The directories in `dir` whose names can be keys, as `key` makes them. Links are not followed.
fn dirs(
    world: &World,
    dir: PathBuf,
    key: impl Fn(&str) -> Result<Key> + Send + 'static,
) -> BoxStream<'static, Result<Key>> {
    let world = world.clone();
    let listing = async move {
        let dirs = blocking(move || match world.fs.list(&dir) {
            Ok(entries) => {
                let dirs = entries.into_iter().filter(|entry| entry.kind == FileKind::Dir);
                Ok(dirs.filter_map(|entry| key(&entry.name).ok()).collect())
            }
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(err) => Err(err),
        });
        match dirs.await {
            Ok(dirs) => stream::iter(dirs.into_iter().map(Ok)).left_stream(),
            Err(err) => stream::iter([Err(err)]).right_stream(),
        }
    };
    stream::once(listing).flatten().boxed()
}

/// Collects [`BATCH`] bytes or what is left of `body`; less than that means the body has ended.
async fn next_batch(body: &mut ByteStream) -> Result<Bytes> {
    let mut batch = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        if batch.is_empty() && chunk.len() >= BATCH {
            return Ok(chunk);
        }
        batch.extend_from_slice(&chunk);
        if batch.len() >= BATCH {
            break;
        }
    }
    Ok(batch.freeze())
}

enum Step {
    Write(Bytes),
    Publish,
}

struct PutJob {
    world: World,
    path: PathBuf,
    root: PathBuf,
    prepared: Arc<Mutex<HashSet<PathBuf>>>,
    opts: PutOptions,
}

impl PutJob {
    /// Writes until told to publish; returns the size. Blocks.
    fn run(self, mut steps: mpsc::Receiver<Step>) -> Result<u64> {
        let modes = self.opts.modes.unwrap_or_default();
        if let Some(dir) = self.path.parent() {
            self.prepare(dir, modes.dir)?;
        }
        let temp = unique_temp_path(self.world.random.as_ref(), &self.path);
        let publisher = Publisher::create_as(self.world.fs.as_ref(), temp, &self.path, modes.file)?;
        // A sweeper may have come between the two; then the file is gone.
        if publisher.file().claim()? == Some(false) {
            return Err(Error::new(ErrorKind::Changed, "temporary file was swept").at(publisher.temp_path().display()));
        }
        let mut size = 0;
        loop {
            match wait(steps.recv()) {
                Some(Step::Write(batch)) => {
                    publisher.file().write_all_at(&batch, size)?;
                    size += batch.len() as u64;
                }
                Some(Step::Publish) => break,
                None => return Err(Error::new(ErrorKind::Cancelled, "write was abandoned").at(self.path.display())),
            }
        }
        check_size(self.opts.size, size)?;
        let stamp = Some(self.opts.stamp);
        if self.opts.exclusive {
            publisher.publish_new(stamp)?
        } else {
            publisher.publish(stamp)?
        }
        Ok(size)
    }

    /// Before the first put into a directory: makes it durable up to and with the replica's own, and
    /// removes what dead writers left in it.
    fn prepare(&self, dir: &Path, owner_mode: OwnerMode) -> Result<()> {
        // Held while it is done: nobody writes there before it was swept.
        let mut prepared = wait(self.prepared.lock());
        if prepared.contains(dir) {
            drop(prepared);
            return self.world.fs.create_dir_all(dir, owner_mode);
        }
        let below_root = dir.strip_prefix(&self.root).map_or(0, |rest| rest.components().count());
        self.world.fs.create_durable_dir(dir, owner_mode, below_root + 1)?;
        self.sweep(dir);
        if prepared.len() < MAX_PREPARED {
            prepared.insert(dir.to_owned());
        }
        Ok(())
    }

    /// Best effort.
    fn sweep(&self, dir: &Path) {
        for entry in self.world.fs.list(dir).unwrap_or_default() {
            if entry.kind == FileKind::File && is_temp_name(&entry.name) {
                let path = dir.join(&entry.name);
                if self.is_abandoned(&path, target_of_temp(&entry.name).is_some()).unwrap_or(false) {
                    let _ = self.world.fs.remove_file(&path);
                }
            }
        }
    }

    /// Whether whoever wrote a temporary file is gone. Our writers hold a mark on theirs, which goes with
    /// them; of others, and where there are no marks, only age tells.
    fn is_abandoned(&self, path: &Path, ours: bool) -> Result<bool> {
        if ours && let Some(free) = self.world.fs.open(path, OpenMode::ReadWrite)?.claim()? {
            return Ok(free);
        }
        // Not its modification time: that is set before the rename, to whatever the object's is.
        Ok(self.world.fs.stat(path)?.changed < self.world.clock.now().minus(STALE_AFTER))
    }
}

/// `x.ltx.<16 hex digits>.tmp`, or `x.ltx.tmp` as Litestream writes it. Other files are not ours.
fn is_temp_name(name: &str) -> bool {
    target_of_temp(name).or_else(|| name.strip_suffix(TEMP_SUFFIX)).is_some_and(|object| object.ends_with(".ltx"))
}

/// Refuses a body of another length than was announced.
pub(crate) fn check_size(announced: Option<u64>, got: u64) -> Result<()> {
    match announced {
        Some(size) if size != got => Err(Error::corrupt(format!("object body has {got} bytes, expected {size}"))),
        _ => Ok(()),
    }
}

type Opened = (Arc<dyn File>, Range<u64>, Bytes);

/// Opens and reads the first chunk: one visit to the pool for most objects. Blocks.
fn open_object(world: &World, path: &Path, range: Option<Range<u64>>) -> Result<Opened> {
    let file: Arc<dyn File> = world.fs.open(path, OpenMode::Read)?.into();
    let stat = file.stat()?;
    if stat.kind != FileKind::File {
        return Err(Error::new(ErrorKind::NotFound, "not a regular file"));
    }
    let range = byte_stream::clamp(range, stat.len);
    let first = if range.is_empty() { Bytes::new() } else { byte_stream::read_chunk(file.as_ref(), &range)? };
    Ok((file, range, first))
}

/// All of a file that is as long as it should be. Blocks.
fn read_small(world: &World, path: &Path, size: usize) -> Result<Option<Bytes>> {
    let file = world.fs.open(path, OpenMode::Read)?;
    // A byte more would show that it has grown.
    let mut bytes = vec![0; size + 1];
    let len = read_up_to(file.as_ref(), &mut bytes, 0)?;
    bytes.truncate(len);
    Ok((len == size).then(|| bytes.into()))
}

fn list_dir(world: &World, dir: &Path, prefix: &Key, after: Option<&Key>) -> Result<Vec<ObjectMeta>> {
    let entries = match world.fs.list(dir) {
        Ok(entries) => entries,
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(err),
    };
    let mut keys: Vec<Key> = entries
        .into_iter()
        .filter(|entry| entry.kind == FileKind::File && !entry.name.ends_with(TEMP_SUFFIX))
        .filter_map(|entry| prefix.join(&entry.name).ok())
        .filter(|key| after.is_none_or(|after| key > after))
        .collect();
    keys.sort_unstable();
    let mut objects = Vec::with_capacity(keys.len());
    for key in keys {
        // A file may be deleted while we look; then it is not there.
        if let Some(stat) = world.fs.stat_opt(&dir.join(key.name()))? {
            objects.push(ObjectMeta { key, size: stat.len, modified: stat.modified });
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests;
