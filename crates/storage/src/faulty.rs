//! A wrapper that fails on command, for tests of everything that talks to a store.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};

use super::client::{ByteStream, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
use super::exclusion::Exclusion;
use super::stats::RequestStats;
use crate::error::{Error, ErrorKind, Result};

/// The methods of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// [`ReplicaClient::init`]
    Init,
    /// [`ReplicaClient::list`]
    List,
    /// [`ReplicaClient::get`]
    Get,
    /// [`ReplicaClient::put`]
    Put,
    /// [`ReplicaClient::delete`]
    Delete,
}

/// One thing to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Fails before anything has happened.
    Refuse(ErrorKind),
    /// Takes effect, but the caller is told that it failed.
    LoseAnswer(ErrorKind),
    /// The body of a get ends without an error after so many bytes.
    CutBody {
        /// Bytes that come through.
        after: u64,
    },
    /// The body of a get or put, or the entries of a list, end with an error after so many bytes (entries).
    BreakBody {
        /// Bytes or entries that come through.
        after: u64,
        /// Kind of the error.
        kind: ErrorKind,
    },
}

/// Fails the next calls as told, passes everything else on.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn ReplicaClient>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    faults: HashMap<Op, VecDeque<Fault>>,
    calls: HashMap<Op, u64>,
    latency: Duration,
}

impl Faulty {
    /// Wraps `inner`; nothing fails yet.
    #[must_use]
    pub fn new(inner: Arc<dyn ReplicaClient>) -> Self {
        Self { inner, state: Mutex::default() }
    }

    /// Adds a fault for a coming call of `op`; each call takes one, in the order they were added.
    pub fn push(&self, op: Op, fault: Fault) {
        self.state().faults.entry(op).or_default().push_back(fault);
    }

    /// Nothing fails any more.
    pub fn forget_faults(&self) {
        self.state().faults.clear();
    }

    /// How often `op` was called.
    #[must_use]
    pub fn calls(&self, op: Op) -> u64 {
        self.state().calls.get(&op).copied().unwrap_or(0)
    }

    /// Makes every call wait this long first.
    pub fn set_latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, op: Op) -> (Option<Fault>, Duration) {
        let mut state = self.state();
        *state.calls.entry(op).or_default() += 1;
        let fault = state.faults.get_mut(&op).and_then(VecDeque::pop_front);
        (fault, state.latency)
    }

    /// Counts the call, waits, and refuses it if that is its fate.
    async fn enter(&self, op: Op) -> Result<Option<Fault>> {
        let (fault, latency) = self.begin(op);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        match fault {
            Some(Fault::Refuse(kind)) => Err(injected(kind)),
            other => Ok(other),
        }
    }
}

/// A listing, with what is to happen to it.
fn fail_list<'a, T: Send + 'a>(fault: Option<Fault>, found: BoxStream<'a, Result<T>>) -> BoxStream<'a, Result<T>> {
    match fault {
        None => found,
        Some(Fault::Refuse(kind) | Fault::LoseAnswer(kind)) => stream::iter([Err(injected(kind))]).boxed(),
        Some(Fault::CutBody { after }) => found.take(usize::try_from(after).unwrap_or(usize::MAX)).boxed(),
        Some(Fault::BreakBody { after, kind }) => {
            found.take(usize::try_from(after).unwrap_or(usize::MAX)).chain(stream::iter([Err(injected(kind))])).boxed()
        }
    }
}

fn injected(kind: ErrorKind) -> Error {
    Error::new(kind, "injected fault")
}

/// Passes `after` bytes of `body` on, then `end`.
fn cut(mut body: ByteStream, after: u64, end: Option<ErrorKind>) -> ByteStream {
    let mut left = after;
    let mut ended = false;
    stream::poll_fn(move |cx| {
        use std::task::Poll;
        if ended {
            return Poll::Ready(None);
        }
        if left == 0 {
            ended = true;
            return Poll::Ready(end.map(|kind| Err(injected(kind))));
        }
        body.poll_next_unpin(cx).map(|item| {
            item.map(|chunk| {
                let mut chunk = chunk?;
                chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                left -= chunk.len() as u64;
                Ok(chunk)
            })
        })
    })
    .boxed()
}

fn lost<T>(fault: Option<Fault>, done: T) -> Result<T> {
    match fault {
        Some(Fault::LoseAnswer(kind)) => Err(injected(kind)),
        _ => Ok(done),
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl ReplicaClient for Faulty {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    fn requests(&self) -> Option<&Arc<RequestStats>> {
        self.inner.requests()
    }

    fn reads_in_parts(&self) -> bool {
        self.inner.reads_in_parts()
    }

    fn exclusion(&self) -> Exclusion {
        self.inner.exclusion()
    }

    async fn init(&self) -> Result<()> {
        let fault = self.enter(Op::Init).await?;
        lost(fault, self.inner.init().await?)
    }

    fn list(&self, prefix: &Key, after: Option<&Key>, stamps: Stamps) -> BoxStream<'_, Result<ObjectMeta>> {
        let (fault, latency) = self.begin(Op::List);
        let entries = fail_list(fault, self.inner.list(prefix, after, stamps));
        if latency.is_zero() {
            return entries;
        }
        stream::once(async move {
            tokio::time::sleep(latency).await;
            entries
        })
        .flatten()
        .boxed()
    }

    fn list_dirs(&self, prefix: &Key) -> Option<BoxStream<'_, Result<Key>>> {
        let dirs = self.inner.list_dirs(prefix)?;
        Some(fail_list(self.begin(Op::List).0, dirs))
    }

    fn list_root_dirs(&self) -> Option<BoxStream<'_, Result<Key>>> {
        let dirs = self.inner.list_root_dirs()?;
        Some(fail_list(self.begin(Op::List).0, dirs))
    }

    /// Each object is asked for by itself, so that a fault hits one of them.
    fn get_small(&self, _objects: &[(Key, usize)]) -> Option<BoxFuture<'static, Vec<Option<Bytes>>>> {
        None
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let fault = self.enter(Op::Get).await?;
        let body = self.inner.get(key, range).await?;
        match fault {
            Some(Fault::CutBody { after }) => Ok(cut(body, after, None)),
            Some(Fault::BreakBody { after, kind }) => Ok(cut(body, after, Some(kind))),
            other => lost(other, body),
        }
    }

    async fn put(&self, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
        let fault = self.enter(Op::Put).await?;
        let body = match fault {
            Some(Fault::CutBody { after }) => cut(body, after, Some(ErrorKind::Unavailable)),
            Some(Fault::BreakBody { after, kind }) => cut(body, after, Some(kind)),
            _ => body,
        };
        lost(fault, self.inner.put(key, body, opts).await?)
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        let fault = self.enter(Op::Delete).await?;
        lost(fault, self.inner.delete(keys).await?)
    }
}
