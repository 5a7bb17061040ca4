//! Listings: a directory is read whole and sorted, there is no cheaper order to be had.

use std::sync::Arc;

use futures::future::try_join_all;
use futures::stream::{self, BoxStream, StreamExt};

use super::super::from_header;
use super::session::{Problem, Session};
use super::wire::{Attributes, Request, Status};
use super::write::note_stale;
use super::{Call, Failure, Key, ObjectMeta, Operation, Result, SftpClient, Stamps, TEMP_SUFFIX, failure};
use crate::types::Timestamp;

/// Requests for further lines under way.
const AHEAD: usize = 4;
const DOING: &str = "list objects";

/// What lies in a directory.
struct Found {
    name: String,
    attributes: Attributes,
}

/// Objects directly below `dir`.
pub(super) fn objects(
    sftp: &SftpClient,
    dir: Key,
    after: Option<Key>,
    stamps: Stamps,
) -> BoxStream<'_, Result<ObjectMeta>> {
    let listing = async move {
        let found = match read(sftp, &dir).await {
            Ok(found) => found,
            Err(err) => return stream::iter([Err(err)]).left_stream().left_stream(),
        };
        let mut objects: Vec<ObjectMeta> = found
            .into_iter()
            .filter(|found| found.attributes.is_file() == Some(true) && !found.name.ends_with(TEMP_SUFFIX))
            .filter_map(|found| {
                let modified = Timestamp::from_millis(i64::from(found.attributes.modified.unwrap_or(0)) * 1000);
                let key = dir.join(&found.name).ok()?;
                Some(ObjectMeta { key, size: found.attributes.size.unwrap_or(0), modified })
            })
            .filter(|object| after.as_ref().is_none_or(|after| object.key > *after))
            .collect();
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        match stamps {
            Stamps::Cheap => stream::iter(objects.into_iter().map(Ok)).right_stream().left_stream(),
            // Servers keep whole seconds.
            Stamps::Exact => from_header::exact(sftp, objects).right_stream(),
        }
    };
    stream::once(listing).flatten().boxed()
}

/// "Directories" directly below `dir`.
pub(super) fn dirs(sftp: &SftpClient, dir: Key) -> BoxStream<'_, Result<Key>> {
    let listing = async move {
        match read(sftp, &dir).await {
            Ok(found) => {
                let dirs = found.into_iter().filter(|found| found.attributes.is_dir() == Some(true));
                let keys: Vec<Result<Key>> = dirs.filter_map(|found| dir.join(&found.name).ok()).map(Ok).collect();
                stream::iter(keys)
            }
            Err(err) => stream::iter(vec![Err(err)]),
        }
    };
    stream::once(listing).flatten().boxed()
}

async fn read(sftp: &SftpClient, dir: &Key) -> Result<Vec<Found>> {
    let path = sftp.path(dir);
    let target = sftp.target(&path);
    let call = Call { operation: Operation::List, kind: "sftp", target: &target, objects: 1, bytes: 0 };
    sftp.0.requests.run(call, |_| attempt(sftp, &path, &target)).await
}

async fn attempt(sftp: &SftpClient, path: &str, target: &str) -> Result<Vec<Found>, Failure> {
    let session = sftp.session(DOING, target).await?;
    let mut found = match read_all(&session, path).await {
        Ok(found) => found,
        // Of a directory that is not there some servers say so when it is opened, others (AsyncSSH) when it is read.
        Err(problem) if problem.code() == Some(Status::NO_SUCH_FILE) => return Ok(Vec::new()),
        Err(problem) => {
            // Of a file some servers say only that it failed.
            return match session.stat(path).await {
                Ok(attributes) if attributes.is_dir() == Some(false) => Ok(Vec::new()),
                _ => Err(failure(DOING, target, problem)),
            };
        }
    };
    note_stale(sftp, path, found.iter().map(|entry| entry.name.as_str()));
    complete(&session, path, &mut found).await.map_err(|problem| failure(DOING, target, problem))?;
    Ok(found)
}

async fn read_all(session: &Arc<Session>, path: &str) -> Result<Vec<Found>, Problem> {
    let handle = session.open(&Request::OpenDir { path }).await?;
    let mut found = Vec::new();
    loop {
        let lines = match try_join_all((0..AHEAD).map(|_| handle.read_dir())).await {
            // It was there a moment ago: not a listing that ends here.
            Err(problem) if problem.code() == Some(Status::NO_SUCH_FILE) && !found.is_empty() => {
                return Err(Problem::Lost("the directory went away while it was read".to_owned()));
            }
            lines => lines?,
        };
        let ended = lines.iter().any(Option::is_none);
        for entry in lines.into_iter().flatten().flatten() {
            // No name of ours is anything but UTF-8.
            let Ok(name) = String::from_utf8(entry.name.to_vec()) else { continue };
            if name != "." && name != ".." {
                found.push(Found { name, attributes: entry.attributes });
            }
        }
        if ended {
            return Ok(found);
        }
    }
}

/// Asks for what the listing of some servers leaves out.
async fn complete(session: &Session, dir: &str, found: &mut [Found]) -> Result<(), Problem> {
    let known = |a: &Attributes| a.is_file().is_some() && a.size.is_some() && a.modified.is_some();
    for entry in found.iter_mut().filter(|entry| !known(&entry.attributes)) {
        match session.stat(&format!("{dir}/{}", entry.name)).await {
            Ok(attributes) => entry.attributes = attributes,
            // Deleted since.
            Err(problem) if problem.code() == Some(Status::NO_SUCH_FILE) => {}
            Err(problem) => return Err(problem),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::session::testing::{server, status};
    use super::*;

    const READ_DIR: u8 = 12;

    fn handle(id: u32) -> Vec<u8> {
        [&[102][..], &id.to_be_bytes(), &[0, 0, 0, 1, 7]].concat()
    }

    /// One line: a file `a` without attributes.
    fn line(id: u32) -> Vec<u8> {
        [&[104][..], &id.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 1, b'a', 0, 0, 0, 0, 0, 0, 0, 0]].concat()
    }

    /// AsyncSSH opens what is not there, and says so when it is read.
    #[tokio::test]
    async fn a_directory_that_is_missed_only_when_it_is_read_is_missing() {
        let code = u8::try_from(Status::NO_SUCH_FILE).unwrap();
        let session = server(move |kind, id| Some(if kind == READ_DIR { status(id, code) } else { handle(id) })).await;
        let problem = read_all(&session, "/x").await.map(|found| found.len()).unwrap_err();
        assert_eq!(problem.code(), Some(Status::NO_SUCH_FILE));
    }

    #[tokio::test]
    async fn a_directory_that_goes_away_is_not_a_short_one() {
        let code = u8::try_from(Status::NO_SUCH_FILE).unwrap();
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let session = server(move |kind, id| {
            let nth = asked.fetch_add(usize::from(kind == READ_DIR), std::sync::atomic::Ordering::Relaxed);
            Some(match kind {
                READ_DIR if nth < AHEAD => line(id),
                READ_DIR => status(id, code),
                _ => handle(id),
            })
        })
        .await;
        let problem = read_all(&session, "/x").await.map(|found| found.len()).unwrap_err();
        assert!(matches!(problem, Problem::Lost(_)), "{problem:?}");
    }
}
