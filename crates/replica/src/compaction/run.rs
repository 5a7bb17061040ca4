//! Carrying a merge out: several files of one level become one of the next, without any of them
//! ever being in memory as a whole.
//!
//! ```text
//! local file ─────────────► decoder ─┐
//! store ─► feeder ─► reader ► decoder ─┴► merge ─► encoder ─► channel ─► put
//!  (async)           (one blocking thread)                            (async)
//! ```
//!
//! Guarantees:
//! 1. The output is published only if every input was read to its end and verified.
//! 2. Whichever side fails or is dropped, the other ends soon; nothing partial is ever seen.
//! 3. Memory is bounded by the plan's [`Limits`].

use std::io::{self, Cursor, Read, Write};
use std::pin::pin;

use bytes::Bytes;
use futures::future::{BoxFuture, Either, FutureExt, join, select};
use futures::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use tokio::sync::mpsc;

use super::manifest::SharedManifest;
use super::plan::{Limits, Plan, SMALL, plan, same_page_size};
use crate::error::{Error, ErrorKind, Result};
use crate::ltx::{Decoder, FileReader, LocalDir, merge, snapshot_of};
use crate::replica::{ByteStream, FileInfo, Replica, bridge};
use crate::sys::{Modes, blocking, read_full_at, wait};
use crate::types::{Level, Timestamp, Txid, TxidRange};

/// Bytes of one input that wait between network and decoder.
const PREFETCH: u32 = 256 * 1024;
/// Pieces of output that wait for the store; the encoder makes them 256 KiB.
const PIECES: usize = 4;
/// Small inputs fetched at once.
const FETCHES: usize = 8;
/// A file that was listed as small may have been replaced by a larger one, but not by much.
const SMALL_MAX: u64 = 4 * SMALL;

/// One level of one target.
#[derive(Debug, Clone, Copy)]
pub struct Compactor<'a> {
    /// The target.
    pub replica: &'a Replica,
    /// What it holds.
    pub manifest: &'a SharedManifest,
    /// L0 files are taken from here if they are there: what was written a moment ago may not be
    /// readable from the store yet.
    pub local: Option<&'a LocalDir>,
    /// Up to here local files are known to be those of the target. Beyond, another writer may have put another
    /// file there under the same name.
    pub local_until: Option<Txid>,
    /// For what is created on behalf of the database.
    pub modes: Option<Modes>,
    /// Bounds of one merge.
    pub limits: Limits,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing (more) to do.
    Nothing,
    /// This file was written; there may be more to do.
    Merged(FileInfo),
    /// Level 1 cannot go on: these transactions are missing in level 0.
    Gap(TxidRange),
}

type Input = Box<dyn Read + Send>;
type Feeding = FuturesUnordered<BoxFuture<'static, ()>>;

