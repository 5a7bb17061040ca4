//! Who reads the files of a session beside the engine.
//!
//! Closing the last descriptor of a database drops SQLite's locks on it. So a session that ends
//! waits until everybody who shares its descriptor has let go, and asks them to hurry.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::sys::wait;

/// Counts readers.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    left: Notify,
}

#[derive(Debug, Default)]
struct State {
    inside: usize,
    closing: bool,
}

/// One reader. Drop it last: after everything that it guards.
#[derive(Debug)]
pub(super) struct Pass(Arc<Gate>);

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a reader in.
    pub(super) fn enter(self: &Arc<Self>) -> Pass {
        self.state().inside += 1;
        Pass(Arc::clone(self))
    }

    /// Whether anybody is inside.
    pub(super) fn is_occupied(&self) -> bool {
        self.state().inside > 0
    }

    /// Asks all readers to leave and waits until they have.
    pub(super) fn close(&self) {
        self.state().closing = true;
        wait(async {
            loop {
                let mut left = pin!(self.left.notified());
                left.as_mut().enable();
                if !self.is_occupied() {
                    return;
                }
                left.await;
            }
        });
    }
}

impl Pass {
    /// Whether this reader was asked to leave.
    pub(super) fn is_revoked(&self) -> bool {
        self.0.state().closing
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.state().inside -= 1;
        self.0.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_waits_for_readers_and_tells_them() {
        let gate = Arc::new(Gate::default());
        let pass = gate.enter();
        assert!(gate.is_occupied() && !pass.is_revoked());
        let closer = std::thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.close()
        });
        while !pass.is_revoked() {
            std::thread::yield_now();
        }
        assert!(!closer.is_finished());
        drop(pass);
        closer.join().unwrap();
        assert!(!gate.is_occupied());
    }
}
