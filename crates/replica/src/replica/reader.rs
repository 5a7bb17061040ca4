//! Reading one object to its end although connections drop (`spec: compaction-retention` §6).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::{ByteStream, Key, ReplicaClient};
use crate::error::{Error, ErrorKind, Result};

/// Waits before the reopens. Their number is the bound over the reader's whole life: progress does
/// not earn new ones, or a store that cuts every stream would be asked without end.
const WAITS: [Duration; 3] = [Duration::from_millis(250), Duration::from_millis(500), Duration::from_millis(1000)];

/// The object `key` from `offset` on, opened on the first poll and reopened at the current offset after a read error
/// or an end before `size` bytes. `what` names the file in the error that gives up.
pub(crate) fn resumable(client: Arc<dyn ReplicaClient>, key: Key, offset: u64, size: u64, what: String) -> ByteStream {
    // To the end whatever the listing said: an object that was replaced may have grown.
    Reader { client, key, size, end: u64::MAX, what, offset, reopens: 0, stream: None }.stream()
}

/// Bytes of one range of an object that is read in parts.
const PART: u64 = 4 << 20;
/// Ranges in flight. With [`PART`] the bound of memory: 24 MiB.
const PARTS_AT_ONCE: usize = 6;

/// As [`resumable`], several ranges at a time, each continued on its own. An object that is replaced meanwhile comes out
/// mixed: only for content that carries a checksum.
pub(crate) fn in_parts(client: Arc<dyn ReplicaClient>, key: Key, offset: u64, size: u64, what: String) -> ByteStream {
    if size.saturating_sub(offset) < 2 * PART {
        return resumable(client, key, offset, size, what);
    }
    let starts = std::iter::successors(Some(offset), move |start| Some(start + PART).filter(|next| *next < size));
    let part = move |start: u64| {
        // The last one reads to the end whatever the listing said: an object that was replaced may have grown.
        let end = Some(start + PART).filter(|end| *end < size).unwrap_or(u64::MAX);
        let (client, key, what) = (client.clone(), key.clone(), what.clone());
        let part = Reader { client, key, size: end.min(size), end, what, offset: start, reopens: 0, stream: None };
        part.stream().try_collect::<Vec<Bytes>>()
    };
    stream::iter(starts)
        .map(part)
        .buffered(PARTS_AT_ONCE)
        .map_ok(|chunks| stream::iter(chunks.into_iter().map(Ok)))
        .try_flatten()
        .boxed()
}

struct Reader {
    client: Arc<dyn ReplicaClient>,
    key: Key,
    /// Where it may end.
    size: u64,
    /// Where reading ends, exclusive; `u64::MAX` is the object's end.
    end: u64,
    what: String,
    offset: u64,
    reopens: usize,
    stream: Option<ByteStream>,
}

impl Reader {
    fn stream(self) -> ByteStream {
        stream::try_unfold(self, |mut reader| async move {
            let chunk = reader.next().await?;
            Ok(chunk.map(|chunk| (chunk, reader)))
        })
        .boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(stream) = &mut self.stream else {
                self.open().await?;
                continue;
            };
            match stream.next().await {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => {
                    self.offset += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                Some(Err(err)) => self.give_way(err).await?,
                None if self.offset < self.size => self.give_way(Error::corrupt("unexpected EOF")).await?,
                None => return Ok(None),
            }
        }
    }

    async fn open(&mut self) -> Result<()> {
        let whole = self.offset == 0 && self.end == u64::MAX;
        let range = (!whole).then_some(self.offset..self.end);
        match self.client.get(&self.key, range).await {
            Ok(stream) => {
                self.stream = Some(stream);
                Ok(())
            }
            Err(err) if self.offset == 0 && is_final(&err) => Err(err),
            Err(err) if is_final(&err) => Err(err.context(format!("reopen ltx file at offset {}", self.offset))),
            Err(err) => self.give_way(err).await,
        }
    }

    /// Closes the stream and waits before the next attempt, or gives up.
    async fn give_way(&mut self, err: Error) -> Result<()> {
        self.stream = None;
        if is_final(&err) {
            return Err(err);
        }
        let Some(wait) = WAITS.get(self.reopens) else {
            let op = format!("max retries exceeded reading ltx file ({}, offset={})", self.what, self.offset);
            return Err(err.context(op));
        };
        self.reopens += 1;
        tracing::debug!(key = %self.key, offset = self.offset, error = %err, "reopening ltx file");
        tokio::time::sleep(*wait).await;
        Ok(())
    }
}