impl Compactor<'_> {
    /// The end of the level below `dest`: how far a pass has to go. What is written meanwhile is
    /// for the next pass, or a busy database would keep this one going with ever smaller files.
    ///
    /// # Errors
    /// The store's.
    pub async fn end_below(&self, dest: Level) -> Result<Option<Txid>> {
        let Some(below) = dest.get().checked_sub(1).and_then(Level::new) else { return Ok(None) };
        self.manifest.read(self.replica, |manifest| manifest.max(below)).await
    }

    /// The next merge into `dest`, unless it holds `until` already.
    ///
    /// # Errors
    /// Damaged inputs, I/O, the store's. The manifest is forgotten then.
    pub async fn step(&self, dest: Level, until: Option<Txid>) -> Result<Step> {
        let next = |manifest: &super::Manifest| {
            if manifest.max(dest) >= until { Ok(Plan::Nothing) } else { plan(manifest, dest, self.limits) }
        };
        let inputs = match self.manifest.read(self.replica, next).await?? {
            Plan::Nothing => return Ok(Step::Nothing),
            Plan::Gap(txids) => return Ok(Step::Gap(txids)),
            Plan::Merge(inputs) => inputs,
        };
        match self.merge(&inputs, dest).await {
            Ok(file) => {
                self.manifest.written(file);
                Ok(Step::Merged(file))
            }
            Err(err) => {
                self.manifest.forget();
                Err(err)
            }
        }
    }

    /// Merges `inputs`, or as many of them as have the page size of the first, into one file.
    ///
    /// # Errors
    /// As [`Compactor::step`].
    pub async fn merge(&self, inputs: &[FileInfo], dest: Level) -> Result<FileInfo> {
        let (readers, mut feeding) = self.open(inputs).await?;
        let named: Vec<_> = inputs.iter().copied().zip(readers).collect();
        let work = async {
            let decoders = blocking(move || decoders(named)).await?;
            let (Some(first), Some(last)) = (decoders.first(), decoders.last()) else {
                return Err(Error::invalid("at least one input file required"));
            };
            let txids = TxidRange::new(first.header().txids.min(), last.header().txids.max())?;
            let stamp = last.header().timestamp;
            self.publish(dest, txids, stamp, |out| merge(decoders, out).map(|_| ())).await
        };
        alongside(work, async { while feeding.next().await.is_some() {} }).await
    }

    /// Publishes a full image of level 0 as the snapshot of its transaction as well (C5, C6): nobody
    /// need read the database again, and restores can start there.
    ///
    /// # Errors
    /// `Corrupt` if it is no full image; as [`Compactor::step`].
    pub async fn promote(&self, image: &FileInfo) -> Result<FileInfo> {
        let (mut readers, mut feeding) = self.open(std::slice::from_ref(image)).await?;
        let named: Vec<_> = readers.drain(..).map(|reader| (*image, reader)).collect();
        let work = async {
            let image = blocking(move || decoders(named)).await?.pop();
            let image = image.ok_or_else(|| Error::invalid("at least one input file required"))?;
            let (txids, stamp) = (TxidRange::up_to(image.header().txids.max()), image.header().timestamp);
            self.publish(Level::SNAPSHOT, txids, stamp, |out| snapshot_of(image, out).map(|_| ())).await
        };
        let file = alongside(work, async { while feeding.next().await.is_some() {} }).await?;
        self.manifest.written(file);
        Ok(file)
    }

    /// Readers for all inputs, and what must be polled for them to get anywhere.
    async fn open(&self, inputs: &[FileInfo]) -> Result<(Vec<Input>, Feeding)> {
        let feeding = Feeding::new();
        let mut readers = self.open_local(inputs).await?;
        let small: Vec<usize> =
            (0..inputs.len()).filter(|n| readers[*n].is_none() && inputs[*n].size <= SMALL).collect();
        let mut fetched = stream::iter(small)
            .map(|n| async move { Ok::<_, Error>((n, fetch(self.replica.get_resumable(&inputs[n])?).await?)) })
            .buffer_unordered(FETCHES);
        while let Some((n, bytes)) = fetched.try_next().await? {
            readers[n] = Some(Box::new(Cursor::new(bytes)));
        }
        let mut all = Vec::with_capacity(inputs.len());
        for (reader, file) in readers.into_iter().zip(inputs) {
            all.push(match reader {
                Some(reader) => reader,
                None => {
                    let (feeder, reader) = bridge(PREFETCH);
                    feeding.push(feeder.feed(self.replica.get_resumable(file)).boxed());
                    Box::new(reader)
                }
            });
        }
        Ok((all, feeding))
    }

    /// Readers of those inputs that are L0 files on local disk.
    async fn open_local(&self, inputs: &[FileInfo]) -> Result<Vec<Option<Input>>> {
        let Some(local) = self.local.filter(|_| inputs.iter().any(|file| file.level == Level::L0)) else {
            return Ok(inputs.iter().map(|_| None).collect());
        };
        let (local, inputs, until) = (local.clone(), inputs.to_vec(), self.local_until);
        let open = move |file: &FileInfo| match Some(file.txids.max()) <= until {
            true => open_local(&local, file),
            false => Ok(None),
        };
        blocking(move || inputs.iter().map(open).collect()).await
    }

    /// Writes what `make` makes to the store.
    async fn publish(
        &self,
        dest: Level,
        txids: TxidRange,
        stamp: Timestamp,
        make: impl FnOnce(PieceWriter) -> Result<()> + Send + 'static,
    ) -> Result<FileInfo> {
        let (pieces, waiting) = mpsc::channel(PIECES);
        let merging = blocking(move || make_into(make, pieces));
        let putting = self.replica.put(dest, txids, stamp, None, self.modes, body(waiting));
        match join(merging, putting).await {
            (Ok(()), put) => put,
            // The merge was stopped because nobody took its output any more.
            (Err(merged), Err(put)) if merged.kind() == ErrorKind::Cancelled => Err(put),
            (Err(merged), _) => Err(merged),
        }
    }
}

