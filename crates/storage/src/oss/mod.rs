//! Alibaba Cloud OSS (`docs/oss.md`, `spec: backends` §7).
//!
//! Guarantees beside those of [`ReplicaClient`]:
//! 1. Keys are `path + "/" + key`, byte for byte; nothing is cleaned (`spec: backends` §2).
//! 2. An object is written by one request, or by a multipart upload whose last request makes it visible.
//! 3. At most `(concurrency + 1) * part-size` bytes of an upload are held in memory.
//! 4. An exclusive put carries `x-oss-forbid-overwrite`. Buckets that keep versions ignore it, so whether it is heeded
//!    is tried.

mod api;
mod list;
mod sign;
mod upload;
mod xml;

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::Method;
use md5::{Digest as _, Md5};
use tokio::sync::OnceCell;

use super::client::{ByteStream, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
use super::exclusion::Exclusion;
use super::requests::{Failure, Operation, RequestStats, Requests, unless};
use super::web;
use crate::error::{Error, ErrorKind, Result};
use crate::settings::OssSettings;
use crate::sys::World;
use crate::types::{Timestamp, parse_timestamp};
use api::{Api, Ask, Asked};

/// Keys per batch delete: the protocol's bound.
const DELETE_BATCH: usize = 1000;
/// Where a stamp is kept.
const STAMP: &str = "x-oss-meta-litestream-timestamp";

/// A replica below `bucket/path`.
#[derive(Clone)]
pub struct OssClient(Arc<Inner>);

struct Inner {
    settings: OssSettings,
    world: World,
    requests: Requests,
    api: OnceCell<Api>,
}

impl fmt::Debug for OssClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OssClient").field(&self.location()).finish()
    }
}

impl OssClient {
    /// A client; nothing is connected to yet.
    #[must_use]
    pub fn new(settings: OssSettings, world: World) -> Self {
        let requests = Requests::new(world.clone());
        Self(Arc::new(Inner { settings, world, requests, api: OnceCell::new() }))
    }

    /// Counts of the requests made.
    #[must_use]
    pub fn stats(&self) -> &Arc<RequestStats> {
        self.0.requests.stats()
    }

    async fn api(&self) -> Result<&Api> {
        self.0.api.get_or_try_init(|| async { Api::new(&self.0.settings, self.0.world.clock.clone()) }).await
    }

    /// The object's name in the bucket.
    fn object(&self, key: &str) -> String {
        format!("{}/{key}", self.0.settings.path)
    }

    /// `oss://bucket/object`, for people.
    fn target(&self, object: &str) -> String {
        format!("oss://{}/{object}", self.0.settings.bucket)
    }

    /// The stamp the object was put with, if it has one.
    async fn head(&self, object: &str) -> Result<Option<Timestamp>> {
        let absent = || {
            Error::new(ErrorKind::NotFound, "oss: read metadata of object")
                .at(self.target(object))
                .caused_by("there is no such object")
        };
        self.head_if_there(object).await?.ok_or_else(absent)
    }

    /// `None` if there is no such object.
    async fn head_if_there(&self, object: &str) -> Result<Option<Option<Timestamp>>> {
        let (api, target) = (self.api().await?, self.target(object));
        let asked = Asked { operation: Operation::Get, doing: "read metadata of object", target: &target };
        let run = |_| async { unless(ErrorKind::NotFound, api.send(asked, Ask::new(Method::HEAD, object)).await) };
        let Some(answer) = self.0.requests.run(asked.call(1, 0), run).await? else { return Ok(None) };
        let stamp = answer.headers().get(STAMP).and_then(|value| value.to_str().ok());
        Ok(Some(stamp.and_then(|text| parse_timestamp(text).ok())))
    }

