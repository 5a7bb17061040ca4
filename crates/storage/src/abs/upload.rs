//! Writing blobs: one request where the body fits a block, else blocks and their list.

use std::collections::HashMap;
use std::num::NonZero;

use azure_core::http::{NoFormat, RequestContent};
use azure_storage_blob::models::{
    AccessTier, BlockBlobClientCommitBlockListOptions, BlockBlobClientUploadOptions, BlockLookupList,
};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};

use super::super::exclusion;
use super::super::file::check_size;
use super::super::requests::{Failure, seen, unless};
use super::super::stamp::stamp_text;
use super::super::stream::{Start, fill, start};
use super::failure::{Asked, failure};
use super::{AbsClient, ByteStream, Call, Error, ErrorKind, Key, ObjectMeta, Operation, PutOptions, Result, STAMP};

/// Bytes per block, and the largest body that is sent whole.
const BLOCK_BYTES: usize = 4 << 20;
/// Blocks of one upload in flight.
pub(super) const BLOCKS_AT_ONCE: usize = 4;
/// Blocks of one blob: the service's bound.
const MAX_BLOCKS: u64 = 50_000;
/// After so many blocks of a body of unknown length each further block is larger by one step.
const BLOCKS_PER_STEP: u64 = 10_000;

pub(super) async fn put(abs: &AbsClient, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
    let object = abs.object(key.as_str());
    let upload = Upload { abs, target: abs.target(&object), object, opts };
    let block_bytes = block_bytes(opts.size);
    let size = match start(body, block_bytes, opts.size, &upload.target).await? {
        Start::Whole(first) => {
            let size = first.len() as u64;
            upload.whole(first).await?;
            size
        }
        Start::Longer(first, rest, body) => upload.blocks(first, body, rest, block_bytes).await?,
    };
    Ok(ObjectMeta { key: key.clone(), size, modified: opts.stamp })
}

/// Bytes per block: more than usual if the body would not fit otherwise.
fn block_bytes(size: Option<u64>) -> usize {
    let needed = size.map_or(0, |size| size.div_ceil(MAX_BLOCKS));
    BLOCK_BYTES.max(usize::try_from(needed).unwrap_or(usize::MAX))
}

fn content(bytes: &Bytes) -> RequestContent<Bytes, NoFormat> {
    bytes.clone().into()
}

struct Upload<'a> {
    abs: &'a AbsClient,
    object: String,
    target: String,
    opts: PutOptions,
}

