//! Tasks with a name, an owner and somebody who awaits them.

use std::future::Future;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

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

    /// Tells all tasks to stop and waits until they have.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(err) = ended
                && err.is_panic()
            {
                error!(error = %err, "a task ended unexpectedly");
            }
        }
    }
}
