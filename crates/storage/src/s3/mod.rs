//! S3, and everything that speaks it (`docs/s3.md`).
//!
//! Guarantees beside those of [`ReplicaClient`]:
//! 1. Keys are `path + "/" + key`, byte for byte; nothing is cleaned (`spec: backends` §2).
//! 2. An object is written by one request, or by a multipart upload whose last request makes it visible.
//! 3. At most `(concurrency + 1) * part-size` bytes of an upload are held in memory.
//! 4. Where the service can create without replacing, exclusive puts do; whether it can is tried, not assumed.

/// A request about an object's content, with the customer key it is under. A macro because the SDK's builders share
/// no trait.
macro_rules! under_customer_key {
    ($request:expr, $sse:expr) => {
        match $sse {
            Some(sse) => $request
                .sse_customer_algorithm(SseC::ALGORITHM)
                .sse_customer_key(&sse.key)
                .sse_customer_key_md5(&sse.md5),
            None => $request,
        }
    };
}

mod connect;
mod failure;
mod http;
mod list;
mod upload;
mod vendor;
#[cfg(test)]
mod writes;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::stream::{self, BoxStream, StreamExt};
use md5::{Digest as _, Md5};
use tokio::sync::OnceCell;

use super::client::{ByteStream, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
use super::exclusion::Exclusion;
use super::requests::{Call, Failure, Operation, RequestStats, Requests, unless};
use super::stamp::stamp_text;
use crate::error::{Error, ErrorKind, Result};
use crate::settings::{Encryption, S3Settings};
use crate::sys::World;
use crate::types::{Timestamp, parse_timestamp};
use failure::{Asked, failure};
use vendor::Habits;

/// Keys per batch delete: the protocol's bound.
const DELETE_BATCH: usize = 1000;
/// Where a stamp is kept.
const STAMP: &str = "litestream-timestamp";
/// Directory of Litestream 0.3.x, the only keys that are cleaned.
const V3: &str = "generations";

/// A replica below `bucket/path`.
#[derive(Clone)]
pub struct S3Client(Arc<Inner>);

struct Inner {
    settings: S3Settings,
    habits: Habits,
    encryption: Result<Encryption, String>,
    requests: Requests,
    /// Given by tests.
    http: Option<SharedHttpClient>,
    client: OnceCell<Client>,
}

impl fmt::Debug for S3Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3Client").field(&self.location()).finish()
    }
}

impl S3Client {
    /// A client; nothing is connected to yet.
    #[must_use]
    pub fn new(settings: S3Settings, world: World) -> Self {
        Self::with_http(settings, world, None)
    }

    /// As [`Self::new`], through another HTTP client: for tests of what is sent.
    #[doc(hidden)]
    #[must_use]
    pub fn with_http(settings: S3Settings, world: World, http: Option<SharedHttpClient>) -> Self {
        let habits = Habits::of(&settings);
        let encryption = settings.encryption().map_err(|e| e.to_string());
        let requests = Requests::new(world);
        Self(Arc::new(Inner { settings, habits, encryption, requests, http, client: OnceCell::new() }))
    }

    /// Counts of the requests made.
    #[must_use]
    pub fn stats(&self) -> &Arc<RequestStats> {
        self.0.requests.stats()
    }

    fn bucket(&self) -> &str {
        &self.0.settings.bucket
    }

    fn encryption(&self) -> Result<&Encryption> {
        self.0.encryption.as_ref().map_err(|text| Error::invalid(text.clone()))
    }

    async fn client(&self) -> Result<&Client> {
        let inner = &self.0;
        self.encryption()?;
        let connect = || connect::connect(&inner.settings, &inner.habits, &inner.requests, inner.http.clone());
        inner.client.get_or_try_init(connect).await
    }

    /// The object's name in the bucket.
    fn object(&self, key: &str) -> String {
        let root = &self.0.settings.path;
        if key == V3 || key.starts_with("generations/") {
            // 0.3.x joined and cleaned its names.
            return match root.trim_matches('/') {
                "" | "." => key.to_owned(),
                root => format!("{root}/{key}"),
            };
        }
        format!("{root}/{key}")
    }

    /// `object` below the root, if it is there and well formed.
    fn key(&self, dir: &Key, object: &str) -> Option<Key> {
        let name = object.strip_prefix(&self.object(dir.as_str()))?.strip_prefix('/')?;
        Key::new(format!("{dir}/{name}")).ok().filter(|key| key.name_in(dir).is_some())
    }

