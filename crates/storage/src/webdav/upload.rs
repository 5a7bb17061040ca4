//! Writing objects: PUT under a temporary name, then MOVE to the one it is for.
//!
//! A small body is kept, one of unknown length waits in an unlinked file: both can be sent again. A large body of known
//! length is sent as it comes, once; if that fails, its owner starts over.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use http::Response;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};

use super::super::exclusion;
use super::super::file::check_size;
use super::super::stream::{Start, of_file, start};
use super::super::tree::temp_path;
use super::{
    Asked, Body, BoxError, ByteStream, Call, Error, ErrorKind, Failure, Key, MAX_MADE, ObjectMeta, Operation,
    PutOptions, Result, TEMP_SUFFIX, WebdavClient, drain, empty, failed, full, refused,
};
use crate::sys::{File, OpenMode, OwnerMode, World, blocking};

/// Bodies up to here are kept in memory.
const SMALL: usize = 1 << 20;
const DOING: &str = "write object";
const DESTINATION: HeaderName = HeaderName::from_static("destination");
const OVERWRITE: HeaderName = HeaderName::from_static("overwrite");

/// A body that can be sent more than once.
#[derive(Debug, Clone)]
enum Kept {
    Memory(Bytes),
    File(Arc<dyn File>, u64),
}

impl Kept {
    fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, size) => *size,
        }
    }

    fn body(&self) -> Body {
        match self {
            Self::Memory(bytes) => full(bytes.clone()),
            Self::File(file, size) => streamed(of_file(file.clone(), 0..*size, Bytes::new()), Arc::default()),
        }
    }
}

/// The error of a body that broke while it was sent.
type Broke = Arc<Mutex<Option<Error>>>;

