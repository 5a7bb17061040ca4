//! File-name patterns of directory entries: `*`, `?`, `[a-z]`, `[^a-z]`, `\` escapes
//! (`spec: config` §7.4). No crate has this dialect: there is no `**`, no `{a,b}`, `[!a]` is not a
//! negation, and a malformed pattern is found out only when a name is matched that far.

/// Why a pattern cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadPattern;

impl std::fmt::Display for BadPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("syntax error in pattern")
    }
}

impl std::error::Error for BadPattern {}

/// Whether a base name matches a pattern as a whole.
///
/// # Errors
/// The pattern is malformed, whether or not the name could match.
pub(super) fn matches(pattern: &str, name: &str) -> Result<bool, BadPattern> {
    let items = compile(pattern)?;
    let name: Vec<char> = name.chars().collect();
    // Positions in the name that the items so far can end at: linear in both, whatever the pattern.
    let mut ends = vec![false; name.len() + 1];
    ends[0] = true;
    for item in &items {
        let mut next = vec![false; name.len() + 1];
        for at in 0..=name.len() {
            match item {
                Item::Any => next[at] = ends[at] || (at > 0 && next[at - 1] && name[at - 1] != '/'),
                Item::One(test) => next[at] = at > 0 && ends[at - 1] && test.takes(name[at - 1]),
            }
        }
        ends = next;
    }
    Ok(ends[name.len()])
}

enum Item {
    /// `*`
    Any,
    One(Test),
}

enum Test {
    /// `?`
    NotSlash,
    Literal(char),
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Test {
    fn takes(&self, c: char) -> bool {
        match self {
            Self::NotSlash => c != '/',
            Self::Literal(l) => *l == c,
            Self::Class { negated, ranges } => ranges.iter().any(|(lo, hi)| (*lo..=*hi).contains(&c)) != *negated,
        }
    }
}

fn compile(pattern: &str) -> Result<Vec<Item>, BadPattern> {
    let mut items = Vec::new();
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        items.push(match c {
            '*' => Item::Any,
            '?' => Item::One(Test::NotSlash),
            '\\' => Item::One(Test::Literal(rest.next().ok_or(BadPattern)?)),
            '[' => Item::One(class(&mut rest)?),
            c => Item::One(Test::Literal(c)),
        });
    }
    Ok(items)
}

fn class(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Test, BadPattern> {
    let negated = rest.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && rest.next_if_eq(&']').is_some() {
            return Ok(Test::Class { negated, ranges });
        }
        let low = class_char(rest)?;
        let high = if rest.next_if_eq(&'-').is_some() { class_char(rest)? } else { low };
        ranges.push((low, high));
    }
}

fn class_char(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, BadPattern> {
    match rest.next() {
        Some('\\') => rest.next().ok_or(BadPattern),
        None | Some('-' | ']') => Err(BadPattern),
        Some(c) => Ok(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_the_reference() {
        for (pattern, name, want) in [
            ("*.db", "a.db", true),
            ("*.db", "a.db-wal", false),
            ("*", "", true),
            ("[a-c]?d[^x]", "b.db", true),
            ("[a-c]?d[^x]", "d.db", false),
            ("[!a].db", "!.db", true),
            ("[!a].db", "b.db", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("{a,b}.db", "a.db", false),
            ("**.db", "x.db", true),
            ("a*b*c", "a-b-b-c", true),
            ("é?", "éà", true),
        ] {
            assert_eq!(matches(pattern, name), Ok(want), "{pattern} {name}");
        }
    }

    #[test]
    fn malformed_patterns_are_errors() {
        for pattern in ["[a", "[", "[]", "[]a]", "[^]", "a\\", "[-x]", "[x-]", "[a-"] {
            assert_eq!(matches(pattern, "a.db"), Err(BadPattern), "{pattern}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_exponential_time() {
        assert_eq!(matches(&"*a".repeat(40), &"a".repeat(200)), Ok(true));
        assert_eq!(matches(&"*a".repeat(40), &"b".repeat(200)), Ok(false));
    }
}
