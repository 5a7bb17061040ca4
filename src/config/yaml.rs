//! YAML text → tree of nodes with line numbers. Only the first document is read, as the reference
//! does; what the scalars mean is decided in `decode.rs`.

use std::collections::HashMap;
use std::rc::Rc;

use libyaml_safer::{ErrorKind as YamlKind, Event, EventData, Parser, ScalarStyle};

use crate::error::{Error, Result};

/// Deeper nesting than this is refused; no configuration needs more than six.
const MAX_DEPTH: usize = 100;

/// One value of the document.
#[derive(Debug)]
pub(super) struct Node {
    /// Line of the value, counted from 1.
    pub(super) line: u64,
    /// Carries an anchor, so that it may be there to be referred to.
    pub(super) anchored: bool,
    pub(super) kind: NodeKind,
}

impl Node {
    /// The line of a setting such as `dbs[1].replica.url`; of what encloses it, where it is not written.
    pub(super) fn line_of(&self, setting: &str) -> u64 {
        self.follow(setting).fold(self.line, |_, (line, _)| line)
    }

    /// What is written at a setting; the document itself for the empty one.
    pub(super) fn at(&self, setting: &str) -> Option<&Self> {
        let steps = steps(setting).count();
        let (count, node) = self.follow(setting).fold((0, self), |(n, _), (_, node)| (n + 1, node));
        (count == steps).then_some(node)
    }

    /// The text of a scalar at a setting.
    pub(super) fn text_at(&self, setting: &str) -> Option<&str> {
        self.at(setting)?.text()
    }

    /// The text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.kind {
            NodeKind::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Steps down to a setting as far as it is written, each with the line that names it.
    fn follow<'n>(&'n self, setting: &str) -> impl Iterator<Item = (u64, &'n Self)> {
        let mut node = self;
        steps(setting).map_while(move |step| {
            let (line, inner) = match (&node.kind, step.strip_suffix(']')) {
                (NodeKind::Sequence(items), Some(index)) => {
                    let item = items.get(index.parse::<usize>().ok()?)?;
                    (item.line, item)
                }
                // The last one wins, as in decoding.
                (NodeKind::Mapping(entries), None) => {
                    let (key, value) = entries.iter().rev().find(|(key, _)| key.text() == Some(step))?;
                    (key.line, value)
                }
                _ => return None,
            };
            node = inner.as_ref();
            Some((line, node))
        })
    }
}

/// `dbs[1].url` → `dbs`, `1]`, `url`
fn steps(setting: &str) -> impl Iterator<Item = &str> {
    setting.split(['.', '[']).filter(|step| !step.is_empty())
}

#[derive(Debug)]
pub(super) enum NodeKind {
    Scalar {
        text: String,
        /// Written without quotes, so that it may be a number, a boolean or null.
        plain: bool,
        tag: Option<String>,
    },
    Sequence(Vec<Rc<Node>>),
    Mapping(Vec<(Rc<Node>, Rc<Node>)>),
}

/// Reads the first document; `None` for a text without one.
///
/// # Errors
/// `yaml: line <n>: <problem>`.
pub(super) fn parse(text: &str) -> Result<Option<Rc<Node>>> {
    // libyaml-safer 0.3 panics where a block scalar ends with the text instead of a line break …
    let text = if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") };
    // … and on a few absurd texts such as `[!,]`. Nothing of its state outlives the call.
    std::panic::catch_unwind(|| compose(&text))
        .unwrap_or_else(|_| Err(Error::invalid("yaml: did not understand a tag or scalar in this text")))
}

fn compose(text: &str) -> Result<Option<Rc<Node>>> {
    let mut input = text.as_bytes();
    let mut parser = Parser::new();
    parser.set_input_string(&mut input);
    let mut composer = Composer { parser, anchors: HashMap::new() };
    loop {
        match composer.next()?.data {
            EventData::DocumentStart { .. } => break,
            EventData::StreamEnd => return Ok(None),
            _ => {}
        }
    }
    let event = composer.next()?;
    let root = composer.node(event, 0)?;
    // The end of the document can still be an error, such as a stray bracket.
    composer.next()?;
    Ok(Some(root))
}

