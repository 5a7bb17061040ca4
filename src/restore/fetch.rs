//! Several objects at once from the store, one after another to the thread that reads them.

use std::io::{self, Read};
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::progress::Progress;
use crate::error::{Error, ErrorKind, Result};
use crate::replica::{ByteStream, FedReader, bridge};
use crate::sys::wait;

/// Bytes that wait between network and decoder, over all objects together.
const PREFETCH: usize = 16 << 20;
/// Most objects fetched at once: each may hold a piece beyond its share of [`PREFETCH`].
pub(super) const MAX_PARALLELISM: usize = 64;

/// The objects as they come, in the order they were asked for. Blocks.
pub(super) struct Waiting<T> {
    objects: UnboundedReceiver<(T, FedReader)>,
    left: usize,
    progress: Arc<Progress>,
}

/// What to await while [`Waiting`] is read, and the other end. `parallelism` objects are opened or
/// read at once; the one that is wanted next is always among them.
pub(super) fn fetch<T, O>(
    wanted: Vec<T>,
    parallelism: usize,
    progress: Arc<Progress>,
    open: O,
) -> (impl Future<Output = ()>, Waiting<T>)
where
    T: Clone,
    O: Fn(&T) -> Result<ByteStream>,
{
    let parallelism = parallelism.clamp(1, MAX_PARALLELISM).min(wanted.len().max(1));
    let share = u32::try_from(PREFETCH / parallelism).unwrap_or(u32::MAX);
    let (readers, objects) = unbounded_channel();
    let waiting = Waiting { objects, left: wanted.len(), progress };
    // At most `parallelism` feeders run or wait to be finished in turn, so that is also the bound
    // of the channel.
    let feeding = stream::iter(wanted)
        .map(move |object| {
            let (feeder, reader) = bridge(share);
            let stream = open(&object);
            let _ = readers.send((object, reader));
            feeder.feed(stream)
        })
        .buffered(parallelism)
        .for_each(|()| async {});
    (feeding, waiting)
}

impl<T> Iterator for Waiting<T> {
    type Item = Result<(T, Counted<FedReader>)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        // No more to come although some are missing: whoever wanted this has left.
        let next = wait(self.objects.recv());
        let next = next.map(|(object, reader)| (object, Counted { reader, progress: self.progress.clone() }));
        Some(next.ok_or_else(|| Error::new(ErrorKind::Cancelled, "restore was stopped")))
    }
}

/// A reader that tells how far it is.
pub(super) struct Counted<R> {
    reader: R,
    progress: Arc<Progress>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buf)?;
        self.progress.add(n as u64);
        Ok(n)
    }
}
