//! Several objects at once from the store, one after another to the thread that reads them.
//!
//! Large objects come piece by piece. Small ones come whole, some at a time where the store can do that:
//! of a thousand files in a directory it would be the ways between threads that take the time.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::progress::Progress;
use crate::error::{Error, ErrorKind, Result};
use crate::replica::{ByteStream, FedReader, FileInfo, Replica, bridge};
use crate::sys::wait;
use crate::v3;

/// Bytes that wait between network and decoder, over all objects together.
const PREFETCH: usize = 16 << 20;
/// Most objects fetched at once: each may hold a piece beyond its share of [`PREFETCH`].
pub(super) const MAX_PARALLELISM: usize = 64;
/// Most bytes of a small object.
const SMALL: u64 = 64 * 1024;
/// Most small objects read in one go, and their bytes.
const GROUP: usize = 16;
const GROUP_BYTES: u64 = 256 * 1024;
/// Groups read at once.
const GROUPS: usize = 8;

/// Where objects of one kind come from.
pub(super) trait Origin<T> {
    /// Bytes of an object, as listed; any large number for one that is to be fetched by itself.
    fn size(&self, object: &T) -> u64;
    /// The object's bytes.
    ///
    /// # Errors
    /// For what cannot be named; errors of the store come from the stream.
    fn open(&self, object: &T) -> Result<ByteStream>;
    /// The bytes of small objects, as [`Replica::get_small`]. Of none at all, it says whether to ask.
    fn small(&self, objects: &[T]) -> Option<BoxFuture<'static, Vec<Option<Bytes>>>>;
}

/// LTX files.
pub(super) struct LtxFiles<'a> {
    pub(super) replica: &'a Replica,
    /// A file that is wanted only from a byte on.
    pub(super) begun: Option<(FileInfo, u64)>,
}

impl Origin<FileInfo> for LtxFiles<'_> {
    fn size(&self, file: &FileInfo) -> u64 {
        // What is wanted in part goes alone.
        if self.begun.is_some_and(|(begun, _)| begun == *file) { u64::MAX } else { file.size }
    }

    fn open(&self, file: &FileInfo) -> Result<ByteStream> {
        let from = self.begun.filter(|(begun, _)| begun == file).map_or(0, |(_, from)| from);
        self.replica.get_parallel_from(file, from)
    }

    fn small(&self, files: &[FileInfo]) -> Option<BoxFuture<'static, Vec<Option<Bytes>>>> {
        self.replica.get_small(files)
    }
}

impl Origin<v3::Piece> for Replica {
    fn size(&self, piece: &v3::Piece) -> u64 {
        piece.size()
    }

    fn open(&self, piece: &v3::Piece) -> Result<ByteStream> {
        Ok(self.get_object(piece.key(), piece.size(), piece.key().to_string()))
    }

    fn small(&self, _: &[v3::Piece]) -> Option<BoxFuture<'static, Vec<Option<Bytes>>>> {
        None
    }
}

/// What comes for one place in the order.
enum Delivery<T> {
    One(T, FedReader),
    Group(oneshot::Receiver<Vec<(T, Body)>>),
}

/// An object's bytes: there, or coming.
enum Body {
    Whole(Bytes),
    Fed(FedReader),
}

/// The objects as they come, in the order they were asked for. Blocks.
pub(super) struct Waiting<T> {
    deliveries: UnboundedReceiver<Delivery<T>>,
    /// Of a group.
    ready: VecDeque<(T, Body)>,
    left: usize,
    progress: Arc<Progress>,
}

/// What to await while [`Waiting`] is read, and the other end. `parallelism` objects are opened or
/// read at once; the one that is wanted next is always among them.
pub(super) fn fetch<T: Clone>(
    wanted: Vec<T>,
    parallelism: usize,
    progress: Arc<Progress>,
    origin: impl Origin<T>,
) -> (impl Future<Output = ()>, Waiting<T>) {
    let (deliver, deliveries) = unbounded_channel();
    let waiting = Waiting { deliveries, ready: VecDeque::new(), left: wanted.len(), progress };
    let groups: Vec<Vec<T>> = match origin.small(&[]) {
        Some(_) => group(wanted, |object| origin.size(object)),
        None => wanted.into_iter().map(|object| vec![object]).collect(),
    };
    let most = if groups.iter().any(|group| group.len() > 1) { GROUPS } else { MAX_PARALLELISM };
    let parallelism = parallelism.clamp(1, most).min(groups.len().max(1));
    let share = u32::try_from(PREFETCH / parallelism).unwrap_or(u32::MAX);
    let feeding = async move {
        // At most `parallelism` feeders run or wait to be finished in turn, so that is also the bound
        // of the channel.
        stream::iter(groups)
            .map(|group| feed(group, share, &deliver, &origin))
            .buffered(parallelism)
            .for_each(|()| async {})
            .await;
    };
    (feeding, waiting)
}

