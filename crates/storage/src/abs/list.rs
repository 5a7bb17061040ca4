//! Listings: pages in name order.

use azure_storage_blob::models::{
    BlobContainerClientListBlobsOptions, BlobItem, ListBlobsIncludeItem, ListBlobsResponse,
};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use super::failure::{Asked, failure};
use super::{AbsClient, Call, Key, ObjectMeta, Operation, Result, STAMP, web};
use crate::types::{Timestamp, parse_timestamp};

/// Blobs directly below `dir`, those after `after` only.
pub(super) fn objects(abs: &AbsClient, dir: Key, after: Option<Key>) -> BoxStream<'_, Result<ObjectMeta>> {
    pages(abs, below(abs, Some(&dir)), after.clone())
        .map_ok(move |page| {
            let found = page.blob_items.into_iter().filter_map(|item| meta(abs, &dir, item));
            let found = found.filter(|meta| after.as_ref().is_none_or(|after| meta.key > *after));
            stream::iter(found.map(Ok).collect::<Vec<Result<ObjectMeta>>>())
        })
        .try_flatten()
        .boxed()
}

/// "Directories" directly below `dir`, or below the root, from a listing of all that lies below: the SDK lists no
/// other way.
pub(super) fn dirs(abs: &AbsClient, dir: Option<Key>) -> BoxStream<'_, Result<Key>> {
    let root = below(abs, dir.as_ref());
    let mut last = String::new();
    pages(abs, root.clone(), None)
        .map_ok(move |page| {
            let mut found = Vec::new();
            for name in page.blob_items.iter().filter_map(|item| item.name.as_deref()) {
                let Some((name, _)) = name.strip_prefix(&root).and_then(|rest| rest.split_once('/')) else { continue };
                // All blobs of a directory follow one another.
                if name != last {
                    name.clone_into(&mut last);
                    found.extend(Key::below(dir.as_ref(), name).map(Ok));
                }
            }
            stream::iter(found)
        })
        .try_flatten()
        .boxed()
}

/// What all names below `dir`, or below the root, begin with.
fn below(abs: &AbsClient, dir: Option<&Key>) -> String {
    match dir {
        Some(dir) => format!("{}/", abs.object(dir.as_str())),
        None => abs.object(""),
    }
}

fn pages(abs: &AbsClient, prefix: String, after: Option<Key>) -> BoxStream<'_, Result<ListBlobsResponse>> {
    web::pages("abs: cannot list blobs", abs.target(&prefix), move |marker| {
        let (prefix, after) = (prefix.clone(), after.clone());
        async move {
            let mut page = page(abs, &prefix, after.as_ref(), marker).await?;
            let next = page.next_marker.take().filter(|next| !next.is_empty());
            Ok((page, next))
        }
    })
}

async fn page(abs: &AbsClient, prefix: &str, after: Option<&Key>, marker: Option<String>) -> Result<ListBlobsResponse> {
    let container = abs.container().await?;
    let target = abs.target(prefix);
    let asked = Asked { doing: "cannot list blobs", target: &target };
    let call = Call { operation: Operation::List, kind: "abs", target: &target, objects: 1, bytes: 0 };
    // Only a name below the prefix may be sought. Servers that do not know the parameter list from the start;
    // what comes before is left out by the caller.
    let start_from = after.map(|after| abs.object(after.as_str())).filter(|name| name.starts_with(prefix));
    abs.0
        .requests
        .run(call, |_| {
            let options = BlobContainerClientListBlobsOptions {
                include: Some(vec![ListBlobsIncludeItem::Metadata]),
                prefix: Some(prefix.to_owned()),
                start_from: start_from.clone().filter(|_| marker.is_none()),
                marker: marker.clone(),
                ..Default::default()
            };
            async {
                let mut pages = container.list_blobs(Some(options)).map_err(|e| failure(asked, &e))?.into_pages();
                let page = pages.try_next().await.map_err(|e| failure(asked, &e))?;
                match page {
                    Some(page) => page.into_model().map_err(|e| failure(asked, &e)),
                    None => Ok(ListBlobsResponse::default()),
                }
            }
        })
        .await
}

fn meta(abs: &AbsClient, dir: &Key, item: BlobItem) -> Option<ObjectMeta> {
    let name = item.name?;
    let name = name.strip_prefix(&abs.object(dir.as_str()))?.strip_prefix('/')?;
    let key = dir.join(name).ok()?;
    let properties = item.properties?;
    let stamp = item.metadata.and_then(|metadata| metadata.values).and_then(|values| {
        let (_, text) = values.iter().find(|(name, _)| name.eq_ignore_ascii_case(STAMP))?;
        parse_timestamp(text).ok()
    });
    let created = properties.creation_time.or(properties.last_modified);
    let modified = stamp.or_else(|| {
        let millis = created?.unix_timestamp_nanos().div_euclid(1_000_000);
        i64::try_from(millis).ok().map(Timestamp::from_millis)
    });
    Some(ObjectMeta { key, size: properties.content_length?, modified: modified.unwrap_or(Timestamp::from_millis(0)) })
}
