//! The last attempt of a program that is about to end.

use std::future::Future;
use std::time::Duration;

tokio::task_local! {
    /// How long a store may be silent whose requests are tried once only.
    static PATIENCE: Duration;
}

/// Runs `work` so that each of its requests is tried once only, and given up once the store was silent for `patience`.
pub async fn hurried<T>(patience: Duration, work: impl Future<Output = T>) -> T {
    PATIENCE.scope(patience, work).await
}

/// How long a store may be silent, if requests are tried once only here.
#[cfg(any(feature = "web", feature = "nats", feature = "sftp"))]
pub(super) fn in_a_hurry() -> Option<Duration> {
    PATIENCE.try_with(|patience| *patience).ok()
}
