//! Azure Blob Storage (`docs/azure.md`, `spec: backends` §6).
//!
//! Guarantees beside those of [`ReplicaClient`]:
//! 1. Names and metadata are the reference's: `<path>/ltx/<level>/<min>-<max>.ltx`, `litestreamtimestamp`.
//! 2. A blob is written by one request, or by blocks whose list, sent last, makes it visible.
//! 3. At most `(BLOCKS_AT_ONCE + 1)` blocks of an upload are held in memory.
//! 4. An exclusive put carries `If-None-Match: *`. Whether it is heeded is tried.

mod connect;
mod failure;
mod list;
mod login;
mod sign;
mod transport;
mod upload;

use std::fmt;
use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use azure_storage_blob::models::BlobClientDownloadOptions;
use azure_storage_blob::{BlobClient, BlobContainerClient};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::sync::OnceCell;

use super::client::{ByteStream, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
use super::exclusion::{self, Exclusion};
use super::requests::{Call, Operation, RequestStats, Requests, unless};
use super::web::{self, BODY_IDLE};
use crate::error::{Error, ErrorKind, Result};
use crate::settings::AbsSettings;
use crate::sys::{Clock, World};
use failure::{Asked, failure};

/// Where a stamp is kept. Names of metadata must be identifiers here.
const STAMP: &str = "litestreamtimestamp";
/// Deletes at a time: the service has no batch for accounts without extra rights.
const DELETES_AT_ONCE: usize = 16;
/// One request for the whole object, however large: what is read on is for `replica/reader.rs` to decide.
const WHOLE: NonZero<usize> = NonZero::new(1 << 50).unwrap();

/// A replica below `container/path`.
#[derive(Clone)]
pub struct AbsClient(Arc<Inner>);

struct Inner {
    settings: AbsSettings,
    clock: Arc<dyn Clock>,
    requests: Requests,
    container: OnceCell<BlobContainerClient>,
}

impl fmt::Debug for AbsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AbsClient").field(&self.location()).finish()
    }
}

impl AbsClient {
    /// A client; nothing is connected to yet.
    #[must_use]
    pub fn new(settings: AbsSettings, world: World) -> Self {
        let clock = world.clock.clone();
        Self(Arc::new(Inner { settings, clock, requests: Requests::new(world), container: OnceCell::new() }))
    }

    /// Counts of the requests made.
    #[must_use]
    pub fn stats(&self) -> &Arc<RequestStats> {
        self.0.requests.stats()
    }

    async fn container(&self) -> Result<&BlobContainerClient> {
        self.0.container.get_or_try_init(|| async { connect::connect(&self.0.settings, self.0.clock.clone()) }).await
    }

    async fn blob(&self, object: &str) -> Result<BlobClient> {
        if object.contains('\\') {
            let text = "the service takes a backslash in a name for a slash";
            return Err(Error::invalid("abs: blob name").at(object).caused_by(text));
        }
        Ok(self.container().await?.blob_client(object))
    }

    /// The blob's name in the container.
    fn object(&self, key: &str) -> String {
        web::joined(&self.0.settings.path, key)
    }

    /// `abs://container/object`, for people.
    fn target(&self, object: &str) -> String {
        format!("abs://{}/{object}", self.0.settings.bucket)
    }

    /// Fails with `NotFound` if there is no such blob.
    async fn head(&self, object: &str, target: &str) -> Result<()> {
        let absent = || Error::new(ErrorKind::NotFound, "abs: read properties of").at(target).caused_by("BlobNotFound");
        if self.exists(object, target).await? { Ok(()) } else { Err(absent()) }
    }

    /// What tells one container from another.
    fn place(&self) -> String {
        let settings = &self.0.settings;
        let host = settings.endpoint.as_deref().or(settings.account.as_deref());
        format!("{} {}", host.unwrap_or_default(), settings.bucket)
    }

    /// Whether the condition of an exclusive put is heeded.
    fn tried(&self) -> Option<bool> {
        exclusion::tried("abs", &self.place())
    }

    async fn exists(&self, object: &str, target: &str) -> Result<bool> {
        let blob = self.blob(object).await?;
        let asked = Asked { doing: "read properties of", target };
        let call = Call { operation: Operation::Get, kind: "abs", target, objects: 1, bytes: 0 };
        let ask = |_| async {
            unless(ErrorKind::NotFound, blob.get_properties(None).await.map(|_| ()).map_err(|e| failure(asked, &e)))
        };
        Ok(self.0.requests.run(call, ask).await?.is_some())
    }

