//! Writing objects: chunks under a new id, then the record that names it.
//!
//! A small body is kept and sent again, all of it and under another id, when something is uncertain: a chunk that was
//! published twice would be part of the object twice. A large body is sent once.

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishAckFuture, PublishErrorKind};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt, TryStreamExt};
use ring::digest::{Context, SHA256};

use super::super::exclusion;
use super::super::file::check_size;
use super::super::stream::{Start, start};
use super::connect::Bucket;
use super::meta::digest_text;
use super::{
    Asked, ByteStream, CHUNK, Call, Error, ErrorKind, Failure, Key, Meta, NatsClient, ObjectMeta, Operation,
    PutOptions, Result, WINDOW, chunk_subject, meta_subject,
};

/// Bodies up to here can be sent again.
const SMALL: usize = 1 << 20;
const DOING: &str = "write object";
/// Room for what surrounds a payload.
const ENVELOPE: usize = 1024;

pub(super) async fn put(nats: &NatsClient, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
    let object = nats.object(key.as_str());
    let target = nats.target(&object);
    let new = New { nats, object: &object, target: &target, opts };
    let size = match start(body, SMALL, opts.size, &target).await? {
        Start::Whole(first) => {
            let size = first.len() as u64;
            let call = Call { operation: Operation::Put, kind: "nats", target: &target, objects: 1, bytes: size };
            nats.0.requests.run(call, |_| Box::pin(new.small(&first))).await?;
            size
        }
        Start::Longer(first, rest, body) => Box::pin(new.large(first, rest, body)).await?,
    };
    Ok(ObjectMeta { key: key.clone(), size, modified: opts.stamp })
}

/// An object on its way.
struct New<'a> {
    nats: &'a NatsClient,
    object: &'a str,
    target: &'a str,
    opts: PutOptions,
}

/// Chunks that are no object yet; purged when dropped.
struct Chunks {
    bucket: Bucket,
    subject: String,
    kept: bool,
}

impl Drop for Chunks {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let (stream, subject) = (self.bucket.stream.clone(), self.subject.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Nobody is left to wait for it. What even that cannot remove takes room, and is seen by nobody.
            runtime.spawn(async move {
                let _ = stream.purge().filter(subject).await;
            });
        }
    }
}

