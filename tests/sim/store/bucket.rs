//! An object store that keeps what it has acknowledged, and otherwise behaves as badly as real ones do.
//!
//! Each request draws what becomes of it: it is slow, refused, or takes effect and its answer is lost;
//! lists are stale, out of order, short of a page or hold one twice; bodies are cut; deletions are
//! acknowledged and not done. An honest client of the same store sees what is really there.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use litestream::error::{Error, ErrorKind, Result};
use litestream::replica::{ByteStream, Exclusion, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
use litestream::types::Timestamp;

use super::manners::{Lie, Lies, Manners};
use crate::disk::{Disk, Proc, Who};
use crate::rng::{Rng, hash_bytes, mix};

/// How long a stale list may lag behind.
const MAX_LAG_US: u64 = 120_000_000;
const LIES_OF_DELETE: [Lie; 4] = [Lie::LostAnswer, Lie::Undeleted, Lie::HalfDeleted, Lie::Reappears];
/// Objects in a page of a list.
const PAGE: usize = 5;

/// The store itself.
pub(super) struct Bucket {
    name: &'static str,
    disk: Arc<Disk>,
    state: Mutex<State>,
}

struct State {
    objects: BTreeMap<Key, Object>,
    /// What is gone or was replaced, and when: stale lists show it.
    gone: Vec<(Key, Object, u64)>,
    /// Everything that was ever stored, in that order, since somebody asked.
    stored: Vec<(Key, Bytes, Timestamp)>,
    manners: Manners,
    /// Requests are refused until then: all, or those of this name.
    outage: (u64, Option<&'static str>),
    /// What was deleted and will be there again from then on.
    undead: Vec<(Key, Object, u64)>,
    rng: Rng,
    versions: u64,
    kill: Option<Kill>,
    lies: Lies,
    requests: u64,
    /// A deletion ended half-way since somebody asked.
    cut: bool,
}

#[derive(Clone)]
pub(super) struct Object {
    pub(super) bytes: Bytes,
    pub(super) stamp: Timestamp,
    pub(super) version: u64,
    since_us: u64,
}

/// A process that is to die at one of its requests.
#[derive(Debug, Clone, Copy)]
struct Kill {
    proc: Proc,
    /// Requests until then.
    left: u64,
    /// After the request has taken effect, instead of before.
    after: bool,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Bucket {
    pub(super) fn new(name: &'static str, disk: &Arc<Disk>, seed: u64, manners: Manners) -> Arc<Self> {
        let state = State {
            objects: BTreeMap::new(),
            gone: Vec::new(),
            stored: Vec::new(),
            manners,
            outage: (0, None),
            undead: Vec::new(),
            rng: Rng::new(seed),
            versions: 0,
            kill: None,
            lies: Lies::default(),
            requests: 0,
            cut: false,
        };
        Arc::new(Self { name, disk: Arc::clone(disk), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_manners(&self, manners: Manners) {
        self.state().manners = manners;
    }

    pub(super) fn reseed(&self, seed: u64) {
        self.state().rng = Rng::new(mix(seed ^ hash_bytes(1, self.name.as_bytes())));
    }

    /// Refuses everything for so long, or only requests of one name.
    pub(super) fn outage(&self, time: Duration, denied: Option<&'static str>) {
        let until = self.disk.elapsed_us() + u64::try_from(time.as_micros()).unwrap_or(0);
        self.state().outage = (until, denied);
    }

    /// Lets a process die at its `n`-th request from now.
    pub(super) fn kill_after(&self, proc: Proc, n: u64, after: bool) {
        self.state().kill = Some(Kill { proc, left: n, after });
    }

    pub(super) fn disarm(&self) {
        self.state().kill = None;
    }

    /// Loses up to `most` objects that were acknowledged, of whatever kind. Returns which.
    pub(super) fn lose(&self, rng: &mut Rng, most: u64) -> Vec<Key> {
        let mut state = self.state();
        let mut lost = Vec::new();
        for _ in 0..1 + rng.below(most) {
            let Some(key) = state.objects.keys().nth(rng.index(state.objects.len())).cloned() else { break };
            state.objects.remove(&key);
            lost.push(key);
        }
        lost
    }

    /// Loses everything, or what is older than some of it, as a lifecycle rule does. Returns how much.
    pub(super) fn purge(&self, rng: &mut Rng) -> usize {
        let mut state = self.state();
        let mut times: Vec<u64> = state.objects.values().map(|object| object.since_us).collect();
        times.sort_unstable();
        let until = match rng.permille(500) {
            true => u64::MAX,
            false => times.get(rng.index(times.len())).copied().unwrap_or(0),
        };
        let before = state.objects.len();
        state.objects.retain(|_, object| object.since_us > until);
        before - state.objects.len()
    }

    /// Loses the newest objects of level 0 that were acknowledged, up to `most`, which nothing comes after.
    pub(super) fn lose_newest(&self, most: usize) {
        let mut state = self.state();
        let newest = state.objects.keys().rev().filter(|key| key.as_str().starts_with("ltx/0/"));
        let newest: Vec<Key> = newest.take(most).cloned().collect();
        for key in newest {
            state.objects.remove(&key);
        }
    }

    /// What is really there.
    pub(super) fn objects(&self) -> Vec<(Key, Object)> {
        self.state().objects.iter().map(|(key, object)| (key.clone(), object.clone())).collect()
    }

    /// What was stored since the last call, in that order, whether or not it is still there.
    pub(super) fn take_stored(&self) -> Vec<(Key, Bytes, Timestamp)> {
        std::mem::take(&mut self.state().stored)
    }

    /// Whether a deletion ended half-way since the last call, of a store that does what it says it has done.
    pub(super) fn take_cut(&self) -> bool {
        let mut state = self.state();
        let honest = state.lies.of(Lie::Undeleted) + state.lies.of(Lie::Reappears) == 0;
        std::mem::take(&mut state.cut) && honest
    }

    pub(super) fn lies(&self) -> (u64, Lies) {
        let state = self.state();
        (state.requests, state.lies)
    }

    /// The store as this life of a process sees it.
    pub(super) fn client(self: &Arc<Self>, who: Who) -> Arc<dyn ReplicaClient> {
        Arc::new(BucketClient { bucket: Arc::clone(self), who, honest: false })
    }

    /// The store without any of its faults.
    pub(super) fn honest_client(self: &Arc<Self>) -> Arc<dyn ReplicaClient> {
        Arc::new(BucketClient { bucket: Arc::clone(self), who: Who { proc: Proc::Harness, life: 0 }, honest: true })
    }
}

impl State {
    fn put(&mut self, now_us: u64, key: &Key, bytes: Bytes, stamp: Timestamp) {
        self.versions += 1;
        self.stored.push((key.clone(), bytes.clone(), stamp));
        let object = Object { bytes, stamp, version: self.versions, since_us: now_us };
        if let Some(old) = self.objects.insert(key.clone(), object) {
            self.gone.push((key.clone(), old, now_us));
        }
    }

    fn remove(&mut self, now_us: u64, key: &Key) {
        if let Some(old) = self.objects.remove(key) {
            self.gone.push((key.clone(), old, now_us));
        }
    }

    /// What was deleted and is due comes back, unless there is something in its place.
    fn haunt(&mut self, now_us: u64) {
        for (key, object, from) in std::mem::take(&mut self.undead) {
            if from > now_us {
                self.undead.push((key, object, from));
            } else {
                self.objects.entry(key).or_insert(object);
            }
        }
    }

    /// What a list made at `at_us` shows.
    fn list(&mut self, now_us: u64, at_us: u64, prefix: &Key, after: Option<&Key>) -> Vec<ObjectMeta> {
        self.gone.retain(|(.., gone)| gone + MAX_LAG_US > now_us);
        let then = self.gone.iter().filter(|(.., gone)| *gone > at_us).map(|(key, object, _)| (key, object));
        let mut found: Vec<ObjectMeta> = self
            .objects
            .iter()
            .chain(then)
            .filter(|(key, object)| object.since_us <= at_us && key.name_in(prefix).is_some())
            .filter(|(key, _)| after.is_none_or(|after| *key > after))
            .map(|(key, object)| ObjectMeta {
                key: key.clone(),
                size: object.bytes.len() as u64,
                modified: object.stamp,
            })
            .collect();
        found.sort_by(|a, b| a.key.cmp(&b.key));
        found
    }
}

fn refused(rng: &mut Rng) -> Error {
    let kind = rng.pick(&[ErrorKind::Unavailable, ErrorKind::Unavailable, ErrorKind::Busy, ErrorKind::Io]);
    Error::new(kind, "the store does not want to")
}

/// One user of the store.
#[derive(Debug)]
struct BucketClient {
    bucket: Arc<Bucket>,
    who: Who,
    honest: bool,
}

/// What was drawn for a request.
struct Request {
    lie: Option<Lie>,
    rng: Rng,
    kill_after: bool,
}

impl BucketClient {
    /// Whoever is dead neither asks nor hears of an answer.
    async fn unless_dead(&self) {
        if self.bucket.disk.is_dead(self.who) {
            std::future::pending::<()>().await;
        }
    }

    /// Begins a request: takes its time, and says what is to become of it.
    async fn begin(&self, name: &str, key: &Key, lies: &[Lie]) -> Result<Request> {
        let disk = &self.bucket.disk;
        if self.honest {
            return Ok(Request { lie: None, rng: Rng::new(0), kill_after: false });
        }
        self.unless_dead().await;
        let (lie, mut rng, pause) = {
            let mut state = self.bucket.state();
            let word = hash_bytes(hash_bytes(3, name.as_bytes()), key.as_str().as_bytes());
            disk.note(word);
            state.requests += 1;
            let manners = state.manners.clone();
            let lie = manners.draw(&mut state.rng, lies);
            (lie, Rng::new(state.rng.next()), manners.pause(&mut state.rng))
        };
        if lie == Some(Lie::Slow) {
            self.bucket.state().lies.count(Lie::Slow);
            tokio::time::sleep(Duration::from_secs(1 + rng.below(90))).await;
        } else if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        self.unless_dead().await;
        let kill_after = self.die();
        self.unless_dead().await;
        let mut state = self.bucket.state();
        let now_us = disk.elapsed_us();
        state.haunt(now_us);
        match state.outage {
            (until, None) if until > now_us => {
                state.lies.count(Lie::Outage);
                return Err(refused(&mut rng));
            }
            (until, Some(denied)) if until > now_us && denied == name => {
                state.lies.count(Lie::Denied);
                return Err(Error::new(ErrorKind::PermissionDenied, format!("not allowed to {name}")));
            }
            _ => {}
        }
        if lie == Some(Lie::Refused) {
            state.lies.count(Lie::Refused);
            return Err(refused(&mut rng));
        }
        Ok(Request { lie, rng, kill_after })
    }

    /// The process may be meant to die here. Returns whether it is to die once the effect has taken place.
    fn die(&self) -> bool {
        let mut state = self.bucket.state();
        let Some(kill) = state.kill.as_mut().filter(|kill| kill.proc == self.who.proc) else { return false };
        if kill.left > 0 {
            kill.left -= 1;
            return false;
        }
        let after = kill.after;
        state.kill = None;
        drop(state);
        if !after {
            self.bucket.disk.lock().kill(self.who.proc);
        }
        after
    }

    /// Ends a request that has taken effect.
    async fn end<T>(&self, mut request: Request, done: T) -> Result<T> {
        if request.kill_after {
            self.bucket.disk.lock().kill(self.who.proc);
        }
        self.unless_dead().await;
        if request.lie == Some(Lie::LostAnswer) {
            self.bucket.state().lies.count(Lie::LostAnswer);
            return Err(refused(&mut request.rng));
        }
        Ok(done)
    }

    async fn listing(&self, prefix: &Key, after: Option<&Key>) -> Result<Vec<Result<ObjectMeta>>> {
        let lies = [Lie::StaleList, Lie::UnorderedList, Lie::MissedPage, Lie::RepeatedPage, Lie::BrokenList];
        let mut request = self.begin("list", prefix, &lies).await?;
        let now_us = self.bucket.disk.elapsed_us();
        let found = {
            let mut state = self.bucket.state();
            let lag = if request.lie == Some(Lie::StaleList) { request.rng.below(MAX_LAG_US) } else { 0 };
            let mut found = state.list(now_us, now_us.saturating_sub(lag), prefix, after);
            let pages = found.len().div_ceil(PAGE);
            let page = request.rng.index(pages);
            let (from, to) = (page * PAGE, ((page + 1) * PAGE).min(found.len()));
            let mut broken = false;
            let told = match request.lie {
                Some(Lie::UnorderedList) => {
                    let turn = request.rng.index(found.len());
                    found.rotate_left(turn);
                    true
                }
                Some(Lie::MissedPage) if pages > 0 => {
                    found.drain(from..to);
                    true
                }
                Some(Lie::RepeatedPage) if pages > 0 => {
                    let twice = found[from..to].to_vec();
                    found.splice(to..to, twice);
                    true
                }
                Some(Lie::BrokenList) => {
                    found.truncate(from);
                    broken = true;
                    true
                }
                Some(Lie::StaleList) => true,
                _ => false,
            };
            if let Some(lie) = request.lie.filter(|_| told) {
                state.lies.count(lie);
            }
            let end = broken.then(|| Err(refused(&mut request.rng)));
            found.into_iter().map(Ok).chain(end).collect()
        };
        self.end(request, found).await
    }
}

#[async_trait]
impl ReplicaClient for BucketClient {
    fn kind(&self) -> &'static str {
        "bucket"
    }

    async fn init(&self) -> Result<()> {
        Ok(())
    }

    fn location(&self) -> String {
        format!("bucket://{}", self.bucket.name)
    }

    fn exclusion(&self) -> Exclusion {
        Exclusion::Exact
    }

    fn list(&self, prefix: &Key, after: Option<&Key>, _: Stamps) -> BoxStream<'_, Result<ObjectMeta>> {
        let (prefix, after) = (prefix.clone(), after.cloned());
        let listing = async move {
            let found = self.listing(&prefix, after.as_ref()).await;
            stream::iter(found.unwrap_or_else(|err| vec![Err(err)]))
        };
        stream::once(listing).flatten().boxed()
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let mut request = self.begin("get", key, &[Lie::ShortBody, Lie::BrokenBody]).await?;
        let object = self.bucket.state().objects.get(key).cloned();
        let Some(Object { bytes, .. }) = object else {
            return Err(Error::new(ErrorKind::NotFound, "object does not exist").at(key));
        };
        let len = bytes.len() as u64;
        let range = range.unwrap_or(0..len);
        let start = range.start.min(len);
        let end = range.end.clamp(start, len);
        let mut body = bytes.slice(usize::try_from(start).unwrap_or(0)..usize::try_from(end).unwrap_or(0));
        let mut broken = None;
        if let Some(lie @ (Lie::ShortBody | Lie::BrokenBody)) = request.lie {
            self.bucket.state().lies.count(lie);
            body.truncate(request.rng.index(body.len()));
            broken = (lie == Lie::BrokenBody).then(|| Err(refused(&mut request.rng)));
        }
        // In pieces, so that readers meet more than one.
        let piece = 1 + request.rng.index(body.len().max(1));
        let pieces = std::iter::from_fn(move || (!body.is_empty()).then(|| Ok(body.split_to(piece.min(body.len())))));
        self.end(request, stream::iter(pieces.chain(broken)).boxed()).await
    }

    async fn put(&self, key: &Key, mut body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
        let request = self.begin("put", key, &[Lie::LostAnswer, Lie::LostAnswer, Lie::Conflict]).await?;
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        self.unless_dead().await;
        let size = bytes.len() as u64;
        if opts.size.is_some_and(|announced| announced != size) {
            return Err(Error::corrupt("body of another length than announced").at(key));
        }
        let exists = || Error::new(ErrorKind::Exists, "object exists").at(key);
        {
            let now_us = self.bucket.disk.elapsed_us();
            let mut state = self.bucket.state();
            if opts.exclusive && state.objects.contains_key(key) {
                return Err(exists());
            }
            state.put(now_us, key, bytes.freeze(), opts.stamp);
        }
        let lie = request.lie;
        let done = self.end(request, ObjectMeta { key: key.clone(), size, modified: opts.stamp }).await?;
        if lie == Some(Lie::Conflict) && opts.exclusive {
            // The first answer was lost below us, and asking again met the object it had made.
            self.bucket.state().lies.count(Lie::Conflict);
            return Err(exists());
        }
        Ok(done)
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        let Some(first) = keys.first() else { return Ok(()) };
        let mut request = self.begin("delete", first, &LIES_OF_DELETE).await?;
        let now_us = self.bucket.disk.elapsed_us();
        // In what order is the store's affair: that of the keys nobody has promised.
        let mut order: Vec<&Key> = keys.iter().collect();
        for n in (1..order.len()).rev() {
            order.swap(n, request.rng.index(n + 1));
        }
        let failed = {
            let mut state = self.bucket.state();
            let mut wanted = keys.len();
            if let Some(lie @ (Lie::Undeleted | Lie::HalfDeleted)) = request.lie {
                state.lies.count(lie);
                wanted = request.rng.index(keys.len());
            } else if request.kill_after {
                // With whoever asked, what was under way for him ends.
                wanted = request.rng.index(keys.len() + 1);
            }
            state.cut |= wanted < keys.len();
            for key in order.into_iter().take(wanted) {
                if request.lie == Some(Lie::Reappears)
                    && let Some(object) = state.objects.get(key).cloned()
                {
                    state.lies.count(Lie::Reappears);
                    state.undead.push((key.clone(), object, now_us + request.rng.below(MAX_LAG_US)));
                }
                state.remove(now_us, key);
            }
            request.lie == Some(Lie::HalfDeleted)
        };
        if failed {
            let err = refused(&mut request.rng);
            self.end(request, ()).await?;
            return Err(err);
        }
        self.end(request, ()).await
    }
}
