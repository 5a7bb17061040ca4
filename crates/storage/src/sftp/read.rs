//! Reading objects: several pieces asked for ahead of the consumer.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt, join};
use futures::stream::{self, FuturesOrdered, StreamExt};

use super::super::stream::clamp;
use super::session::{Handle, Problem};
use super::wire::{self, Request};
use super::{ByteStream, Call, Error, ErrorKind, Failure, Key, Operation, PIECE, Result, SftpClient, WINDOW, failure};

const DOING: &str = "read object";
/// How long a piece may take.
const PIECE_DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

/// Opens an object; the stream asks for its bytes.
pub(super) async fn open(sftp: &SftpClient, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
    let path = sftp.path(key);
    let target = sftp.target(&path);
    let call = Call { operation: Operation::Get, kind: "sftp", target: &target, objects: 1, bytes: 0 };
    let (handle, range, first) = sftp.0.requests.run(call, |_| attempt(sftp, &path, &target, range.clone())).await?;
    let at = range.start + first.len() as u64;
    let reading = Reading { handle, target, rest: at..range.end, next: at, ahead: FuturesOrdered::new(), wanted: 2 };
    let first = (!first.is_empty()).then_some(Ok(first));
    Ok(stream::iter(first).chain(stream::try_unfold(reading, Reading::step)).boxed())
}

/// The open file, the bytes of it that were asked for and exist, and the first of them.
async fn attempt(
    sftp: &SftpClient,
    path: &str,
    target: &str,
    range: Option<Range<u64>>,
) -> Result<(Handle, Range<u64>, Bytes), Failure> {
    let session = sftp.session(DOING, target).await?;
    let broken = |problem| failure(DOING, target, problem);
    let handle = session.open(&Request::Open { path, flags: wire::READ }).await.map_err(broken)?;
    let start = range.as_ref().map_or(0, |range| range.start);
    let (facts, first) = join(handle.stat(), handle.read(start, PIECE)).await;
    let facts = facts.map_err(broken)?;
    if facts.is_file() == Some(false) {
        let error = Error::new(ErrorKind::NotFound, "sftp: read object").at(target).caused_by("not a regular file");
        return Err(Failure { error, code: "NotAFile".to_owned(), retry_after: None });
    }
    let first = first.map_err(broken)?;
    let size = facts.size.ok_or_else(|| broken(Problem::Nonsense("no size for a file")))?;
    let range = clamp(range, size);
    let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    Ok((handle, range, first.slice(..first.len().min(wanted))))
}

struct Reading {
    handle: Handle,
    target: String,
    /// What the consumer has not got yet.
    rest: Range<u64>,
    /// Where the next piece to ask for begins.
    next: u64,
    ahead: FuturesOrdered<BoxFuture<'static, Result<Bytes, Problem>>>,
    /// Pieces to keep under way; grows while the consumer goes on.
    wanted: usize,
}

impl Reading {
    async fn step(mut self) -> Result<Option<(Bytes, Self)>> {
        while self.ahead.len() < self.wanted && self.next < self.rest.end {
            let len = u32::try_from(self.rest.end - self.next).unwrap_or(u32::MAX).min(PIECE);
            self.ahead.push_back(self.handle.read(self.next, len).boxed());
            self.next += u64::from(len);
        }
        self.wanted = (self.wanted * 2).min((WINDOW / PIECE) as usize);
        let piece = match tokio::time::timeout(PIECE_DEADLINE, self.ahead.next()).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(problem))) => return Err(failure(DOING, &self.target, problem).error),
            Err(_) => {
                let why = format!("nothing came for {}s", PIECE_DEADLINE.as_secs());
                return Err(failure(DOING, &self.target, Problem::Lost(why)).error);
            }
        };
        let wanted = u32::try_from(self.rest.end - self.rest.start).unwrap_or(u32::MAX).min(PIECE);
        let piece = self.complete(piece, wanted).await?;
        self.rest.start += piece.len() as u64;
        Ok(Some((piece, self)))
    }

    /// Servers may send less than they were asked for: the rest of this piece.
    async fn complete(&mut self, piece: Bytes, wanted: u32) -> Result<Bytes> {
        if piece.len() >= wanted as usize {
            return Ok(piece);
        }
        let mut whole = BytesMut::from(&piece[..]);
        while whole.len() < wanted as usize {
            let (at, left) = (self.rest.start + whole.len() as u64, wanted - whole.len() as u32);
            let more = self.handle.read(at, left).await;
            let more = more.map_err(|problem| failure(DOING, &self.target, problem).error)?;
            if more.is_empty() {
                let text = format!("the object ends at {at}, not at {}", self.rest.end);
                return Err(Error::new(ErrorKind::Unavailable, "sftp: read object").at(&self.target).caused_by(text));
            }
            whole.extend_from_slice(&more);
        }
        Ok(whole.freeze())
    }
}
