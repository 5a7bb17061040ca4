//! The way from tasks to threads that may block, and back.
//!
//! A *step* is work that blocks on files. It runs on a thread of its own; where there must be only one
//! thread, [`Steps`] runs it instead.

use std::cell::RefCell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};

/// Runs steps without threads, for a simulation.
pub trait Steps: 'static {
    /// Begins a step and sees to it that it runs to its end.
    fn begin(&self, step: Box<dyn FnOnce() + Send>);

    /// Called from inside a step: polls until that says ready, and lets others go on in between.
    fn wait(&self, poll: &mut dyn FnMut(&mut Context<'_>) -> Poll<()>);
}

thread_local! {
    static STEPS: RefCell<Option<Rc<dyn Steps>>> = const { RefCell::new(None) };
}

/// Lets `steps` run all steps that begin on this thread from now on; with `None` they get threads again.
pub fn run_steps_by(steps: Option<Rc<dyn Steps>>) {
    STEPS.set(steps);
}

fn steps() -> Option<Rc<dyn Steps>> {
    STEPS.with_borrow(Clone::clone)
}

/// A step that was begun. Dropping this drops only the waiting.
#[derive(Debug)]
pub struct Begun<T>(Doing<T>);

#[derive(Debug)]
enum Doing<T> {
    Thread(JoinHandle<Result<T>>),
    Step(oneshot::Receiver<Result<T>>),
}

impl<T> Future for Begun<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let cancelled = || Error::new(ErrorKind::Cancelled, "the program is shutting down");
        match &mut self.0 {
            Doing::Thread(thread) => Pin::new(thread).poll(cx).map(|ended| match ended {
                Ok(result) => result,
                Err(err) if err.is_panic() => {
                    Err(Error::new(ErrorKind::Internal, "a blocking task panicked").caused_by(err))
                }
                Err(err) => Err(cancelled().caused_by(err)),
            }),
            Doing::Step(told) => Pin::new(told).poll(cx).map(|told| told.unwrap_or_else(|_| Err(cancelled()))),
        }
    }
}

/// Begins `work` where it may block on files, at once and to its end, whoever waits for it or not. The
/// result comes out with the errors of [`blocking`].
pub fn begin<T, F>(work: F) -> Begun<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    let Some(steps) = steps() else { return Begun(Doing::Thread(tokio::task::spawn_blocking(work))) };
    let (tell, told) = oneshot::channel();
    steps.begin(Box::new(move || drop(tell.send(work()))));
    Begun(Doing::Step(told))
}

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
    begin(work).await
}

/// Blocks until `future` is done: the way for a step to wait for what tasks do.
pub fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    if let Some(steps) = steps() {
        let mut output = None;
        steps.wait(&mut |cx| future.as_mut().poll(cx).map(|done| output = Some(done)));
        if let Some(output) = output {
            return output;
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_step_waits_for_what_a_task_does_and_is_not_dropped_with_who_waits() {
        let (question, mut asked) = tokio::sync::mpsc::channel(1);
        let (answer, answers) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let step = begin(move || {
            let sent = wait(question.send(1));
            let got = wait(answers);
            let _ = tell.send((sent.is_ok(), got.ok()));
            Ok(())
        });
        drop(step);
        assert_eq!(asked.recv().await, Some(1));
        answer.send(2).unwrap();
        assert_eq!(told.await.unwrap(), (true, Some(2)));
    }

    #[tokio::test]
    async fn a_panic_in_a_step_is_an_error() {
        let err = blocking(|| -> Result<()> { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Internal);
    }
}
