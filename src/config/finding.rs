//! What is worth saying about a configuration besides "it cannot be used": settings that are ignored or
//! mean something else than they seem to. The reference says nothing about these.

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The daemon would not start, or a setting is surely a mistake.
    Error,
    /// It works, but perhaps not as meant.
    Warning,
}

impl Severity {
    /// In lower case, as printed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One thing found. Never holds the value of a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Line in the file, counted from 1, where one can be named.
    pub line: Option<u64>,
    /// The setting, such as `dbs[1].replica.url`; empty for the file as a whole.
    pub setting: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl Finding {
    /// A fault.
    pub fn error(setting: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, line: None, setting: setting.into(), message: message.into(), hint: None }
    }

    /// A surprise.
    pub fn warning(setting: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(setting, message) }
    }

    /// Names the line.
    #[must_use]
    pub fn on_line(mut self, line: u64) -> Self {
        self.line = Some(line);
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The known key that was probably meant, if one is near enough.
pub(super) fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let simple = |text: &str| text.to_lowercase().replace('_', "-");
    let key = simple(key);
    let allowed = (key.chars().count() / 3).clamp(1, 3);
    let distances = known.iter().map(|k| (distance(&key, &simple(k)), *k));
    distances.filter(|(d, _)| *d <= allowed).min().map(|(_, k)| k)
}

/// Letters to insert, remove, replace or swap with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_recognised_and_strangers_are_not() {
        let known = ["sync-interval", "snapshot", "bucket", "path", "restore-if-db-not-exists"];
        for (key, want) in [
            ("sync_interval", Some("sync-interval")),
            ("sync-intervall", Some("sync-interval")),
            ("Sync-Interval", Some("sync-interval")),
            ("buckte", Some("bucket")),
            ("snapshots", Some("snapshot")),
            ("pth", Some("path")),
            ("restore-if-db-not-exist", Some("restore-if-db-not-exists")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(nearest(key, &known), want, "{key}");
        }
    }
}
