//! The error of all our crates: a small [`ErrorKind`] for callers to branch on, and
//! operation, target, cause and hint for the person who reads it.

use std::fmt;
use std::time::Duration;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What a caller can branch on. Classified from codes (errno, SQLite result,
/// HTTP status), never from message text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A named thing (file, object, database) does not exist.
    NotFound,
    /// It exists already and must not be replaced.
    Exists,
    /// Somebody else holds a lock we need; trying again can help.
    Busy,
    /// Another replicator has this database or this replica. Trying again soon is for nothing.
    InUse,
    /// No space or quota left; trying again helps once there is.
    DiskFull,
    /// The bytes break the rules of their format, or a checksum differs.
    Corrupt,
    /// A storage service or network failed in a way that may pass.
    Unavailable,
    /// Credentials are missing or were refused.
    PermissionDenied,
    /// The caller asked for something that cannot be (flag, config, name).
    Invalid,
    /// The work was stopped on request.
    Cancelled,
    /// The world moved while we measured it; start the step over.
    Changed,
    /// Any other I/O failure.
    Io,
    /// A rule of this program was broken: a bug.
    Internal,
}

/// One failure, and the chain of what it caused.
#[derive(Debug)]
pub struct Error(Box<Repr>);

#[derive(Debug)]
struct Repr {
    kind: ErrorKind,
    op: String,
    target: Option<String>,
    hint: Option<&'static str>,
    retry_after: Option<Duration>,
    source: Option<Source>,
}

impl Error {
    /// A failure described by `op`: verb + object (`open ltx file`), or a whole message.
    pub fn new(kind: ErrorKind, op: impl Into<String>) -> Self {
        Self(Box::new(Repr { kind, op: op.into(), target: None, hint: None, retry_after: None, source: None }))
    }

    /// A violated format rule.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// Input that cannot be accepted.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// A failed system call, classified by its errno.
    pub fn io(op: impl Into<String>, err: std::io::Error) -> Self {
        let carried = err.get_ref().and_then(|e| e.downcast_ref::<Self>());
        let hint = carried.and_then(Self::hint_text);
        let mut error = Self::new(kind_of_io(&err), op);
        error.0.hint = hint;
        error.caused_by(err)
    }

    /// Names the path or key that `op` was about.
    #[must_use]
    pub fn at(mut self, target: impl fmt::Display) -> Self {
        self.0.target = Some(target.to_string());
        self
    }

    /// Adds what the operator can do.
    #[must_use]
    pub fn hint(mut self, hint: &'static str) -> Self {
        self.0.hint = Some(hint);
        self
    }

    /// Says that the service wants to be left alone for so long.
    #[must_use]
    pub fn asks_to_wait(mut self, retry_after: Duration) -> Self {
        self.0.retry_after = Some(retry_after);
        self
    }

    /// Sets the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Wraps this error into a further one that says what was being done. The kind stays.
    #[must_use]
    pub fn context(self, op: impl Into<String>) -> Self {
        let (kind, hint, retry_after) = (self.kind(), self.0.hint, self.0.retry_after);
        let mut outer = Self::new(kind, op);
        (outer.0.hint, outer.0.retry_after) = (hint, retry_after);
        outer.caused_by(self)
    }

    /// What callers branch on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What the operator can do, if we know.
    #[must_use]
    pub fn hint_text(&self) -> Option<&'static str> {
        self.0.hint
    }

    /// How long the service wants to be left alone, if it says so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The path or key the outermost operation was about.
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        self.0.target.as_deref()
    }

    /// Whether the same call may succeed later. Retry is decided here and nowhere else.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::Busy | ErrorKind::DiskFull | ErrorKind::Unavailable | ErrorKind::Changed | ErrorKind::Io
        )
    }
}

/// Classifies an operating-system error by its code.
#[must_use]
pub fn kind_of_io(err: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as Io;
    match err.kind() {
        Io::NotFound => ErrorKind::NotFound,
        Io::AlreadyExists => ErrorKind::Exists,
        // Nobody may write to what is mounted read-only.
        Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
        // The one who has the address may be about to end.
        Io::AddrInUse => ErrorKind::Busy,
        Io::StorageFull | Io::QuotaExceeded => ErrorKind::DiskFull,
        Io::InvalidInput => ErrorKind::Invalid,
        Io::InvalidData | Io::UnexpectedEof => match err.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
            Some(inner) => inner.kind(),
            None => ErrorKind::Corrupt,
        },
        _ => match err.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
            Some(inner) => inner.kind(),
            None => ErrorKind::Io,
        },
    }
}

impl From<Error> for std::io::Error {
    fn from(err: Error) -> Self {
        Self::other(err)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.op)?;
        if let Some(target) = &self.0.target {
            write!(f, " {target}")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, ": {}", Plain(source.as_ref()))?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|s| s.as_ref() as _)
    }
}

/// A cause, with the operating system's numbering (`(os error 2)`) taken off.
struct Plain<'a>(&'a (dyn std::error::Error + 'static));

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(io) = self.0.downcast_ref::<std::io::Error>()
            && let Some(code) = io.raw_os_error()
        {
            let text = io.to_string();
            let text = text.strip_suffix(&format!(" (os error {code})")).unwrap_or(&text);
            let mut chars = text.chars();
            return match chars.next() {
                Some(first) => write!(f, "{}{}", first.to_lowercase(), chars.as_str()),
                None => Ok(()),
            };
        }
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_reads_as_one_line() {
        let os = std::io::Error::from_raw_os_error(2);
        let err = Error::io("open", os).at("/x/y").context("read config");
        assert_eq!(err.to_string(), "read config: open /x/y: no such file or directory");
        assert_eq!(err.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_full_disk_is_recognised_by_code() {
        let os = std::io::Error::from_raw_os_error(28);
        assert_eq!(Error::io("write", os).kind(), ErrorKind::DiskFull);
        let quota = std::io::Error::from_raw_os_error(122);
        assert_eq!(Error::io("write", quota).kind(), ErrorKind::DiskFull);
    }

    #[test]
    fn a_read_only_file_system_gives_no_permission() {
        let os = std::io::Error::from_raw_os_error(30);
        assert_eq!(Error::io("write", os).kind(), ErrorKind::PermissionDenied);
    }

    #[test]
    fn an_error_carried_through_io_keeps_its_kind_and_hint() {
        let io: std::io::Error = Error::corrupt("file checksum mismatch").hint("restore an older one").into();
        let err = Error::io("copy", io);
        assert_eq!(err.kind(), ErrorKind::Corrupt);
        assert_eq!(err.hint_text(), Some("restore an older one"));
    }
}
