//! Listings: pages in key order, and the stamps that cost a request per object.

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use http::Method;
use percent_encoding::percent_decode_str;

use super::api::{Ask, Asked};
use super::xml::{self, Page};
use super::{ErrorKind, Key, ObjectMeta, Operation, OssClient, Result, Stamps, Timestamp, parse_timestamp, web};

/// Requests for stamps at a time.
const STAMPS_AT_ONCE: usize = 50;

/// Objects directly below `dir`, those after `after` only.
pub(super) fn objects(
    oss: &OssClient,
    dir: Key,
    after: Option<Key>,
    stamps: Stamps,
) -> BoxStream<'_, Result<ObjectMeta>> {
    pages(oss, below(oss, Some(&dir)), after.clone())
        .and_then(move |page| {
            let (dir, after) = (dir.clone(), after.clone());
            async move {
                let found = page.contents.iter().filter_map(|object| meta(oss, &dir, object));
                let found: Vec<_> = found.filter(|m| after.as_ref().is_none_or(|after| m.key > *after)).collect();
                let found: Vec<Result<ObjectMeta>> = match stamps {
                    Stamps::Cheap => found.into_iter().map(Ok).collect(),
                    Stamps::Exact => {
                        stream::iter(found).map(|m| exact(oss, m)).buffered(STAMPS_AT_ONCE).collect().await
                    }
                };
                Ok(stream::iter(found))
            }
        })
        .try_flatten()
        .boxed()
}

/// "Directories" directly below `dir`, or below the root.
pub(super) fn dirs(oss: &OssClient, dir: Option<Key>) -> BoxStream<'_, Result<Key>> {
    let root = below(oss, dir.as_ref());
    pages(oss, root.clone(), None)
        .map_ok(move |page| {
            let names = page.common_prefixes.iter().filter_map(|found| {
                let found = decoded(&found.prefix)?;
                let name = found.strip_prefix(&root)?.strip_suffix('/')?.to_owned();
                Key::below(dir.as_ref(), &name).ok()
            });
            stream::iter(names.map(Ok).collect::<Vec<Result<Key>>>())
        })
        .try_flatten()
        .boxed()
}

/// What all names below `dir`, or below the root, begin with.
fn below(oss: &OssClient, dir: Option<&Key>) -> String {
    match dir {
        Some(dir) => format!("{}/", oss.object(dir.as_str())),
        // Where the path is empty, replicas in the bucket do not begin with a slash.
        None => match oss.0.settings.path.trim_end_matches('/') {
            "" => String::new(),
            root => format!("{root}/"),
        },
    }
}

fn pages(oss: &OssClient, prefix: String, after: Option<Key>) -> BoxStream<'_, Result<Page>> {
    web::pages("oss: list objects", oss.target(&prefix), move |token| {
        let (prefix, after) = (prefix.clone(), after.clone());
        async move {
            let mut page = page(oss, &prefix, after.as_ref(), token.as_deref()).await?;
            let next = page.next_continuation_token.take();
            let next = page.is_truncated.then(|| next.unwrap_or_default());
            Ok((page, next))
        }
    })
}

async fn page(oss: &OssClient, prefix: &str, after: Option<&Key>, token: Option<&str>) -> Result<Page> {
    let api = oss.api().await?;
    let target = oss.target(prefix);
    let asked = Asked { operation: Operation::List, doing: "list objects", target: &target };
    // As many as there can be: the service's own choice is 100.
    let mut ask = Ask::new(Method::GET, "")
        .query("list-type", "2")
        .query("encoding-type", "url")
        .query("max-keys", "1000")
        .query("delimiter", "/")
        .query("prefix", prefix);
    match (token, after) {
        (Some(token), _) => ask = ask.query("continuation-token", token),
        (None, Some(after)) => ask = ask.query("start-after", &oss.object(after.as_str())),
        (None, None) => {}
    }
    oss.0
        .requests
        .run(asked.call(1, 0), |_| {
            let ask = ask.clone();
            async move {
                let answer = api.send(asked, ask).await?;
                let body = web::answer(answer.into_body()).await.map_err(|e| asked.broken(e.to_string()))?;
                xml::parse(&body).map_err(|text| asked.broken(text))
            }
        })
        .await
}

pub(super) fn decoded(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(Into::into)
}

fn meta(oss: &OssClient, dir: &Key, object: &xml::Object) -> Option<ObjectMeta> {
    let name = decoded(&object.key)?;
    let name = name.strip_prefix(&oss.object(dir.as_str()))?.strip_prefix('/')?;
    let key = dir.join(name).ok()?;
    let modified = parse_timestamp(object.last_modified.trim()).unwrap_or(Timestamp::from_millis(0));
    Some(ObjectMeta { key, size: object.size, modified })
}

/// The stamp the object was put with; its age in the store if it has none. A stamp that cannot be asked for
/// is an error: the store's own time may be hours off, and a restore to a moment must not rest on it.
async fn exact(oss: &OssClient, mut meta: ObjectMeta) -> Result<ObjectMeta> {
    match oss.head(&oss.object(meta.key.as_str())).await {
        Ok(stamp) => {
            meta.modified = stamp.unwrap_or(meta.modified);
            Ok(meta)
        }
        // Deleted since it was listed: whoever opens it will see that.
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(meta),
        Err(err) => Err(err),
    }
}
