//! A bucket of a NATS JetStream object store (`spec: backends` §10, `docs/nats.md`).
//!
//! Guarantees beside those of [`ReplicaClient`]:
//! 1. The message that makes chunks an object is published after all chunks were acknowledged. Chunks are never
//!    published twice under one id: what is uncertain starts over under a new one.
//! 2. What is read has the length and the checksum of the record, or the stream ends with an error.
//! 3. An exclusive put expects to be the first message of its subject: the server refuses the second.
//! 4. At most `WINDOW` bytes of an object are under way, in either direction.

mod connect;
mod list;
mod meta;
mod read;
mod write;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::{DirectGetErrorKind, LastRawMessageErrorKind};
use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::sync::Mutex;

use super::client::{ByteStream, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
use super::exclusion::{self, Exclusion};
use super::requests::{Call, Failure, Operation, RequestStats, Requests, progress};
use crate::error::{Error, ErrorKind, Result};
use crate::settings::NatsSettings;
use crate::sys::World;
use connect::Bucket;
use list::Scans;
use meta::{Meta, chunk_subject, meta_subject};

/// Bytes per message, as in the reference.
const CHUNK: usize = 128 * 1024;
/// Bytes of one object under way.
const WINDOW: usize = 2 << 20;
/// Objects deleted at a time.
const DELETES_AT_ONCE: usize = 16;

/// A replica in a bucket, below a prefix if the URL has one.
#[derive(Clone)]
pub struct NatsClient(Arc<Inner>);

struct Inner {
    settings: NatsSettings,
    world: World,
    requests: Requests,
    /// The connection, once there is one.
    bucket: Mutex<Option<Bucket>>,
    scans: Scans,
}

impl fmt::Debug for NatsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NatsClient").field(&self.location()).finish()
    }
}

impl NatsClient {
    /// A client; nothing is connected to yet.
    #[must_use]
    pub fn new(settings: NatsSettings, world: World) -> Self {
        let requests = Requests::new(world.clone());
        Self(Arc::new(Inner { settings, world, requests, bucket: Mutex::default(), scans: Scans::default() }))
    }

    /// Counts of the requests made.
    #[must_use]
    pub fn stats(&self) -> &Arc<RequestStats> {
        self.0.requests.stats()
    }

    fn bucket_name(&self) -> &str {
        &self.0.settings.bucket
    }

    /// The object's name in the bucket.
    fn object(&self, key: &str) -> String {
        match self.0.settings.prefix.as_str() {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        }
    }

    /// The key of an object, if it lies below the prefix.
    fn key(&self, object: &str) -> Option<Key> {
        let below = match self.0.settings.prefix.as_str() {
            "" => object,
            prefix => object.strip_prefix(prefix)?.strip_prefix('/')?,
        };
        Key::new(below).ok()
    }

    /// URL of an object, for people.
    fn target(&self, object: &str) -> String {
        format!("{}/{}/{object}", self.0.settings.url, self.bucket_name())
    }

    /// What tells one bucket from another.
    fn place(&self) -> String {
        format!("{}/{}", self.0.settings.url, self.bucket_name())
    }

    /// Whether the server refuses the second record of a name.
    fn tried(&self) -> Option<bool> {
        exclusion::tried("nats", &self.place())
    }

    /// The bucket: connected to, or about to be again.
    async fn bucket(&self, doing: &'static str, target: &str) -> Result<Bucket, Failure> {
        let mut bucket = self.0.bucket.lock().await;
        if let Some(bucket) = bucket.as_ref()
            && bucket.is_usable()
        {
            return Ok(bucket.clone());
        }
        // Large, and seldom: not a part of every future.
        match Box::pin(connect::connect(&self.0.settings, self.bucket_name())).await {
            Ok(new) => Ok(bucket.insert(new).clone()),
            Err(err) => {
                let hint = err.hint_text();
                let outer = Error::new(err.kind(), format!("nats: {doing}")).at(target).caused_by(err);
                let error = hint.into_iter().fold(outer, Error::hint);
                Err(Failure { error, code: "Connection".to_owned(), retry_after: None })
            }
        }
    }

    /// The record of an object, with the number of its message; of a deleted one, too.
    async fn info(&self, bucket: &Bucket, asked: Asked<'_>, object: &str) -> Result<Option<(Meta, u64)>, Failure> {
        let subject = meta_subject(self.bucket_name(), object);
        let message = if bucket.stream.cached_info().config.allow_direct {
            match bucket.stream.direct_get_last_for_subject(subject).await {
                Ok(message) => message,
                Err(err) if err.kind() == DirectGetErrorKind::NotFound => return Ok(None),
                Err(err) => return Err(asked.failed(bucket, "Get", &err)),
            }
        } else {
            match bucket.stream.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => message,
                Err(err) if matches!(err.kind(), LastRawMessageErrorKind::NoMessageFound) => return Ok(None),
                Err(err) => return Err(asked.failed(bucket, "Get", &err)),
            }
        };
        let meta = Meta::decode(&message.payload).map_err(|err| Failure {
            error: Error::new(ErrorKind::Corrupt, format!("nats: {}", asked.doing)).at(asked.target).caused_by(err),
            code: "Record".to_owned(),
            retry_after: None,
        })?;
        Ok(Some((meta, message.sequence)))
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        let object = self.object(key.as_str());
        let target = self.target(&object);
        let asked = Asked { doing: "delete object", target: &target };
        let call = Call { operation: Operation::Delete, kind: "nats", target: &target, objects: 1, bytes: 0 };
        self.0
            .requests
            .run(call, |_| async {
                let bucket = self.bucket(asked.doing, &target).await?;
                let Some((meta, _)) = self.info(&bucket, asked, &object).await? else { return Ok(()) };
                // The record first: from then on there is no such object. It goes for good, and not under a mark that
                // every later listing would have to read.
                let record = meta_subject(self.bucket_name(), &object);
                bucket.stream.purge().filter(record).await.map_err(|err| asked.failed(&bucket, "Purge", &err))?;
                if !meta.nuid.is_empty() {
                    let chunks = chunk_subject(self.bucket_name(), &meta.nuid);
                    bucket.stream.purge().filter(chunks).await.map_err(|err| asked.failed(&bucket, "Purge", &err))?;
                }
                Ok(())
            })
            .await
    }
}