    /// `s3://bucket/object`, for people.
    fn target(&self, object: &str) -> String {
        format!("s3://{}/{object}", self.bucket())
    }

    /// The three headers of a customer key, where one is set.
    fn customer_key(&self) -> Result<Option<SseC>> {
        let Encryption::CustomerKey(key) = self.encryption()? else { return Ok(None) };
        Ok(Some(SseC { key: BASE64.encode(key.expose()), md5: BASE64.encode(Md5::digest(key.expose())) }))
    }

    async fn head(&self, object: &str) -> Result<Head> {
        let absent = || {
            Error::new(ErrorKind::NotFound, "s3: read metadata of object")
                .at(self.target(object))
                .caused_by("there is no such object")
        };
        self.head_if_there(object).await?.ok_or_else(absent)
    }

    /// `None` if there is no such object.
    async fn head_if_there(&self, object: &str) -> Result<Option<Head>> {
        let (client, sse) = (self.client().await?, self.customer_key()?);
        let target = self.target(object);
        let asked = Asked { api: "HeadObject", doing: "read metadata of object", target: &target };
        let call = Call { operation: Operation::Get, kind: "s3", target: &target, objects: 1, bytes: 0 };
        let request = || {
            let request = client.head_object().bucket(self.bucket()).key(object);
            under_customer_key!(request, &sse)
        };
        let answer = self
            .0
            .requests
            .run(call, |_| {
                let request = request();
                async move { unless(ErrorKind::NotFound, request.send().await.map_err(|e| failure(asked, e))) }
            })
            .await?;
        let Some(answer) = answer else { return Ok(None) };
        let stamp = answer.metadata().and_then(|m| m.get(STAMP)).and_then(|text| parse_timestamp(text).ok());
        Ok(Some(Head { stamp }))
    }

    async fn delete_batch(&self, keys: &[Key]) -> Result<()> {
        let client = self.client().await?;
        let target = format!("s3://{}", self.bucket());
        let objects: Result<Vec<_>, _> =
            keys.iter().map(|key| ObjectIdentifier::builder().key(self.object(key.as_str())).build()).collect();
        let delete = objects
            .and_then(|objects| Delete::builder().set_objects(Some(objects)).build())
            .map_err(|e| Error::new(ErrorKind::Internal, "s3: delete objects").caused_by(e))?;
        let asked = Asked { api: "DeleteObjects", doing: "delete objects", target: &target };
        let call =
            Call { operation: Operation::Delete, kind: "s3", target: &target, objects: keys.len() as u64, bytes: 0 };
        let content_md5 = self.0.habits.content_md5;
        self.0
            .requests
            .run(call, |_| {
                let request = client.delete_objects().bucket(self.bucket()).delete(delete.clone());
                async move {
                    let mut request = request.customize();
                    if content_md5 {
                        request = request.mutate_request(add_content_md5);
                    }
                    let answer = request.send().await.map_err(|e| failure(asked, e))?;
                    refused(&target_of(&asked), answer.errors())
                }
            })
            .await
    }
}

fn target_of(asked: &Asked<'_>) -> String {
    asked.target.to_owned()
}

/// Single keys may be refused although the request went well.
fn refused(target: &str, errors: &[aws_sdk_s3::types::Error]) -> Result<(), Failure> {
    let errors: Vec<_> = errors.iter().filter(|e| e.code() != Some("NoSuchKey")).collect();
    let Some(first) = errors.first() else { return Ok(()) };
    for error in errors.iter().take(5) {
        tracing::warn!(key = error.key(), code = error.code(), message = error.message(), "delete object failed");
    }
    let code = first.code().unwrap_or("Unknown").to_owned();
    let kind = match code.as_str() {
        "AccessDenied" | "Forbidden" => ErrorKind::PermissionDenied,
        "InternalError" | "SlowDown" | "ServiceUnavailable" => ErrorKind::Unavailable,
        _ => ErrorKind::Invalid,
    };
    let lines: Vec<String> = errors
        .iter()
        .map(|e| format!("{}: {}", e.key().unwrap_or("?"), e.message().or(e.code()).unwrap_or("unknown error")))
        .collect();
    let mut error = Error::new(kind, "s3: failed to delete files").at(target).caused_by(lines.join("\n"));
    if kind == ErrorKind::PermissionDenied {
        error = error.hint("the credentials need s3:DeleteObject on the objects below the path");
    }
    Err(Failure { error, code, retry_after: None })
}

