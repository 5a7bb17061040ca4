//! Tasks with a name, an owner and somebody who awaits them.

use std::future::Future;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::error::{Error, ErrorKind, Result};

/// Tasks that are told to stop together and awaited together. The only place that spawns.
#[derive(Debug, Default)]
pub struct TaskGroup {
    tasks: JoinSet<&'static str>,
    stop: CancellationToken,
}

impl TaskGroup {
    /// Starts a task. It should end soon after the token it is given is cancelled, finishing the
    /// step it is in.
    pub fn spawn<F>(&mut self, name: &'static str, run: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let work = run(self.stop.clone());
        self.tasks.spawn(async move {
            work.await;
            name
        });
    }

    /// Tells all tasks to stop.
    pub fn cancel(&self) {
        self.stop.cancel();
    }

    /// Tells all tasks to stop and waits until they have.
    pub async fn stop(&mut self) {
        self.cancel();
        self.join().await;
    }

    /// Drops all tasks wherever they wait, and waits until they are gone. Steps that have begun go on.
    pub async fn abandon(&mut self) {
        self.tasks.abort_all();
        self.join().await;
    }

    async fn join(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(err) = ended
                && err.is_panic()
            {
                error!(error = %err, "a task ended unexpectedly");
            }
        }
    }
}

/// Runs `work` to its end even if the caller stops waiting for it: dropping the future that is
/// returned drops only the waiting.
///
/// # Errors
/// What `work` returns; `Internal` if it panicked; `Cancelled` if the runtime is shutting down.
pub async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(err) if err.is_panic() => Err(Error::new(ErrorKind::Internal, "a task panicked").caused_by(err)),
        Err(err) => Err(Error::new(ErrorKind::Cancelled, "the program is shutting down").caused_by(err)),
    }
}