    async fn delete_batch(&self, keys: &[Key]) -> Result<()> {
        let (api, target) = (self.api().await?, self.target(""));
        let asked = Asked { operation: Operation::Delete, doing: "delete objects", target: &target };
        let names: Vec<String> = keys.iter().map(|key| self.object(key.as_str())).collect();
        let body = Bytes::from(xml::delete(&names));
        let sum = BASE64.encode(Md5::digest(&body));
        self.0
            .requests
            .run(asked.call(keys.len() as u64, 0), |_| async {
                let ask = Ask::new(Method::POST, "")
                    .query("delete", "")
                    .query("encoding-type", "url")
                    .header("content-md5", sum.clone())
                    .header("content-type", "application/xml".to_owned())
                    .body(body.clone());
                let answer = api.send(asked, ask).await?;
                let body = web::answer(answer.into_body()).await.map_err(|e| asked.broken(e.to_string()))?;
                let result: xml::Deleted = xml::parse(&body).map_err(|text| asked.broken(text))?;
                // What went wrong is not named; what went well is.
                let gone: HashSet<String> = result.deleted.iter().filter_map(|d| list::decoded(&d.key)).collect();
                let left: Vec<&str> = names.iter().map(String::as_str).filter(|name| !gone.contains(*name)).collect();
                if left.is_empty() {
                    Ok(())
                } else {
                    Err(asked.broken(format!("failed to delete files:\n{}", left.join("\n"))))
                }
            })
            .await
    }
}

#[async_trait]
impl ReplicaClient for OssClient {
    fn kind(&self) -> &'static str {
        "oss"
    }

    fn requests(&self) -> Option<&Arc<RequestStats>> {
        Some(self.stats())
    }

    async fn init(&self) -> Result<()> {
        self.api().await.map(|_| ())
    }

    fn location(&self) -> String {
        let settings = &self.0.settings;
        let base = self.target(settings.path.trim_start_matches('/'));
        match (&settings.endpoint, &settings.region) {
            (Some(endpoint), _) => format!("{base}?endpoint={endpoint}"),
            (None, Some(region)) => format!("{base}?region={region}"),
            (None, None) => base,
        }
    }

    fn exclusion(&self) -> Exclusion {
        Exclusion::exact(upload::tried(self))
    }

    fn list(&self, prefix: &Key, after: Option<&Key>, stamps: Stamps) -> BoxStream<'_, Result<ObjectMeta>> {
        list::objects(self, prefix.clone(), after.cloned(), stamps)
    }

    fn list_dirs(&self, prefix: &Key) -> Option<BoxStream<'_, Result<Key>>> {
        Some(list::dirs(self, Some(prefix.clone())))
    }

    fn list_root_dirs(&self) -> Option<BoxStream<'_, Result<Key>>> {
        Some(list::dirs(self, None))
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let object = self.object(key.as_str());
        let header = match &range {
            None => None,
            Some(range) if range.start >= range.end => {
                self.head(&object).await?;
                return Ok(stream::empty().boxed());
            }
            Some(range) if range.end == u64::MAX => Some(format!("bytes={}-", range.start)),
            Some(range) => Some(format!("bytes={}-{}", range.start, range.end - 1)),
        };
        let (api, target) = (self.api().await?, self.target(&object));
        let asked = Asked { operation: Operation::Get, doing: "get object", target: &target };
        let run = |_| async {
            let mut ask = Ask::new(Method::GET, &object);
            if let Some(header) = &header {
                // Without it a range that ends behind the object's end is answered with all of it.
                ask = ask.header("range", header.clone()).header("x-oss-range-behavior", "standard".to_owned());
            }
            match api.send(asked, ask).await {
                Ok(answer) => Ok(Some(answer)),
                // The range begins at or behind the end: there is such an object.
                Err(failure) if failure.code == api::BEHIND_END => Ok(None),
                Err(failure) => Err(failure),
            }
        };
        let Some(answer) = self.0.requests.run(asked.call(1, 0), run).await? else {
            return Ok(stream::empty().boxed());
        };
        if header.is_some() && answer.status() != http::StatusCode::PARTIAL_CONTENT {
            let text = "the service ignores byte ranges";
            return Err(Error::new(ErrorKind::Invalid, "oss: get object").at(target).caused_by(text));
        }
        Ok(web::object(answer.into_body(), "oss: read object", target))
    }

    async fn put(&self, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
        upload::put(self, key, body, opts).await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        for batch in keys.chunks(DELETE_BATCH) {
            self.delete_batch(batch).await?;
        }
        Ok(())
    }
}

/// Reads an answer to a request for a list, and says how much is in there. Only for the fuzzer.
///
/// # Errors
/// `Corrupt` for anything but a page of a list.
#[doc(hidden)]
pub fn read_listing(answer: &[u8]) -> Result<usize> {
    let page: xml::Page = xml::parse(answer).map_err(Error::corrupt)?;
    let names = page.contents.iter().map(|object| &object.key).chain(page.common_prefixes.iter().map(|p| &p.prefix));
    Ok(names.filter_map(|name| list::decoded(name)).count())
}
