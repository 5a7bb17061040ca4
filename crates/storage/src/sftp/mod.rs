//! A directory behind SSH (`spec: backends` §8, `docs/sftp.md`).
//!
//! Guarantees beside those of [`ReplicaClient`]:
//! 1. An object is written under a temporary name, made durable where the server can, and renamed over the old one.
//! 2. An exclusive put never replaces: the name is given by a hard link, or by a rename that servers refuse when it
//!    exists. Whether this one does is tried; it is looked before, until that is known and where it does not.
//! 3. At most `WINDOW` bytes of an object are under way, in either direction.
//! 4. A lost connection is made again by the next request; one login serves all replicas on a server.

mod connect;
mod link;
mod list;
mod prompt;
mod read;
mod session;
mod wire;
mod write;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use futures::stream::{self, BoxStream, TryStreamExt};

use super::client::{ByteStream, Key, ObjectMeta, PutOptions, ReplicaClient, Stamps};
use super::exclusion::{self, Exclusion};
use super::requests::{Call, Failure, Operation, RequestStats, Requests};
use super::tree::{TEMP_SUFFIX, clean};
use crate::error::{Error, ErrorKind, Result};
use crate::settings::SftpSettings;
use crate::sys::World;
pub use connect::is_known;
use link::Link;
use session::{Problem, Session};
use wire::{Request, Status};

/// Bytes asked for, or sent, at once: what every server takes.
const PIECE: u32 = 32 * 1024;
/// Bytes of one object under way.
const WINDOW: u32 = 2 << 20;
/// Files deleted at a time.
const DELETES_AT_ONCE: usize = 32;

/// A replica below a directory of an SFTP server.
#[derive(Clone)]
pub struct SftpClient(Arc<Inner>);

struct Inner {
    settings: SftpSettings,
    /// Clean, without a slash at its end; empty for the login directory.
    root: String,
    world: World,
    requests: Requests,
    link: OnceLock<Arc<Link>>,
    /// Whether the last hard link that was asked for was made.
    links: AtomicBool,
    /// Temporary files of writers that died.
    stale: Mutex<Vec<String>>,
}

impl fmt::Debug for SftpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SftpClient").field(&self.location()).finish()
    }
}

impl SftpClient {
    /// A client; nothing is connected to yet.
    #[must_use]
    pub fn new(settings: SftpSettings, world: World) -> Self {
        let root = clean(&settings.path);
        let requests = Requests::new(world.clone());
        Self(Arc::new(Inner {
            settings,
            root,
            world,
            requests,
            link: OnceLock::new(),
            links: AtomicBool::new(false),
            stale: Mutex::default(),
        }))
    }

    /// Counts of the requests made.
    #[must_use]
    pub fn stats(&self) -> &Arc<RequestStats> {
        self.0.requests.stats()
    }

    /// Where the object lies on the server.
    fn path(&self, key: &Key) -> String {
        match self.0.root.as_str() {
            "" => key.as_str().to_owned(),
            "/" => format!("/{key}"),
            root => format!("{root}/{key}"),
        }
    }

    /// `sftp://user@host/path`, for people.
    fn target(&self, path: &str) -> String {
        let SftpSettings { user, host, .. } = &self.0.settings;
        format!("sftp://{user}@{host}/{}", path.trim_start_matches('/'))
    }

    /// What tells one server from another.
    fn place(&self) -> String {
        let SftpSettings { user, host, .. } = &self.0.settings;
        format!("{user}@{host}")
    }

    /// Whether the server refuses to give a name that exists.
    fn tried(&self) -> Option<bool> {
        exclusion::tried("sftp", &self.place())
    }

    async fn session(&self, doing: &'static str, target: &str) -> Result<Arc<Session>, Failure> {
        let link = self.0.link.get_or_init(|| Link::shared(&self.0.settings));
        match link.session().await {
            Ok(session) => Ok(session),
            Err(err) => {
                let code = match err.kind() {
                    ErrorKind::Unavailable => "Connection",
                    ErrorKind::PermissionDenied => "Login",
                    _ => "Configuration",
                };
                let hint = err.hint_text();
                let outer = Error::new(err.kind(), format!("sftp: {doing}")).at(target).caused_by(err);
                let error = hint.into_iter().fold(outer, Error::hint);
                Err(Failure { error, code: code.to_owned(), retry_after: None })
            }
        }
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        const DOING: &str = "delete object";
        let path = self.path(key);
        let target = self.target(&path);
        let call = Call { operation: Operation::Delete, kind: "sftp", target: &target, objects: 1, bytes: 0 };
        self.0
            .requests
            .run(call, |_| async {
                let session = self.session(DOING, &target).await?;
                match session.run(&Request::Remove { path: &path }).await {
                    Ok(()) => Ok(()),
                    Err(problem) if problem.code() == Some(Status::NO_SUCH_FILE) => Ok(()),
                    Err(problem) => Err(failure(DOING, &target, problem)),
                }
            })
            .await
    }
}

