//! A command line into words, as `-exec` and `exec` take it (`spec: cli` §7.3). No shell is run: no
//! variables, no globs. The dialect is the reference's, which no crate has: `` `…` `` and `$(…)` stay
//! as they are, and an unquoted `; & | < >` ends the command.

/// Quotes, brackets or a backslash that do not end or do not belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InvalidCommandLine;

impl std::fmt::Display for InvalidCommandLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("invalid command line string")
    }
}

impl std::error::Error for InvalidCommandLine {}

/// What an ordinary character is inside of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    Nothing,
    Single,
    Double,
    Backtick,
    /// `$(…)`
    Dollar,
}

/// Splits a command line; may be empty.
pub(super) fn split(line: &str) -> Result<Vec<String>, InvalidCommandLine> {
    let mut words = Vec::new();
    // `None` between words; `""` is a word.
    let mut word: Option<String> = None;
    let mut inside = Inside::Nothing;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        let after_dollar = word.as_deref().is_some_and(|w| w.ends_with('$'));
        let mut take = |c: char| word.get_or_insert_default().push(c);
        match (c, inside) {
            ('\\', Inside::Single) => take(c),
            ('\\', _) => take(rest.next().ok_or(InvalidCommandLine)?),
            (' ' | '\t' | '\r' | '\n', Inside::Nothing) => words.extend(word.take()),
            ('"', Inside::Nothing) => {
                inside = Inside::Double;
                word.get_or_insert_default();
            }
            ('"', Inside::Double) | ('\'', Inside::Single) => inside = Inside::Nothing,
            ('\'', Inside::Nothing) => {
                inside = Inside::Single;
                word.get_or_insert_default();
            }
            ('`', Inside::Nothing) => {
                inside = Inside::Backtick;
                take(c);
            }
            ('`', Inside::Backtick) | (')', Inside::Dollar) => {
                inside = Inside::Nothing;
                take(c);
            }
            ('(', Inside::Nothing) if after_dollar => {
                inside = Inside::Dollar;
                take(c);
            }
            ('(', Inside::Nothing | Inside::Dollar) | (')', Inside::Nothing) => return Err(InvalidCommandLine),
            (';' | '&' | '|' | '<' | '>', Inside::Nothing) => {
                // `2>`: the number belongs to the redirection.
                if c == '>' && word.as_deref().is_some_and(|w| w.starts_with(|c: char| c.is_ascii_digit())) {
                    word = None;
                }
                break;
            }
            (c, _) => take(c),
        }
    }
    if inside != Inside::Nothing {
        return Err(InvalidCommandLine);
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_like_the_reference_splits_them() {
        for (line, want) in [
            ("a b\tc\nd", &["a", "b", "c", "d"][..]),
            ("sh -c 'exit 3'", &["sh", "-c", "exit 3"]),
            ("a\"b c\"d", &["ab cd"]),
            ("x \"\" '' y", &["x", "", "", "y"]),
            ("\"a\\\"b\" \"a\\nb\" 'a\\nb'", &["a\"b", "anb", "a\\nb"]),
            ("a\\ b", &["a b"]),
            ("#c x", &["#c", "x"]),
            ("$HOME ~ *", &["$HOME", "~", "*"]),
            ("`date +%s` $(echo 'a b') x", &["`date +%s`", "$(echo 'a b')", "x"]),
            ("a; b", &["a"]),
            ("a && b", &["a"]),
            ("a>f", &["a"]),
            ("a 2> f", &["a"]),
            ("a '2'> f", &["a"]),
            ("a ';' b", &["a", ";", "b"]),
            (" ", &[]),
            (";", &[]),
        ] {
            assert_eq!(split(line).unwrap(), want, "{line}");
        }
    }

    #[test]
    fn what_does_not_end_is_refused() {
        for line in ["\"x", "'x", "x\\", "(a)", "a)", "`x", "$(x", "$((1))"] {
            assert_eq!(split(line), Err(InvalidCommandLine), "{line}");
        }
    }
}
