//! Running the engine: once, or until a signal; then closing it, which a second signal cuts short.

use std::pin::pin;

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Once;
use crate::error::Result;
use crate::store::Store;

/// What this needs of the store.
pub(super) trait Engine: Sized {
    /// Syncs every database once. May be dropped: what was not finished is done by the final sync.
    async fn once(&self, once: Once) -> Result<()>;
    /// The final sync, retried until `skip`; then everything is closed. Logs its own failures.
    async fn close(self, skip: CancellationToken);
}

impl Engine for Store {
    async fn once(&self, once: Once) -> Result<()> {
        self.run_once(once.force_snapshot, once.enforce_retention).await
    }

    async fn close(self, skip: CancellationToken) {
        Self::close(&self, skip).await;
    }
}

/// Where signals come from.
pub(super) trait SignalSource {
    /// The name of the next one. Dropping the future loses nothing.
    async fn next(&mut self) -> &'static str;
}

impl SignalSource for crate::cli::process::Signals {
    async fn next(&mut self) -> &'static str {
        Self::next(self).await
    }
}

/// Runs to the end. The first signal starts the shutdown, the second gives up the final sync, further
/// ones change nothing. What comes back is the failure of the one-shot run; a failed final sync is
/// logged by the engine and no failure of ours, as in the reference.
pub(super) async fn supervise(engine: impl Engine, once: Option<Once>, signals: &mut impl SignalSource) -> Result<()> {
    let outcome = match once {
        Some(once) => run_once(&engine, once, signals).await,
        None => {
            signal_received(signals.next().await);
            Ok(())
        }
    };
    let skip = CancellationToken::new();
    let mut closing = pin!(engine.close(skip.clone()));
    loop {
        tokio::select! {
            biased;
            () = &mut closing => break,
            _ = signals.next() => skip.cancel(),
        }
    }
    info!("litestream shut down");
    outcome
}

/// A signal ends the run early, which is not a failure: the final sync does what is left.
async fn run_once(engine: &impl Engine, once: Once, signals: &mut impl SignalSource) -> Result<()> {
    let result = tokio::select! {
        biased;
        result = engine.once(once) => result,
        name = signals.next() => {
            signal_received(name);
            return Ok(());
        }
    };
    if result.is_ok() {
        info!("one-shot replication complete");
    }
    info!("replication complete, litestream shutting down");
    result
}

fn signal_received(name: &str) {
    info!(signal = name, "signal received, litestream shutting down");
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;
    use crate::error::Error;

    const ONCE: Once = Once { force_snapshot: false, enforce_retention: false };

    type Diary = Rc<RefCell<Vec<&'static str>>>;

    /// Writes down what happens to it, and waits where it is told to.
    struct Fake {
        diary: Diary,
        once_waits: bool,
        close_waits: bool,
        fails: bool,
    }

    impl Engine for Fake {
        async fn once(&self, _: Once) -> Result<()> {
            if self.once_waits {
                std::future::pending::<()>().await;
            }
            self.diary.borrow_mut().push("once");
            if self.fails { Err(Error::invalid("sync database /x: boom")) } else { Ok(()) }
        }

        async fn close(self, skip: CancellationToken) {
            if self.close_waits {
                skip.cancelled().await;
                self.diary.borrow_mut().push("final sync skipped");
            }
            self.diary.borrow_mut().push("closed");
        }
    }

    impl SignalSource for UnboundedReceiver<&'static str> {
        async fn next(&mut self) -> &'static str {
            match self.recv().await {
                Some(name) => name,
                None => std::future::pending().await,
            }
        }
    }

    fn signals() -> (UnboundedSender<&'static str>, UnboundedReceiver<&'static str>) {
        unbounded_channel()
    }

    fn fake() -> (Diary, Fake) {
        let diary = Diary::default();
        (Rc::clone(&diary), Fake { diary, once_waits: false, close_waits: false, fails: false })
    }

    #[tokio::test]
    async fn the_daemon_runs_until_the_first_signal_and_closes() {
        let (send, mut signals) = signals();
        let (diary, engine) = fake();
        send.send("terminated").unwrap();
        supervise(engine, None, &mut signals).await.unwrap();
        assert_eq!(*diary.borrow(), ["closed"]);
    }

    #[tokio::test]
    async fn a_second_signal_gives_up_the_final_sync_and_a_third_changes_nothing() {
        let (send, mut signals) = signals();
        let (diary, engine) = fake();
        for name in ["interrupt", "interrupt", "interrupt"] {
            send.send(name).unwrap();
        }
        supervise(Fake { close_waits: true, ..engine }, None, &mut signals).await.unwrap();
        assert_eq!(*diary.borrow(), ["final sync skipped", "closed"]);
    }

    #[tokio::test]
    async fn a_failed_one_shot_run_still_closes_and_is_reported() {
        let (_send, mut signals) = signals();
        let (diary, engine) = fake();
        let err = supervise(Fake { fails: true, ..engine }, Some(ONCE), &mut signals).await.unwrap_err();
        assert_eq!(err.to_string(), "sync database /x: boom");
        assert_eq!(*diary.borrow(), ["once", "closed"]);
    }

    #[tokio::test]
    async fn a_signal_ends_a_one_shot_run_with_the_final_sync() {
        let (send, mut signals) = signals();
        let (diary, engine) = fake();
        send.send("interrupt").unwrap();
        supervise(Fake { once_waits: true, ..engine }, Some(ONCE), &mut signals).await.unwrap();
        assert_eq!(*diary.borrow(), ["closed"]);
    }
}
