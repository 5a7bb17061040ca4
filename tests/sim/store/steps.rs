//! Blocking steps without threads: each is a coroutine that a task of the runtime goes on with.
//!
//! One thread does everything, so the order of things depends on nothing but the seed. Between two
//! operations on files a step may be left for a while, as a thread may: others go on meanwhile.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use litestream::sys::{Steps, run_steps_by, wait};

use crate::rng::Rng;

/// Enough for SQLite and a restore; only what is touched takes memory.
const STACK: usize = 1 << 20;
/// Stacks kept for the next step.
const POOL: usize = 32;

type Routine = Coroutine<(), (), (), DefaultStack>;
type Leave = *const Yielder<(), ()>;

thread_local! {
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
    /// The step that runs just now, and who is to be woken for it.
    static RUNNING: RefCell<Option<(Leave, Waker)>> = const { RefCell::new(None) };
    static PREEMPTION: RefCell<Option<Preemption>> = const { RefCell::new(None) };
    static HELD: Cell<u32> = const { Cell::new(0) };
}

struct Preemption {
    rng: Rng,
    permille: u64,
}

/// Lets all steps of this thread be coroutines, of 1000 operations on files leaving `permille` for a while.
pub(super) fn install(seed: u64, permille: u64) {
    run_steps_by(Some(Rc::new(Coroutines)));
    PREEMPTION.set(Some(Preemption { rng: Rng::new(seed), permille }));
}

/// Back to threads.
pub(super) fn uninstall() {
    run_steps_by(None);
    PREEMPTION.set(None);
}

/// Whether a step is running, and not a task or the harness.
fn in_step() -> bool {
    RUNNING.with_borrow(Option::is_some)
}

/// Before an operation on files: perhaps lets others go first.
pub(crate) fn perhaps_leave() {
    if !in_step() || HELD.get() > 0 || std::thread::panicking() {
        return;
    }
    let pause = PREEMPTION.with_borrow_mut(|preemption| {
        let preemption = preemption.as_mut()?;
        if !preemption.rng.permille(preemption.permille) {
            return None;
        }
        Some(preemption.rng.pick(&[0, 0, 0, 1, 5, 40, 400]))
    });
    match pause {
        None => {}
        Some(0) => wait(tokio::task::yield_now()),
        Some(millis) => wait(tokio::time::sleep(Duration::from_millis(millis))),
    }
}

/// Runs `work` without leaving in between.
pub(crate) fn held<T>(work: impl FnOnce() -> T) -> T {
    HELD.set(HELD.get() + 1);
    let done = work();
    HELD.set(HELD.get() - 1);
    done
}

struct Coroutines;

impl Steps for Coroutines {
    fn begin(&self, step: Box<dyn FnOnce() + Send>) {
        // While the runtime goes down nothing is begun any more.
        if tokio::runtime::Handle::try_current().is_ok() {
            drop(tokio::spawn(Going::new(step)));
        }
    }

    fn wait(&self, poll: &mut dyn FnMut(&mut Context<'_>) -> Poll<()>) {
        loop {
            let running = RUNNING.with_borrow(Clone::clone);
            let waker = running.as_ref().map_or_else(|| Waker::noop().clone(), |(_, waker)| waker.clone());
            if poll(&mut Context::from_waker(&waker)).is_ready() {
                return;
            }
            assert!(!std::thread::panicking(), "a step that is being given up cannot wait");
            // Outside of steps only a task that is given up comes here, with the engine it held: as a process that
            // dies, it waits for nobody. The runtime catches this, and anybody else it hurts as a panic does.
            let Some((leave, _)) = running else { std::panic::resume_unwind(Box::new("only steps can wait")) };
            // SAFETY: RUNNING holds a pointer only while its coroutine is being resumed, and this is running on
            // that coroutine's stack.
            unsafe { (*leave).suspend(()) };
        }
    }
}

/// A step on its way.
struct Going {
    routine: Option<Routine>,
    leave: Rc<Cell<Leave>>,
}

// SAFETY: the simulator has one thread; its runtime wants this of tasks all the same.
unsafe impl Send for Going {}

impl Going {
    fn new(step: Box<dyn FnOnce() + Send>) -> Self {
        let leave = Rc::new(Cell::new(std::ptr::null()));
        let told = Rc::clone(&leave);
        let stack =
            STACKS.with_borrow_mut(Vec::pop).unwrap_or_else(|| DefaultStack::new(STACK).expect("memory for a stack"));
        let routine = Routine::with_stack(stack, move |yielder, ()| {
            told.set(std::ptr::from_ref(yielder));
            RUNNING.with_borrow_mut(|running| {
                if let Some((leave, _)) = running {
                    *leave = told.get();
                }
            });
            step();
        });
        Self { routine: Some(routine), leave }
    }

    fn recycle(&mut self) {
        let Some(routine) = self.routine.take() else { return };
        if routine.done() {
            STACKS.with_borrow_mut(|stacks| {
                if stacks.len() < POOL {
                    stacks.push(routine.into_stack());
                }
            });
        }
    }
}

/// Puts back what was running before.
struct Outer(Option<(Leave, Waker)>);

impl Drop for Outer {
    fn drop(&mut self) {
        RUNNING.set(self.0.take());
    }
}

impl Future for Going {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let leave = self.leave.get();
        let _outer = Outer(RUNNING.replace(Some((leave, cx.waker().clone()))));
        let Some(routine) = &mut self.routine else { return Poll::Ready(()) };
        match routine.resume(()) {
            CoroutineResult::Yield(()) => Poll::Pending,
            CoroutineResult::Return(()) => {
                self.recycle();
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        if let Some(routine) = &mut self.routine {
            // What it holds is given back as if it had failed where it waits.
            routine.force_unwind();
        }
        self.recycle();
    }
}
