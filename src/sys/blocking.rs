//! The way from tasks to threads that may block.

use crate::error::{Error, ErrorKind, Result};

/// Runs `work` where it may block on files, and waits for it. Once begun it runs to its end, even
/// if the caller stops waiting.
///
/// # Errors
/// What `work` returns; `Internal` if it panicked; `Cancelled` if the runtime is shutting down.
pub async fn blocking<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(err) if err.is_panic() => Err(Error::new(ErrorKind::Internal, "a blocking task panicked").caused_by(err)),
        Err(err) => Err(Error::new(ErrorKind::Cancelled, "the program is shutting down").caused_by(err)),
    }
}
