//! Counts of the requests a backend really makes: a listing of three pages is three, a repeated one counts twice.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// What a request is for, in the words of Litestream's metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Reads an object, or facts about one.
    Get,
    /// Lists objects.
    List,
    /// Writes an object or a part of one.
    Put,
    /// Deletes objects.
    Delete,
}

impl Operation {
    /// `GET`, `LIST`, `PUT`, `DELETE`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::List => "LIST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }
}

/// One request that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What it was for.
    pub operation: Operation,
    /// Objects it was about.
    pub objects: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// The service's code for the failure, if it failed.
    pub error: Option<&'a str>,
}

type Observer = Box<dyn Fn(&Request<'_>) + Send + Sync>;

/// Requests of one client, by operation and outcome, and whoever wants to hear of each.
#[derive(Default)]
pub struct RequestStats {
    counts: Mutex<BTreeMap<(Operation, bool), u64>>,
    observer: OnceLock<Observer>,
}

impl std::fmt::Debug for RequestStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestStats").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl RequestStats {
    /// Tells `observer` of every request from now on. Only the first observer is kept.
    pub fn observe(&self, observer: impl Fn(&Request<'_>) + Send + Sync + 'static) {
        let _ = self.observer.set(Box::new(observer));
    }

    /// Requests of `operation` that ended well, and that failed.
    #[must_use]
    pub fn count(&self, operation: Operation) -> (u64, u64) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |ok| counts.get(&(operation, ok)).copied().unwrap_or(0);
        (of(true), of(false))
    }

    /// Counts one that has ended.
    pub fn record(&self, request: &Request<'_>) {
        let key = (request.operation, request.error.is_none());
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
        if let Some(observer) = self.observer.get() {
            observer(request);
        }
    }
}
