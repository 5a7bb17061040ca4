//! Named fault points around every durable step. Built only with the `faults` feature; without
//! it a fault point is nothing at all.
//!
//! `LITESTREAM_FAULT=<name>[@<n>]=kill|eio|enospc` acts at the n-th passage (default first).

use crate::error::Result;

/// Where a test can make the world end or a system call fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultPoint(pub &'static str);

/// Passes the fault point `name`.
///
/// # Errors
/// Whatever the test asked for.
#[inline]
pub fn fault_point(name: &'static str) -> Result<()> {
    #[cfg(feature = "faults")]
    return active::pass(FaultPoint(name));
    #[cfg(not(feature = "faults"))]
    {
        let _ = FaultPoint(name);
        Ok(())
    }
}

/// Whether stored checksums are only read: a fuzzer cannot guess them, and what is behind them is to be tried too.
pub const UNCHECKED: bool = cfg!(fuzzing);

/// Whether the program is to have the defect `name`: tests of the tests. Always false in release builds, so
/// that nothing is left of it there. Elsewhere [`choose_mutant`] chooses one, or `MUTANT` in the environment.
#[inline]
#[must_use]
pub fn mutant(name: &'static str) -> bool {
    #[cfg(debug_assertions)]
    return mutants::is_chosen(name);
    #[cfg(not(debug_assertions))]
    {
        let _ = name;
        false
    }
}

/// Gives this program one of its deliberate defects, or none. They are listed in `docs/reliability.md`.
#[cfg(debug_assertions)]
pub fn choose_mutant(name: Option<&str>) {
    mutants::choose(name);
}

#[cfg(debug_assertions)]
mod mutants {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Once, PoisonError, RwLock};

    static BEGIN: Once = Once::new();
    static ANY: AtomicBool = AtomicBool::new(false);
    static CHOSEN: RwLock<Option<String>> = RwLock::new(None);

    pub(super) fn choose(name: Option<&str>) {
        BEGIN.call_once(|| {});
        set(name);
    }

    fn set(name: Option<&str>) {
        *CHOSEN.write().unwrap_or_else(PoisonError::into_inner) = name.map(str::to_owned);
        ANY.store(name.is_some(), Ordering::SeqCst);
    }

    pub(super) fn is_chosen(name: &str) -> bool {
        BEGIN.call_once(|| set(std::env::var("MUTANT").ok().as_deref()));
        ANY.load(Ordering::Relaxed) && CHOSEN.read().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(name)
    }
}

#[cfg(feature = "faults")]
mod active {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::FaultPoint;
    use crate::error::{Error, Result};

    struct Plan {
        name: String,
        nth: u64,
        action: String,
        passed: AtomicU64,
    }

    fn plan() -> Option<&'static Plan> {
        static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
        PLAN.get_or_init(|| {
            let text = std::env::var("LITESTREAM_FAULT").ok()?;
            let (point, action) = text.split_once('=')?;
            let (name, nth) = point.split_once('@').unwrap_or((point, "1"));
            Some(Plan {
                name: name.to_owned(),
                nth: nth.parse().ok()?,
                action: action.to_owned(),
                passed: AtomicU64::new(0),
            })
        })
        .as_ref()
    }

    pub(super) fn pass(point: FaultPoint) -> Result<()> {
        let Some(plan) = plan() else { return Ok(()) };
        if plan.name != point.0 || plan.passed.fetch_add(1, Ordering::SeqCst) + 1 != plan.nth {
            return Ok(());
        }
        match plan.action.as_str() {
            "kill" => {
                // As abrupt as kill -9: no destructors, no flushing.
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                loop {
                    std::thread::park();
                }
            }
            "enospc" => Err(Error::io(point.0, std::io::Error::from_raw_os_error(28))),
            _ => Err(Error::io(point.0, std::io::Error::from_raw_os_error(5))),
        }
    }
}
