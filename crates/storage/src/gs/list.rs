//! Listings: pages in name order.

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use http::Method;
use serde::Deserialize;

use super::api::{Api, Asked};
use super::{GsClient, Key, ObjectMeta, Operation, Result, STAMP, web};
use crate::types::{Timestamp, parse_timestamp};

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Page {
    items: Vec<Item>,
    prefixes: Vec<String>,
    next_page_token: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Item {
    name: String,
    /// Digits: JSON has no 64-bit numbers. Some emulators send a number all the same.
    size: serde_json::Value,
    time_created: String,
    metadata: std::collections::HashMap<String, String>,
}

/// Objects directly below `dir`, those after `after` only.
pub(super) fn objects(gs: &GsClient, dir: Key, after: Option<Key>) -> BoxStream<'_, Result<ObjectMeta>> {
    pages(gs, below(gs, Some(&dir)), after.clone())
        .map_ok(move |page| {
            let found = page.items.into_iter().filter_map(|item| meta(gs, &dir, &item));
            let found = found.filter(|meta| after.as_ref().is_none_or(|after| meta.key > *after));
            stream::iter(found.map(Ok).collect::<Vec<Result<ObjectMeta>>>())
        })
        .try_flatten()
        .boxed()
}

/// "Directories" directly below `dir`, or below the root.
pub(super) fn dirs(gs: &GsClient, dir: Option<Key>) -> BoxStream<'_, Result<Key>> {
    let root = below(gs, dir.as_ref());
    pages(gs, root.clone(), None)
        .map_ok(move |page| {
            let names = page.prefixes.into_iter().filter_map(|found| {
                let name = found.strip_prefix(&root)?.strip_suffix('/')?.to_owned();
                Key::below(dir.as_ref(), &name).ok()
            });
            stream::iter(names.map(Ok).collect::<Vec<Result<Key>>>())
        })
        .try_flatten()
        .boxed()
}

/// What all names below `dir`, or below the root, begin with.
fn below(gs: &GsClient, dir: Option<&Key>) -> String {
    match dir {
        Some(dir) => format!("{}/", gs.object(dir.as_str())),
        None => gs.object(""),
    }
}

fn pages(gs: &GsClient, prefix: String, after: Option<Key>) -> BoxStream<'_, Result<Page>> {
    web::pages("gs: cannot list objects", gs.target(&prefix), move |token| {
        let (prefix, after) = (prefix.clone(), after.clone());
        async move {
            let mut page = page(gs, &prefix, after.as_ref(), token.as_deref()).await?;
            let next = page.next_page_token.take();
            Ok((page, next))
        }
    })
}

async fn page(gs: &GsClient, prefix: &str, after: Option<&Key>, token: Option<&str>) -> Result<Page> {
    let api = gs.api().await?;
    let target = gs.target(prefix);
    let asked = Asked { operation: Operation::List, doing: "cannot list objects", target: &target };
    let mut path = format!(
        "/storage/v1/b/{}/o?prefix={}&delimiter=%2F&fields=prefixes,nextPageToken,items(name,size,timeCreated,metadata)",
        web::encode(&gs.0.settings.bucket),
        web::encode(prefix)
    );
    // The reference appends what it seeks to the prefix, and so finds one file at most.
    if let Some(after) = after {
        path.push_str(&format!("&startOffset={}", web::encode(&gs.object(after.as_str()))));
    }
    if let Some(token) = token {
        path.push_str(&format!("&pageToken={}", web::encode(token)));
    }
    gs.0.requests
        .run(asked.call(1, 0), |_| async {
            let answer = api.send(asked, api.request(Method::GET, &path).body(Bytes::new())).await?;
            Api::json(asked, answer).await
        })
        .await
}

fn meta(gs: &GsClient, dir: &Key, item: &Item) -> Option<ObjectMeta> {
    let name = item.name.strip_prefix(&gs.object(dir.as_str()))?.strip_prefix('/')?;
    let key = dir.join(name).ok()?;
    let size = match &item.size {
        serde_json::Value::String(digits) => digits.parse().ok()?,
        other => other.as_u64()?,
    };
    let stamp = item.metadata.get(STAMP).and_then(|text| parse_timestamp(text).ok());
    let modified = stamp.or_else(|| parse_timestamp(&item.time_created).ok()).unwrap_or(Timestamp::from_millis(0));
    Some(ObjectMeta { key, size, modified })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_whoever_wrote_it() {
        let page: Page = serde_json::from_str(
            r#"{"kind":"storage#objects","nextPageToken":"t","prefixes":["a/"],
                "items":[{"name":"n","size":"12","timeCreated":"2026-11-21T00:40:06.490Z"},{"name":"m","size":3}]}"#,
        )
        .unwrap();
        assert_eq!((page.items.len(), page.next_page_token.as_deref()), (2, Some("t")));
        let empty: Page = serde_json::from_str(r#"{"kind":"storage#objects"}"#).unwrap();
        assert!(empty.items.is_empty() && empty.next_page_token.is_none());
    }
}