fn is_final(err: &Error) -> bool {
    let refused = matches!(err.kind(), ErrorKind::PermissionDenied | ErrorKind::Invalid);
    refused || matches!(err.kind(), ErrorKind::NotFound | ErrorKind::Cancelled)
}

#[cfg(test)]
mod tests {
    use super::super::PutOptions;
    use super::super::faulty::{Fault, Faulty, Op};
    use super::super::memory::MemoryClient;
    use super::super::once;
    use super::*;
    use crate::types::Timestamp;

    const BODY: &[u8] = b"0123456789";

    async fn store() -> (Arc<Faulty>, Key) {
        let client = Arc::new(Faulty::new(Arc::new(MemoryClient::new())));
        let key = Key::new("x").unwrap();
        let opts = PutOptions { stamp: Timestamp::from_millis(0), size: None, modes: None, exclusive: false };
        client.put(&key, once(BODY), opts).await.unwrap();
        (client, key)
    }

    async fn read(client: &Arc<Faulty>, key: &Key) -> Result<Vec<u8>> {
        let stream = resumable(client.clone(), key.clone(), 0, BODY.len() as u64, "level=0".to_owned());
        stream
            .try_fold(Vec::new(), |mut all, chunk| async move {
                all.extend_from_slice(&chunk);
                Ok(all)
            })
            .await
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_stream_is_continued_where_it_broke() {
        let (client, key) = store().await;
        client.push(Op::Get, Fault::CutBody { after: 4 });
        client.push(Op::Get, Fault::BreakBody { after: 3, kind: ErrorKind::Unavailable });
        client.push(Op::Get, Fault::Refuse(ErrorKind::Io));
        let start = tokio::time::Instant::now();
        assert_eq!(read(&client, &key).await.unwrap(), BODY);
        assert_eq!(start.elapsed(), Duration::from_millis(1750));
        assert_eq!(client.calls(Op::Get), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_object_comes_in_order_from_several_ranges_each_continued_on_its_own() {
        let client = Arc::new(Faulty::new(Arc::new(MemoryClient::new())));
        let key = Key::new("x").unwrap();
        let opts = PutOptions { stamp: Timestamp::from_millis(0), size: None, modes: None, exclusive: false };
        for extra in [0, 1, PART - 1] {
            let size = 7 * PART + extra;
            let body: Vec<u8> = (0..size).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
            client.put(&key, once(body.clone()), opts).await.unwrap();
            client.push(Op::Get, Fault::CutBody { after: 1000 });
            client.push(Op::Get, Fault::BreakBody { after: 3, kind: ErrorKind::Unavailable });
            client.push(Op::Get, Fault::Refuse(ErrorKind::Unavailable));
            let before = client.calls(Op::Get);
            let chunks: Vec<Bytes> =
                in_parts(client.clone(), key.clone(), 0, size, "level=9".to_owned()).try_collect().await.unwrap();
            assert!(chunks.concat() == body, "{extra}");
            assert_eq!(client.calls(Op::Get) - before, 7 + u64::from(extra > 0) + 3);
        }
        client.push(Op::Get, Fault::Refuse(ErrorKind::NotFound));
        let read: Result<Vec<Bytes>> =
            in_parts(client.clone(), key.clone(), 5, 8 * PART, "level=9".to_owned()).try_collect().await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_does_not_earn_more_attempts() {
        let (client, key) = store().await;
        for _ in 0..4 {
            client.push(Op::Get, Fault::CutBody { after: 1 });
        }
        let err = read(&client, &key).await.unwrap_err();
        assert_eq!(err.to_string(), "max retries exceeded reading ltx file (level=0, offset=4): unexpected EOF");
        assert_eq!(client.calls(Op::Get), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_is_gone_ends_the_reading_at_once() {
        let (client, key) = store().await;
        client.push(Op::Get, Fault::CutBody { after: 4 });
        client.push(Op::Get, Fault::Refuse(ErrorKind::NotFound));
        let err = read(&client, &key).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::NotFound);
        assert!(err.to_string().starts_with("reopen ltx file at offset 4: "), "{err}");

        let other = Key::new("absent").unwrap();
        assert_eq!(read(&client, &other).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(client.calls(Op::Get), 3);
    }
}
