//! What a storage backend must be able to do. Everything above speaks to this trait; everything
//! that cuts across backends (retries, limits, faults) is a wrapper implementing it again.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::exclusion::Exclusion;
use super::stats::RequestStats;
use crate::error::{Error, Result};
use crate::sys::Modes;
use crate::types::Timestamp;

/// The bytes of an object, in order. Ends after the first error.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// Name of an object or of a "directory" below the replica's root: components separated by `/`.
///
/// A component is never empty, `.` or `..` and holds no control character, so a key can be joined
/// to a path or a URL without leaving the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Longest key, in bytes. The smallest limit among the object stores.
    pub const MAX_LEN: usize = 1024;

    /// Checks the grammar above.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let bad_component = |part: &str| part.is_empty() || part == "." || part == "..";
        if text.len() > Self::MAX_LEN || text.chars().any(char::is_control) || text.split('/').any(bad_component) {
            return Err(Error::invalid(format!("invalid object key: {text:?}")));
        }
        Ok(Self(text))
    }

    /// The key of `name` in the "directory" this key names.
    ///
    /// # Errors
    /// `Invalid` if `name` is not a single component.
    pub fn join(&self, name: &str) -> Result<Self> {
        if name.contains('/') {
            return Err(Error::invalid(format!("invalid object name: {name:?}")));
        }
        Self::new(format!("{}/{name}", self.0))
    }

    /// The key of `name` in `dir`, or in the replica's root.
    ///
    /// # Errors
    /// `Invalid` if `name` is not a single component.
    pub fn below(dir: Option<&Self>, name: &str) -> Result<Self> {
        match dir {
            Some(dir) => dir.join(name),
            None if name.contains('/') => Err(Error::invalid(format!("invalid object name: {name:?}"))),
            None => Self::new(name),
        }
    }

    /// The whole key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(self.0.as_str(), |(_, name)| name)
    }

    /// The name of this object if it lies directly below `dir`.
    #[must_use]
    pub fn name_in(&self, dir: &Self) -> Option<&str> {
        let name = self.0.strip_prefix(&dir.0)?.strip_prefix('/')?;
        (!name.contains('/')).then_some(name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a listing says about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its name.
    pub key: Key,
    /// Bytes.
    pub size: u64,
    /// The stamp it was put with, or the store's own time where stamps are not kept or cost extra.
    pub modified: Timestamp,
}

/// How true the times of a listing must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamps {
    /// Whatever the listing itself gives.
    Cheap,
    /// The stamp given to [`ReplicaClient::put`], even if that costs a request per object.
    Exact,
}

/// Facts about an object to be written.
#[derive(Debug, Clone, Copy)]
pub struct PutOptions {
    /// Creation time to keep with the object.
    pub stamp: Timestamp,
    /// Length of the body in bytes, if known beforehand. A body of another length is refused.
    pub size: Option<u64>,
    /// Modes to create files and directories with; private ones if not given.
    pub modes: Option<Modes>,
    /// Do not replace an object of this name: fail with `Exists`, and leave it. Where a store cannot do that, or it is
    /// not known yet, it is looked whether there is one before; see [`ReplicaClient::exclusion`].
    pub exclusive: bool,
}

