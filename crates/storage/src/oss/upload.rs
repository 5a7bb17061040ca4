//! Writing objects: one request where the body fits a part, else a multipart upload.

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use http::Method;

use super::super::exclusion;
use super::super::file::check_size;
use super::super::requests::{seen, unless};
use super::super::stamp::stamp_text;
use super::super::stream::{Start, fill, start};
use super::api::{Ask, Asked};
use super::{
    ByteStream, Error, ErrorKind, Failure, Key, ObjectMeta, Operation, OssClient, PutOptions, Result, STAMP, web, xml,
};

/// Bytes per part where none are configured, as in the reference.
const PART_BYTES: u64 = 6 << 20;
/// The service's bound for all parts but the last.
const MIN_PART_BYTES: u64 = 100 << 10;
/// Parts in flight where nothing is configured, as in the reference.
const PARTS_AT_ONCE: usize = 3;
/// Parts of one upload: the service's bound.
const MAX_PARTS: u64 = 10_000;
/// After so many parts of a body of unknown length each further part is larger by one step.
const PARTS_PER_STEP: u64 = 2_000;

fn place(oss: &OssClient) -> Option<String> {
    oss.0.api.get().map(super::api::Api::place)
}

/// Whether the bucket heeds `x-oss-forbid-overwrite`. Before the first request it is not known which bucket this is.
pub(super) fn tried(oss: &OssClient) -> Option<bool> {
    exclusion::tried("oss", &place(oss)?)
}

fn remember(oss: &OssClient, heeds: bool) {
    if let Some(place) = place(oss) {
        exclusion::remember("oss", &place, heeds);
    }
}

pub(super) async fn put(oss: &OssClient, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
    let object = oss.object(key.as_str());
    let target = oss.target(&object);
    let part_bytes = part_bytes(oss.0.settings.part_size_bytes, opts.size).map_err(|e| e.at(&target))?;
    let size = match start(body, part_bytes, opts.size, &target).await? {
        Start::Whole(first) => {
            let size = first.len() as u64;
            whole(oss, &object, &target, first, opts).await?;
            size
        }
        Start::Longer(first, rest, body) => {
            Multipart::begin(oss, &object, &target, opts).await?.send(first, body, rest, part_bytes).await?
        }
    };
    Ok(ObjectMeta { key: key.clone(), size, modified: opts.stamp })
}

/// Bytes per part: as configured, more if the body would not fit otherwise.
fn part_bytes(configured: Option<u64>, size: Option<u64>) -> Result<usize> {
    let configured = configured.unwrap_or(PART_BYTES);
    if configured < MIN_PART_BYTES {
        let text = format!("part size must be at least {MIN_PART_BYTES} bytes");
        return Err(Error::invalid("oss: upload to").caused_by(text));
    }
    let needed = size.map_or(0, |size| size.div_ceil(MAX_PARTS));
    usize::try_from(configured.max(needed)).map_err(|e| Error::invalid("oss: part size").caused_by(e))
}

async fn whole(oss: &OssClient, object: &str, target: &str, bytes: Bytes, opts: PutOptions) -> Result<()> {
    let asked = Asked { operation: Operation::Put, doing: "write object", target };
    let exclusive = opts.exclusive && {
        refuse_existing(oss, object, target).await?;
        tried(oss) != Some(false)
    };
    let call = asked.call(1, bytes.len() as u64);
    let done = oss.0.requests.run(call, |_| once(oss, asked, object, &bytes, opts, exclusive)).await;
    match &done {
        Err(err) if err.kind() == ErrorKind::Exists => remember(oss, true),
        // The same object once more: a bucket that heeds the header must refuse it, one that does not writes the
        // same bytes over themselves. Done once per bucket and process.
        Ok(()) if exclusive && tried(oss).is_none() => {
            let again = |_| async { unless(ErrorKind::Exists, once(oss, asked, object, &bytes, opts, true).await) };
            match oss.0.requests.run(asked.call(0, 0), again).await {
                Ok(replaced) => remember(oss, replaced.is_none()),
                // Not known yet; the object is there, and that is what was asked.
                Err(err) => tracing::debug!(error = %err, "cannot tell yet whether objects can be created exclusively"),
            }
        }
        _ => {}
    }
    done
}