/// What callers branch on, what an operator reads, what to do about it.
fn failure(doing: &'static str, target: &str, problem: Problem) -> Failure {
    let (kind, code, text, hint) = match problem {
        Problem::Refused(status) => {
            let (kind, name, hint) = match status.code {
                Status::NO_SUCH_FILE => (ErrorKind::NotFound, "SSH_FX_NO_SUCH_FILE", None),
                Status::PERMISSION_DENIED => (
                    ErrorKind::PermissionDenied,
                    "SSH_FX_PERMISSION_DENIED",
                    Some("the user needs to read, write, create and delete below the path"),
                ),
                Status::NO_CONNECTION | Status::CONNECTION_LOST => {
                    (ErrorKind::Unavailable, "SSH_FX_CONNECTION_LOST", None)
                }
                Status::UNSUPPORTED => (ErrorKind::Invalid, "SSH_FX_OP_UNSUPPORTED", None),
                // The protocol has one code for all the rest: disk full, quota, name too long.
                Status::FAILURE => (
                    ErrorKind::Io,
                    "SSH_FX_FAILURE",
                    Some("the server does not say why: is its disk full, or a quota?"),
                ),
                _ => (ErrorKind::Io, "SSH_FX_OTHER", None),
            };
            (kind, name, format!("sftp: {:?} ({name})", status.message), hint)
        }
        Problem::Lost(why) => (ErrorKind::Unavailable, "ConnectionLost", why, None),
        Problem::Nonsense(text) => (ErrorKind::Corrupt, "Protocol", format!("the server gave {text}"), None),
    };
    let error = Error::new(kind, format!("sftp: {doing}")).at(target).caused_by(text);
    let error = hint.into_iter().fold(error, Error::hint);
    Failure { error, code: code.to_owned(), retry_after: None }
}

#[async_trait]
impl ReplicaClient for SftpClient {
    fn kind(&self) -> &'static str {
        "sftp"
    }

    fn requests(&self) -> Option<&Arc<RequestStats>> {
        Some(self.stats())
    }

    async fn init(&self) -> Result<()> {
        let target = self.location();
        let call = Call { operation: Operation::Get, kind: "sftp", target: &target, objects: 0, bytes: 0 };
        self.0.requests.run(call, |_| async { self.session("connect", &target).await.map(|_| ()) }).await
    }

    fn location(&self) -> String {
        self.target(&self.0.root)
    }

    fn exclusion(&self) -> Exclusion {
        Exclusion::exact(self.tried())
    }

    fn list(&self, prefix: &Key, after: Option<&Key>, stamps: Stamps) -> BoxStream<'_, Result<ObjectMeta>> {
        list::objects(self, prefix.clone(), after.cloned(), stamps)
    }

    fn list_dirs(&self, prefix: &Key) -> Option<BoxStream<'_, Result<Key>>> {
        Some(list::dirs(self, prefix.clone()))
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        read::open(self, key, range).await
    }

    async fn put(&self, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta> {
        write::put(self, key, body, opts).await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        stream::iter(keys.iter().map(Ok))
            .try_for_each_concurrent(DELETES_AT_ONCE, |key| async move { self.remove(key).await })
            .await
    }
}

/// Reads a server's packet, its length left out: as the first one of a session, and as the answer to a request. Says
/// how many names and bytes are in there. Only for the fuzzer.
///
/// # Errors
/// `Corrupt` for anything but an answer.
#[doc(hidden)]
pub fn read_packet(packet: &[u8]) -> Result<(usize, usize)> {
    let mut bytes = bytes::Bytes::copy_from_slice(packet);
    if let Ok(extensions) = wire::decode_version(&mut bytes) {
        return Ok((extensions.len(), 0));
    }
    let (_, reply) = wire::decode_reply(&mut bytes::Bytes::copy_from_slice(packet))?;
    Ok(match reply {
        wire::Reply::Names(entries) => {
            // What is asked of each entry of a directory.
            let kinds = entries.iter().filter(|entry| entry.attributes.is_file() == entry.attributes.is_dir());
            (kinds.count(), entries.iter().map(|entry| entry.name.len()).sum())
        }
        wire::Reply::Handle(bytes) | wire::Reply::Data(bytes) => (0, bytes.len()),
        wire::Reply::Status(status) => (0, status.message.len()),
        wire::Reply::Attributes(attributes) => (usize::from(attributes.size.is_some()), 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_file_is_not_found_and_a_lost_connection_may_pass() {
        let refused = |code| Problem::Refused(Status { code, message: "no".to_owned() });
        for (problem, kind) in [
            (refused(Status::NO_SUCH_FILE), ErrorKind::NotFound),
            (refused(Status::PERMISSION_DENIED), ErrorKind::PermissionDenied),
            (refused(Status::FAILURE), ErrorKind::Io),
            (Problem::Lost("gone".to_owned()), ErrorKind::Unavailable),
            (Problem::Nonsense("x"), ErrorKind::Corrupt),
        ] {
            assert_eq!(failure("do", "t", problem).error.kind(), kind);
        }
    }
}
