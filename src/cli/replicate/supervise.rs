//! Running the engine: once, until a signal, or as long as an application runs; then closing it, which a
//! second signal cuts short.

use std::pin::pin;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Once;
use crate::cli::process::{Caught, Ended};
use crate::error::{Error, ErrorKind, Result};

/// How long closing may take once the final sync was given up.
const SKIPPED: Duration = Duration::from_millis(500);

/// What this needs of the store.
pub(super) trait Engine: Sized {
    /// Syncs every database once. May be dropped: what was not finished is done by the final sync.
    async fn once(&self, once: Once) -> Result<()>;
    /// The final sync, retried until `skip`; then everything is closed. Logs its own failures.
    ///
    /// # Errors
    /// A replica may lack commits.
    async fn close(self, skip: CancellationToken) -> Result<()>;
}

/// Where signals come from.
pub(super) trait SignalSource {
    /// The next one. Dropping the future loses nothing.
    async fn next(&mut self) -> Caught;
}

impl SignalSource for crate::cli::process::Signals {
    async fn next(&mut self) -> Caught {
        Self::next(self).await
    }
}

/// The application beside the daemon.
pub(super) trait Application {
    /// Waits for its end. Dropping the future loses nothing.
    async fn ended(&mut self) -> Ended;
    /// Passes a signal on.
    fn signal(&self, caught: Caught);
}

impl Application for crate::cli::process::Child {
    async fn ended(&mut self) -> Ended {
        Self::ended(self).await
    }

    fn signal(&self, caught: Caught) {
        Self::signal(self, caught);
    }
}

/// How long to run.
#[derive(Debug)]
pub(super) enum Until<A> {
    /// Everything is synced once.
    Once(Once),
    /// A signal.
    Signal,
    /// The application ends; signals go to it.
    Ended(A),
    /// Not at all: something failed after the engine was opened.
    Nothing,
}

/// Runs to the end, tells `stopping`, and closes the engine with a final sync, however the run ended. The
/// first signal starts the shutdown, the next one after the run gives up the final sync, further ones
/// change nothing. What comes back is the failure of the one-shot run or of the application, else that of the final
/// sync.
pub(super) async fn supervise(
    engine: impl Engine,
    until: Until<impl Application>,
    signals: &mut impl SignalSource,
    stopping: impl FnOnce(),
) -> Result<()> {
    let outcome = match until {
        Until::Once(once) => run_once(&engine, once, signals).await,
        Until::Signal => {
            signal_received(signals.next().await);
            Ok(())
        }
        Until::Ended(application) => run_beside(application, signals).await,
        Until::Nothing => Ok(()),
    };
    stopping();
    let skip = CancellationToken::new();
    let mut closing = pin!(engine.close(skip.clone()));
    let mut overdue = pin!(async {
        skip.cancelled().await;
        tokio::time::sleep(SKIPPED).await;
    });
    let closed = loop {
        tokio::select! {
            biased;
            closed = &mut closing => break closed,
            () = &mut overdue => break Err(Error::new(ErrorKind::Cancelled, "the final sync was skipped")),
            _ = signals.next() => skip.cancel(),
        }
    };
    info!("litestream shut down");
    outcome.and(closed)
}

/// A signal ends the run early, which is not a failure: the final sync does what is left.
async fn run_once(engine: &impl Engine, once: Once, signals: &mut impl SignalSource) -> Result<()> {
    let result = tokio::select! {
        biased;
        result = engine.once(once) => result,
        caught = signals.next() => {
            signal_received(caught);
            return Ok(());
        }
    };
    if result.is_ok() {
        info!("one-shot replication complete");
    }
    info!("replication complete, litestream shutting down");
    result
}

/// Every signal goes to the application, and its end is waited for without limit: only then is there
/// nothing more to replicate. Ending by a signal that was asked for is no failure.
async fn run_beside(mut application: impl Application, signals: &mut impl SignalSource) -> Result<()> {
    let first = tokio::select! {
        biased;
        ended = application.ended() => {
            info!("subprocess exited, litestream shutting down");
            return if ended.well() { Ok(()) } else { Err(Error::invalid(ended.to_string())) };
        }
        caught = signals.next() => caught,
    };
    signal_received(first);
    info!("sending signal to exec process");
    application.signal(first);
    info!("waiting for exec process to close");
    loop {
        tokio::select! {
            biased;
            ended = application.ended() => {
                return if ended.well() || ended.by_signal() {
                    Ok(())
                } else {
                    Err(Error::invalid(format!("cannot wait for exec process: {ended}")))
                };
            }
            again = signals.next() => {
                info!(signal = again.name(), "sending signal to exec process");
                application.signal(again);
            }
        }
    }
}

