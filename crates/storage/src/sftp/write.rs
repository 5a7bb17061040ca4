//! Writing objects: temporary name, write, stamp, sync, close, rename. What follows from each other is asked for together,
//! so a small object takes four round trips:
//!
//! 1. open, under a temporary name
//! 2. all writes
//! 3. set times, sync, close: they need only that the writes are done, and all three must succeed before
//! 4. the name, which is given at once and whole; with it, for an exclusive put, the removal of the temporary name
//!
//! A small body is kept and sent again when the connection is lost. A large one is not: what a server acknowledged may
//! be gone if it was the server that fell, so the whole put fails and its owner starts over.
//!
//! Temporary names tell their age. What listings find of writers that died is removed by the next put.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join3;
use futures::stream::{FuturesUnordered, StreamExt};

use super::super::exclusion;
use super::super::file::check_size;
use super::super::stream::{Start, start};
use super::super::tree::{is_stale, temp_path};
use super::session::{Handle, Problem, Session};
use super::wire::{self, Request, Status};
use super::{
    ByteStream, Call, Error, ErrorKind, Failure, Key, ObjectMeta, Operation, PIECE, PutOptions, Result, SftpClient,
    TEMP_SUFFIX, WINDOW, failure,
};

/// Bodies up to here can be sent again.
const SMALL: usize = 1 << 20;
/// How long the server may take over a write.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);
const DOING: &str = "write object";

pub(super) async fn put(sftp: &SftpClient, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
    if key.name().ends_with(TEMP_SUFFIX) {
        return Err(Error::invalid(format!("object name is reserved: {key}")));
    }
    let path = sftp.path(key);
    let target = sftp.target(&path);
    let new = New { sftp, path: &path, target: &target, opts };
    let size = match start(body, SMALL, opts.size, &target).await? {
        Start::Whole(first) => {
            let size = first.len() as u64;
            let call = Call { operation: Operation::Put, kind: "sftp", target: &target, objects: 1, bytes: size };
            sftp.0.requests.run(call, |_| new.small(&first)).await?;
            size
        }
        Start::Longer(first, rest, body) => new.large(first, rest, body).await?,
    };
    sweep(sftp).await;
    Ok(ObjectMeta { key: key.clone(), size, modified: opts.stamp })
}

/// An object on its way.
struct New<'a> {
    sftp: &'a SftpClient,
    path: &'a str,
    target: &'a str,
    opts: PutOptions,
}

/// A file under its temporary name; removed when dropped.
struct Temp {
    session: Arc<Session>,
    path: Option<String>,
}

impl Temp {
    fn path(&self) -> &str {
        self.path.as_deref().unwrap_or_default()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            self.session.send(&Request::Remove { path: &path });
        }
    }
}

