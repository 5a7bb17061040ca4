//! The environment: the only code that reads it. What is read is copied into an [`Environment`] at
//! start and handed on as data; the process environment itself is never changed.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Name → the name it stands in for (`spec: cli` §1).
const COPIES: [(&str, &str); 2] =
    [("LITESTREAM_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"), ("LITESTREAM_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY")];

/// A copy of the environment, with our own additions.
#[derive(Clone)]
pub struct Environment {
    vars: BTreeMap<String, String>,
    added: Vec<(String, String)>,
    pid: u32,
    uid: u32,
    working_dir: PathBuf,
}

impl Environment {
    /// Copies the environment of this process, and `LITESTREAM_*` credentials to the `AWS_*` names
    /// where those are not set at all. Variables that are not UTF-8 are invisible to us, but still
    /// inherited by children.
    #[must_use]
    pub fn capture() -> Self {
        let vars = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let working_dir = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        Self::new(vars, working_dir)
    }

    /// An environment made of the given variables, for tests and [`Environment::capture`].
    pub fn new(vars: impl IntoIterator<Item = (String, String)>, working_dir: PathBuf) -> Self {
        let mut env = Self {
            vars: vars.into_iter().collect(),
            added: Vec::new(),
            pid: std::process::id(),
            uid: rustix::process::getuid().as_raw(),
            working_dir,
        };
        for (from, to) in COPIES {
            if let (Some(value), false) = (env.get(from), env.vars.contains_key(to)) {
                let value = value.to_owned();
                env.set(to, value);
            }
        }
        env
    }

    /// The value of a variable that is set.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str)
    }

    /// The value of a variable that is set and not empty.
    #[must_use]
    pub fn get_nonempty(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|v| !v.is_empty())
    }

    /// Sets a variable for everything that reads this copy, and for child processes.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        self.added.push((name.to_owned(), value.clone()));
        self.vars.insert(name.to_owned(), value);
    }

    /// What a child process needs beyond the environment it inherits.
    #[must_use]
    pub fn additions(&self) -> &[(String, String)] {
        &self.added
    }

    /// The directory relative paths start from.
    #[must_use]
    pub fn working_dir(&self) -> &std::path::Path {
        &self.working_dir
    }

    /// The user we run as.
    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    /// Replaces `$NAME` and `${NAME}` in a text (`spec: config` §2). There is no escape for `$` and
    /// there are no shell defaults.
    #[must_use]
    pub fn expand(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            let (name, used) = variable_name(rest);
            match name {
                Some(name) => out.push_str(&self.value_of(name)),
                None if used == 0 => out.push('$'),
                None => {}
            }
            rest = &rest[used..];
        }
        out.push_str(rest);
        out
    }

    fn value_of(&self, name: &str) -> String {
        if name == "PID" { self.pid.to_string() } else { self.get(name).unwrap_or_default().to_owned() }
    }
}

/// The values may be credentials.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("names", &self.vars.keys()).finish_non_exhaustive()
    }
}

/// Names of the variables a text refers to, in its order.
#[must_use]
pub fn references(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        rest = &rest[at + 1..];
        let (name, used) = variable_name(rest);
        names.extend(name);
        rest = &rest[used..];
    }
    names
}

/// The variable named at the start of `text` (which follows a `$`), and how many bytes it takes.
fn variable_name(text: &str) -> (Option<&str>, usize) {
    let special = |c: char| c.is_ascii_digit() || "*#$@!?-".contains(c);
    if let Some(inner) = text.strip_prefix('{') {
        return match inner.find('}') {
            Some(0) => (None, 2),
            Some(end) => (Some(&inner[..end]), end + 2),
            None => (None, 1),
        };
    }
    if text.starts_with(special) {
        return (Some(&text[..1]), 1);
    }
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    if end == 0 { (None, 0) } else { (Some(&text[..end]), end) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> Environment {
        Environment::new(vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())), PathBuf::from("/tmp"))
    }

    #[test]
    fn names_are_expanded_the_way_of_the_reference() {
        let env = env(&[("FOO", "/foo"), ("BAR", "bar"), ("PID", "fake"), ("A_1", "x")]);
        for (text, want) in [
            ("$FOO/${BAR}/x$UNSET.db", "/foo/bar/x.db"),
            ("$A_1-$A_12", "x-"),
            ("${BAR:-y}", ""),
            ("pa$$w0rd", "paw0rd"),
            ("$$FOO", "FOO"),
            ("$12", "2"),
            ("cost $ 5", "cost $ 5"),
            ("$(x)", "$(x)"),
            ("end$", "end$"),
            ("${}x", "x"),
            ("${FOO", "FOO"),
            ("é$BARé", "ébaré"),
        ] {
            assert_eq!(env.expand(text), want, "{text}");
        }
        assert_eq!(env.expand("$PID"), std::process::id().to_string());
    }

    #[test]
    fn litestream_credentials_stand_in_for_aws_ones_that_are_not_set() {
        let both = env(&[("LITESTREAM_ACCESS_KEY_ID", "a"), ("LITESTREAM_SECRET_ACCESS_KEY", "b")]);
        assert_eq!(both.get("AWS_ACCESS_KEY_ID"), Some("a"));
        assert_eq!(both.additions().len(), 2);
        let blocked = env(&[("LITESTREAM_ACCESS_KEY_ID", "a"), ("AWS_ACCESS_KEY_ID", "")]);
        assert_eq!(blocked.get("AWS_ACCESS_KEY_ID"), Some(""));
    }

    #[test]
    fn values_never_show_in_debug_output() {
        assert!(!format!("{:?}", env(&[("AWS_SECRET_ACCESS_KEY", "hunter2")])).contains("hunter2"));
    }
}
