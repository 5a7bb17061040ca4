//! From asynchronous byte streams to blocking readers, with a bound on what waits between them.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::stream::StreamExt;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ByteStream;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::wait;

/// Pieces on their way; the bytes they hold are bounded by the feeder's allowance.
const MAX_PIECES: usize = 256;

enum Piece {
    Data(Bytes, OwnedSemaphorePermit),
    Failed(Error),
    End,
}

/// The sending end: pulls a stream for as long as its allowance lasts.
pub(crate) struct Feeder {
    pieces: Sender<Piece>,
    allowance: Arc<Semaphore>,
    /// Bytes of `allowance` when nothing waits.
    limit: u32,
}

/// The receiving end. Blocks; must not be used on a runtime's own threads.
pub(crate) struct FedReader {
    pieces: Receiver<Piece>,
    current: Option<(Bytes, OwnedSemaphorePermit)>,
    ended: bool,
}

/// A pair with at most about `limit` bytes between its ends (one piece may exceed it).
pub(crate) fn bridge(limit: u32) -> (Feeder, FedReader) {
    let (tx, rx) = mpsc::channel(MAX_PIECES);
    let allowance = Arc::new(Semaphore::new(limit as usize));
    (Feeder { pieces: tx, allowance, limit }, FedReader { pieces: rx, current: None, ended: false })
}

impl Feeder {
    /// Passes the whole stream on. Returns early when the reader is gone.
    pub(crate) async fn feed(self, stream: Result<ByteStream>) {
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(err) => return drop(self.pieces.send(Piece::Failed(err)).await),
        };
        while let Some(item) = stream.next().await {
            let piece = match item {
                Ok(bytes) => {
                    let weight = u32::try_from(bytes.len()).map_or(self.limit, |n| n.min(self.limit));
                    let Ok(permit) = self.allowance.clone().acquire_many_owned(weight).await else { return };
                    Piece::Data(bytes, permit)
                }
                Err(err) => return drop(self.pieces.send(Piece::Failed(err)).await),
            };
            if self.pieces.send(piece).await.is_err() {
                return;
            }
        }
        let _ = self.pieces.send(Piece::End).await;
    }
}

impl Read for FedReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some((bytes, _)) = &mut self.current {
                if !bytes.is_empty() {
                    let n = buf.len().min(bytes.len());
                    bytes.copy_to_slice(&mut buf[..n]);
                    return Ok(n);
                }
                self.current = None;
            }
            if self.ended {
                return Ok(0);
            }
            match wait(self.pieces.recv()) {
                Some(Piece::Data(bytes, permit)) => self.current = Some((bytes, permit)),
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(err)) => return Err(err.into()),
                // The stream was dropped, not finished: this is no end of file.
                None => return Err(Error::new(ErrorKind::Cancelled, "reading was stopped").into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;
    use crate::error::kind_of_io;

    async fn read_all(stream: ByteStream, limit: u32) -> io::Result<Vec<u8>> {
        let (feeder, mut reader) = bridge(limit);
        let reading = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        feeder.feed(Ok(stream)).await;
        reading.await.unwrap()
    }

    #[tokio::test]
    async fn all_bytes_come_through_although_little_may_wait() {
        let chunks: Vec<Bytes> = (0..200_u8).map(|n| Bytes::from(vec![n; n as usize])).collect();
        let want = chunks.concat();
        let got = read_all(stream::iter(chunks.into_iter().map(Ok)).boxed(), 10).await.unwrap();
        assert_eq!(got, want);
    }

    #[tokio::test]
    async fn an_error_keeps_its_kind_and_a_dropped_stream_is_no_end() {
        let broken = stream::iter([Ok(Bytes::from_static(b"x")), Err(Error::new(ErrorKind::Unavailable, "gone"))]);
        let err = read_all(broken.boxed(), 10).await.unwrap_err();
        assert_eq!(kind_of_io(&err), ErrorKind::Unavailable);

        let (feeder, mut reader) = bridge(10);
        drop(feeder);
        let err = tokio::task::spawn_blocking(move || reader.read(&mut [0; 4])).await.unwrap().unwrap_err();
        assert_eq!(kind_of_io(&err), ErrorKind::Cancelled);
    }

    #[tokio::test]
    async fn a_feeder_stops_when_its_reader_is_gone() {
        let (feeder, reader) = bridge(10);
        drop(reader);
        let endless = stream::repeat_with(|| Ok(Bytes::from_static(b"0123456789")));
        feeder.feed(Ok(endless.boxed())).await;
    }
}
