//! Reading objects. One chunk is one request; more come through a consumer that asks for a bounded number at a time.
//!
//! Chunks are read from the first on, whatever part is asked for: their lengths are not known beforehand. A whole
//! object is compared with its checksum.

use std::ops::Range;
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use ring::digest::{Context, SHA256};

use super::super::stream::clamp;
use super::connect::Bucket;
use super::meta::digest_text;
use super::{
    Asked, ByteStream, CHUNK, Call, Error, ErrorKind, Failure, Key, Meta, NatsClient, Operation, Result, WINDOW,
    chunk_subject, in_time,
};

const DOING: &str = "read object";
/// How long a chunk may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens an object.
pub(super) async fn open(nats: &NatsClient, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
    let object = nats.object(key.as_str());
    let target = nats.target(&object);
    let asked = Asked { doing: DOING, target: &target };
    let call = Call { operation: Operation::Get, kind: "nats", target: &target, objects: 1, bytes: 0 };
    let (meta, chunks) = nats
        .0
        .requests
        .run(call, |_| async {
            let bucket = nats.bucket(DOING, &target).await?;
            let found = nats.info(&bucket, asked, &object).await?;
            let Some((meta, _)) = found.filter(|(meta, _)| meta.is_object()) else {
                let error = Error::new(ErrorKind::NotFound, "nats: read object").at(&target);
                let error = error.caused_by("nats: object not found");
                return Err(Failure { error, code: "NotFound".to_owned(), retry_after: None });
            };
            let chunks = chunks(nats, &bucket, asked, &meta).await?;
            Ok((meta, chunks))
        })
        .await?;
    let range = clamp(range, meta.size);
    let whole = range == (0..meta.size);
    let digest = meta.digest.clone().filter(|_| whole);
    let reading = Reading { chunks, at: 0, size: meta.size, range, target, sum: Context::new(&SHA256), digest };
    Ok(stream::try_unfold(reading, Reading::step).boxed())
}

/// The chunks of an object, in order.
async fn chunks(nats: &NatsClient, bucket: &Bucket, asked: Asked<'_>, meta: &Meta) -> Result<ByteStream, Failure> {
    let failed = |err: &(dyn std::error::Error + 'static)| asked.failed(bucket, "Chunk", err);
    if meta.size == 0 || meta.chunks == 0 {
        return Ok(stream::empty().boxed());
    }
    let subject = chunk_subject(nats.bucket_name(), &meta.nuid);
    if meta.chunks == 1 && bucket.stream.cached_info().config.allow_direct {
        let chunk = bucket.stream.direct_get_last_for_subject(subject).await.map_err(|e| failed(&e))?;
        return Ok(super::super::stream::once(chunk.payload));
    }
    let config = pull::OrderedConfig {
        description: Some("litestream read".to_owned()),
        filter_subject: subject,
        max_batch: i64::try_from(WINDOW / CHUNK).unwrap_or(16),
        ..Default::default()
    };
    let consumer = Box::pin(bucket.stream.create_consumer(config)).await.map_err(|e| failed(&e))?;
    let pending = consumer.cached_info().num_pending;
    let messages = consumer.messages().await.map_err(|e| failed(&e))?;
    let (bucket, target) = (bucket.clone(), asked.target.to_owned());
    let reading = stream::try_unfold((messages, pending), move |(mut messages, pending)| {
        let (bucket, target) = (bucket.clone(), target.clone());
        async move {
            if pending == 0 {
                return Ok(None);
            }
            let asked = Asked { doing: DOING, target: &target };
            let message = match in_time(asked, PATIENCE, messages.next()).await.map_err(|failed| failed.error)? {
                Some(Ok(message)) => message,
                Some(Err(err)) => return Err(asked.failed(&bucket, "Chunk", &err).error),
                None => return Ok(None),
            };
            let pending = message.info().map_err(|e| asked.failed(&bucket, "Chunk", e.as_ref()).error)?.pending;
            Ok(Some((message.message.payload, (messages, pending))))
        }
    });
    Ok(reading.boxed())
}

struct Reading {
    chunks: ByteStream,
    /// Bytes seen so far.
    at: u64,
    size: u64,
    range: Range<u64>,
    target: String,
    sum: Context,
    /// What the checksum of the whole must be.
    digest: Option<String>,
}

impl Reading {
    async fn step(mut self) -> Result<Option<(Bytes, Self)>> {
        loop {
            // The last chunk is waited for and compared before the end is told.
            if self.at >= self.range.end {
                return Ok(None);
            }
            let broken =
                |target: &str, kind, text: String| Error::new(kind, "nats: read object").at(target).caused_by(text);
            let Some(chunk) = self.chunks.next().await else {
                // Replaced or deleted meanwhile.
                let text = format!("the object ends at {}, not at {}", self.at, self.size);
                return Err(broken(&self.target, ErrorKind::Unavailable, text));
            };
            let chunk = chunk?;
            let start = self.at;
            self.at += chunk.len() as u64;
            if self.at > self.size {
                let text = format!("the object has more than {} bytes", self.size);
                return Err(broken(&self.target, ErrorKind::Corrupt, text));
            }
            if let Some(digest) = &self.digest {
                self.sum.update(&chunk);
                if self.at == self.size && digest_text(self.sum.clone().finish().as_ref()) != *digest {
                    return Err(broken(&self.target, ErrorKind::Corrupt, "wrong digest".to_owned()));
                }
            }
            // Both are bounded by the chunk's length.
            let skip = self.range.start.saturating_sub(start).min(chunk.len() as u64) as usize;
            let keep = (self.range.end - start).min(chunk.len() as u64) as usize;
            let piece = chunk.slice(skip.min(keep)..keep);
            if !piece.is_empty() {
                return Ok(Some((piece, self)));
            }
        }
    }
}
