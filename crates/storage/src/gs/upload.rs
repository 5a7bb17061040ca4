//! Writing objects: one request where the body fits a chunk, else a resumable upload.

use bytes::{Bytes, BytesMut};
use http::{Method, Response};
use hyper::body::Incoming;
use serde_json::json;

use super::super::exclusion;
use super::super::file::check_size;
use super::super::requests::{Failure, seen, unless};
use super::super::stamp::stamp_text;
use super::super::stream::{Start, fill, start};
use super::api::Asked;
use super::{ByteStream, Error, ErrorKind, GsClient, Key, ObjectMeta, Operation, PutOptions, Result, STAMP, web};

/// Bytes per chunk; a multiple of 256 KiB, as the service demands.
const CHUNK_BYTES: usize = 8 << 20;

pub(super) async fn put(gs: &GsClient, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
    let object = gs.object(key.as_str());
    let target = gs.target(&object);
    let upload = Upload { gs, object, target, opts };
    let size = match start(body, CHUNK_BYTES, opts.size, &upload.target).await? {
        Start::Whole(first) => {
            let size = first.len() as u64;
            upload.whole(first).await?;
            size
        }
        Start::Longer(first, rest, body) => upload.chunks(first, body, rest).await?,
    };
    Ok(ObjectMeta { key: key.clone(), size, modified: opts.stamp })
}

struct Upload<'a> {
    gs: &'a GsClient,
    object: String,
    target: String,
    opts: PutOptions,
}

impl Upload<'_> {
    fn asked(&self) -> Asked<'_> {
        Asked { operation: Operation::Put, doing: "cannot write object", target: &self.target }
    }

    /// Path and query that begin an upload.
    fn path(&self, kind: &str, exclusive: bool) -> String {
        let bucket = web::encode(&self.gs.0.settings.bucket);
        let name = web::encode(&self.object);
        let condition = if exclusive { "&ifGenerationMatch=0" } else { "" };
        format!("/upload/storage/v1/b/{bucket}/o?uploadType={kind}&name={name}&fields=name,size{condition}")
    }

    fn metadata(&self) -> String {
        json!({
            "bucket": self.gs.0.settings.bucket,
            "metadata": { STAMP: stamp_text(self.opts.stamp) },
            "name": self.object,
        })
        .to_string()
    }

    async fn whole(&self, bytes: Bytes) -> Result<()> {
        let gs = self.gs;
        self.refuse_existing().await?;
        let done = gs.0.requests.run(self.asked().call(1, bytes.len() as u64), |_| self.once(&bytes)).await;
        match &done {
            Err(err) if err.kind() == ErrorKind::Exists => exclusion::remember("gs", &gs.place(), true),
            // The same object once more must be refused, or the condition is not heeded there. That writes the same
            // bytes over themselves, once per bucket and process.
            Ok(()) if self.opts.exclusive && gs.tried().is_none() => {
                let again = |_| async { unless(ErrorKind::Exists, self.once(&bytes).await) };
                match gs.0.requests.run(self.asked().call(0, 0), again).await {
                    Ok(replaced) => exclusion::remember("gs", &gs.place(), replaced.is_none()),
                    // Not known yet; the object is there, and that is what was asked.
                    Err(err) => {
                        tracing::debug!(error = %err, "cannot tell yet whether objects can be created exclusively")
                    }
                }
            }
            _ => {}
        }
        done
    }

    /// Before an exclusive put, unless the bucket is known to do that itself, and always at an emulator: some heed the
    /// condition for one kind of upload only.
    async fn refuse_existing(&self) -> Result<()> {
        let trusted = self.gs.tried() == Some(true) && self.gs.0.settings.emulator.is_none();
        if !self.opts.exclusive || trusted || !seen(self.gs.exists(&self.object).await)? {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Exists, "gs: cannot write object").at(&self.target).caused_by("object exists"))
    }

    /// Metadata and bytes in one request, one attempt.
    async fn once(&self, bytes: &Bytes) -> Result<(), Failure> {
        let broken = |error| Failure { error, code: "Request".to_owned(), retry_after: None };
        let api = self.gs.api().await.map_err(broken)?;
        let (kind, body) = related(&self.metadata(), bytes);
        let path = self.path("multipart", self.opts.exclusive);
        let request = api.request(Method::POST, &path).header("content-type", &kind).body(body);
        let answer = api.send(self.asked(), request).await?;
        self.finish(answer).await
    }

    /// What is not a plain success has stored nothing.
    async fn finish(&self, answer: Response<Incoming>) -> Result<(), Failure> {
        let status = answer.status();
        // To the end, so that the connection can be used again.
        let _ = web::answer(answer.into_body()).await;
        if status.is_success() { Ok(()) } else { Err(self.odd(format!("unexpected answer: {status}"))) }
    }

    fn odd(&self, text: String) -> Failure {
        let error = Error::new(ErrorKind::Unavailable, "gs: cannot write object").at(&self.target).caused_by(text);
        Failure { error, code: "Response".to_owned(), retry_after: None }
    }

    async fn chunks(&self, first: Bytes, mut body: ByteStream, mut rest: Bytes) -> Result<u64> {
        self.refuse_existing().await?;
        let mut session = self.begin().await?;
        let (mut chunk, mut start) = (first, 0_u64);
        let sent = loop {
            // The next one is read while this one is sent; whether there is a next one decides if this one is the last.
            // So the first chunk waits for the second to be read.
            let next = match fill(&mut body, &mut rest, CHUNK_BYTES).await {
                Ok(next) => next,
                Err(err) => break Err(err),
            };
            let end = start + chunk.len() as u64;
            if next.is_empty() {
                if let Err(err) = check_size(self.opts.size, end).map_err(|e| e.at(&self.target)) {
                    break Err(err);
                }
                break session.send(start, chunk, Some(end)).await.map(|()| end);
            }
            if let Err(err) = session.send(start, chunk, None).await {
                break Err(err);
            }
            (chunk, start) = (next, end);
        };
        match sent {
            Ok(size) => {
                session.url = None;
                Ok(size)
            }
            Err(err) => {
                session.cancel().await;
                Err(err)
            }
        }
    }

    async fn begin(&self) -> Result<Session> {
        let api = self.gs.api().await?;
        let path = self.path("resumable", self.opts.exclusive);
        let metadata = Bytes::from(self.metadata());
        let url = self
            .gs
            .0
            .requests
            .run(self.asked().call(0, 0), |_| async {
                let request = api
                    .request(Method::POST, &path)
                    .header("content-type", "application/json")
                    .header("x-upload-content-type", "application/octet-stream")
                    .body(metadata.clone());
                let answer = api.send(self.asked(), request).await?;
                let location = answer.headers().get("location").and_then(|v| v.to_str().ok()).map(str::to_owned);
                let _ = web::answer(answer.into_body()).await;
                location.ok_or_else(|| self.odd("the service gave the upload no address".to_owned()))
            })
            .await?;
        let (object, target) = (self.object.clone(), self.target.clone());
        Ok(Session { gs: self.gs.clone(), object, target, url: Some(url) })
    }
}