/// What was asked of the server, for errors.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    doing: &'static str,
    target: &'a str,
}

impl Asked<'_> {
    /// A failed request: a missing permission if the server spoke of one, else something that may pass.
    fn failed(&self, bucket: &Bucket, code: &str, err: &(dyn std::error::Error + 'static)) -> Failure {
        let text = chain(err);
        let of = |kind, text: String| Error::new(kind, format!("nats: {}", self.doing)).at(self.target).caused_by(text);
        let error = match (bucket.take_violation(), code_of(err)) {
            (Some(violation), _) => of(ErrorKind::PermissionDenied, violation).hint(connect::PERMISSIONS),
            (None, Some(code)) if FULL.contains(&code) => {
                of(ErrorKind::DiskFull, text).hint("the bucket or the account has reached its limit: raise it")
            }
            _ => of(ErrorKind::Unavailable, text),
        };
        Failure { error, code: code.to_owned(), retry_after: None }
    }
}

/// Codes of JetStream for limits that were reached: storage and memory of the server, of the account, of the stream.
const FULL: [u64; 5] = [10_047, 10_028, 10_002, 10_077, 10_023];

fn code_of(err: &(dyn std::error::Error + 'static)) -> Option<u64> {
    let mut next = Some(err);
    while let Some(cause) = next {
        if let Some(api) = cause.downcast_ref::<async_nats::jetstream::Error>() {
            return Some(api.error_code().0);
        }
        next = cause.source();
    }
    None
}

/// An error and its causes in one line.
fn chain(err: &(dyn std::error::Error + 'static)) -> String {
    let mut text = err.to_string();
    let mut next = err.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Gives up on what waits for a message that does not come.
async fn in_time<T>(asked: Asked<'_>, patience: Duration, waiting: impl Future<Output = T>) -> Result<T, Failure> {
    let came = tokio::time::timeout(patience, waiting).await.inspect(|_| progress());
    came.map_err(|_| Failure {
        error: Error::new(ErrorKind::Unavailable, format!("nats: {}", asked.doing))
            .at(asked.target)
            .caused_by(format!("nothing came for {}s", patience.as_secs())),
        code: "Timeout".to_owned(),
        retry_after: None,
    })
}

#[async_trait]
impl ReplicaClient for NatsClient {
    fn kind(&self) -> &'static str {
        "nats"
    }

    fn requests(&self) -> Option<&Arc<RequestStats>> {
        Some(self.stats())
    }

    async fn init(&self) -> Result<()> {
        let target = self.location();
        let call = Call { operation: Operation::Get, kind: "nats", target: &target, objects: 0, bytes: 0 };
        self.0.requests.run(call, |_| async { self.bucket("connect", &target).await.map(|_| ()) }).await
    }

    fn location(&self) -> String {
        self.target(&self.0.settings.prefix)
    }

    fn exclusion(&self) -> Exclusion {
        Exclusion::exact(self.tried())
    }

    fn list(&self, prefix: &Key, after: Option<&Key>, _stamps: Stamps) -> BoxStream<'_, Result<ObjectMeta>> {
        let (prefix, after) = (prefix.clone(), after.cloned());
        let listing = async move {
            match self.scan().await {
                Ok(objects) => {
                    let found = objects.iter().filter(|o| o.key.name_in(&prefix).is_some());
                    let found = found.filter(|o| after.as_ref().is_none_or(|after| o.key > *after));
                    stream::iter(found.cloned().map(Ok).collect::<Vec<_>>())
                }
                Err(err) => stream::iter(vec![Err(err)]),
            }
        };
        stream::once(listing).flatten().boxed()
    }

    fn list_dirs(&self, prefix: &Key) -> Option<BoxStream<'_, Result<Key>>> {
        let prefix = prefix.clone();
        let listing = async move {
            match self.scan().await {
                Ok(objects) => {
                    let below = format!("{prefix}/");
                    let names = objects.iter().filter_map(|o| o.key.as_str().strip_prefix(&below)?.split_once('/'));
                    let names: std::collections::BTreeSet<&str> = names.map(|(dir, _)| dir).collect();
                    stream::iter(names.into_iter().map(|name| prefix.join(name)).collect::<Vec<_>>())
                }
                Err(err) => stream::iter(vec![Err(err)]),
            }
        };
        Some(stream::once(listing).flatten().boxed())
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        read::open(self, key, range).await
    }

    async fn put(&self, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
        write::put(self, key, body, opts).await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        stream::iter(keys.iter().map(Ok))
            .try_for_each_concurrent(DELETES_AT_ONCE, |key| async move { self.remove(key).await })
            .await
    }
}