/// Looks whether there is an object of this name, unless the bucket is known to do that itself.
async fn refuse_existing(oss: &OssClient, object: &str, target: &str) -> Result<()> {
    oss.api().await?;
    if tried(oss) == Some(true) || !seen(oss.head_if_there(object).await.map(|head| head.is_some()))? {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Exists, "oss: write object").at(target).caused_by("object exists"))
}

/// What both ways of writing say about the object.
fn described(ask: Ask, opts: PutOptions, exclusive: bool) -> Ask {
    let ask = ask.header("content-type", "application/octet-stream".to_owned()).header(STAMP, stamp_text(opts.stamp));
    if exclusive { ask.header(FORBID, "true".to_owned()) } else { ask }
}

const FORBID: &str = "x-oss-forbid-overwrite";

/// One attempt.
async fn once(
    oss: &OssClient,
    asked: Asked<'_>,
    object: &str,
    bytes: &Bytes,
    opts: PutOptions,
    exclusive: bool,
) -> Result<(), Failure> {
    let broken = |error| Failure { error, code: "Request".to_owned(), retry_after: None };
    let api = oss.api().await.map_err(broken)?;
    let ask = described(Ask::new(Method::PUT, object), opts, exclusive).body(bytes.clone());
    let answer = api.send(asked, ask).await?;
    etag(asked, answer.headers())?;
    web::answer(answer.into_body()).await.map(|_| ()).map_err(|e| asked.broken(e.to_string()))
}

/// What answers without an entity tag has not stored an object (a proxy's page, for instance).
fn etag(asked: Asked<'_>, headers: &http::HeaderMap) -> Result<String, Failure> {
    let tag = headers.get("etag").and_then(|value| value.to_str().ok());
    tag.map(str::to_owned).ok_or_else(|| asked.broken("upload failed: no ETag returned".to_owned()))
}

/// One upload in parts. Ended by `send`; dropping it before aborts it in the background.
struct Multipart {
    oss: OssClient,
    object: String,
    target: String,
    opts: PutOptions,
    /// `None` once it is completed or aborted.
    id: Option<String>,
}

