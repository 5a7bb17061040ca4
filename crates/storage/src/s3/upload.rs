//! Writing objects: one request where the body fits a part, else a multipart upload.

use std::future::Future;

use aws_sdk_s3::operation::RequestId as _;
use aws_sdk_s3::primitives::ByteStream as SdkBody;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, ServerSideEncryption, StorageClass,
};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};

use super::super::exclusion;
use super::super::file::check_size;
use super::super::requests::{seen, unless};
use super::super::stream::{Start, fill, start};
use super::failure::{Asked, failure};
use super::vendor::PART_BYTES;
use super::{
    ByteStream, Call, Encryption, Error, ErrorKind, Failure, Key, ObjectMeta, Operation, PutOptions, Result, S3Client,
    STAMP, SseC, stamp_text,
};

/// A request that makes an object, in one piece or in parts: stamp, storage class, encryption.
macro_rules! as_new_object {
    ($request:expr, $s3:expr, $sse:expr, $stamp:expr) => {{
        let class = $s3.0.settings.storage_class.as_deref().map(StorageClass::from);
        let request = $request.metadata(STAMP, $stamp).set_storage_class(class);
        match $s3.encryption() {
            Ok(Encryption::Kms(id)) => request.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(id),
            _ => under_customer_key!(request, $sse),
        }
    }};
}

/// Parts of one upload: the protocol's bound.
const MAX_PARTS: u64 = 10_000;
/// After so many parts of a body of unknown length each further part is larger by one step.
const PARTS_PER_STEP: u64 = 2_000;

fn place(s3: &S3Client) -> String {
    format!("{} {}", s3.0.habits.endpoint.as_deref().unwrap_or("aws"), s3.bucket())
}

/// Whether the service heeds `If-None-Match` on writes.
pub(super) fn tried(s3: &S3Client) -> Option<bool> {
    exclusion::tried("s3", &place(s3))
}

fn remember(s3: &S3Client, heeds: bool) {
    exclusion::remember("s3", &place(s3), heeds);
}

pub(super) async fn put(s3: &S3Client, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
    let object = s3.object(key.as_str());
    let target = s3.target(&object);
    let part_bytes = part_bytes(s3, opts.size).map_err(|e| e.at(&target))?;
    let size = match start(body, part_bytes, opts.size, &target).await? {
        Start::Whole(first) => {
            let size = first.len() as u64;
            put_whole(s3, &object, &target, first, opts).await?;
            size
        }
        Start::Longer(first, rest, body) => {
            Multipart::begin(s3, &object, &target, opts).await?.send(first, body, rest, part_bytes).await?
        }
    };
    Ok(ObjectMeta { key: key.clone(), size, modified: opts.stamp })
}

/// Bytes per part: as configured, more if the body would not fit otherwise.
fn part_bytes(s3: &S3Client, size: Option<u64>) -> Result<usize> {
    let configured = s3.0.habits.part_bytes;
    if configured < PART_BYTES {
        let text = format!("part size must be at least {PART_BYTES} bytes");
        return Err(Error::invalid("s3: upload to").caused_by(text));
    }
    let needed = size.map_or(0, |size| size.div_ceil(MAX_PARTS));
    usize::try_from(configured.max(needed)).map_err(|e| Error::invalid("s3: part size").caused_by(e))
}

async fn put_whole(s3: &S3Client, object: &str, target: &str, bytes: Bytes, opts: PutOptions) -> Result<()> {
    let call = Call { operation: Operation::Put, kind: "s3", target, objects: 1, bytes: bytes.len() as u64 };
    let plain = || s3.0.requests.run(call, |_| put_once(s3, object, target, &bytes, opts, false));
    if !opts.exclusive {
        return plain().await;
    }
    refuse_existing(s3, object, target).await?;
    let known = tried(s3);
    if known == Some(false) {
        return plain().await;
    }
    let put = s3.0.requests.run(call, |_| understood(put_once(s3, object, target, &bytes, opts, true)));
    match put.await {
        Ok(Understood::Yes) if known.is_none() => probe(s3, object, target, &bytes, opts).await,
        Ok(Understood::Yes) => Ok(()),
        Ok(Understood::No) => {
            remember(s3, false);
            plain().await
        }
        Err(err) => {
            if err.kind() == ErrorKind::Exists {
                remember(s3, true);
            }
            Err(err)
        }
    }
}

/// Looks whether there is an object of this name, unless the service is known to do that itself.
async fn refuse_existing(s3: &S3Client, object: &str, target: &str) -> Result<()> {
    if tried(s3) == Some(true) || !seen(s3.head_if_there(object).await.map(|head| head.is_some()))? {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Exists, "s3: write object").at(target).caused_by("object exists"))
}

