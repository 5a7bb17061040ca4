//! Counts what is asked of storage: a wrapper over any client.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::error::{ErrorKind, Result};
use crate::replica::{ByteStream, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
use crate::sys::Clock;
use crate::telemetry::{Metrics, StorageRequest};

/// See the module.
pub(super) struct Metered {
    inner: Arc<dyn ReplicaClient>,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Metered {
    pub(super) fn new(inner: Arc<dyn ReplicaClient>, metrics: Arc<Metrics>, clock: Arc<dyn Clock>) -> Self {
        Self { inner, metrics, clock }
    }

    fn ended(&self, operation: &str, began: Duration, objects: usize, bytes: u64, error: Option<ErrorKind>) {
        self.metrics.storage_request(&StorageRequest {
            kind: self.inner.kind(),
            operation,
            objects: objects as u64,
            bytes,
            took: self.clock.elapsed().saturating_sub(began),
            error: error.map(code),
        });
    }
}

/// What kind of failure, as a label.
fn code(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "not_found",
        ErrorKind::Exists => "exists",
        ErrorKind::Busy | ErrorKind::InUse => "busy",
        ErrorKind::DiskFull => "disk_full",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::PermissionDenied => "permission_denied",
        ErrorKind::Invalid => "invalid",
        ErrorKind::Cancelled => "cancelled",
        _ => "other",
    }
}

fn failure<T>(result: &Result<T>) -> Option<ErrorKind> {
    result.as_ref().err().map(crate::error::Error::kind)
}

#[async_trait]
impl ReplicaClient for Metered {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    async fn init(&self) -> Result<()> {
        self.inner.init().await
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    fn creates_exclusively(&self) -> bool {
        self.inner.creates_exclusively()
    }

    fn list_dirs(&self, prefix: &Key) -> Option<BoxStream<'_, Result<Key>>> {
        self.inner.list_dirs(prefix)
    }

    fn list(&self, prefix: &Key, after: Option<&Key>, stamps: Stamps) -> BoxStream<'_, Result<ObjectMeta>> {
        let began = self.clock.elapsed();
        let objects = self.inner.list(prefix, after, stamps);
        let mut failed = None;
        let seen = objects.map(Some).chain(futures::stream::once(async { None })).filter_map(move |object| {
            match &object {
                Some(found) => failed = failed.or(failure(found)),
                None => self.ended("LIST", began, 1, 0, failed),
            }
            futures::future::ready(object)
        });
        seen.boxed()
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let began = self.clock.elapsed();
        let got = self.inner.get(key, range).await;
        self.ended("GET", began, 1, 0, failure(&got));
        let (metrics, kind) = (Arc::clone(&self.metrics), self.inner.kind());
        Ok(got?
            .inspect(move |chunk| {
                if let Ok(chunk) = chunk {
                    metrics.storage_bytes(kind, "GET", chunk.len() as u64);
                }
            })
            .boxed())
    }

    async fn put(&self, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
        let began = self.clock.elapsed();
        let put = self.inner.put(key, body, opts).await;
        self.ended("PUT", began, 1, put.as_ref().map_or(0, |object| object.size), failure(&put));
        put
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        let began = self.clock.elapsed();
        let deleted = self.inner.delete(keys).await;
        self.ended("DELETE", began, keys.len(), 0, failure(&deleted));
        deleted
    }
}