impl Upload<'_> {
    fn asked(&self) -> Asked<'_> {
        Asked { doing: "cannot upload ltx file", target: &self.target }
    }

    fn call(&self, objects: u64, bytes: usize) -> Call<'_> {
        Call { operation: Operation::Put, kind: "abs", target: &self.target, objects, bytes: bytes as u64 }
    }

    fn metadata(&self) -> HashMap<String, String> {
        HashMap::from([(STAMP.to_owned(), stamp_text(self.opts.stamp))])
    }

    async fn whole(&self, bytes: Bytes) -> Result<()> {
        let (abs, exclusive) = (self.abs, self.opts.exclusive);
        self.refuse_existing().await?;
        let done = abs.0.requests.run(self.call(1, bytes.len()), |_| self.once(&bytes)).await;
        match &done {
            Err(err) if exclusive && err.kind() == ErrorKind::Exists => exclusion::remember("abs", &abs.place(), true),
            // The same blob once more must be refused, or the condition is not heeded there. That writes the same
            // bytes over themselves, once per container and process.
            Ok(()) if exclusive && abs.tried().is_none() => {
                let again = |_| async { unless(ErrorKind::Exists, self.once(&bytes).await) };
                match abs.0.requests.run(self.call(0, 0), again).await {
                    Ok(replaced) => exclusion::remember("abs", &abs.place(), replaced.is_none()),
                    // Not known yet; the blob is there, and that is what was asked.
                    Err(err) => {
                        tracing::debug!(error = %err, "cannot tell yet whether blobs can be created exclusively")
                    }
                }
            }
            _ => {}
        }
        done
    }

    /// Before an exclusive put, unless the service is known to do that itself.
    async fn refuse_existing(&self) -> Result<()> {
        let trusted = self.abs.tried() == Some(true);
        if !self.opts.exclusive || trusted || !seen(self.abs.exists(&self.object, &self.target).await)? {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Exists, "abs: cannot upload ltx file").at(&self.target).caused_by("blob exists"))
    }

    /// One attempt.
    async fn once(&self, bytes: &Bytes) -> Result<(), Failure> {
        let broken = |error| Failure { error, code: "Request".to_owned(), retry_after: None };
        let blob = self.abs.blob(&self.object).await.map_err(broken)?.block_blob_client();
        let options = BlockBlobClientUploadOptions {
            metadata: Some(self.metadata()),
            tier: Some(AccessTier::Hot),
            blob_content_type: Some("application/octet-stream".to_owned()),
            if_none_match: self.opts.exclusive.then(|| "*".into()),
            // Never in parts: those are ours.
            partition_size: NonZero::new(u64::MAX),
            parallel: Some(NonZero::<usize>::MIN),
            ..Default::default()
        };
        let sent = blob.upload(content(bytes), Some(options)).await;
        sent.map(|_| ()).map_err(|e| failure(self.asked(), &e))
    }

    /// Blocks that are never listed are dropped by the service after a week, so a failed upload leaves nothing to
    /// clean.
    async fn blocks(&self, first: Bytes, mut body: ByteStream, mut rest: Bytes, block_bytes: usize) -> Result<u64> {
        // Two uploads of one blob must not take each other's blocks.
        let upload = self.abs.0.requests.random();
        let (mut flying, mut ids) = (FuturesUnordered::new(), Vec::new());
        let (mut next, mut size) = (first, 0_u64);
        while !next.is_empty() {
            let number = ids.len() as u64;
            if number >= MAX_BLOCKS {
                let text = format!("more than {MAX_BLOCKS} blocks");
                return Err(Error::invalid("abs: cannot upload ltx file").at(&self.target).caused_by(text));
            }
            size += next.len() as u64;
            let id = format!("{upload:016x}{number:08x}").into_bytes();
            ids.push(id.clone());
            flying.push(self.block(id, next));
            if flying.len() >= BLOCKS_AT_ONCE
                && let Some(done) = flying.next().await
            {
                done?;
            }
            let steps = if self.opts.size.is_none() { number / BLOCKS_PER_STEP } else { 0 };
            let want = block_bytes.saturating_mul(usize::try_from(steps + 1).unwrap_or(1));
            next = fill(&mut body, &mut rest, want).await?;
        }
        while let Some(done) = flying.next().await {
            done?;
        }
        check_size(self.opts.size, size).map_err(|e| e.at(&self.target))?;
        self.refuse_existing().await?;
        self.commit(ids).await?;
        Ok(size)
    }

    async fn block(&self, id: Vec<u8>, bytes: Bytes) -> Result<()> {
        let blob = self.abs.blob(&self.object).await?.block_blob_client();
        let attempt = |_| {
            let (blob, id, content) = (&blob, &id, content(&bytes));
            let length = bytes.len() as u64;
            async move {
                let sent = blob.stage_block(id, length, content, None).await;
                sent.map(|_| ()).map_err(|e| failure(self.asked(), &e))
            }
        };
        self.abs.0.requests.run(self.call(0, bytes.len()), attempt).await
    }

    async fn commit(&self, ids: Vec<Vec<u8>>) -> Result<()> {
        let blob = self.abs.blob(&self.object).await?.block_blob_client();
        let attempt = |_| {
            let options = BlockBlobClientCommitBlockListOptions {
                metadata: Some(self.metadata()),
                tier: Some(AccessTier::Hot),
                blob_content_type: Some("application/octet-stream".to_owned()),
                if_none_match: self.opts.exclusive.then(|| "*".into()),
                ..Default::default()
            };
            let list = BlockLookupList { latest: Some(ids.clone()), ..Default::default() };
            let blob = &blob;
            async move {
                let list = list.try_into().map_err(|e| failure(self.asked(), &e))?;
                let sent = blob.commit_block_list(list, Some(options)).await;
                sent.map(|_| ()).map_err(|e| failure(self.asked(), &e))
            }
        };
        self.abs.0.requests.run(self.call(1, 0), attempt).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_grow_only_where_they_must() {
        assert_eq!(block_bytes(None), BLOCK_BYTES);
        assert_eq!(block_bytes(Some(1 << 30)), BLOCK_BYTES);
        let huge = 1_u64 << 40;
        assert!(block_bytes(Some(huge)) as u64 * MAX_BLOCKS >= huge);
    }
}
