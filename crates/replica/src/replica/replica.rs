//! A database's copy on one store, in terms of LTX files.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, try_join_all};
use futures::stream::TryStreamExt;

use super::layout::Layout;
use super::{ByteStream, Key, PutOptions, ReplicaClient, Stamps, of_file, read_chunk, reader};
use crate::error::{Error, Result};
use crate::ltx;
use crate::sys::{File, Modes, OpenMode, World, blocking, mutant, read_full_at};
use crate::types::{Level, Timestamp, Txid, TxidRange};

/// One LTX file of a replica, as a listing shows it.
///
/// Ordered by level, then TXIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileInfo {
    /// Level.
    pub level: Level,
    /// TXIDs, taken from the name.
    pub txids: TxidRange,
    /// Bytes.
    pub size: u64,
    /// Creation time; how true it is depends on [`Stamps`].
    pub created: Timestamp,
}

/// `<level>/<min>-<max>.ltx`, the form of plans and error messages.
impl fmt::Display for FileInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.level, ltx::file_name(self.txids))
    }
}

/// LTX verbs over a [`ReplicaClient`].
#[derive(Debug, Clone)]
pub struct Replica {
    client: Arc<dyn ReplicaClient>,
    layout: Layout,
}

impl Replica {
    /// A replica below the client's root.
    #[must_use]
    pub fn new(client: Arc<dyn ReplicaClient>, layout: Layout) -> Self {
        Self { client, layout }
    }

