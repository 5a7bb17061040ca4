//! Listings. A bucket can only be read whole: names are encoded in subjects, so the server cannot select by prefix.
//!
//! Ten levels are asked for at once when a database starts. Listings that are asked for while another is under way
//! share the next one, which begins after they were asked for: none of them misses what was there before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy, pull};
use futures::future::{BoxFuture, FutureExt, Shared};
use futures::stream::StreamExt;

use super::super::refusal::Refusal;
use super::meta::Meta;
use super::{Asked, Call, Failure, NatsClient, ObjectMeta, Operation, Result, in_time};
use crate::types::Timestamp;

/// How long a record may take. Short, because a record that is deleted before it was sent never comes; then the
/// listing starts over.
const PATIENCE: Duration = Duration::from_secs(5);

type Scan = Shared<BoxFuture<'static, Result<Arc<Vec<ObjectMeta>>, Refusal>>>;

/// The scan that later comers may join, unless it has begun.
#[derive(Default)]
pub(super) struct Scans(Mutex<Option<(Scan, Arc<AtomicBool>)>>);

impl NatsClient {
    /// All objects below the prefix, in key order.
    pub(super) async fn scan(&self) -> Result<Arc<Vec<ObjectMeta>>> {
        let scan = {
            let mut scans = self.0.scans.0.lock().unwrap_or_else(PoisonError::into_inner);
            match scans.as_ref() {
                Some((scan, begun)) if !begun.load(Ordering::Acquire) => scan.clone(),
                before => {
                    let begun = Arc::new(AtomicBool::new(false));
                    let (before, mark, client) = (before.map(|(scan, _)| scan.clone()), begun.clone(), self.clone());
                    let scan = async move {
                        if let Some(before) = before {
                            let _ = before.await;
                        }
                        mark.store(true, Ordering::Release);
                        client.read_all().await.map(Arc::new).map_err(|err| Refusal::of(&err))
                    };
                    let scan = scan.boxed().shared();
                    *scans = Some((scan.clone(), begun));
                    scan
                }
            }
        };
        let outcome = scan.clone().await;
        let mut scans = self.0.scans.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A listing that nobody will join is not kept.
        if scans.as_ref().is_some_and(|(last, _)| last.ptr_eq(&scan)) {
            *scans = None;
        }
        outcome.map_err(Refusal::into_error)
    }

    async fn read_all(&self) -> Result<Vec<ObjectMeta>> {
        let target = self.target("");
        let asked = Asked { doing: "list objects", target: &target };
        let call = Call { operation: Operation::List, kind: "nats", target: &target, objects: 1, bytes: 0 };
        self.0.requests.run(call, |_| Box::pin(self.read_once(asked))).await
    }

    async fn read_once(&self, asked: Asked<'_>) -> Result<Vec<ObjectMeta>, Failure> {
        let bucket = self.bucket(asked.doing, asked.target).await?;
        let config = pull::OrderedConfig {
            description: Some("litestream list".to_owned()),
            filter_subject: format!("$O.{}.M.>", self.bucket_name()),
            deliver_policy: DeliverPolicy::LastPerSubject,
            replay_policy: ReplayPolicy::Instant,
            max_batch: 500,
            ..Default::default()
        };
        let failed = |err: &(dyn std::error::Error + 'static)| asked.failed(&bucket, "Consumer", err);
        let consumer = Box::pin(bucket.stream.create_consumer(config)).await.map_err(|e| failed(&e))?;
        let mut pending = consumer.cached_info().num_pending;
        let mut objects = Vec::new();
        let mut messages = consumer.messages().await.map_err(|e| failed(&e))?;
        while pending > 0 {
            let message = match in_time(asked, PATIENCE, messages.next()).await? {
                Some(Ok(message)) => message,
                Some(Err(err)) => return Err(failed(&err)),
                None => return Err(failed(&std::io::Error::other("the listing ended too early"))),
            };
            let info = message.info().map_err(|e| failed(e.as_ref()))?;
            pending = info.pending;
            let published = info.published.unix_timestamp_nanos().div_euclid(1_000_000);
            // What somebody else put there is none of ours.
            let Ok(meta) = Meta::decode(&message.payload) else { continue };
            if !meta.is_object() {
                continue;
            }
            let Some(key) = self.key(&meta.name) else { continue };
            let stored = Timestamp::from_millis(i64::try_from(published).unwrap_or(0));
            objects.push(ObjectMeta { key, size: meta.size, modified: meta.stamp().unwrap_or(stored) });
        }
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        objects.dedup_by(|a, b| a.key == b.key);
        Ok(objects)
    }
}
