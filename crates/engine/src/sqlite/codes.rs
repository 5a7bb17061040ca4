//! SQLite result codes as error kinds.

use rusqlite::ffi;

use crate::error::{Error, ErrorKind};

/// Classifies by the primary result code; the text is SQLite's, with the code behind it.
pub(super) fn error(op: &str, err: rusqlite::Error) -> Error {
    let (kind, text) = match &err {
        rusqlite::Error::SqliteFailure(failure, message) => {
            let kind = match failure.extended_code & 0xff {
                ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED => ErrorKind::Busy,
                ffi::SQLITE_FULL => ErrorKind::DiskFull,
                ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB => ErrorKind::Corrupt,
                ffi::SQLITE_PERM | ffi::SQLITE_READONLY | ffi::SQLITE_AUTH => ErrorKind::PermissionDenied,
                _ => ErrorKind::Io,
            };
            let message = message.clone().unwrap_or_else(|| failure.to_string());
            (kind, format!("{message} ({})", failure.extended_code))
        }
        other => (ErrorKind::Internal, other.to_string()),
    };
    Error::new(kind, if op.is_empty() { text } else { format!("{op}: {text}") })
}
