//! Creation times of files on stores that keep no stamps, or coarse ones: from the header of each LTX file.
//!
//! One small read per file, so only for who needs to know (`Stamps::Exact`: restores to a moment).

use futures::stream::{self, Stream, StreamExt, TryStreamExt};

use super::client::{ObjectMeta, ReplicaClient};
use crate::error::{ErrorKind, Result};
use crate::ltx::Header;

/// Reads at a time.
const AT_ONCE: usize = 16;

/// The same objects with the time in their header; those that are no LTX files keep the store's.
pub(super) fn exact<C: ReplicaClient>(client: &C, objects: Vec<ObjectMeta>) -> impl Stream<Item = Result<ObjectMeta>> {
    stream::iter(objects).map(move |object| stamped(client, object)).buffered(AT_ONCE)
}

async fn stamped<C: ReplicaClient>(client: &C, mut object: ObjectMeta) -> Result<ObjectMeta> {
    if !object.key.name().ends_with(".ltx") || object.size < Header::SIZE as u64 {
        return Ok(object);
    }
    let head: Vec<bytes::Bytes> = match client.get(&object.key, Some(0..Header::SIZE as u64)).await {
        Ok(stream) => stream.try_collect().await?,
        // Deleted since it was listed: whoever opens it will see that.
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(object),
        Err(err) => return Err(err),
    };
    if let Ok(head) = <&[u8; Header::SIZE]>::try_from(head.concat().as_slice())
        && let Ok(header) = Header::decode(head)
    {
        object.modified = header.timestamp;
    }
    Ok(object)
}