/// The same object once more: a service that creates exclusively must refuse it, one that does not writes
/// the same bytes over themselves. Leaves nothing behind, and is done once per bucket and process.
async fn probe(s3: &S3Client, object: &str, target: &str, bytes: &Bytes, opts: PutOptions) -> Result<()> {
    let call = Call { operation: Operation::Put, kind: "s3", target, objects: 0, bytes: 0 };
    let again = |_| async { unless(ErrorKind::Exists, put_once(s3, object, target, bytes, opts, true).await) };
    match s3.0.requests.run(call, again).await {
        Ok(replaced) => remember(s3, replaced.is_none()),
        // Not known yet; the object is there, and that is what was asked.
        Err(err) => tracing::debug!(error = %err, "cannot tell yet whether objects can be created exclusively"),
    }
    Ok(())
}

/// Whether a service knows what the condition of a write means.
enum Understood {
    Yes,
    No,
}

async fn understood(sent: impl Future<Output = Result<(), Failure>>) -> Result<Understood, Failure> {
    match sent.await {
        Ok(()) => Ok(Understood::Yes),
        Err(failure) if matches!(failure.code.as_str(), "NotImplemented" | "HTTP501") => Ok(Understood::No),
        Err(failure) => Err(failure),
    }
}

/// One attempt.
async fn put_once(
    s3: &S3Client,
    object: &str,
    target: &str,
    bytes: &Bytes,
    opts: PutOptions,
    exclusive: bool,
) -> Result<(), Failure> {
    let ready = async { Ok((s3.client().await?, s3.customer_key()?)) };
    let broken = |error| Failure { error, code: "Request".to_owned(), retry_after: None };
    let (client, sse) = ready.await.map_err(broken)?;
    let asked = Asked { api: "PutObject", doing: "write object", target };
    let stamp = stamp_text(opts.stamp);
    let request = client
        .put_object()
        .bucket(s3.bucket())
        .key(object)
        .content_type("application/octet-stream")
        .set_if_none_match(exclusive.then(|| "*".to_owned()))
        .body(SdkBody::from(bytes.clone()));
    let request = as_new_object!(request, s3, &sse, &stamp);
    let answer = request.send().await.map_err(|e| failure(asked, e))?;
    let id = answer.request_id().map(str::to_owned);
    stored(target, answer.e_tag().is_some(), id)
}

/// What answers without an entity tag has not stored an object (a proxy's page, for instance).
fn stored(target: &str, tagged: bool, request_id: Option<String>) -> Result<(), Failure> {
    if tagged {
        return Ok(());
    }
    let text = format!("upload failed: no ETag returned (RequestID: {})", request_id.unwrap_or_default());
    Err(Failure {
        error: Error::new(ErrorKind::Unavailable, "s3: write object").at(target).caused_by(text),
        code: "NoETag".to_owned(),
        retry_after: None,
    })
}

/// AWS wants the same kind of checksum announced and sent with each part; others may not know them.
fn checksum(s3: &S3Client) -> Option<ChecksumAlgorithm> {
    s3.0.habits.endpoint.is_none().then_some(ChecksumAlgorithm::Crc32)
}

/// One upload in parts. Ended by `send`; dropping it before aborts it in the background.
struct Multipart {
    s3: S3Client,
    object: String,
    target: String,
    opts: PutOptions,
    /// `None` once it is completed or aborted.
    id: Option<String>,
}

impl Multipart {
    async fn begin(s3: &S3Client, object: &str, target: &str, opts: PutOptions) -> Result<Self> {
        if opts.exclusive {
            // Not every service heeds a condition on the last request, and many bytes lie before it.
            match s3.head(object).await {
                Ok(_) => return Err(Error::new(ErrorKind::Exists, "s3: write object").at(target)),
                Err(err) if err.kind() == ErrorKind::NotFound => {}
                Err(err) => return Err(err),
            }
        }
        let (client, sse) = (s3.client().await?, s3.customer_key()?);
        let asked = Asked { api: "CreateMultipartUpload", doing: "write object", target };
        let call = Call { operation: Operation::Put, kind: "s3", target, objects: 0, bytes: 0 };
        let stamp = stamp_text(opts.stamp);
        let answer =
            s3.0.requests
                .run(call, |_| {
                    let request = client
                        .create_multipart_upload()
                        .bucket(s3.bucket())
                        .key(object)
                        .set_checksum_algorithm(checksum(s3));
                    let request = as_new_object!(request, s3, &sse, &stamp);
                    async move { request.send().await.map_err(|e| failure(asked, e)) }
                })
                .await?;
        let Some(id) = answer.upload_id else {
            let text = "the service gave the upload no id";
            return Err(Error::new(ErrorKind::Unavailable, "s3: write object").at(target).caused_by(text));
        };
        let (object, target) = (object.to_owned(), target.to_owned());
        Ok(Self { s3: s3.clone(), object, target, opts, id: Some(id) })
    }

    /// Sends all parts and completes the upload; returns the object's size.
    async fn send(mut self, first: Bytes, body: ByteStream, rest: Bytes, part_bytes: usize) -> Result<u64> {
        let sent = match self.parts(first, body, rest, part_bytes).await {
            Ok((parts, size)) => self.complete(parts).await.map(|()| size),
            Err(err) => Err(err),
        };
        let id = self.id.take();
        if sent.is_err()
            && let Some(id) = id
        {
            abort(&self.s3, &self.object, &self.target, &id).await;
        }
        sent
    }