impl New<'_> {
    fn broken(&self, problem: Problem) -> Failure {
        failure(DOING, self.target, problem)
    }

    async fn small(&self, body: &Bytes) -> Result<(), Failure> {
        let (temp, handle) = self.create().await?;
        let mut writing = Writing::new(&handle, self.sftp.0.settings.concurrent_writes);
        let written = async {
            writing.add(body).await?;
            writing.finish().await
        };
        written.await.map_err(|problem| self.broken(problem))?;
        self.publish(temp, handle).await
    }

    async fn large(&self, first: Bytes, rest: Bytes, mut body: ByteStream) -> Result<u64> {
        let call = Call { operation: Operation::Put, kind: "sftp", target: self.target, objects: 0, bytes: 0 };
        let (temp, handle) = self.sftp.0.requests.run(call, |_| self.create()).await?;
        let mut writing = Writing::new(&handle, self.sftp.0.settings.concurrent_writes);
        let broken = |problem| self.broken(problem).error;
        for piece in [first, rest] {
            writing.add(&piece).await.map_err(broken)?;
        }
        while let Some(piece) = body.next().await {
            writing.add(&piece?).await.map_err(broken)?;
        }
        let size = writing.finish().await.map_err(broken)?;
        check_size(self.opts.size, size).map_err(|e| e.at(self.target))?;
        let call = Call { objects: 1, bytes: size, ..call };
        self.sftp.0.requests.once(call, self.publish(temp, handle)).await.map_err(|failed| failed.error)?;
        Ok(size)
    }

    /// An empty file under a temporary name, its directories made where they were missing.
    async fn create(&self) -> Result<(Temp, Handle), Failure> {
        let session = self.sftp.session(DOING, self.target).await?;
        let temp = temp_path(&self.sftp.0.world, self.path);
        let open = Request::Open { path: &temp, flags: wire::WRITE_NEW };
        let handle = match session.open(&open).await {
            Err(problem) if problem.code() == Some(Status::NO_SUCH_FILE) => {
                if let Some((dir, _)) = self.path.rsplit_once('/') {
                    make_dirs(&session, dir)
                        .await
                        .map_err(|problem| failure("make directory", self.target, problem))?;
                }
                session.open(&open).await
            }
            opened => opened,
        };
        let handle = handle.map_err(|problem| self.broken(problem))?;
        Ok((Temp { session, path: Some(temp) }, handle))
    }

    async fn publish(&self, mut temp: Temp, handle: Handle) -> Result<(), Failure> {
        let broken = |problem| self.broken(problem);
        let seconds = u32::try_from(self.opts.stamp.millis().div_euclid(1000)).unwrap_or(0);
        let (stamped, synced) = (handle.set_times(seconds), handle.sync());
        let (stamped, synced, closed) = join3(stamped, synced, handle.close()).await;
        match stamped {
            Ok(()) => {}
            // The header of the file has its time, too.
            Err(Problem::Refused(status)) => {
                tracing::debug!(target = self.target, status = status.message, "sftp: cannot set times");
            }
            Err(problem) => return Err(broken(problem)),
        }
        synced.map_err(broken)?;
        closed.map_err(broken)?;
        let session = temp.session.clone();
        if !self.opts.exclusive {
            replace(&session, temp.path(), self.path).await.map_err(broken)?;
        } else if !self.name_new(&session, &mut temp).await.map_err(broken)? {
            let error = Error::new(ErrorKind::Exists, "sftp: write object").at(self.target).caused_by("object exists");
            return Err(Failure { error, code: "Exists".to_owned(), retry_after: None });
        }
        temp.path = None;
        Ok(())
    }

    /// Gives the file its name unless something has it; whether it did.
    async fn name_new(&self, session: &Arc<Session>, temp: &mut Temp) -> Result<bool, Problem> {
        if !session.offers(wire::HARDLINK) {
            return self.rename_new(session, temp.path()).await;
        }
        let tried = self.sftp.tried();
        if tried != Some(true) && is_there(session, self.path).await? {
            return Ok(false);
        }
        let links = &self.sftp.0.links;
        let fields: &[&[u8]] = &[temp.path().as_bytes(), self.path.as_bytes()];
        let linked = session.run(&Request::Extended { name: wire::HARDLINK, fields });
        // Where links are made, the other name will be in the way whatever comes of this one: not waited for.
        let removed = links.load(Ordering::Relaxed);
        if removed {
            session.send(&Request::Remove { path: temp.path() });
            temp.path = None;
        }
        match linked.await {
            Ok(()) => {
                links.store(true, Ordering::Relaxed);
                if let Some(path) = temp.path.take() {
                    if tried.is_none() {
                        // The same name once more must be refused.
                        let fields: &[&[u8]] = &[path.as_bytes(), self.path.as_bytes()];
                        self.found(session.run(&Request::Extended { name: wire::HARDLINK, fields }).await);
                    }
                    session.send(&Request::Remove { path: &path });
                }
                Ok(true)
            }
            // Taken, or a file system without links.
            Err(Problem::Refused(_)) if !removed => self.rename_new(session, temp.path()).await,
            Err(Problem::Refused(status)) => match session.stat(self.path).await {
                Ok(_) => Ok(false),
                // The next attempt will find out why.
                Err(_) => {
                    links.store(false, Ordering::Relaxed);
                    Err(Problem::Refused(status))
                }
            },
            Err(problem) => Err(problem),
        }
    }

    /// The same with a rename, which servers refuse when the name exists. Not all do, and none says that nobody comes
    /// between; so it is looked before in any case.
    async fn rename_new(&self, session: &Arc<Session>, temp: &str) -> Result<bool, Problem> {
        if is_there(session, self.path).await? {
            return Ok(false);
        }
        match session.run(&Request::Rename { from: temp, to: self.path }).await {
            Ok(()) => {
                if self.sftp.tried().is_none() {
                    self.try_rename(session).await;
                }
                Ok(true)
            }
            Err(problem) if problem.code().is_some() && session.stat(self.path).await.is_ok() => Ok(false),
            Err(problem) => Err(problem),
        }
    }

    /// Whether a rename is refused when the name exists: with two files that are nobody's.
    async fn try_rename(&self, session: &Arc<Session>) {
        let names = [0, 1].map(|_| temp_path(&self.sftp.0.world, self.path));
        let made = async {
            for path in &names {
                session.open(&Request::Open { path, flags: wire::WRITE_NEW }).await?.close().await?;
            }
            Ok::<(), Problem>(())
        };
        if made.await.is_ok() {
            self.found(session.run(&Request::Rename { from: &names[0], to: &names[1] }).await);
        }
        for path in &names {
            session.send(&Request::Remove { path });
        }
    }

    /// Keeps what came of giving a name that exists.
    fn found(&self, again: Result<(), Problem>) {
        match again {
            Ok(()) => exclusion::remember("sftp", &self.sftp.place(), false),
            Err(Problem::Refused(_)) => exclusion::remember("sftp", &self.sftp.place(), true),
            // Not known yet.
            Err(_) => {}
        }
    }
}