struct Composer<'r, 'b> {
    parser: Parser<&'r mut &'b [u8]>,
    anchors: HashMap<String, Rc<Node>>,
}

impl Composer<'_, '_> {
    fn next(&mut self) -> Result<Event> {
        self.parser.parse().map_err(|err| syntax_error(&err))
    }

    fn node(&mut self, event: Event, depth: usize) -> Result<Rc<Node>> {
        if depth > MAX_DEPTH {
            return Err(Error::invalid(format!("yaml: exceeded max depth of {MAX_DEPTH}")));
        }
        let line = event.start_mark.line + 1;
        let (anchor, kind) = match event.data {
            EventData::Alias { anchor } => {
                return self
                    .anchors
                    .get(&anchor)
                    .cloned()
                    .ok_or_else(|| Error::invalid(format!("yaml: unknown anchor '{anchor}' referenced")));
            }
            EventData::Scalar { anchor, tag, value, style, .. } => {
                let plain = style == ScalarStyle::Plain;
                (anchor, NodeKind::Scalar { text: value, plain, tag })
            }
            EventData::SequenceStart { anchor, .. } => {
                let mut items = Vec::new();
                loop {
                    let event = self.next()?;
                    if matches!(event.data, EventData::SequenceEnd) {
                        break;
                    }
                    items.push(self.node(event, depth + 1)?);
                }
                (anchor, NodeKind::Sequence(items))
            }
            EventData::MappingStart { anchor, .. } => {
                let mut entries = Vec::new();
                loop {
                    let event = self.next()?;
                    if matches!(event.data, EventData::MappingEnd) {
                        break;
                    }
                    let key = self.node(event, depth + 1)?;
                    let event = self.next()?;
                    entries.push((key, self.node(event, depth + 1)?));
                }
                (anchor, NodeKind::Mapping(entries))
            }
            _ => return Err(Error::invalid("yaml: unexpected end of document")),
        };
        let node = Rc::new(Node { line, anchored: anchor.is_some(), kind });
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        Ok(node)
    }
}

/// The reference's wording: the scanner's lines are counted from 1, the parser's from 0, and a
/// zero is not printed.
fn syntax_error(err: &libyaml_safer::Error) -> Error {
    let marked = err.problem_mark().map_or(0, |m| m.line);
    let scanned = u64::from(err.kind() == YamlKind::Scanner);
    let line = match marked {
        0 => err.context_mark().map_or(0, |m| m.line),
        line => line + scanned,
    };
    let problem = err.problem();
    Error::invalid(match line {
        0 => format!("yaml: {problem}"),
        line => format!("yaml: line {line}: {problem}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_text_and_a_comment_are_no_document() {
        assert!(parse("").unwrap().is_none());
        assert!(parse("# nothing\n").unwrap().is_none());
    }

    #[test]
    fn later_documents_are_not_even_parsed() {
        assert!(parse("a: 1\n---\n{[\n").unwrap().is_some());
    }

    #[test]
    fn settings_are_found_by_their_path() {
        let root = parse("a: 1\ndbs:\n  - path: x\n  -\n    path: y\n    replica:\n      url: z\n").unwrap().unwrap();
        for (setting, line) in [
            ("a", 1),
            ("dbs", 2),
            ("dbs[0].path", 3),
            ("dbs[1].replica.url", 7),
            ("dbs[1].replica.bucket", 6),
            ("dbs[7].path", 2),
            ("nope", 1),
        ] {
            assert_eq!(root.line_of(setting), line, "{setting}");
        }
        assert_eq!(root.text_at("dbs[1].replica.url"), Some("z"));
        assert!(root.at("dbs[1].replica.bucket").is_none());
    }

    #[test]
    fn deep_nesting_is_refused_not_overflowed() {
        let text = "[".repeat(100_000);
        assert!(parse(&text).is_err());
    }

    #[test]
    fn texts_the_parser_panics_on_are_errors_or_work() {
        assert!(parse("a: |\n  b").unwrap().is_some());
        assert!(parse("[!,]").is_err());
    }

    #[test]
    fn an_anchor_cannot_contain_itself() {
        assert_eq!(parse("a: &x [*x]\n").unwrap_err().to_string(), "yaml: unknown anchor 'x' referenced");
    }
}