    /// Backend name: `file`, `s3`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.client.kind()
    }

    /// The store itself.
    #[must_use]
    pub fn client(&self) -> &Arc<dyn ReplicaClient> {
        &self.client
    }

    /// The same replica through a wrapper around its client.
    #[must_use]
    pub fn wrapped(&self, wrap: impl FnOnce(Arc<dyn ReplicaClient>) -> Arc<dyn ReplicaClient>) -> Self {
        Self { client: wrap(Arc::clone(&self.client)), layout: self.layout }
    }

    /// Files of a level by (min, max) TXID; with `seek` those that reach it. Other names are skipped.
    ///
    /// # Errors
    /// The store's. A level that does not exist is empty.
    pub async fn list(&self, level: Level, seek: Option<Txid>, stamps: Stamps) -> Result<Vec<FileInfo>> {
        let dir = self.layout.dir(level)?;
        let mut files = Vec::new();
        let mut objects = self.client.list(&dir, None, stamps);
        while let Some(object) = objects.try_next().await? {
            let Some(txids) = object.key.name_in(&dir).and_then(ltx::parse_file_name) else { continue };
            // Not a matter of names after `seek`: a file that starts earlier may reach further.
            if seek.is_none_or(|seek| txids.max() >= seek) {
                files.push(FileInfo { level, txids, size: object.size, created: object.modified });
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    /// Files of all levels, in order of level and TXIDs.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_all(&self, stamps: Stamps) -> Result<Vec<FileInfo>> {
        let levels = try_join_all(Level::all().map(|level| self.list(level, None, stamps))).await?;
        Ok(levels.into_iter().flatten().collect())
    }

    /// Bytes of a file, or of a part of it.
    ///
    /// # Errors
    /// `NotFound`, and the store's.
    pub async fn get(&self, level: Level, txids: TxidRange, range: Option<Range<u64>>) -> Result<ByteStream> {
        self.client.get(&self.layout.file(level, txids)?, range).await
    }

    /// All bytes of a listed file, opened on first use and continued after dropped connections.
    ///
    /// # Errors
    /// None for a file that was listed; those of reading come from the stream.
    pub fn get_resumable(&self, file: &FileInfo) -> Result<ByteStream> {
        self.get_resumable_from(file, 0)
    }

    /// As [`Self::get_resumable`], from a byte offset on.
    ///
    /// # Errors
    /// As [`Self::get_resumable`].
    pub fn get_resumable_from(&self, file: &FileInfo, offset: u64) -> Result<ByteStream> {
        let key = self.layout.file(file.level, file.txids)?;
        let what = format!("level={}, min={}, max={}", file.level, file.txids.min(), file.txids.max());
        Ok(reader::resumable(self.client.clone(), key, offset, file.size, what))
    }

    /// Bytes of some small listed files at once; see [`ReplicaClient::get_small`].
    #[must_use]
    pub fn get_small(&self, files: &[FileInfo]) -> Option<BoxFuture<'static, Vec<Option<Bytes>>>> {
        let object = |file: &FileInfo| {
            let key = self.layout.file(file.level, file.txids).ok()?;
            Some((key, usize::try_from(file.size).ok()?))
        };
        let objects: Option<Vec<_>> = files.iter().map(object).collect();
        self.client.get_small(&objects?)
    }

    /// As [`Self::get_resumable_from`]; a large file comes in several ranges at a time where that is faster, and
    /// takes up to 24 MiB of memory then.
    ///
    /// # Errors
    /// As [`Self::get_resumable`].
    pub fn get_parallel_from(&self, file: &FileInfo, offset: u64) -> Result<ByteStream> {
        if !self.client.reads_in_parts() {
            return self.get_resumable_from(file, offset);
        }
        let key = self.layout.file(file.level, file.txids)?;
        let what = format!("level={}, min={}, max={}", file.level, file.txids.min(), file.txids.max());
        Ok(reader::in_parts(self.client.clone(), key, offset, file.size, what))
    }

    /// All bytes of any object of `size` bytes, opened on first use and continued after dropped
    /// connections. `what` names it in errors.
    #[must_use]
    pub fn get_object(&self, key: &Key, size: u64, what: String) -> ByteStream {
        reader::resumable(self.client.clone(), key.clone(), 0, size, what)
    }

    /// Writes a file, replacing one of the same name.
    ///
    /// # Errors
    /// Those of `body`, and the store's; nothing partial is ever seen.
    pub async fn put(
        &self,
        level: Level,
        txids: TxidRange,
        stamp: Timestamp,
        size: Option<u64>,
        modes: Option<Modes>,
        body: ByteStream,
    ) -> Result<FileInfo> {
        self.put_with(level, txids, body, PutOptions { stamp, size, modes, exclusive: false }).await
    }

    async fn put_with(&self, level: Level, txids: TxidRange, body: ByteStream, opts: PutOptions) -> Result<FileInfo> {
        let key = self.layout.file(level, txids)?;
        let meta = self.client.put(&key, body, opts).await?;
        Ok(FileInfo { level, txids, size: meta.size, created: opts.stamp })
    }

    /// The header of a file.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if it is none; the store's.
    pub async fn header(&self, level: Level, txids: TxidRange) -> Result<ltx::Header> {
        let range = 0..ltx::Header::SIZE as u64;
        let mut body = self.get(level, txids, Some(range)).await?;
        let mut bytes = Vec::with_capacity(ltx::Header::SIZE);
        while let Some(chunk) = body.try_next().await? {
            bytes.extend_from_slice(&chunk);
        }
        match <&[u8; ltx::Header::SIZE]>::try_from(bytes.as_slice()) {
            Ok(bytes) => ltx::Header::decode(bytes),
            Err(_) => Err(Error::corrupt("ltx file is shorter than its header").at(self.layout.file(level, txids)?)),
        }
    }

    /// Writes a local LTX file. Its header gives the stamp. An L0 file is created, never replaced,
    /// where the store can do that: each of them has one writer. Every byte of it is checked before, so that
    /// what is acknowledged can be restored.
    ///
    /// # Errors
    /// `Exists` for an L0 file; `Corrupt` if it is damaged, or not the file of `txids`; those of reading and of
    /// the store.
    pub async fn put_local(
        &self,
        level: Level,
        txids: TxidRange,
        world: &World,
        path: &Path,
        modes: Option<Modes>,
    ) -> Result<FileInfo> {
        let (world, path) = (world.clone(), path.to_owned());
        let (file, header, first, size) = blocking(move || {
            let file: Arc<dyn File> = world.fs.open(&path, OpenMode::Read)?.into();
            let size = file.stat()?.len;
            let first = read_chunk(file.as_ref(), &(0..size))?;
            let mut head = [0; ltx::Header::SIZE];
            match first.get(..ltx::Header::SIZE) {
                Some(bytes) => head.copy_from_slice(bytes),
                None => read_full_at(file.as_ref(), &mut head, 0).map_err(|e| bad_header(e).at(path.display()))?,
            }
            let header = ltx::Header::decode(&head).map_err(|e| bad_header(e).at(path.display()))?;
            if header.txids != txids {
                let text = format!("header says {}, name says {txids}", header.txids);
                return Err(bad_header(Error::corrupt(text)).at(path.display()));
            }
            // What is small is checked as it will be sent.
            let checked = match first.len() as u64 == size {
                _ if mutant("store-damage-uploaded") => Ok(()),
                true => ltx::verify(first.as_ref()).map(drop),
                false => ltx::verify(ltx::FileReader::new(file.clone())).map(drop),
            };
            checked.map_err(|e| e.context("ltx file corrupted").at(path.display()))?;
            Ok((file, header, first, size))
        })
        .await?;
        let body = of_file(file, 0..size, first);
        let opts = PutOptions {
            stamp: header.timestamp,
            size: Some(size),
            modes,
            exclusive: level == Level::L0 && !mutant("store-l0-replaced"),
        };
        self.put_with(level, txids, body, opts).await
    }

    /// Deletes files. Absent ones are fine.
    ///
    /// # Errors
    /// The store's; it is unknown then which are gone.
    pub async fn delete(&self, files: &[(Level, TxidRange)]) -> Result<()> {
        let keys: Result<Vec<_>> = files.iter().map(|(level, txids)| self.layout.file(*level, *txids)).collect();
        self.client.delete(&keys?).await
    }

    /// Highest TXID in any level.
    ///
    /// # Errors
    /// The store's.
    pub async fn max_txid(&self) -> Result<Option<Txid>> {
        let levels = try_join_all(Level::all().map(|level| self.max_txid_at(level))).await?;
        Ok(levels.into_iter().flatten().max())
    }

    /// Highest TXID in one level.
    ///
    /// # Errors
    /// The store's.
    pub async fn max_txid_at(&self, level: Level) -> Result<Option<Txid>> {
        let files = self.list(level, None, Stamps::Cheap).await?;
        Ok(files.iter().map(|file| file.txids.max()).max())
    }
}

/// Litestream's words for a body that is not an LTX file.
fn bad_header(err: Error) -> Error {
    err.context("extract timestamp from LTX header")
}