/// Renames over what is there.
async fn replace(session: &Session, temp: &str, path: &str) -> Result<(), Problem> {
    if session.offers(wire::POSIX_RENAME) {
        let fields: &[&[u8]] = &[temp.as_bytes(), path.as_bytes()];
        return session.run(&Request::Extended { name: wire::POSIX_RENAME, fields }).await;
    }
    let rename = Request::Rename { from: temp, to: path };
    match session.run(&rename).await {
        // The protocol's own rename does not replace. Between these two there is no such object.
        Err(problem) if problem.code().is_some() && session.stat(path).await.is_ok() => {
            session.run(&Request::Remove { path }).await?;
            session.run(&rename).await
        }
        done => done,
    }
}

async fn is_there(session: &Session, path: &str) -> Result<bool, Problem> {
    match session.stat(path).await {
        Ok(_) => Ok(true),
        Err(problem) if problem.code() == Some(Status::NO_SUCH_FILE) => Ok(false),
        Err(problem) => Err(problem),
    }
}

/// Makes a directory and those above it. Others may be making them, too.
async fn make_dirs(session: &Session, dir: &str) -> Result<(), Problem> {
    let ends = dir.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).chain([dir.len()]);
    let dirs: Vec<&str> = ends.map(|end| &dir[..end]).collect();
    // From the deepest that may be there.
    let mut missing = dirs.len();
    while missing > 0 && session.stat(dirs[missing - 1]).await.is_err() {
        missing -= 1;
    }
    for dir in &dirs[missing..] {
        match session.run(&Request::MakeDir { path: dir }).await {
            Ok(()) => {}
            Err(problem) => match session.stat(dir).await {
                Ok(attributes) if attributes.is_dir() != Some(false) => {}
                _ => return Err(problem),
            },
        }
    }
    Ok(())
}

/// Writes under way.
struct Writing<'a> {
    handle: &'a Handle,
    under_way: FuturesUnordered<futures::future::BoxFuture<'static, Result<(), Problem>>>,
    most: usize,
    size: u64,
}

impl<'a> Writing<'a> {
    fn new(handle: &'a Handle, concurrent: bool) -> Self {
        let most = if concurrent { (WINDOW / PIECE) as usize } else { 1 };
        Self { handle, under_way: FuturesUnordered::new(), most, size: 0 }
    }

    async fn add(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        for piece in bytes.chunks(PIECE as usize) {
            while self.under_way.len() >= self.most {
                self.one().await?;
            }
            self.under_way.push(Box::pin(self.handle.write(self.size, piece)));
            self.size += piece.len() as u64;
        }
        Ok(())
    }

    /// Waits for all; the number of bytes written.
    async fn finish(mut self) -> Result<u64, Problem> {
        while !self.under_way.is_empty() {
            self.one().await?;
        }
        Ok(self.size)
    }

    async fn one(&mut self) -> Result<(), Problem> {
        match tokio::time::timeout(WRITE_DEADLINE, self.under_way.next()).await {
            Ok(done) => done.unwrap_or(Ok(())),
            Err(_) => Err(Problem::Lost(format!("no answer to a write within {}s", WRITE_DEADLINE.as_secs()))),
        }
    }
}

/// Notes temporary files of writers that died, for `sweep`.
pub(super) fn note_stale<'a>(sftp: &SftpClient, dir: &str, names: impl Iterator<Item = &'a str>) {
    let dead = names.filter(|name| is_stale(&sftp.0.world, name));
    let paths: Vec<String> = dead.map(|name| format!("{dir}/{name}")).collect();
    if !paths.is_empty() {
        *sftp.0.stale.lock().unwrap_or_else(PoisonError::into_inner) = paths;
    }
}

/// Best effort, and only where we write anyway.
async fn sweep(sftp: &SftpClient) {
    let paths = std::mem::take(&mut *sftp.0.stale.lock().unwrap_or_else(PoisonError::into_inner));
    if paths.is_empty() {
        return;
    }
    if let Ok(session) = sftp.session("remove temporary files", &sftp.target("")).await {
        for path in &paths {
            session.send(&Request::Remove { path });
        }
    }
}