/// A body that is sent as it comes. What breaks it is kept for whoever asks why the request failed.
fn streamed(body: ByteStream, broke: Broke) -> Body {
    let frames = body.map(move |piece| match piece {
        Ok(piece) => Ok(Frame::data(piece)),
        Err(err) => {
            let text: BoxError = err.to_string().into();
            *broke.lock().unwrap_or_else(PoisonError::into_inner) = Some(err);
            Err(text)
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

pub(super) async fn put(dav: &WebdavClient, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
    if key.name().ends_with(TEMP_SUFFIX) {
        return Err(Error::invalid(format!("object name is reserved: {key}")));
    }
    let path = dav.path(key.as_str());
    let target = dav.url(&path);
    let new = New { dav, path: &path, target: &target, opts };
    let size = match start(body, SMALL, opts.size, &target).await? {
        Start::Whole(first) => new.kept(Kept::Memory(first)).await?,
        Start::Longer(first, rest, body) => {
            let body: ByteStream = stream::iter([Ok(first), Ok(rest)]).chain(body).boxed();
            match opts.size {
                Some(size) => new.streamed(body, size).await?,
                None => new.kept(spool(&dav.0.world, &dav.0.settings.spool, body).await?).await?,
            }
        }
    };
    sweep(dav).await;
    Ok(ObjectMeta { key: key.clone(), size, modified: opts.stamp })
}

/// Writes a body into a file without a name.
async fn spool(world: &World, dir: &Path, mut body: ByteStream) -> Result<Kept> {
    let path = dir.join(format!("litestream-webdav-{:016x}.ltx", world.random.next_u64()));
    let (fs, at) = (world.fs.clone(), path.clone());
    let cannot = move |err: Error| {
        err.context("webdav: keep body of unknown length").hint("the directory TMPDIR names needs room for a snapshot")
    };
    let file: Arc<dyn File> = blocking(move || {
        let file = fs.open(&at, OpenMode::CreateNew(OwnerMode::PRIVATE_FILE))?;
        fs.remove_file(&at)?;
        Ok(Arc::from(file))
    })
    .await
    .map_err(|err| cannot(err.at(path.display())))?;
    let mut size = 0;
    while let Some(piece) = body.try_next().await? {
        let (file, at) = (file.clone(), size);
        size += piece.len() as u64;
        blocking(move || file.write_all_at(&piece, at)).await.map_err(&cannot)?;
    }
    Ok(Kept::File(file, size))
}

/// An object on its way.
struct New<'a> {
    dav: &'a WebdavClient,
    path: &'a str,
    target: &'a str,
    opts: PutOptions,
}

/// A file under its temporary name; removed when dropped.
struct Temp {
    dav: WebdavClient,
    path: Option<String>,
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let dav = self.dav.clone();
            // Nobody is left to wait for it; what it cannot do, a later put does.
            runtime.spawn(async move {
                let _ = dav.remove(&path).await;
            });
        }
    }
}

impl New<'_> {
    fn call(&self, size: u64) -> Call<'_> {
        Call { operation: Operation::Put, kind: "webdav", target: self.target, objects: 1, bytes: size }
    }

    fn asked(&self, method: &'static str) -> Asked<'_> {
        Asked { doing: DOING, method, target: self.target }
    }

    fn temp(&self) -> Temp {
        Temp { dav: self.dav.clone(), path: Some(temp_path(&self.dav.0.world, self.path)) }
    }

    /// Sends a body that can be sent again.
    async fn kept(&self, body: Kept) -> Result<u64> {
        let size = body.size();
        check_size(self.opts.size, size).map_err(|e| e.at(self.target))?;
        let mut temp = self.temp();
        let name = temp.path.clone().unwrap_or_default();
        let done = self
            .dav
            .0
            .requests
            .run(self.call(size), |before| {
                let (body, name) = (&body, name.as_str());
                async move {
                    // An earlier move may have been carried out although its answer was lost.
                    if before > 0 && self.came_through(name, size).await? {
                        return Ok(());
                    }
                    self.make_dirs().await?;
                    self.upload(name, size, || Some(body.body())).await?;
                    self.publish(name).await
                }
            })
            .await;
        done?;
        temp.path = None;
        Ok(size)
    }

    /// Sends a body once, as it comes.
    async fn streamed(&self, body: ByteStream, size: u64) -> Result<u64> {
        let call = Call { objects: 0, ..self.call(0) };
        // Makes sure, too, that the server has said what it wants to see.
        self.dav.0.requests.run(call, |_| self.make_dirs()).await?;
        let mut temp = self.temp();
        let name = temp.path.clone().unwrap_or_default();
        let broke = Broke::default();
        // One piece too many, or too few, breaks the body.
        let exact = exactly(body, size);
        let mut body = Some(streamed(exact, broke.clone()));
        let sent = self.upload(&name, size, || body.take());
        let sent = async {
            sent.await?;
            self.publish(&name).await
        };
        let done = self.dav.0.requests.once(self.call(size), sent).await;
        if let Some(err) = broke.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(err);
        }
        done.map_err(|failed| failed.error)?;
        temp.path = None;
        Ok(size)
    }

    async fn came_through(&self, temp: &str, size: u64) -> Result<bool, Failure> {
        if self.dav.look(temp, "0").await?.is_some() {
            return Ok(false);
        }
        let there = self.dav.look(self.path, "0").await?.unwrap_or_default();
        // Under an exclusive put it may be somebody else's: who asked compares.
        Ok(!self.opts.exclusive && there.iter().any(|found| found.size == Some(size)))
    }

    async fn upload(&self, temp: &str, size: u64, body: impl FnMut() -> Option<Body>) -> Result<(), Failure> {
        let asked = self.asked("PUT");
        let headers = [(CONTENT_TYPE, "application/octet-stream".to_owned()), (CONTENT_LENGTH, size.to_string())];
        let answer = self.dav.send(asked, temp, &headers, body).await?;
        match answer.status().as_u16() {
            200 | 201 | 204 => {
                drain(answer).await;
                Ok(())
            }
            // The directory is gone: made again by the next attempt. nginx has no better word for it than 500.
            404 | 409 | 500 => {
                self.dav.0.made.lock().unwrap_or_else(PoisonError::into_inner).clear();
                let text = format!("PUT {temp}: {}: is the collection missing?", answer.status().as_u16());
                Err(failed(asked, ErrorKind::Unavailable, answer.status().as_str(), &text, None))
            }
            _ => Err(refused(asked, &answer)),
        }
    }

    async fn publish(&self, temp: &str) -> Result<(), Failure> {
        let asked = self.asked("MOVE");
        if self.opts.exclusive && self.dav.tried().is_none() {
            self.try_move().await?;
        }
        if self.opts.exclusive && self.dav.tried() != Some(true) && self.dav.look(self.path, "0").await?.is_some() {
            return Err(failed(asked, ErrorKind::Exists, "Exists", "object exists", None));
        }
        let answer = self.move_to(asked, temp, self.target, !self.opts.exclusive).await?;
        match answer.status().as_u16() {
            200 | 201 | 204 => {
                drain(answer).await;
                Ok(())
            }
            // Another writer's move to the same name was under way (Apache removes the old file first), or the
            // directory is gone.
            404 | 409 | 423 => {
                let text = format!("MOVE {temp}: {}", answer.status().as_u16());
                Err(failed(asked, ErrorKind::Unavailable, answer.status().as_str(), &text, None))
            }
            412 if self.opts.exclusive => Err(failed(asked, ErrorKind::Exists, "412", "object exists", None)),
            _ => Err(refused(asked, &answer)),
        }
    }

    async fn move_to(
        &self,
        asked: Asked<'_>,
        temp: &str,
        destination: &str,
        overwrite: bool,
    ) -> Result<Response<Incoming>, Failure> {
        let overwrite = if overwrite { "T" } else { "F" };
        let headers = [(DESTINATION, destination.to_owned()), (OVERWRITE, overwrite.to_owned())];
        self.dav.send(asked, temp, &headers, || Some(empty())).await
    }

    /// Whether the server refuses to move over what is there: with two files that are nobody's, once per server and
    /// process.
    async fn try_move(&self) -> Result<(), Failure> {
        let names = [0, 1].map(|_| temp_path(&self.dav.0.world, self.path));
        for name in &names {
            self.upload(name, 1, || Some(full(Bytes::from_static(b"?")))).await?;
        }
        let answer = self.move_to(self.asked("MOVE"), &names[0], &self.dav.url(&names[1]), false).await?;
        match answer.status().as_u16() {
            200 | 201 | 204 => exclusion::remember("webdav", &self.dav.place(), false),
            412 => exclusion::remember("webdav", &self.dav.place(), true),
            // Neither: tried again with the next object.
            _ => {}
        }
        drain(answer).await;
        for name in &names {
            // What is left over is removed by whoever lists it once it is old.
            if let Ok(answer) = self.dav.ask(self.asked("DELETE"), name, &[]).await {
                drain(answer).await;
            }
        }
        Ok(())
    }

    /// Makes the object's directory and those above it, unless they are known to be there.
    async fn make_dirs(&self) -> Result<(), Failure> {
        self.dav.greet().await?;
        let Some((dir, _)) = self.path.rsplit_once('/') else { return Ok(()) };
        let made = &self.dav.0.made;
        if made.lock().unwrap_or_else(PoisonError::into_inner).contains(dir) {
            return Ok(());
        }
        let ends: Vec<usize> = dir.match_indices('/').map(|(at, _)| at).chain([dir.len()]).collect();
        // Mostly all but the last are there: the deepest first, and up until one can be made.
        let mut missing = ends.len();
        while missing > 0 && !self.make_dir(&dir[..ends[missing - 1]]).await? {
            missing -= 1;
        }
        for end in ends.iter().skip(missing) {
            if !self.make_dir(&dir[..*end]).await? {
                let text = format!("MKCOL {}: the collection above it is missing", &dir[..*end]);
                return Err(failed(self.asked("MKCOL"), ErrorKind::Unavailable, "409", &text, None));
            }
        }
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() >= MAX_MADE {
            made.clear();
        }
        made.insert(dir.to_owned());
        Ok(())
    }

    /// Whether the directory is there now; if not, the one above it is missing.
    async fn make_dir(&self, dir: &str) -> Result<bool, Failure> {
        let asked = Asked { doing: "make collection", ..self.asked("MKCOL") };
        let path = format!("{dir}/");
        let answer = self.dav.ask(asked, &path, &[]).await?;
        match answer.status().as_u16() {
            200 | 201 | 204 => {}
            409 => {
                drain(answer).await;
                return Ok(false);
            }
            // It exists, or somebody makes it at this very moment; servers have several words for that.
            301 | 302 | 307 | 308 | 403 | 405 | 423 => {
                let there = self.dav.look(&path, "0").await?.unwrap_or_default();
                return if there.iter().any(|found| found.is_dir) { Ok(true) } else { Err(refused(asked, &answer)) };
            }
            _ => return Err(refused(asked, &answer)),
        }
        drain(answer).await;
        Ok(true)
    }
}

/// Breaks a body that has more or fewer bytes than announced.
fn exactly(body: ByteStream, size: u64) -> ByteStream {
    stream::try_unfold((body, 0_u64), move |(mut body, mut came)| async move {
        match body.try_next().await? {
            Some(piece) => {
                came += piece.len() as u64;
                if came > size {
                    check_size(Some(size), came)?;
                }
                Ok(Some((piece, (body, came))))
            }
            None => check_size(Some(size), came).map(|()| None),
        }
    })
    .boxed()
}

/// Removes what dead writers left. Best effort, and only where we write anyway.
async fn sweep(dav: &WebdavClient) {
    let paths = std::mem::take(&mut *dav.0.stale.lock().unwrap_or_else(PoisonError::into_inner));
    for path in paths {
        let _ = dav.remove(&path).await;
    }
}