/// Neighbours that are small go together.
fn group<T>(objects: Vec<T>, size: impl Fn(&T) -> u64) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    let mut bytes = u64::MAX;
    for object in objects {
        let add = size(&object);
        match groups.last_mut() {
            Some(last) if add <= SMALL && last.len() < GROUP && bytes.saturating_add(add) <= GROUP_BYTES => {
                bytes += add;
                last.push(object);
            }
            _ => {
                // Nothing joins a large one.
                bytes = if add <= SMALL { add } else { u64::MAX };
                groups.push(vec![object]);
            }
        }
    }
    groups
}

/// What to await for the objects of a group. They are announced at once, in their order.
fn feed<'a, T: Clone + 'a>(
    group: Vec<T>,
    share: u32,
    deliver: &UnboundedSender<Delivery<T>>,
    origin: &'a impl Origin<T>,
) -> impl Future<Output = ()> + 'a {
    // Whoever does not take deliveries any more has an error to tell already.
    let mut alone = None;
    let mut together = None;
    match <[T; 1]>::try_from(group) {
        Ok([object]) => {
            let (feeder, reader) = bridge(share);
            alone = Some((feeder, origin.open(&object)));
            let _ = deliver.send(Delivery::One(object, reader));
        }
        Err(group) => {
            let (bodies, coming) = oneshot::channel();
            together = Some((group, bodies));
            let _ = deliver.send(Delivery::Group(coming));
        }
    }
    async move {
        if let Some((feeder, stream)) = alone {
            feeder.feed(stream).await;
        }
        let Some((group, bodies)) = together else { return };
        let whole = match origin.small(&group) {
            Some(reading) => reading.await,
            None => Vec::new(),
        };
        let mut whole = whole.into_iter();
        let mut left = Vec::new();
        let ready = group.into_iter().map(|object| match whole.next().flatten() {
            Some(bytes) => (object, Body::Whole(bytes)),
            None => {
                let (feeder, reader) = bridge(share);
                left.push((feeder, object.clone()));
                (object, Body::Fed(reader))
            }
        });
        let _ = bodies.send(ready.collect());
        for (feeder, object) in left {
            feeder.feed(origin.open(&object)).await;
        }
    }
}

impl<T> Iterator for Waiting<T> {
    type Item = Result<(T, Counted)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        if self.ready.is_empty() {
            match wait(self.deliveries.recv()) {
                Some(Delivery::One(object, reader)) => self.ready.push_back((object, Body::Fed(reader))),
                Some(Delivery::Group(coming)) => self.ready.extend(wait(coming).into_iter().flatten()),
                None => {}
            }
        }
        // No more to come although some are missing: whoever wanted this has left.
        let next = self.ready.pop_front();
        let next = next.map(|(object, body)| (object, Counted { body, progress: self.progress.clone() }));
        Some(next.ok_or_else(|| Error::new(ErrorKind::Cancelled, "restore was stopped")))
    }
}

/// A reader that tells how far it is.
pub(super) struct Counted {
    body: Body,
    progress: Arc<Progress>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = match &mut self.body {
            Body::Fed(reader) => reader.read(buf)?,
            Body::Whole(bytes) => {
                let n = buf.len().min(bytes.len());
                bytes.copy_to_slice(&mut buf[..n]);
                n
            }
        };
        self.progress.add(n as u64);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_neighbours_go_together_within_bounds() {
        let lengths =
            |sizes: &[u64]| -> Vec<usize> { group(sizes.to_vec(), |size| *size).iter().map(Vec::len).collect() };
        assert!(lengths(&[]).is_empty());
        assert_eq!(lengths(&[100; 40]), [16, 16, 8]);
        assert_eq!(lengths(&[SMALL; 5]), [4, 1]);
        assert_eq!(lengths(&[100, SMALL + 1, 100, 100, u64::MAX, 100]), [1, 1, 2, 1, 1]);
    }
}
