//! Reading one object to its end although connections drop (`spec: compaction-retention` §6).

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};

use super::client::{ByteStream, Key, ReplicaClient};
use crate::error::{Error, ErrorKind, Result};

/// Waits before the reopens. Their number is the bound over the reader's whole life: progress does
/// not earn new ones, or a store that cuts every stream would be asked without end.
const WAITS: [Duration; 3] = [Duration::from_millis(250), Duration::from_millis(500), Duration::from_millis(1000)];

/// The object `key` from `offset` on, opened on the first poll and reopened at the current offset after a read error
/// or an end before `size` bytes. `what` names the file in the error that gives up.
pub(crate) fn resumable(client: Arc<dyn ReplicaClient>, key: Key, offset: u64, size: u64, what: String) -> ByteStream {
    let reader = Reader { client, key, size, what, offset, reopens: 0, stream: None };
    stream::try_unfold(reader, |mut reader| async move {
        let chunk = reader.next().await?;
        Ok(chunk.map(|chunk| (chunk, reader)))
    })
    .boxed()
}

struct Reader {
    client: Arc<dyn ReplicaClient>,
    key: Key,
    size: u64,
    what: String,
    offset: u64,
    reopens: usize,
    stream: Option<ByteStream>,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<bytes::Bytes>> {
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
        // To the end whatever the listing said: an object that was replaced may have grown.
        let range = (self.offset > 0).then_some(self.offset..u64::MAX);
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
    matches!(err.kind(), ErrorKind::NotFound | ErrorKind::Cancelled)
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::super::client::PutOptions;
    use super::super::faulty::{Fault, Faulty, Op};
    use super::super::memory::MemoryClient;
    use super::super::stream::once;
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
