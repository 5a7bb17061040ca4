//! Byte streams over local files and memory.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
#[cfg(any(feature = "web", feature = "nats", feature = "sftp"))]
use bytes::BytesMut;
#[cfg(any(feature = "web", feature = "nats", feature = "sftp"))]
use futures::TryStreamExt as _;
use futures::stream::{self, StreamExt};

use super::client::ByteStream;
#[cfg(any(feature = "web", feature = "nats", feature = "sftp"))]
use super::file::check_size;
use crate::error::Result;
use crate::sys::{Begun, File, begin, blocking, read_full_at};

/// Bytes fetched per visit to the blocking pool: enough that the hop costs nothing beside the copy.
pub(crate) const CHUNK: usize = 512 * 1024;

/// A stream of one piece.
#[must_use]
pub fn once(bytes: impl Into<Bytes>) -> ByteStream {
    let bytes = bytes.into();
    stream::once(async move { Ok(bytes) }).boxed()
}

/// Reads at most 512 KiB of what is left of `range`. Blocks.
pub fn read_chunk(file: &dyn File, range: &Range<u64>) -> Result<Bytes> {
    let left = range.end.saturating_sub(range.start);
    let mut buf = vec![0; usize::try_from(left).map_or(CHUNK, |n| n.min(CHUNK))];
    read_full_at(file, &mut buf, range.start)?;
    Ok(buf.into())
}

/// The bytes `range` of an open file, reading one chunk ahead of the consumer. `first` is what was
/// already read from the start of the range.
pub fn of_file(file: Arc<dyn File>, mut range: Range<u64>, first: Bytes) -> ByteStream {
    range.start += first.len() as u64;
    let state = ReadAhead { file, range, ready: (!first.is_empty()).then_some(first), next: None };
    stream::try_unfold(state, ReadAhead::step).boxed()
}

struct ReadAhead {
    file: Arc<dyn File>,
    /// What has not been asked for yet.
    range: Range<u64>,
    ready: Option<Bytes>,
    next: Option<Begun<Bytes>>,
}

impl ReadAhead {
    async fn step(mut self) -> Result<Option<(Bytes, Self)>> {
        let chunk = match (self.ready.take(), self.next.take()) {
            (Some(ready), _) => ready,
            (None, Some(pending)) => pending.await?,
            (None, None) if self.range.is_empty() => return Ok(None),
            (None, None) => {
                let (file, range) = (self.file.clone(), self.range.clone());
                let chunk = blocking(move || read_chunk(file.as_ref(), &range)).await?;
                self.range.start += chunk.len() as u64;
                chunk
            }
        };
        if !self.range.is_empty() {
            let (file, range) = (self.file.clone(), self.range.clone());
            self.range.start = range.end.min(range.start + CHUNK as u64);
            self.next = Some(begin(move || read_chunk(file.as_ref(), &range)));
        }
        Ok(Some((chunk, self)))
    }
}

/// Takes chunks from `body` until `want` bytes are there or it ends. `rest` is what the last chunk had too many,
/// for the next call.
#[cfg(any(feature = "web", feature = "nats", feature = "sftp"))]
pub(crate) async fn fill(body: &mut ByteStream, rest: &mut Bytes, want: usize) -> Result<Bytes> {
    let mut part = BytesMut::new();
    while part.len() < want {
        if rest.is_empty() {
            match body.try_next().await? {
                Some(chunk) => *rest = chunk,
                None => break,
            }
        }
        let n = rest.len().min(want - part.len());
        part.extend_from_slice(&rest.split_to(n));
    }
    Ok(part.freeze())
}

/// How a put begins: what there is of the body so far.
#[cfg(any(feature = "web", feature = "nats", feature = "sftp"))]
pub(crate) enum Start {
    /// All of it, as long as was announced.
    Whole(Bytes),
    /// As many bytes as were wanted, those that came with them, and what follows.
    Longer(Bytes, Bytes, ByteStream),
}

/// Takes `want` bytes from `body`, or all it has if that is fewer.
#[cfg(any(feature = "web", feature = "nats", feature = "sftp"))]
pub(crate) async fn start(mut body: ByteStream, want: usize, announced: Option<u64>, target: &str) -> Result<Start> {
    let mut rest = Bytes::new();
    let first = fill(&mut body, &mut rest, want).await?;
    if first.len() >= want {
        return Ok(Start::Longer(first, rest, body));
    }
    check_size(announced, first.len() as u64).map_err(|err| err.at(target))?;
    Ok(Start::Whole(first))
}

/// `range` cut to an object of `size` bytes; all of it if there is none.
pub(crate) fn clamp(range: Option<Range<u64>>, size: u64) -> Range<u64> {
    let Some(range) = range else { return 0..size };
    let start = range.start.min(size);
    start..range.end.clamp(start, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::reversed_empty_ranges, reason = "callers may send nonsense")]
    fn ranges_are_cut_to_the_object() {
        assert_eq!(clamp(None, 10), 0..10);
        assert_eq!(clamp(Some(3..u64::MAX), 10), 3..10);
        assert_eq!(clamp(Some(10..20), 10), 10..10);
        assert_eq!(clamp(Some(11..20), 10), 10..10);
        assert_eq!(clamp(Some(7..3), 10), 7..7);
    }
}
