//! Google Cloud Storage, over its JSON interface (`docs/gcs.md`, `spec: backends` §5).
//!
//! Guarantees beside those of [`ReplicaClient`]:
//! 1. Names and metadata are the reference's: `<path>/ltx/<level>/<min>-<max>.ltx`, `litestream-timestamp`.
//! 2. An object is written by one request, or by a resumable upload whose last chunk makes it visible. An upload that
//!    fails or is dropped is cancelled, never finished short.
//! 3. Two chunks of an upload are held in memory.
//! 4. An exclusive put carries `ifGenerationMatch=0`. Whether it is heeded is tried.

mod api;
mod list;
mod login;
mod upload;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use http::Method;
use tokio::sync::OnceCell;

use super::client::{ByteStream, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
use super::exclusion::{self, Exclusion};
use super::requests::{Operation, RequestStats, Requests, unless};
use super::web;
use crate::error::{Error, ErrorKind, Result};
use crate::settings::GsSettings;
use crate::sys::World;
use api::{Api, Asked};

/// Where a stamp is kept.
const STAMP: &str = "litestream-timestamp";
/// Deletes at a time.
const DELETES_AT_ONCE: usize = 16;

/// A replica below `bucket/path`.
#[derive(Clone)]
pub struct GsClient(Arc<Inner>);

struct Inner {
    settings: GsSettings,
    requests: Requests,
    api: OnceCell<Api>,
}

impl fmt::Debug for GsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GsClient").field(&self.location()).finish()
    }
}

impl GsClient {
    /// A client; nothing is connected to yet.
    #[must_use]
    pub fn new(settings: GsSettings, world: World) -> Self {
        Self(Arc::new(Inner { settings, requests: Requests::new(world), api: OnceCell::new() }))
    }

    /// Counts of the requests made.
    #[must_use]
    pub fn stats(&self) -> &Arc<RequestStats> {
        self.0.requests.stats()
    }

    async fn api(&self) -> Result<&Api> {
        self.0.api.get_or_try_init(|| async { Api::new(&self.0.settings) }).await
    }

    /// The object's name in the bucket.
    fn object(&self, key: &str) -> String {
        web::joined(&self.0.settings.path, key)
    }

    /// `gs://bucket/object`, for people.
    fn target(&self, object: &str) -> String {
        format!("gs://{}/{object}", self.0.settings.bucket)
    }

    /// Path and query of the object's resource.
    fn resource(&self, object: &str) -> String {
        format!("/storage/v1/b/{}/o/{}", web::encode(&self.0.settings.bucket), web::encode(object))
    }

    /// What tells one bucket from another.
    fn place(&self) -> String {
        let settings = &self.0.settings;
        let host = settings.emulator.as_deref().or(settings.endpoint.as_deref());
        format!("{} {}", host.unwrap_or("google"), settings.bucket)
    }

    /// Whether `ifGenerationMatch` is heeded.
    fn tried(&self) -> Option<bool> {
        exclusion::tried("gs", &self.place())
    }

    async fn exists(&self, object: &str) -> Result<bool> {
        let (api, target) = (self.api().await?, self.target(object));
        let asked = Asked { operation: Operation::Get, doing: "cannot read object", target: &target };
        let path = format!("{}?fields=name", self.resource(object));
        let ask = |_| async {
            let request = api.request(Method::GET, &path).body(Bytes::new());
            unless(ErrorKind::NotFound, api.send(asked, request).await)
        };
        Ok(self.0.requests.run(asked.call(1, 0), ask).await?.is_some())
    }

    async fn delete_one(&self, key: &Key) -> Result<()> {
        let object = self.object(key.as_str());
        let (api, target) = (self.api().await?, self.target(&object));
        let asked = Asked { operation: Operation::Delete, doing: "cannot delete ltx file", target: &target };
        let done = self
            .0
            .requests
            .run(asked.call(1, 0), |_| async {
                let request = api.request(Method::DELETE, &self.resource(&object)).body(Bytes::new());
                api.send(asked, request).await.map(|_| ())
            })
            .await;
        match done {
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

#[async_trait]
impl ReplicaClient for GsClient {
    fn kind(&self) -> &'static str {
        "gs"
    }

    fn requests(&self) -> Option<&Arc<RequestStats>> {
        Some(self.stats())
    }

    async fn init(&self) -> Result<()> {
        self.api().await.map(|_| ())
    }

    fn location(&self) -> String {
        let base = self.target(self.0.settings.path.trim_matches('/'));
        let elsewhere = self.0.settings.emulator.as_deref().or(self.0.settings.endpoint.as_deref());
        elsewhere.map_or(base.clone(), |elsewhere| format!("{base}?endpoint={elsewhere}"))
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
        let (api, target) = (self.api().await?, self.target(&object));
        let asked = Asked { operation: Operation::Get, doing: "cannot read object", target: &target };
        let (path, header) = match &range {
            // Whether there is such an object is all that can be asked.
            Some(range) if range.start >= range.end => (format!("{}?fields=name", self.resource(&object)), None),
            range => (format!("{}?alt=media", self.resource(&object)), range.as_ref().map(range_header)),
        };
        let answer = self
            .0
            .requests
            .run(asked.call(1, 0), |_| async {
                let mut request = api.request(Method::GET, &path);
                if let Some(header) = &header {
                    request = request.header("range", header);
                }
                match api.send(asked, request.body(Bytes::new())).await {
                    Ok(answer) => Ok(Some(answer)),
                    // The range begins at or behind the end: there is such an object.
                    Err(failure) if failure.code == api::BEHIND_END => Ok(None),
                    Err(failure) => Err(failure),
                }
            })
            .await?;
        let Some(answer) = answer.filter(|_| path.ends_with("alt=media")) else { return Ok(stream::empty().boxed()) };
        if header.is_some() && answer.status() != http::StatusCode::PARTIAL_CONTENT {
            let text = "the service ignores byte ranges";
            return Err(Error::new(ErrorKind::Invalid, "gs: cannot read object").at(target).caused_by(text));
        }
        Ok(web::object(answer.into_body(), "gs: read object", target))
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

fn range_header(range: &Range<u64>) -> String {
    match range.end {
        u64::MAX => format!("bytes={}-", range.start),
        end => format!("bytes={}-{}", range.start, end - 1),
    }
}