    async fn parts(
        &self,
        first: Bytes,
        mut body: ByteStream,
        mut rest: Bytes,
        part_bytes: usize,
    ) -> Result<(Vec<CompletedPart>, u64)> {
        let habits = &self.s3.0.habits;
        let (mut flying, mut done) = (FuturesUnordered::new(), Vec::new());
        let (mut next, mut number, mut size) = (first, 1_u64, 0_u64);
        while !next.is_empty() {
            if number > MAX_PARTS {
                let text = format!("more than {MAX_PARTS} parts: set a larger part-size");
                return Err(Error::invalid("s3: write object").at(&self.target).caused_by(text));
            }
            size += next.len() as u64;
            flying.push(self.part(number, next));
            if flying.len() >= habits.concurrency
                && let Some(part) = flying.next().await
            {
                done.push(part?);
            }
            let steps = match self.opts.size {
                None if habits.uneven_parts => number / PARTS_PER_STEP,
                _ => 0,
            };
            number += 1;
            let want = part_bytes.saturating_mul(usize::try_from(steps + 1).unwrap_or(1));
            next = fill(&mut body, &mut rest, want).await?;
        }
        while let Some(part) = flying.next().await {
            done.push(part?);
        }
        check_size(self.opts.size, size).map_err(|err| err.at(&self.target))?;
        done.sort_unstable_by_key(CompletedPart::part_number);
        Ok((done, size))
    }

    async fn part(&self, number: u64, bytes: Bytes) -> Result<CompletedPart> {
        let (s3, target) = (&self.s3, self.target.as_str());
        let (client, sse) = (s3.client().await?, s3.customer_key()?);
        let number = i32::try_from(number).map_err(|e| Error::invalid("s3: part number").caused_by(e))?;
        let asked = Asked { api: "UploadPart", doing: "write part of object", target };
        let call = Call { operation: Operation::Put, kind: "s3", target, objects: 0, bytes: bytes.len() as u64 };
        let answer =
            s3.0.requests
                .run(call, |_| {
                    let request = client
                        .upload_part()
                        .bucket(s3.bucket())
                        .key(&self.object)
                        .set_upload_id(self.id.clone())
                        .part_number(number)
                        .set_checksum_algorithm(checksum(s3))
                        .body(SdkBody::from(bytes.clone()));
                    let request = under_customer_key!(request, &sse);
                    async move {
                        let answer = request.send().await.map_err(|e| failure(asked, e))?;
                        stored(target, answer.e_tag().is_some(), None)?;
                        Ok(answer)
                    }
                })
                .await?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag)
            .set_checksum_crc32(answer.checksum_crc32)
            .set_checksum_crc64_nvme(answer.checksum_crc64_nvme)
            .build())
    }

    async fn complete(&self, parts: Vec<CompletedPart>) -> Result<()> {
        let (s3, target) = (&self.s3, self.target.as_str());
        let client = s3.client().await?;
        let asked = Asked { api: "CompleteMultipartUpload", doing: "write object", target };
        let call = Call { operation: Operation::Put, kind: "s3", target, objects: 1, bytes: 0 };
        if self.opts.exclusive {
            refuse_existing(s3, &self.object, target).await?;
        }
        let upload = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = |exclusive: bool| {
            let request = client
                .complete_multipart_upload()
                .bucket(s3.bucket())
                .key(&self.object)
                .set_upload_id(self.id.clone())
                .set_if_none_match(exclusive.then(|| "*".to_owned()))
                .multipart_upload(upload.clone());
            async move {
                let answer = request.send().await.map_err(|e| failure(asked, e))?;
                stored(target, answer.e_tag().is_some(), None)
            }
        };
        if self.opts.exclusive && tried(s3) != Some(false) {
            match s3.0.requests.run(call, |_| understood(complete(true))).await? {
                Understood::Yes => return Ok(()),
                Understood::No => remember(s3, false),
            }
        }
        s3.0.requests.run(call, |_| complete(false)).await
    }
}

impl Drop for Multipart {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let (s3, object, target) = (self.s3.clone(), self.object.clone(), self.target.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Nobody is left to wait for it; what it cannot do, the bucket's lifecycle rules do.
            runtime.spawn(async move { abort(&s3, &object, &target, &id).await });
        }
    }
}

/// Lets go of the parts: they cost money, and no listing shows them.
async fn abort(s3: &S3Client, object: &str, target: &str, id: &str) {
    let Ok(client) = s3.client().await else { return };
    let asked = Asked { api: "AbortMultipartUpload", doing: "abort upload of object", target };
    let call = Call { operation: Operation::Delete, kind: "s3", target, objects: 0, bytes: 0 };
    let aborted =
        s3.0.requests
            .run(call, |_| {
                let request = client.abort_multipart_upload().bucket(s3.bucket()).key(object).upload_id(id);
                async move { request.send().await.map_err(|e| failure(asked, e)) }
            })
            .await;
    if let Err(error) = aborted {
        tracing::warn!(%error, "parts of a failed upload may be left in the bucket");
    }
}
