//! Bodies that show how an attempt gets on: each piece that is taken from one is progress.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use hyper::body::{Body, Frame, SizeHint};

use crate::requests::Pulse;

/// Bytes that are handed over at a time: a connection takes the next piece when it has room for it.
const PIECE: usize = 64 * 1024;

/// A body, in pieces.
#[derive(Debug)]
pub(crate) struct Watched<B> {
    body: B,
    /// What is left of its last frame.
    left: Bytes,
    pulse: Option<Pulse>,
}

impl<B> Watched<B> {
    /// For the attempt that runs here.
    pub(crate) fn new(body: B) -> Self {
        Self { body, left: Bytes::new(), pulse: Pulse::here() }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if !self.left.has_remaining() {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.left = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(err)) => return Poll::Ready(Some(Err(err))),
                None => return Poll::Ready(None),
            }
        }
        if let Some(pulse) = &self.pulse {
            pulse.beat();
        }
        let length = self.left.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (left, mut hint) = (self.left.len() as u64, self.body.size_hint());
        let upper = hint.upper().map(|upper| upper.saturating_add(left));
        hint.set_lower(0);
        if let Some(upper) = upper {
            hint.set_upper(upper);
        }
        hint.set_lower(self.body.size_hint().lower().saturating_add(left));
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    #[tokio::test]
    async fn a_body_comes_out_whole_in_pieces() {
        for length in [0, 1, PIECE, PIECE + 1, 5 * PIECE] {
            let bytes: Bytes = (0..length).map(|n| n as u8).collect();
            let mut body = Watched::new(Full::new(bytes.clone()));
            assert_eq!(body.size_hint().exact(), Some(length as u64));
            let mut got = Vec::new();
            while let Some(frame) = body.frame().await {
                let piece = frame.unwrap().into_data().unwrap();
                assert!(piece.len() <= PIECE);
                got.extend_from_slice(&piece);
                assert_eq!(body.size_hint().exact(), Some((length - got.len()) as u64));
            }
            assert!(got == bytes && body.is_end_stream());
        }
    }
}
