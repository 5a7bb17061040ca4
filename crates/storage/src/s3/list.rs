//! Listings: pages, and the stamps that cost a request per object.

use aws_sdk_s3::types::Object;
use futures::future::ready;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use super::failure::{Asked, failure};
use super::{Call, Error, ErrorKind, Key, ObjectMeta, Operation, Result, S3Client, Stamps, Timestamp};

/// Requests for stamps at a time.
const STAMPS_AT_ONCE: usize = 50;

struct Page {
    objects: Vec<Object>,
    dirs: Vec<String>,
    next: Option<String>,
}

/// Where a listing goes on.
enum Position {
    Start,
    Token(String),
    End,
}

/// Objects directly below `dir`.
pub(super) fn objects(
    s3: &S3Client,
    dir: Key,
    after: Option<Key>,
    stamps: Stamps,
) -> BoxStream<'_, Result<ObjectMeta>> {
    let start = after.as_ref().map(|after| s3.object(after.as_str()));
    pages(s3, format!("{}/", s3.object(dir.as_str())), false, start)
        .and_then(move |page| {
            let (dir, after) = (dir.clone(), after.clone());
            async move {
                let found = page.objects.iter().filter_map(|object| meta(s3, &dir, object));
                let found: Vec<_> = found.filter(|m| after.as_ref().is_none_or(|after| m.key > *after)).collect();
                let found: Vec<Result<ObjectMeta>> = match stamps {
                    Stamps::Cheap => found.into_iter().map(Ok).collect(),
                    Stamps::Exact => stream::iter(found).map(|m| exact(s3, m)).buffered(STAMPS_AT_ONCE).collect().await,
                };
                Ok(stream::iter(found))
            }
        })
        .try_flatten()
        .boxed()
}

/// "Directories" directly below `dir`.
pub(super) fn dirs(s3: &S3Client, dir: Key) -> BoxStream<'_, Result<Key>> {
    let prefix = format!("{}/", s3.object(dir.as_str()));
    names(s3, prefix).map(move |name| dir.join(&name?)).filter(|key| ready(!is_malformed(key))).boxed()
}

/// "Directories" directly below the root.
pub(super) fn root_dirs(s3: &S3Client) -> BoxStream<'_, Result<Key>> {
    let prefix = match s3.0.settings.path.trim_end_matches('/') {
        "" => String::new(),
        root => format!("{root}/"),
    };
    names(s3, prefix).map(|name| Key::new(name?)).filter(|key| ready(!is_malformed(key))).boxed()
}

/// What cannot be a key is nothing of ours.
fn is_malformed(key: &Result<Key>) -> bool {
    key.as_ref().is_err_and(|err| err.kind() == ErrorKind::Invalid)
}

/// Names of what is between `prefix` and the next slash.
fn names(s3: &S3Client, prefix: String) -> BoxStream<'_, Result<String>> {
    pages(s3, prefix.clone(), true, None)
        .map_ok(move |page| {
            let names = page
                .dirs
                .into_iter()
                .filter_map(|found| Some(Ok(found.strip_prefix(&prefix)?.strip_suffix('/')?.to_owned())));
            stream::iter(names.collect::<Vec<Result<String>>>())
        })
        .try_flatten()
        .boxed()
}

fn pages(s3: &S3Client, prefix: String, delimited: bool, start: Option<String>) -> BoxStream<'_, Result<Page>> {
    stream::try_unfold((Position::Start, start), move |(position, start)| {
        let prefix = prefix.clone();
        async move {
            let token = match position {
                Position::Start => None,
                Position::Token(token) => Some(token),
                Position::End => return Ok(None),
            };
            let page = page(s3, &prefix, delimited, start.as_deref(), token).await?;
            let next = page.next.clone().map_or(Position::End, Position::Token);
            Ok(Some((page, (next, start))))
        }
    })
    .boxed()
}

async fn page(
    s3: &S3Client,
    prefix: &str,
    delimited: bool,
    start: Option<&str>,
    token: Option<String>,
) -> Result<Page> {
    let client = s3.client().await?;
    let target = s3.target(prefix);
    let asked = Asked { api: "ListObjectsV2", doing: "list objects", target: &target };
    let call = Call { operation: Operation::List, kind: "s3", target: &target, objects: 1, bytes: 0 };
    let answer =
        s3.0.requests
            .run(call, |_| {
                let mut request = client.list_objects_v2().bucket(s3.bucket()).prefix(prefix);
                request = request.set_continuation_token(token.clone());
                if delimited {
                    request = request.delimiter("/");
                }
                if token.is_none()
                    && let Some(start) = start
                {
                    request = request.start_after(start);
                }
                async move { request.send().await.map_err(|e| failure(asked, e)) }
            })
            .await?;
    let next = match (answer.is_truncated().unwrap_or(false), answer.next_continuation_token) {
        (false, _) => None,
        (true, Some(next)) if Some(&next) != token.as_ref() => Some(next),
        // Half a listing must never look like a whole one.
        (true, _) => {
            return Err(Error::new(ErrorKind::Unavailable, "s3: list objects")
                .at(target)
                .caused_by("the service says there is more, but not where to go on"));
        }
    };
    let dirs = answer.common_prefixes.unwrap_or_default().into_iter().filter_map(|p| p.prefix).collect();
    Ok(Page { objects: answer.contents.unwrap_or_default(), dirs, next })
}

fn meta(s3: &S3Client, dir: &Key, object: &Object) -> Option<ObjectMeta> {
    let key = s3.key(dir, object.key()?)?;
    let size = u64::try_from(object.size()?).ok()?;
    let modified = object.last_modified().and_then(|t| t.to_millis().ok()).unwrap_or(0);
    Some(ObjectMeta { key, size, modified: Timestamp::from_millis(modified) })
}

/// The stamp the object was put with; its age in the store if it has none. A stamp that cannot be asked for
/// is an error: the store's own time may be hours off, and a restore to a moment must not rest on it.
async fn exact(s3: &S3Client, mut meta: ObjectMeta) -> Result<ObjectMeta> {
    match s3.head(&s3.object(meta.key.as_str())).await {
        Ok(head) => {
            if let Some(stamp) = head.stamp {
                meta.modified = stamp;
            }
            Ok(meta)
        }
        // Deleted since it was listed: whoever opens it will see that.
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(meta),
        Err(err) => Err(err),
    }
}