/// Where objects live. Knows keys and bytes; knows nothing of TXIDs or levels.
///
/// Promises every implementation keeps (`tests/conformance` checks them):
/// 1. After `put` returns, `list` and `get` see the object; before, they see the old one or none.
/// 2. A `put` that fails, or is dropped, leaves no part of its object to be listed or read.
/// 3. An absent object is `NotFound` on every backend; a store that cannot be read never looks empty.
#[async_trait]
pub trait ReplicaClient: fmt::Debug + Send + Sync + 'static {
    /// Backend name, as in `databases`, logs and metrics: `file`, `s3`.
    fn kind(&self) -> &'static str;

    /// Its own count of the requests it makes. `None` where every call is one request, and whoever calls can
    /// count for himself. Wrappers must pass it on.
    fn requests(&self) -> Option<&Arc<RequestStats>> {
        None
    }

    /// Whether a large object comes faster in several ranges at a time than in one piece: stores that slow each
    /// connection down, not all together. Wrappers must pass it on.
    fn reads_in_parts(&self) -> bool {
        false
    }

    /// Connects and validates. Later calls do nothing once one has succeeded.
    ///
    /// # Errors
    /// Anything that keeps the store from being used.
    async fn init(&self) -> Result<()>;

    /// Where it is, for people and for telling two replicas apart: a URL without secrets.
    fn location(&self) -> String;

    /// Whether [`PutOptions::exclusive`] is heeded, as far as it was tried. Known after the first such put. Wrappers
    /// must pass it on.
    fn exclusion(&self) -> Exclusion;

    /// Objects directly below `prefix`, in key order, those after `after` only. An absent prefix is
    /// empty; nothing but objects is reported.
    fn list(&self, prefix: &Key, after: Option<&Key>, stamps: Stamps) -> BoxStream<'_, Result<ObjectMeta>>;

    /// "Directories" directly below `prefix`, in any order; an absent prefix has none. `None` if this
    /// backend cannot tell. Needed only to find backups of Litestream 0.3.x. Wrappers must pass it on.
    fn list_dirs(&self, prefix: &Key) -> Option<BoxStream<'_, Result<Key>>> {
        let _ = prefix;
        None
    }

    /// "Directories" directly below the root, as [`Self::list_dirs`].
    fn list_root_dirs(&self) -> Option<BoxStream<'_, Result<Key>>> {
        None
    }

    /// The bytes of an object, or those of `range` that exist: a range is cut at the object's end
    /// and may come out empty. `offset..u64::MAX` reads to the end.
    ///
    /// # Errors
    /// `NotFound` when there is no such object.
    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream>;

    /// All bytes of some small objects, given with their sizes: for a store where the way there and back
    /// takes longer than reading one. `None` in place of an object that cannot be had like that, whatever the
    /// reason: [`Self::get`] will tell. `None` altogether where nothing is gained.
    fn get_small(&self, objects: &[(Key, usize)]) -> Option<BoxFuture<'static, Vec<Option<Bytes>>>> {
        let _ = objects;
        None
    }

    /// Creates or replaces an object, all of it or nothing.
    ///
    /// # Errors
    /// Those of `body`, and the store's; `Exists` for an exclusive put. Whether the object was replaced is
    /// unknown after another error of the store, but a part of it is never seen.
    async fn put(&self, key: &Key, body: ByteStream, opts: PutOptions) -> Result<ObjectMeta>;

    /// Deletes objects, in any order and several at a time. Absent ones are fine.
    ///
    /// Whoever needs an order makes a call per step of it: once a call has succeeded, all its keys are gone, and
    /// nothing of a later call was begun.
    ///
    /// # Errors
    /// It is unknown then which of the keys are gone: any of them may be, as after a call that was dropped or a program
    /// that was killed meanwhile.
    async fn delete(&self, keys: &[Key]) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_cannot_leave_the_root() {
        for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "a\0b", "a\nb", "\u{7f}"] {
            assert!(Key::new(bad).is_err(), "{bad:?}");
        }
        assert!(Key::new("x".repeat(Key::MAX_LEN + 1)).is_err());
        for good in ["a", "ltx/0/x.ltx", "a b/é", "...", "a..b", ".hidden"] {
            assert_eq!(Key::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_name_belongs_only_to_its_own_directory() {
        let dir = Key::new("ltx/1").unwrap();
        let key = dir.join("x").unwrap();
        assert_eq!(key.name_in(&dir), Some("x"));
        assert_eq!(key.name(), "x");
        assert_eq!(Key::new("ltx/10/x").unwrap().name_in(&dir), None);
        assert_eq!(Key::new("ltx/1/y/x").unwrap().name_in(&dir), None);
        assert!(dir.join("a/b").is_err());
        assert!(dir.join("..").is_err());
    }
}
