//! Whether a store keeps two writers of one name apart. No store is believed: each is tried with the first object that
//! is created there, and what was found holds for the whole process, so a thousand databases in one bucket ask once.

#[cfg(any(feature = "web", feature = "nats", feature = "sftp"))]
pub(crate) use trial::{remember, tried};

/// What became of the question whether an exclusive put leaves alone what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusion {
    /// Not tried yet. It is looked before such a put.
    Untried,
    /// Of all who create one name, one wins.
    Exact,
    /// A name that exists is refused. Of two who create it at the very same moment both may win.
    Refusal,
    /// The store replaces what is there. It is looked before each such put; whoever comes between the look and the
    /// put is not noticed.
    Missing,
}

impl Exclusion {
    /// What a trial says: `None` where there was none yet, else whether the second of two was refused.
    #[cfg(any(feature = "web", feature = "nats", feature = "sftp"))]
    pub(crate) fn exact(tried: Option<bool>) -> Self {
        match tried {
            None => Self::Untried,
            Some(true) => Self::Exact,
            Some(false) => Self::Missing,
        }
    }
}

#[cfg(any(feature = "web", feature = "nats", feature = "sftp"))]
mod trial {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

    /// What was found, by backend and by a place of its own naming.
    type Found = HashMap<(&'static str, String), bool>;

    fn found() -> MutexGuard<'static, Found> {
        static FOUND: LazyLock<Mutex<Found>> = LazyLock::new(Mutex::default);
        FOUND.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a store refuses to replace what is there, as far as it was tried.
    pub(crate) fn tried(kind: &'static str, place: &str) -> Option<bool> {
        found().get(&(kind, place.to_owned())).copied()
    }

    /// Keeps what a trial showed, and says so if it went badly.
    pub(crate) fn remember(kind: &'static str, place: &str, refuses: bool) {
        let before = found().insert((kind, place.to_owned()), refuses);
        if !refuses && before != Some(false) {
            tracing::warn!(
                replica = kind,
                store = place,
                hint = "make sure that no two databases and no two hosts write to one path there",
                "this storage cannot create objects without replacing others: a second writer is not noticed there"
            );
        }
    }

    #[cfg(test)]
    mod tests {
        use super::super::Exclusion;
        use super::*;

        #[test]
        fn what_was_found_of_one_store_says_nothing_of_another() {
            assert_eq!(tried("test", "a"), None);
            remember("test", "a", false);
            remember("test", "b", true);
            assert_eq!((tried("test", "a"), tried("test", "b"), tried("tset", "a")), (Some(false), Some(true), None));
            // Somebody repaired it.
            remember("test", "a", true);
            assert_eq!(Exclusion::exact(tried("test", "a")), Exclusion::Exact);
            assert_eq!(Exclusion::exact(None), Exclusion::Untried);
            assert_eq!(Exclusion::exact(Some(false)), Exclusion::Missing);
        }
    }
}
