//! Replica in memory, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};

use super::client::{ByteStream, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
use super::exclusion::Exclusion;
use super::file::check_size;
use super::stream as byte_stream;
use crate::error::{Error, ErrorKind, Result};
use crate::types::Timestamp;

/// Pieces a stored object is handed out in, so that readers meet more than one.
const PIECE: usize = 64 * 1024;

/// Objects in a sorted map.
#[derive(Debug, Default)]
pub struct MemoryClient {
    objects: Mutex<BTreeMap<Key, (Bytes, Timestamp)>>,
}

impl MemoryClient {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<Key, (Bytes, Timestamp)>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ReplicaClient for MemoryClient {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn location(&self) -> String {
        format!("memory://{:p}", self)
    }

    fn exclusion(&self) -> Exclusion {
        Exclusion::Exact
    }

    async fn init(&self) -> Result<()> {
        Ok(())
    }

    fn list(&self, prefix: &Key, after: Option<&Key>, _stamps: Stamps) -> BoxStream<'_, Result<ObjectMeta>> {
        let from = match after {
            Some(after) if after > prefix => after,
            _ => prefix,
        };
        let found: Vec<_> = self
            .objects()
            .range((Bound::Excluded(from), Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(prefix.as_str()))
            .filter(|(key, _)| key.name_in(prefix).is_some())
            .map(|(key, (bytes, stamp))| {
                Ok(ObjectMeta { key: key.clone(), size: bytes.len() as u64, modified: *stamp })
            })
            .collect();
        stream::iter(found).boxed()
    }

    fn list_dirs(&self, prefix: &Key) -> Option<BoxStream<'_, Result<Key>>> {
        let below = format!("{prefix}/");
        let names: BTreeSet<String> = self
            .objects()
            .keys()
            .filter_map(|key| key.as_str().strip_prefix(&below)?.split_once('/'))
            .map(|(dir, _)| dir.to_owned())
            .collect();
        let dirs: Vec<_> = names.iter().map(|name| prefix.join(name)).collect();
        Some(stream::iter(dirs).boxed())
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let Some((bytes, _)) = self.objects().get(key).cloned() else {
            return Err(Error::new(ErrorKind::NotFound, "object does not exist").at(key));
        };
        let range = byte_stream::clamp(range, bytes.len() as u64);
        let mut rest = bytes.slice(range.start as usize..range.end as usize);
        let pieces = std::iter::from_fn(move || (!rest.is_empty()).then(|| Ok(rest.split_to(rest.len().min(PIECE)))));
        Ok(stream::iter(pieces).boxed())
    }

    async fn put(&self, key: &Key, mut body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        let size = bytes.len() as u64;
        check_size(opts.size, size)?;
        let mut objects = self.objects();
        if opts.exclusive && objects.contains_key(key) {
            return Err(Error::new(ErrorKind::Exists, "object exists").at(key));
        }
        objects.insert(key.clone(), (bytes.freeze(), opts.stamp));
        Ok(ObjectMeta { key: key.clone(), size, modified: opts.stamp })
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        let mut objects = self.objects();
        for key in keys {
            objects.remove(key);
        }
        Ok(())
    }
}
