//! An error that many can have: of one attempt for which several wait.

use crate::error::{Error, ErrorKind};

/// What an [`Error`] says, to be handed out more than once.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    kind: ErrorKind,
    text: String,
    hint: Option<&'static str>,
}

impl Refusal {
    pub(super) fn of(err: &Error) -> Self {
        Self { kind: err.kind(), text: err.to_string(), hint: err.hint_text() }
    }

    pub(super) fn into_error(self) -> Error {
        let err = Error::new(self.kind, self.text);
        self.hint.into_iter().fold(err, Error::hint)
    }
}