/// Opens an L0 file, or reads it if it is small: many small files should not cost a descriptor each.
fn open_local(local: &LocalDir, info: &FileInfo) -> Result<Option<Input>> {
    let file = match local.open(info.level, info.txids) {
        Ok(file) => file,
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err),
    };
    let len = file.stat()?.len;
    if len > SMALL {
        return Ok(Some(Box::new(FileReader::new(file))));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    read_full_at(file.as_ref(), &mut bytes, 0).map_err(|e| e.context("read ltx file").at(info))?;
    Ok(Some(Box::new(Cursor::new(bytes))))
}

/// All of a small object.
async fn fetch(mut body: ByteStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.try_next().await? {
        if (bytes.len() + chunk.len()) as u64 > SMALL_MAX {
            return Err(Error::new(ErrorKind::Changed, "ltx file is larger than it was listed"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Reads the headers; keeps the inputs that can be merged with the first. Blocks.
fn decoders(inputs: Vec<(FileInfo, Input)>) -> Result<Vec<Decoder<Input>>> {
    let mut decoders = Vec::with_capacity(inputs.len());
    for (file, reader) in inputs {
        let decoder = Decoder::new(reader).map_err(|e| e.context(format!("open input {file}")))?;
        decoder.header().check_name(file.txids).map_err(|e| e.context(format!("open input {file}")))?;
        decoders.push(decoder);
    }
    decoders.truncate(same_page_size(decoders.iter().map(|d| d.header().page_size)));
    Ok(decoders)
}

/// What goes from the merging thread to the store.
enum Piece {
    Data(Bytes),
    Failed(Error),
    End,
}

/// Polls `helper` until `work` is done.
async fn alongside<T>(work: impl Future<Output = T>, helper: impl Future<Output = ()>) -> T {
    match select(pin!(work), pin!(helper)).await {
        Either::Left((done, _)) => done,
        Either::Right(((), work)) => work.await,
    }
}

/// Makes a file into the channel, which learns of the end, good or bad. Blocks.
fn make_into(make: impl FnOnce(PieceWriter) -> Result<()>, pieces: mpsc::Sender<Piece>) -> Result<()> {
    let merged = make(PieceWriter(pieces.clone()));
    let last = match &merged {
        Ok(()) => Piece::End,
        Err(err) => Piece::Failed(Error::new(err.kind(), err.to_string())),
    };
    match wait(pieces.send(last)) {
        Ok(()) => merged,
        Err(_) => merged.and(Err(abandoned())),
    }
}

fn abandoned() -> Error {
    Error::new(ErrorKind::Cancelled, "compaction was stopped")
}

struct PieceWriter(mpsc::Sender<Piece>);

impl Write for PieceWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let piece = Piece::Data(Bytes::copy_from_slice(buf));
        wait(self.0.send(piece)).map_err(|_| io::Error::from(abandoned()))?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The output as the store wants it. Without a word about its end it is no whole file.
fn body(waiting: mpsc::Receiver<Piece>) -> ByteStream {
    stream::try_unfold(waiting, |mut waiting| async move {
        match waiting.recv().await {
            Some(Piece::Data(bytes)) => Ok(Some((bytes, waiting))),
            Some(Piece::End) => Ok(None),
            Some(Piece::Failed(err)) => Err(err),
            None => Err(abandoned()),
        }
    })
    .boxed()
}
