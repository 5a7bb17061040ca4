//! Counts what is asked of storage: a wrapper over any client. Backends that count their own requests, retries and
//! pages of listings included, are listened to; of the others each call counts as one request.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};

use crate::error::{ErrorKind, Result};
use crate::replica::{ByteStream, Exclusion, Key, ObjectMeta, PutOptions, ReplicaClient, RequestStats, Stamps};
use crate::sys::Clock;
use crate::telemetry::{Metrics, StorageRequest};

/// See the module.
#[derive(Clone)]
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
        if let Some(stats) = inner.requests() {
            let (metrics, kind) = (Arc::clone(&metrics), inner.kind());
            stats.observe(move |request| {
                metrics.storage_request(&StorageRequest {
                    kind,
                    operation: request.operation.name(),
                    objects: request.objects,
                    bytes: request.bytes,
                    took: request.took,
                    error: request.error.map(label),
                });
            });
        }
        Self { inner, metrics, clock }
    }

    fn ended(&self, operation: &str, began: Duration, objects: usize, bytes: u64, error: Option<ErrorKind>) {
        if self.inner.requests().is_some() {
            return;
        }
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

/// A service's code as a label. What is no plain word may be anything, also another one each time.
fn label(code: &str) -> &str {
    let plain = (1..=40).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric());
    if plain { code } else { "other" }
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

// A default method is a convenience for backends, and a trap for a wrapper: it would hide what is inside.
#[deny(clippy::missing_trait_methods)]
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

    fn requests(&self) -> Option<&Arc<RequestStats>> {
        self.inner.requests()
    }

    fn reads_in_parts(&self) -> bool {
        self.inner.reads_in_parts()
    }

    fn exclusion(&self) -> Exclusion {
        self.inner.exclusion()
    }

    fn list_dirs(&self, prefix: &Key) -> Option<BoxStream<'_, Result<Key>>> {
        self.inner.list_dirs(prefix)
    }

    fn list_root_dirs(&self) -> Option<BoxStream<'_, Result<Key>>> {
        self.inner.list_root_dirs()
    }

    fn get_small(&self, objects: &[(Key, usize)]) -> Option<BoxFuture<'static, Vec<Option<Bytes>>>> {
        let (began, bodies, this) = (self.clock.elapsed(), self.inner.get_small(objects)?, self.clone());
        let counted = bodies.inspect(move |bodies| {
            let got: Vec<u64> = bodies.iter().flatten().map(|body| body.len() as u64).collect();
            // What could not be had like that is asked for again, and counted then.
            this.ended("GET", began, got.len(), 0, None);
            this.metrics.storage_bytes(this.inner.kind(), "GET", got.iter().sum());
        });
        Some(counted.boxed())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::memory::MemoryClient;
    use crate::replica::{Operation, PutOptions, Request, once};
    use crate::sys::SystemClock;
    use crate::types::Timestamp;

    /// Makes three requests of every put.
    #[derive(Debug)]
    struct Retrying(MemoryClient, Arc<RequestStats>);

    #[async_trait]
    impl ReplicaClient for Retrying {
        fn kind(&self) -> &'static str {
            "s3"
        }
        fn location(&self) -> String {
            self.0.location()
        }
        fn exclusion(&self) -> Exclusion {
            self.0.exclusion()
        }
        fn requests(&self) -> Option<&Arc<RequestStats>> {
            Some(&self.1)
        }
        fn list_root_dirs(&self) -> Option<BoxStream<'_, Result<Key>>> {
            Some(futures::stream::empty().boxed())
        }
        fn get_small(&self, objects: &[(Key, usize)]) -> Option<BoxFuture<'static, Vec<Option<Bytes>>>> {
            let mut bodies = vec![None; objects.len()];
            bodies[0] = Some(Bytes::from_static(b"1234567"));
            Some(futures::future::ready(bodies).boxed())
        }
        async fn init(&self) -> Result<()> {
            Ok(())
        }
        fn list(&self, prefix: &Key, after: Option<&Key>, stamps: Stamps) -> BoxStream<'_, Result<ObjectMeta>> {
            self.0.list(prefix, after, stamps)
        }
        async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
            self.0.get(key, range).await
        }
        async fn put(&self, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
            let request = Request {
                operation: Operation::Put,
                objects: 1,
                bytes: 0,
                took: Duration::ZERO,
                error: Some("SlowDown"),
            };
            self.1.record(&request);
            self.1.record(&Request { error: Some("<html> \"500\""), ..request });
            let meta = self.0.put(key, body, opts).await?;
            self.1.record(&Request { bytes: meta.size, error: None, ..request });
            Ok(meta)
        }
        async fn delete(&self, keys: &[Key]) -> Result<()> {
            self.0.delete(keys).await
        }
    }

    #[tokio::test]
    async fn what_a_backend_can_do_beyond_the_least_is_not_hidden() {
        let metrics = Arc::new(Metrics::new());
        let inner = Arc::new(Retrying(MemoryClient::new(), Arc::default()));
        let client = Metered::new(inner, Arc::clone(&metrics), Arc::new(SystemClock::new()));
        assert!(client.list_root_dirs().is_some());
        let wanted = [(Key::new("a").unwrap(), 7), (Key::new("b").unwrap(), 7)];
        let bodies = client.get_small(&wanted).unwrap().await;
        assert_eq!(bodies, [Some(Bytes::from_static(b"1234567")), None]);
        let text = metrics.scrape().render().unwrap();
        let line = "litestream_replica_operation_bytes{operation=\"GET\",replica_type=\"s3\"} 7";
        assert!(text.lines().any(|l| l == line), "{text}");
    }

    #[tokio::test]
    async fn requests_of_a_backend_that_counts_them_are_counted_once_with_their_retries() {
        let metrics = Arc::new(Metrics::new());
        let inner = Arc::new(Retrying(MemoryClient::new(), Arc::default()));
        let client = Metered::new(inner, Arc::clone(&metrics), Arc::new(SystemClock::new()));
        let opts = PutOptions { stamp: Timestamp::from_millis(0), size: None, modes: None, exclusive: false };
        let key = Key::new("0000/a").unwrap();
        client.put(&key, once("12345"), opts).await.unwrap();
        let body: Vec<_> = client.get(&key, None).await.unwrap().collect().await;
        assert_eq!(body.len(), 1);
        let text = metrics.scrape().render().unwrap();
        for line in [
            "sqlite_replication_requests_total{operation=\"PUT\",outcome=\"SlowDown\",replica_type=\"s3\"} 1",
            "sqlite_replication_requests_total{operation=\"PUT\",outcome=\"ok\",replica_type=\"s3\"} 1",
            "litestream_replica_operation_errors_total{code=\"other\",operation=\"PUT\",replica_type=\"s3\"} 1",
            "litestream_replica_operation_bytes{operation=\"PUT\",replica_type=\"s3\"} 5",
            "litestream_replica_operation_bytes{operation=\"GET\",replica_type=\"s3\"} 5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