impl Multipart {
    fn asked(&self, doing: &'static str) -> Asked<'_> {
        Asked { operation: Operation::Put, doing, target: &self.target }
    }

    async fn begin(oss: &OssClient, object: &str, target: &str, opts: PutOptions) -> Result<Self> {
        if opts.exclusive {
            // Not every bucket heeds the header on the last request, and many bytes lie before it.
            match oss.head(object).await {
                Ok(_) => return Err(Error::new(ErrorKind::Exists, "oss: write object").at(target)),
                Err(err) if err.kind() == ErrorKind::NotFound => {}
                Err(err) => return Err(err),
            }
        }
        let api = oss.api().await?;
        let asked = Asked { operation: Operation::Put, doing: "write object", target };
        let upload: xml::Upload = oss
            .0
            .requests
            .run(asked.call(0, 0), |_| {
                let ask = Ask::new(Method::POST, object).query("uploads", "").query("encoding-type", "url");
                let ask = described(ask, opts, opts.exclusive);
                async move {
                    let answer = api.send(asked, ask).await?;
                    let body = web::answer(answer.into_body()).await.map_err(|e| asked.broken(e.to_string()))?;
                    xml::parse(&body).map_err(|text| asked.broken(text))
                }
            })
            .await?;
        if upload.upload_id.is_empty() {
            let text = "the service gave the upload no id";
            return Err(Error::new(ErrorKind::Unavailable, "oss: write object").at(target).caused_by(text));
        }
        let (object, target) = (object.to_owned(), target.to_owned());
        Ok(Self { oss: oss.clone(), object, target, opts, id: Some(upload.upload_id) })
    }

    /// Sends all parts and completes the upload; returns the object's size.
    async fn send(mut self, first: Bytes, body: ByteStream, rest: Bytes, part_bytes: usize) -> Result<u64> {
        let sent = match self.parts(first, body, rest, part_bytes).await {
            Ok((parts, size)) => self.complete(&parts).await.map(|()| size),
            Err(err) => Err(err),
        };
        let id = self.id.take();
        if sent.is_err()
            && let Some(id) = id
        {
            abort(&self.oss, &self.object, &self.target, &id).await;
        }
        sent
    }

    async fn parts(
        &self,
        first: Bytes,
        mut body: ByteStream,
        mut rest: Bytes,
        part_bytes: usize,
    ) -> Result<(Vec<(u64, String)>, u64)> {
        let at_once = self.oss.0.settings.concurrency.unwrap_or(PARTS_AT_ONCE);
        let (mut flying, mut done) = (FuturesUnordered::new(), Vec::new());
        let (mut next, mut number, mut size) = (first, 1_u64, 0_u64);
        while !next.is_empty() {
            if number > MAX_PARTS {
                let text = format!("more than {MAX_PARTS} parts: set a larger part-size");
                return Err(Error::invalid("oss: write object").at(&self.target).caused_by(text));
            }
            size += next.len() as u64;
            flying.push(self.part(number, next));
            if flying.len() >= at_once
                && let Some(part) = flying.next().await
            {
                done.push(part?);
            }
            let steps = if self.opts.size.is_none() { number / PARTS_PER_STEP } else { 0 };
            number += 1;
            let want = part_bytes.saturating_mul(usize::try_from(steps + 1).unwrap_or(1));
            next = fill(&mut body, &mut rest, want).await?;
        }
        while let Some(part) = flying.next().await {
            done.push(part?);
        }
        check_size(self.opts.size, size).map_err(|e| e.at(&self.target))?;
        done.sort_unstable();
        Ok((done, size))
    }

    async fn part(&self, number: u64, bytes: Bytes) -> Result<(u64, String)> {
        let api = self.oss.api().await?;
        let asked = self.asked("write part of object");
        let id = self.id.as_deref().unwrap_or_default();
        let tag = self
            .oss
            .0
            .requests
            .run(asked.call(0, bytes.len() as u64), |_| {
                let ask = Ask::new(Method::PUT, &self.object)
                    .query("partNumber", &number.to_string())
                    .query("uploadId", id)
                    .body(bytes.clone());
                async move {
                    let answer = api.send(asked, ask).await?;
                    let tag = etag(asked, answer.headers())?;
                    web::answer(answer.into_body()).await.map_err(|e| asked.broken(e.to_string()))?;
                    Ok(tag)
                }
            })
            .await?;
        Ok((number, tag))
    }

    async fn complete(&self, parts: &[(u64, String)]) -> Result<()> {
        let api = self.oss.api().await?;
        let asked = self.asked("write object");
        let id = self.id.as_deref().unwrap_or_default();
        let body = Bytes::from(xml::complete(parts));
        if self.opts.exclusive {
            refuse_existing(&self.oss, &self.object, &self.target).await?;
        }
        self.oss
            .0
            .requests
            .run(asked.call(1, 0), |_| {
                let mut ask = Ask::new(Method::POST, &self.object)
                    .query("uploadId", id)
                    .header("content-type", "application/xml".to_owned())
                    .body(body.clone());
                if self.opts.exclusive {
                    ask = ask.header(FORBID, "true".to_owned());
                }
                async move {
                    let answer = api.send(asked, ask).await?;
                    web::answer(answer.into_body()).await.map(|_| ()).map_err(|e| asked.broken(e.to_string()))
                }
            })
            .await
    }
}

impl Drop for Multipart {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let (oss, object, target) = (self.oss.clone(), self.object.clone(), self.target.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Nobody is left to wait for it; what it cannot do, the bucket's lifecycle rules do.
            runtime.spawn(async move { abort(&oss, &object, &target, &id).await });
        }
    }
}

/// Lets go of the parts: they cost money, and no listing shows them.
async fn abort(oss: &OssClient, object: &str, target: &str, id: &str) {
    let Ok(api) = oss.api().await else { return };
    let asked = Asked { operation: Operation::Delete, doing: "abort upload of object", target };
    let aborted = oss
        .0
        .requests
        .run(asked.call(0, 0), |_| async {
            api.send(asked, Ask::new(Method::DELETE, object).query("uploadId", id)).await.map(|_| ())
        })
        .await;
    if let Err(error) = aborted {
        tracing::warn!(%error, "parts of a failed upload may be left in the bucket");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_large_enough_and_few_enough() {
        assert_eq!(part_bytes(None, None).unwrap() as u64, PART_BYTES);
        assert!(part_bytes(Some(1000), None).is_err());
        let huge = 1_u64 << 40;
        assert!(part_bytes(None, Some(huge)).unwrap() as u64 * MAX_PARTS >= huge);
    }
}