/// Some services refuse batch deletes without it; the SDK has no field for it.
fn add_content_md5(request: &mut aws_smithy_runtime_api::client::orchestrator::HttpRequest) {
    if let Some(sum) = request.body().bytes().map(|body| BASE64.encode(Md5::digest(body))) {
        request.headers_mut().insert("content-md5", sum);
    }
}

struct Head {
    stamp: Option<Timestamp>,
}

struct SseC {
    key: String,
    md5: String,
}

impl SseC {
    const ALGORITHM: &'static str = "AES256";
}

#[async_trait]
impl ReplicaClient for S3Client {
    fn kind(&self) -> &'static str {
        "s3"
    }

    async fn init(&self) -> Result<()> {
        self.client().await.map(|_| ())
    }

    fn location(&self) -> String {
        let endpoint = self.0.habits.endpoint.as_deref();
        let base = format!("s3://{}/{}", self.bucket(), self.0.settings.path.trim_start_matches('/'));
        endpoint.map_or(base.clone(), |endpoint| format!("{base}?endpoint={endpoint}"))
    }

    fn requests(&self) -> Option<&Arc<RequestStats>> {
        Some(self.stats())
    }

    fn reads_in_parts(&self) -> bool {
        true
    }

    fn exclusion(&self) -> Exclusion {
        Exclusion::exact(upload::tried(self))
    }

    fn list(&self, prefix: &Key, after: Option<&Key>, stamps: Stamps) -> BoxStream<'_, Result<ObjectMeta>> {
        list::objects(self, prefix.clone(), after.cloned(), stamps)
    }

    fn list_dirs(&self, prefix: &Key) -> Option<BoxStream<'_, Result<Key>>> {
        Some(list::dirs(self, prefix.clone()))
    }

    fn list_root_dirs(&self) -> Option<BoxStream<'_, Result<Key>>> {
        Some(list::root_dirs(self))
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
        let (client, sse) = (self.client().await?, self.customer_key()?);
        let target = self.target(&object);
        let asked = Asked { api: "GetObject", doing: "get object", target: &target };
        let call = Call { operation: Operation::Get, kind: "s3", target: &target, objects: 1, bytes: 0 };
        let answer = self
            .0
            .requests
            .run(call, |_| {
                let request = client.get_object().bucket(self.bucket()).key(&object).set_range(header.clone());
                let request = under_customer_key!(request, &sse);
                async move {
                    match request.send().await {
                        Ok(answer) => Ok(Some(answer)),
                        // The range begins at or behind the end: there is such an object.
                        Err(err) if err.raw_response().is_some_and(|r| r.status().as_u16() == 416) => Ok(None),
                        Err(err) => Err(failure(asked, err)),
                    }
                }
            })
            .await?;
        let Some(answer) = answer else { return Ok(stream::empty().boxed()) };
        if header.is_some() && answer.content_range().is_none() {
            let text = "the service ignores byte ranges";
            return Err(Error::new(ErrorKind::Invalid, "s3: get object").at(target).caused_by(text));
        }
        Ok(body(answer.body, target))
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

/// The bytes of an answer. A body that falls silent is an error like one that breaks.
fn body(body: aws_sdk_s3::primitives::ByteStream, target: String) -> ByteStream {
    let broken =
        |target: &str, text: String| Error::new(ErrorKind::Unavailable, "s3: read object").at(target).caused_by(text);
    stream::try_unfold((body, target), move |(mut body, target)| async move {
        match tokio::time::timeout(connect::BODY_IDLE, body.next()).await {
            Err(_) => Err(broken(&target, format!("nothing came for {}s", connect::BODY_IDLE.as_secs()))),
            Ok(None) => Ok(None),
            Ok(Some(Err(err))) => {
                let cause = std::error::Error::source(&err).map(|s| format!("{err}: {s}"));
                Err(broken(&target, cause.unwrap_or_else(|| err.to_string())))
            }
            Ok(Some(Ok(bytes))) => Ok(Some((bytes, (body, target)))),
        }
    })
    .boxed()
}