    async fn delete_one(&self, key: &Key) -> Result<()> {
        let object = self.object(key.as_str());
        let (blob, target) = (self.blob(&object).await?, self.target(&object));
        let asked = Asked { doing: "cannot delete ltx file", target: &target };
        let call = Call { operation: Operation::Delete, kind: "abs", target: &target, objects: 1, bytes: 0 };
        let ask = |_| async { blob.delete(None).await.map(|_| ()).map_err(|e| failure(asked, &e)) };
        match self.0.requests.run(call, ask).await {
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

#[async_trait]
impl ReplicaClient for AbsClient {
    fn kind(&self) -> &'static str {
        "abs"
    }

    fn requests(&self) -> Option<&Arc<RequestStats>> {
        Some(self.stats())
    }

    async fn init(&self) -> Result<()> {
        self.container().await.map(|_| ())
    }

    fn location(&self) -> String {
        let settings = &self.0.settings;
        let base = self.target(settings.path.trim_matches('/'));
        match (&settings.endpoint, &settings.account) {
            (Some(endpoint), _) => format!("{base}?endpoint={endpoint}"),
            (None, Some(account)) => format!("{base}?account={account}"),
            (None, None) => base,
        }
    }

    fn exclusion(&self) -> Exclusion {
        Exclusion::exact(self.tried())
    }

    fn list(&self, prefix: &Key, after: Option<&Key>, _stamps: Stamps) -> BoxStream<'_, Result<ObjectMeta>> {
        list::objects(self, prefix.clone(), after.cloned())
    }

    fn list_dirs(&self, prefix: &Key) -> Option<BoxStream<'_, Result<Key>>> {
        Some(list::dirs(self, Some(prefix.clone())))
    }

    fn list_root_dirs(&self) -> Option<BoxStream<'_, Result<Key>>> {
        Some(list::dirs(self, None))
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let object = self.object(key.as_str());
        let target = self.target(&object);
        if range.as_ref().is_some_and(|range| range.start >= range.end) {
            self.head(&object, &target).await?;
            return Ok(stream::empty().boxed());
        }
        let range = range.map(|range| match range.end {
            u64::MAX => (range.start..).into(),
            _ => range.into(),
        });
        let blob = self.blob(&object).await?;
        let asked = Asked { doing: "cannot start new reader for", target: &target };
        let call = Call { operation: Operation::Get, kind: "abs", target: &target, objects: 1, bytes: 0 };
        let answer = self
            .0
            .requests
            .run(call, |_| {
                let options = BlobClientDownloadOptions {
                    range: range.clone(),
                    parallel: Some(NonZero::<usize>::MIN),
                    partition_size: Some(WHOLE),
                    ..Default::default()
                };
                async {
                    match blob.download(Some(options)).await {
                        Ok(answer) => Ok(Some(answer)),
                        // The range begins at or behind the end: there is such a blob.
                        Err(err) if err.http_status().is_some_and(|status| u16::from(status) == 416) => Ok(None),
                        Err(err) => Err(failure(asked, &err)),
                    }
                }
            })
            .await?;
        let Some(answer) = answer else { return Ok(stream::empty().boxed()) };
        Ok(body(answer.body, target))
    }

    async fn put(&self, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
        upload::put(self, key, body, opts).await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        stream::iter(keys.iter().map(Ok))
            .try_for_each_concurrent(DELETES_AT_ONCE, |key| async move { self.delete_one(key).await })
            .await
    }
}

/// The bytes of an answer. A body that falls silent is an error like one that breaks.
fn body(body: azure_core::http::AsyncResponseBody, target: String) -> ByteStream {
    let broken =
        |target: &str, text: String| Error::new(ErrorKind::Unavailable, "abs: read blob").at(target).caused_by(text);
    stream::try_unfold((body, target), move |(mut body, target)| async move {
        match tokio::time::timeout(BODY_IDLE, body.next()).await {
            Err(_) => Err(broken(&target, format!("nothing came for {}s", BODY_IDLE.as_secs()))),
            Ok(None) => Ok(None),
            Ok(Some(Err(err))) => Err(broken(&target, web::chain(&err))),
            Ok(Some(Ok(bytes))) => Ok(Some((bytes, (body, target)))),
        }
    })
    .boxed()
}