impl New<'_> {
    fn asked(&self) -> Asked<'_> {
        Asked { doing: DOING, target: self.target }
    }

    fn call(&self, size: u64) -> Call<'_> {
        Call { operation: Operation::Put, kind: "nats", target: self.target, objects: 1, bytes: size }
    }

    async fn small(&self, body: &Bytes) -> Result<(), Failure> {
        let mut writing = self.begin().await?;
        writing.add(body, self.asked()).await?;
        writing.finish(self).await
    }

    async fn large(&self, first: Bytes, rest: Bytes, mut body: ByteStream) -> Result<u64> {
        let call = Call { objects: 0, ..self.call(0) };
        let mut writing = self.nats.0.requests.run(call, |_| Box::pin(self.begin())).await?;
        for piece in [first, rest] {
            writing.add(&piece, self.asked()).await.map_err(|failed| failed.error)?;
        }
        while let Some(piece) = body.try_next().await? {
            writing.add(&piece, self.asked()).await.map_err(|failed| failed.error)?;
        }
        let size = writing.meta.size + writing.rest.len() as u64;
        check_size(self.opts.size, size).map_err(|e| e.at(self.target))?;
        let call = self.call(size);
        self.nats.0.requests.once(call, writing.finish(self)).await.map_err(|failed| failed.error)?;
        Ok(size)
    }

    async fn begin(&self) -> Result<Writing, Failure> {
        let bucket = self.nats.bucket(DOING, self.target).await?;
        if !bucket.is_connected() {
            // Publishing now would wait in a queue, and nobody could tell for how long.
            let gone = std::io::Error::from(std::io::ErrorKind::NotConnected);
            return Err(self.asked().failed(&bucket, "Connection", &gone));
        }
        let world = &self.nats.0.world;
        let id = format!("{:016x}{:016x}", world.random.next_u64(), world.random.next_u64());
        let name = self.nats.bucket_name();
        let meta = Meta::new(name, self.object, &id, self.opts.stamp, world.clock.now());
        let most = bucket.max_payload.saturating_sub(ENVELOPE).clamp(1, CHUNK);
        let chunks = Chunks { bucket, subject: chunk_subject(name, &id), kept: false };
        let under_way = FuturesUnordered::new();
        Ok(Writing { chunks, meta, most, rest: bytes::BytesMut::new(), sum: Context::new(&SHA256), under_way })
    }

    /// Publishes the record; before that, what stands in its place.
    async fn publish(&self, bucket: &Bucket, meta: &Meta) -> Result<(), Failure> {
        let asked = self.asked();
        let json = serde_json::to_vec(meta).map_err(|e| asked.failed(bucket, "Record", &e))?;
        let mut before = None;
        if !self.opts.exclusive {
            before = self.nats.info(bucket, asked, self.object).await?;
        }
        let tried = self.nats.tried();
        if self.opts.exclusive
            && tried != Some(true)
            && self.nats.info(bucket, asked, self.object).await?.is_some_and(|(there, _)| !there.deleted)
        {
            return Err(self.exists());
        }
        match self.publish_record(bucket, &json, self.opts.exclusive.then_some(0)).await? {
            // The same record once more must be refused. That would write it over itself.
            true if self.opts.exclusive && tried.is_none() => {
                if let Ok(replaced) = self.publish_record(bucket, &json, Some(0)).await {
                    exclusion::remember("nats", &self.nats.place(), !replaced);
                }
            }
            true => {}
            // Somebody's object, or the mark that Litestream leaves of a deleted one.
            false => match self.nats.info(bucket, asked, self.object).await? {
                Some((deleted, sequence)) if deleted.deleted => {
                    if !self.publish_record(bucket, &json, Some(sequence)).await? {
                        return Err(self.exists());
                    }
                }
                _ => return Err(self.exists()),
            },
        }
        if let Some((old, _)) = before.filter(|(old, _)| !old.nuid.is_empty() && old.nuid != meta.nuid) {
            let subject = chunk_subject(self.nats.bucket_name(), &old.nuid);
            // The object is there. Chunks of the old one take room, and are seen by nobody.
            if let Err(error) = bucket.stream.purge().filter(subject).await {
                tracing::debug!(%error, target = self.target, "nats: chunks of a replaced object are left");
            }
        }
        Ok(())
    }

    /// Whether the record is in its place; not if the last message of its subject is not the expected one.
    async fn publish_record(&self, bucket: &Bucket, json: &[u8], expected: Option<u64>) -> Result<bool, Failure> {
        let asked = self.asked();
        let subject = meta_subject(self.nats.bucket_name(), self.object);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Rollup", "sub");
        if let Some(expected) = expected {
            headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string().as_str());
        }
        let sent = bucket.context.publish_with_headers(subject, headers, Bytes::copy_from_slice(json)).await;
        let published = match sent {
            Ok(ack) => ack.await.map(|_| ()),
            Err(err) => Err(err),
        };
        match published {
            Ok(()) => Ok(true),
            Err(err) if err.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
            Err(err) => Err(asked.failed(bucket, "Publish", &err)),
        }
    }

    fn exists(&self) -> Failure {
        let error = Error::new(ErrorKind::Exists, "nats: write object").at(self.target).caused_by("object exists");
        Failure { error, code: "Exists".to_owned(), retry_after: None }
    }
}

/// Chunks under way.
struct Writing {
    chunks: Chunks,
    meta: Meta,
    /// Bytes per message.
    most: usize,
    /// Bytes that do not fill a message yet.
    rest: bytes::BytesMut,
    sum: Context,
    under_way: FuturesUnordered<<PublishAckFuture as IntoFuture>::IntoFuture>,
}

impl Writing {
    async fn add(&mut self, mut bytes: &[u8], asked: Asked<'_>) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.most - self.rest.len()));
            self.rest.extend_from_slice(now);
            bytes = later;
            if self.rest.len() == self.most {
                self.send(asked).await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, asked: Asked<'_>) -> Result<(), Failure> {
        while self.under_way.len() >= (WINDOW / self.most).max(1) {
            self.one(asked).await?;
        }
        let chunk = self.rest.split().freeze();
        self.sum.update(&chunk);
        self.meta.size += chunk.len() as u64;
        self.meta.chunks += 1;
        let bucket = &self.chunks.bucket;
        let sent = bucket.context.publish(self.chunks.subject.clone(), chunk).await;
        self.under_way.push(sent.map_err(|err| asked.failed(bucket, "Publish", &err))?.into_future());
        Ok(())
    }

    async fn one(&mut self, asked: Asked<'_>) -> Result<(), Failure> {
        match self.under_way.next().await {
            Some(Err(err)) => Err(asked.failed(&self.chunks.bucket, "Publish", &err)),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    /// The last chunk, then the record.
    async fn finish(mut self, new: &New<'_>) -> Result<(), Failure> {
        let asked = new.asked();
        if !self.rest.is_empty() {
            self.send(asked).await?;
        }
        while !self.under_way.is_empty() {
            self.one(asked).await?;
        }
        self.meta.digest = Some(digest_text(self.sum.clone().finish().as_ref()));
        new.publish(&self.chunks.bucket, &self.meta).await?;
        self.chunks.kept = true;
        Ok(())
    }
}
