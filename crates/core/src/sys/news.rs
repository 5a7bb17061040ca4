//! A value that tasks follow.
//!
//! Whoever waits is woken in the order in which they began to: so that what happens next depends on nothing
//! but what happened before, which a simulation can repeat.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The value. Clones are handles to the same one.
#[derive(Debug, Clone, Default)]
pub struct News<T>(Arc<Shared<T>>);

#[derive(Debug, Default)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State<T> {
    value: T,
    /// Counts the changes.
    version: u64,
}

/// Somebody who has seen the value at some time.
#[derive(Debug)]
pub struct Follower<T> {
    news: News<T>,
    seen: u64,
}

impl<T: Copy> News<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> T {
        self.state().value
    }

    /// Changes the value, and tells all followers if `change` says that it did.
    pub fn change(&self, change: impl FnOnce(&mut T) -> bool) {
        let mut state = self.state();
        if change(&mut state.value) {
            state.version += 1;
            drop(state);
            self.0.changed.notify_waiters();
        }
    }

    /// Somebody who knows the value as it is now.
    #[must_use]
    pub fn follow(&self) -> Follower<T> {
        Follower { seen: self.state().version, news: self.clone() }
    }
}

impl<T: Copy> Follower<T> {
    /// Waits for a change that was not seen yet, and sees it.
    pub async fn changed(&mut self) {
        let seen = self.seen;
        self.until_state(|state| state.version != seen).await;
    }

    /// Waits until the value is as wanted, and sees it.
    pub async fn until(&mut self, wanted: impl Fn(&T) -> bool) {
        self.until_state(|state| wanted(&state.value)).await;
    }

    async fn until_state(&mut self, wanted: impl Fn(&State<T>) -> bool) {
        loop {
            let mut changed = pin!(self.news.0.changed.notified());
            changed.as_mut().enable();
            {
                let state = self.news.state();
                if wanted(&state) {
                    self.seen = state.version;
                    return;
                }
            }
            changed.await;
        }
    }

    /// What is there was seen.
    pub fn mark_seen(&mut self) {
        self.seen = self.news.state().version;
    }

    /// What is there is news again.
    pub fn mark_unseen(&mut self) {
        self.seen = self.news.state().version.wrapping_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_is_seen_once_by_everybody() {
        let news = News::<u32>::default();
        let (mut a, mut b) = (news.follow(), news.follow());
        news.change(|n| std::mem::replace(n, 0) != 0);
        let quiet = tokio::time::timeout(Duration::from_secs(1), a.changed()).await;
        assert!(quiet.is_err(), "nothing has changed");
        let waiting = async { tokio::join!(a.changed(), b.until(|n| *n > 1)) };
        let changing = async {
            for value in [1, 2] {
                tokio::task::yield_now().await;
                news.change(|n| std::mem::replace(n, value) != value);
            }
        };
        tokio::join!(waiting, changing);
        assert_eq!(news.get(), 2);
        b.mark_seen();
        assert!(tokio::time::timeout(Duration::from_secs(1), b.changed()).await.is_err());
        b.mark_unseen();
        b.changed().await;
    }
}