/// The body of a request that carries both, and its content type. The delimiter cannot be in the metadata, and a part
/// that comes last may hold anything but the closing delimiter, so it is long and random-looking.
fn related(metadata: &str, bytes: &Bytes) -> (String, Bytes) {
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    let boundary = format!("litestream-{sum:016x}-{:x}", bytes.len());
    let head = format!(
        "--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{metadata}\r\n--{boundary}\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    let tail = format!("\r\n--{boundary}--\r\n");
    let mut body = BytesMut::with_capacity(head.len() + bytes.len() + tail.len());
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(bytes);
    body.extend_from_slice(tail.as_bytes());
    (format!("multipart/related; boundary={boundary}"), body.freeze())
}

/// One resumable upload. Dropping it before it is finished cancels it in the background.
struct Session {
    gs: GsClient,
    object: String,
    target: String,
    /// `None` once it is finished or cancelled.
    url: Option<String>,
}

impl Session {
    fn asked(&self) -> Asked<'_> {
        Asked { operation: Operation::Put, doing: "cannot write part of object", target: &self.target }
    }

    fn lost(&self, kind: ErrorKind, text: String) -> Failure {
        let error = Error::new(kind, "gs: cannot write part of object").at(&self.target).caused_by(text);
        Failure { error, code: "Response".to_owned(), retry_after: None }
    }

    /// Sends the bytes from `start` on; `total` with the last ones. After a failure the service is asked how far it
    /// came.
    async fn send(&self, start: u64, bytes: Bytes, total: Option<u64>) -> Result<()> {
        let end = start + bytes.len() as u64;
        let objects = u64::from(total.is_some());
        self.gs
            .0
            .requests
            .run(self.asked().call(objects, bytes.len() as u64), |before| {
                let bytes = bytes.clone();
                async move {
                    let mut at = start;
                    if before > 0 {
                        match self.put(None, Bytes::new(), total).await? {
                            Progress::Done(size) => return self.whole(size, total).await,
                            Progress::At(there) => at = there,
                        }
                    }
                    while at < end {
                        // Behind the end, or before what it had: not the session we know.
                        let from = usize::try_from(at.wrapping_sub(start)).ok().filter(|from| *from < bytes.len());
                        let Some(from) = from else {
                            let text = format!("the service has {at} bytes, {start} to {end} were sent");
                            return Err(self.lost(ErrorKind::Io, text));
                        };
                        match self.put(Some(at), bytes.slice(from..), total).await? {
                            Progress::Done(size) if total.is_some() => return self.whole(size, total).await,
                            Progress::Done(_) => {
                                let text = "the service ended the upload early".to_owned();
                                return Err(self.lost(ErrorKind::Io, text));
                            }
                            Progress::At(there) if there <= at => {
                                return Err(self.lost(ErrorKind::Unavailable, "the service took nothing".to_owned()));
                            }
                            Progress::At(there) => at = there,
                        }
                    }
                    match total {
                        None => Ok(()),
                        Some(_) => Err(self.lost(ErrorKind::Unavailable, "the service waits for more".to_owned())),
                    }
                }
            })
            .await
    }

    /// The service says that the object is there, perhaps how long it is. One that is shorter than what was sent must not
    /// stay: it would be taken for ours.
    async fn whole(&self, size: Option<u64>, total: Option<u64>) -> Result<(), Failure> {
        let (Some(size), Some(total)) = (size, total) else { return Ok(()) };
        if size == total {
            return Ok(());
        }
        let text = format!("the object has {size} bytes on the service, {total} were sent");
        if let Ok(api) = self.gs.api().await {
            let request = api.request(Method::DELETE, &self.gs.resource(&self.object)).body(Bytes::new());
            let _ = api.send(self.asked(), request).await;
        }
        Err(self.lost(ErrorKind::Io, text))
    }

    /// One request of the session. Without `at` it only asks.
    async fn put(&self, at: Option<u64>, bytes: Bytes, total: Option<u64>) -> Result<Progress, Failure> {
        let url = self.url.as_deref().unwrap_or_default();
        let total = total.map_or("*".to_owned(), |total| total.to_string());
        let range = match at {
            Some(at) => format!("bytes {at}-{}/{total}", at + bytes.len() as u64 - 1),
            None => format!("bytes */{total}"),
        };
        let api =
            self.gs.api().await.map_err(|error| Failure { error, code: "Request".to_owned(), retry_after: None })?;
        let request = http::Request::builder().method(Method::PUT).uri(url).header("content-range", range).body(bytes);
        let answer = api.send(self.asked(), request).await.map_err(|failure| match failure.code.as_str() {
            // Not a bucket that is missing: the session was made there. Only a new upload helps.
            "notFound" | "HTTP404" => {
                self.lost(ErrorKind::Io, "the service does not know the upload any more".to_owned())
            }
            _ => failure,
        })?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let read = web::answer(answer.into_body()).await;
        if status != 308 {
            // The answer to the last bytes says that the object is there; one that breaks off is asked for again.
            let answer = read.map_err(|e| self.lost(ErrorKind::Unavailable, e.to_string()))?;
            return Ok(Progress::Done(stored_size(&answer)));
        }
        let range = headers.get("range").and_then(|v| v.to_str().ok());
        // `bytes=0-41`; without it nothing has come yet.
        let last = range.and_then(|range| range.rsplit_once('-')).and_then(|(_, last)| last.parse::<u64>().ok());
        Ok(Progress::At(last.map_or(0, |last| last + 1)))
    }

    async fn cancel(&mut self) {
        if let Some(url) = self.url.take() {
            cancel(&self.gs, &self.target, &url).await;
        }
    }
}