/// Says that the end begins.
pub(super) fn signal_received(caught: Caught) {
    info!(signal = caught.name(), "signal received, litestream shutting down");
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;

    const ONCE: Once = Once { force_snapshot: false, enforce_retention: false };

    const SIGNAL: Until<Child> = Until::Signal;

    type Diary = Rc<RefCell<Vec<&'static str>>>;

    /// Writes down what happens to it, and waits where it is told to.
    struct Fake {
        diary: Diary,
        once_waits: bool,
        close_waits: bool,
        close_hangs: bool,
        behind: bool,
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

        async fn close(self, skip: CancellationToken) -> Result<()> {
            if self.close_hangs {
                std::future::pending::<()>().await;
            }
            if self.close_waits {
                skip.cancelled().await;
                self.diary.borrow_mut().push("final sync skipped");
            }
            self.diary.borrow_mut().push("closed");
            if self.behind { Err(Error::new(ErrorKind::Unavailable, "a replica may lack commits")) } else { Ok(()) }
        }
    }

    impl SignalSource for UnboundedReceiver<Caught> {
        async fn next(&mut self) -> Caught {
            match self.recv().await {
                Some(caught) => caught,
                None => std::future::pending().await,
            }
        }
    }

    /// Ends as told: at once, or after so many signals.
    struct Child {
        diary: Diary,
        after: Cell<usize>,
        end: &'static str,
    }

    impl Application for Child {
        async fn ended(&mut self) -> Ended {
            while self.after.get() > 0 {
                tokio::task::yield_now().await;
            }
            self.diary.borrow_mut().push("ended");
            Ended::of(self.end)
        }

        fn signal(&self, _: Caught) {
            self.diary.borrow_mut().push("signalled");
            self.after.set(self.after.get().saturating_sub(1));
        }
    }

    async fn beside(after: usize, end: &'static str, caught: usize) -> (Result<()>, Vec<&'static str>) {
        let (send, mut signals) = signals();
        let (diary, engine) = fake();
        for _ in 0..caught {
            send.send(Caught::Terminate).unwrap();
        }
        let child = Child { diary: Rc::clone(&diary), after: Cell::new(after), end };
        let stopping = Rc::clone(&diary);
        let stopping = || stopping.borrow_mut().push("stopping");
        let outcome = supervise(engine, Until::Ended(child), &mut signals, stopping).await;
        let diary = diary.borrow().clone();
        (outcome, diary)
    }

    #[tokio::test]
    async fn the_end_of_the_application_is_the_end_and_its_failure_is_ours() {
        let (outcome, diary) = beside(0, "exit status 0", 0).await;
        assert!(outcome.is_ok());
        assert_eq!(diary, ["ended", "stopping", "closed"]);
        let (outcome, diary) = beside(0, "exit status 3", 0).await;
        assert_eq!(outcome.unwrap_err().to_string(), "exit status 3");
        assert_eq!(diary, ["ended", "stopping", "closed"]);
    }

    #[tokio::test]
    async fn signals_go_to_the_application_and_the_final_sync_follows_whatever_it_answers() {
        for (end, want) in [
            ("exit status 0", None),
            ("signal: terminated", None),
            ("exit status 5", Some("cannot wait for exec process: exit status 5")),
        ] {
            let (outcome, diary) = beside(2, end, 2).await;
            assert_eq!(outcome.err().map(|e| e.to_string()).as_deref(), want);
            assert_eq!(diary, ["signalled", "signalled", "ended", "stopping", "closed"]);
        }
    }

    fn signals() -> (UnboundedSender<Caught>, UnboundedReceiver<Caught>) {
        unbounded_channel()
    }

    fn fake() -> (Diary, Fake) {
        let diary = Diary::default();
        let fake = Fake {
            diary: Rc::clone(&diary),
            once_waits: false,
            close_waits: false,
            close_hangs: false,
            behind: false,
            fails: false,
        };
        (diary, fake)
    }

    #[tokio::test]
    async fn the_daemon_runs_until_the_first_signal_and_closes() {
        let (send, mut signals) = signals();
        let (diary, engine) = fake();
        send.send(Caught::Terminate).unwrap();
        supervise(engine, SIGNAL, &mut signals, || ()).await.unwrap();
        assert_eq!(*diary.borrow(), ["closed"]);
    }

    #[tokio::test]
    async fn a_second_signal_gives_up_the_final_sync_and_a_third_changes_nothing() {
        let (send, mut signals) = signals();
        let (diary, engine) = fake();
        for _ in 0..3 {
            send.send(Caught::Interrupt).unwrap();
        }
        supervise(Fake { close_waits: true, ..engine }, SIGNAL, &mut signals, || ()).await.unwrap();
        assert_eq!(*diary.borrow(), ["final sync skipped", "closed"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_ends_even_what_hangs_within_a_second() {
        let (send, mut signals) = signals();
        let (_, engine) = fake();
        send.send(Caught::Terminate).unwrap();
        send.send(Caught::Terminate).unwrap();
        let began = tokio::time::Instant::now();
        let ended = supervise(Fake { close_hangs: true, ..engine }, SIGNAL, &mut signals, || ()).await;
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_replica_that_lacks_commits_is_a_failure() {
        let (send, mut signals) = signals();
        let (_, engine) = fake();
        send.send(Caught::Terminate).unwrap();
        let ended = supervise(Fake { behind: true, ..engine }, SIGNAL, &mut signals, || ()).await;
        assert_eq!(ended.unwrap_err().to_string(), "a replica may lack commits");
    }

    #[tokio::test]
    async fn a_failed_one_shot_run_still_closes_and_is_reported() {
        let (_send, mut signals) = signals();
        let (diary, engine) = fake();
        let err = supervise(Fake { fails: true, ..engine }, Until::<Child>::Once(ONCE), &mut signals, || ())
            .await
            .unwrap_err();
        assert_eq!(err.to_string(), "sync database /x: boom");
        assert_eq!(*diary.borrow(), ["once", "closed"]);
    }

    #[tokio::test]
    async fn a_signal_ends_a_one_shot_run_with_the_final_sync() {
        let (send, mut signals) = signals();
        let (diary, engine) = fake();
        send.send(Caught::Interrupt).unwrap();
        supervise(Fake { once_waits: true, ..engine }, Until::<Child>::Once(ONCE), &mut signals, || ()).await.unwrap();
        assert_eq!(*diary.borrow(), ["closed"]);
    }
}
