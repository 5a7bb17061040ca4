//! How many files and connections the process may have open.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What held before [`allow_many_descriptors`], if that changed anything.
static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises the limit to what the system lets this process have. The usual one, 1024, is for programs that
/// use `select`; a thousand databases need more.
pub fn allow_many_descriptors() {
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum
        && setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before }).is_ok()
    {
        let _ = BEFORE.set(before);
    }
}

/// How many may be open now; `None`: any number.
#[must_use]
pub fn descriptor_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Puts the limit back for a program that is about to be run in place of a fork of this one, which may be one of
/// those that cannot deal with more. Makes one system call at most, so that it may be called after `fork`.
pub fn restore_descriptor_limit() {
    if let Some(before) = BEFORE.get() {
        let _ = setrlimit(Resource::Nofile, *before);
    }
}