/// How far an upload is.
enum Progress {
    /// With the length of the object, if it was said.
    Done(Option<u64>),
    At(u64),
}

/// The `size` of an object's resource, which is a number in quotes.
fn stored_size(answer: &[u8]) -> Option<u64> {
    let resource: serde_json::Value = serde_json::from_slice(answer).ok()?;
    resource.get("size")?.as_str()?.parse().ok()
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(url) = self.url.take() else { return };
        let (gs, target) = (self.gs.clone(), self.target.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Nobody is left to wait for it; the service forgets it after a week.
            runtime.spawn(async move { cancel(&gs, &target, &url).await });
        }
    }
}

/// Best effort: an upload that is not finished is not seen, and is forgotten after a week.
async fn cancel(gs: &GsClient, target: &str, url: &str) {
    let Ok(api) = gs.api().await else { return };
    let asked = Asked { operation: Operation::Delete, doing: "cannot cancel upload of object", target };
    let request = http::Request::builder().method(Method::DELETE).uri(url).body(Bytes::new());
    // Success is told by status 499.
    if let Err(failure) = api.send(asked, request).await
        && failure.code != "HTTP499"
    {
        tracing::debug!(error = %failure.error, "an unfinished upload is left to expire");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_an_answer_is_found_where_it_is_said() {
        assert_eq!(stored_size(br#"{"name":"x","size":"42"}"#), Some(42));
        for other in [&br#"{"name":"x"}"#[..], b"", b"<html>", br#"{"size":42}"#, br#"{"size":"many"}"#] {
            assert_eq!(stored_size(other), None);
        }
    }

    #[test]
    fn both_parts_are_in_the_body() {
        let (kind, body) = related("{}", &Bytes::from_static(b"\r\n--bytes"));
        let boundary = kind.strip_prefix("multipart/related; boundary=").unwrap();
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.starts_with(&format!("--{boundary}\r\n")));
        assert!(text.ends_with(&format!("\r\n\r\n\r\n--bytes\r\n--{boundary}--\r\n")));
        assert_eq!(text.matches(boundary).count(), 3);
    }
}
