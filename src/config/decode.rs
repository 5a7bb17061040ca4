//! What YAML values mean, by the rules of the reference's decoder (`spec: config` §3): YAML 1.1
//! scalars, null clears, repeated mappings merge, unknown keys are ignored, every type error is
//! collected and reported with its line and the reference's type name.

use std::collections::HashSet;

use jiff::SignedDuration;

use super::yaml::{Node, NodeKind};
use crate::types::parse_duration;

/// Collects what went wrong.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    pub(super) errors: Vec<String>,
    /// An error that ends decoding and is reported alone.
    pub(super) fatal: Option<String>,
    /// What was read, but may surprise.
    pub(super) oddities: Vec<Oddity>,
    /// The setting being decoded: `dbs`, `[1]`, `replica`, …
    place: Vec<String>,
}

/// Something the reference accepts without a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Oddity {
    /// Line of the key.
    pub(super) line: u64,
    /// `dbs[1].replica.url`
    pub(super) setting: String,
    pub(super) what: Odd,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Odd {
    /// A key nobody reads, where these are known; with its value if that is a scalar.
    Unknown { key: String, value: Option<String>, known: Vec<&'static str> },
    /// A scalar or list that a later line replaces.
    Repeated,
    /// A bare number where a duration is wanted: nanoseconds.
    Nanoseconds(i128),
}

impl Decoder {
    /// Runs `decode` on a part of the setting being decoded.
    fn within(&mut self, step: String, decode: impl FnOnce(&mut Self)) {
        self.place.push(step);
        decode(self);
        self.place.pop();
    }

    fn odd(&mut self, line: u64, what: Odd) {
        let mut setting = String::new();
        for step in &self.place {
            if !setting.is_empty() && !step.starts_with('[') {
                setting.push('.');
            }
            setting.push_str(step);
        }
        let oddity = Oddity { line, setting, what };
        // What an anchor holds is met wherever it is referred to.
        if !self.oddities.iter().any(|o| o.line == oddity.line && o.what == oddity.what) {
            self.oddities.push(oddity);
        }
    }

    fn mismatch(&mut self, node: &Node, go_type: &str) {
        let (tag, value) = match &node.kind {
            NodeKind::Sequence(_) => ("!!seq", String::new()),
            NodeKind::Mapping(_) => ("!!map", String::new()),
            NodeKind::Scalar { text, .. } => (resolve(node).tag(), format!(" `{}`", shorten(text))),
        };
        self.errors.push(format!("line {}: cannot unmarshal {tag}{value} into {go_type}", node.line));
    }
}

fn shorten(text: &str) -> String {
    if text.len() <= 10 {
        return text.to_owned();
    }
    format!("{}...", String::from_utf8_lossy(&text.as_bytes()[..7]))
}

/// A scalar, resolved.
#[derive(Debug, PartialEq)]
pub(super) enum Resolved {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Merge,
    Text,
}

impl Resolved {
    fn tag(&self) -> &'static str {
        match self {
            Self::Null => "!!null",
            Self::Bool(_) => "!!bool",
            Self::Int(_) => "!!int",
            Self::Float(_) => "!!float",
            Self::Merge => "!!merge",
            Self::Text => "!!str",
        }
    }
}

/// What a scalar node is; sequences and mappings count as [`Resolved::Text`] and are told apart by
/// their kind.
pub(super) fn resolve(node: &Node) -> Resolved {
    let NodeKind::Scalar { text, plain, tag } = &node.kind else { return Resolved::Text };
    match tag.as_deref() {
        None if *plain => resolve_plain(text),
        None | Some("!" | "tag:yaml.org,2002:str" | "tag:yaml.org,2002:binary") => Resolved::Text,
        Some(_) => resolve_plain(text),
    }
}

fn resolve_plain(text: &str) -> Resolved {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Resolved::Null,
        "<<" => return Resolved::Merge,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Resolved::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Resolved::Bool(false);
        }
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Resolved::Text;
    }
    let digits: String = text.chars().filter(|c| *c != '_').collect();
    if let Some(int) = parse_int(&digits) {
        return Resolved::Int(int);
    }
    // Only what looks like a number: Rust's parser also knows "inf" and "nan".
    let float_like = digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    match digits.parse::<f64>() {
        Ok(float) if float_like => Resolved::Float(float),
        _ => Resolved::Text,
    }
}

fn parse_int(text: &str) -> Option<i128> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let radix = |prefix: &[&str], radix| {
        let digits = prefix.iter().find_map(|p| rest.strip_prefix(p))?;
        digits.bytes().next()?.is_ascii_alphanumeric().then(|| i128::from_str_radix(digits, radix).ok())?
    };
    let magnitude = radix(&["0x", "0X"], 16)
        .or_else(|| radix(&["0b", "0B"], 2))
        .or_else(|| radix(&["0o", "0O"], 8))
        .or_else(|| if rest.len() > 1 { radix(&["0"], 8) } else { None })
        .or_else(|| {
            let decimal = rest.bytes().all(|b| b.is_ascii_digit()) && (rest.len() == 1 || !rest.starts_with('0'));
            decimal.then(|| rest.parse().ok())?
        })?;
    let value: i128 = if negative { -magnitude } else { magnitude };
    // Beyond 64 bits the reference sees a float.
    (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&value).then_some(value)
}

/// Something a node can be decoded into. The old value stays where the document says nothing.
pub(super) trait Decode {
    /// The reference's name of the type, for error texts.
    const GO: &'static str;
    /// The reference's name of a list of it.
    const GO_LIST: &'static str = "[]string";
    /// Takes the value of `node`, or reports why not.
    fn decode(&mut self, node: &Node, d: &mut Decoder);
}

fn is_null(node: &Node) -> bool {
    matches!(node.kind, NodeKind::Scalar { .. }) && resolve(node) == Resolved::Null
}

impl Decode for String {
    const GO: &'static str = "string";

    fn decode(&mut self, node: &Node, d: &mut Decoder) {
        match &node.kind {
            NodeKind::Scalar { .. } if is_null(node) => self.clear(),
            NodeKind::Scalar { text, .. } => self.clone_from(text),
            _ => d.mismatch(node, Self::GO),
        }
    }
}

impl Decode for bool {
    const GO: &'static str = "bool";

    fn decode(&mut self, node: &Node, d: &mut Decoder) {
        match resolve(node) {
            Resolved::Null => *self = false,
            Resolved::Bool(value) => *self = value,
            _ => d.mismatch(node, Self::GO),
        }
    }
}

/// Whole numbers; a fraction is cut off.
fn integer(node: &Node) -> Option<i128> {
    match resolve(node) {
        Resolved::Null => Some(0),
        Resolved::Int(value) => Some(value),
        #[expect(clippy::cast_possible_truncation, reason = "the reference truncates; out of range is refused below")]
        Resolved::Float(value) if value.is_finite() => Some(value as i128),
        _ => None,
    }
}

macro_rules! decode_integers {
    ($($ty:ty => $go:literal),*) => {$(
        impl Decode for $ty {
            const GO: &'static str = $go;

            fn decode(&mut self, node: &Node, d: &mut Decoder) {
                match integer(node).and_then(|n| Self::try_from(n).ok()) {
                    Some(value) => *self = value,
                    None => d.mismatch(node, Self::GO),
                }
            }
        }
    )*};
}

// The reference's `int` has 64 bits as well; isize keeps the two apart in error texts.
decode_integers!(i64 => "int64", isize => "int", u32 => "uint32");

impl Decode for SignedDuration {
    const GO: &'static str = "time.Duration";

    /// A bare number is nanoseconds.
    fn decode(&mut self, node: &Node, d: &mut Decoder) {
        let value = match (&node.kind, resolve(node)) {
            (NodeKind::Scalar { text, .. }, Resolved::Text) => parse_duration(text).ok(),
            (NodeKind::Scalar { .. }, resolved) => {
                let number = integer(node);
                if let (Some(n), false) = (number, matches!(resolved, Resolved::Null)) {
                    // Nobody means less than a microsecond.
                    if n != 0 && n.abs() < 1_000 {
                        d.odd(node.line, Odd::Nanoseconds(n));
                    }
                }
                number.and_then(|n| i64::try_from(n).ok()).map(SignedDuration::from_nanos)
            }
            _ => None,
        };
        match value {
            Some(value) => *self = value,
            None => d.mismatch(node, Self::GO),
        }
    }
}

/// Absent and null are both `None`.
impl<T: Decode + Default> Decode for Option<T> {
    const GO: &'static str = T::GO;
    const GO_LIST: &'static str = T::GO_LIST;

    fn decode(&mut self, node: &Node, d: &mut Decoder) {
        if is_null(node) {
            *self = None;
        } else {
            self.get_or_insert_default().decode(node, d);
        }
    }
}

/// A list replaces the old one whole.
impl<T: Decode + Default> Decode for Vec<T> {
    const GO: &'static str = T::GO_LIST;

    fn decode(&mut self, node: &Node, d: &mut Decoder) {
        match &node.kind {
            NodeKind::Sequence(items) => {
                self.clear();
                for (i, item) in items.iter().enumerate() {
                    let mut value = T::default();
                    d.within(format!("[{i}]"), |d| value.decode(item, d));
                    self.push(value);
                }
            }
            _ if is_null(node) => self.clear(),
            _ => d.mismatch(node, Self::GO),
        }
    }
}

/// A mapping whose keys are known. Implemented by [`mapping!`](super::raw) for each section.
pub(super) trait Section: Default {
    /// Takes one key; `false` if it is unknown.
    fn set(&mut self, key: &str, value: &Node, d: &mut Decoder) -> bool;
    /// Every key it takes.
    fn keys() -> Vec<&'static str>;
}

/// Decodes a mapping into `section`, key by key in document order, so that `<<` and repeated keys
/// act where they stand.
pub(super) fn decode_section<S: Section>(section: &mut S, node: &Node, go: &str, d: &mut Decoder) {
    let NodeKind::Mapping(entries) = &node.kind else {
        if is_null(node) {
            *section = S::default();
        } else {
            d.mismatch(node, go);
        }
        return;
    };
    let mut seen = HashSet::new();
    for (key, value) in entries {
        let NodeKind::Scalar { text, .. } = &key.kind else {
            d.mismatch(key, "string");
            continue;
        };
        if resolve(key) == Resolved::Merge {
            merge(section, value, go, d);
            continue;
        }
        // Repeated mappings merge; anything else is replaced.
        let replaced = !seen.insert(text) && !matches!(value.kind, NodeKind::Mapping(_));
        d.within(text.clone(), |d| {
            if replaced {
                d.odd(key.line, Odd::Repeated);
            }
            if !section.set(text, value, d) && !is_meant_for_others(text, value) {
                let value = match &value.kind {
                    NodeKind::Scalar { text, .. } => Some(text.clone()),
                    _ => None,
                };
                d.odd(key.line, Odd::Unknown { key: text.clone(), value, known: S::keys() });
            }
        });
    }
}

/// Keys that are there for the sake of an anchor, or by the custom of other YAML formats.
fn is_meant_for_others(key: &str, value: &Node) -> bool {
    value.anchored || key.starts_with("x-")
}

fn merge<S: Section>(section: &mut S, value: &Node, go: &str, d: &mut Decoder) {
    match &value.kind {
        NodeKind::Mapping(_) => decode_section(section, value, go, d),
        // Earlier mappings win, so they come last.
        NodeKind::Sequence(items) if items.iter().all(|i| matches!(i.kind, NodeKind::Mapping(_))) => {
            for item in items.iter().rev() {
                decode_section(section, item, go, d);
            }
        }
        _ => {
            d.fatal.get_or_insert_with(|| "yaml: map merge requires map or sequence of maps as the value".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;

    fn decode<T: Decode + Default>(text: &str) -> Result<T, String> {
        let node = yaml::parse(text).unwrap().unwrap();
        let mut d = Decoder::default();
        let mut value = T::default();
        value.decode(&node, &mut d);
        if d.errors.is_empty() { Ok(value) } else { Err(d.errors.join("; ")) }
    }

    #[test]
    fn a_bare_number_is_nanoseconds() {
        let nanos = |text| decode::<SignedDuration>(text).map(|d| d.as_nanos());
        assert_eq!(nanos("10"), Ok(10));
        assert_eq!(nanos("2_000_000_000"), Ok(2_000_000_000));
        assert_eq!(nanos("1.9"), Ok(1));
        assert_eq!(nanos("3600e9"), Ok(3_600_000_000_000));
        assert_eq!(nanos("1h30m"), Ok(5_400_000_000_000));
        assert_eq!(nanos("7d"), Err("line 1: cannot unmarshal !!str `7d` into time.Duration".into()));
        assert_eq!(nanos("\"\""), Err("line 1: cannot unmarshal !!str `` into time.Duration".into()));
    }

    #[test]
    fn booleans_are_yaml_1_1_and_never_quoted() {
        for text in ["y", "Yes", "TRUE", "on"] {
            assert_eq!(decode::<bool>(text), Ok(true), "{text}");
        }
        for text in ["n", "No", "FALSE", "off", "~"] {
            assert_eq!(decode::<bool>(text), Ok(false), "{text}");
        }
        assert_eq!(decode::<bool>("\"true\""), Err("line 1: cannot unmarshal !!str `true` into bool".into()));
        assert!(decode::<bool>("1").is_err());
    }

    #[test]
    fn integers_know_prefixes_octal_and_underscores() {
        for (text, want) in
            [("0660", 0o660), ("0o660", 0o660), ("0x10", 16), ("0b11", 3), ("64_000", 64_000), ("2.9", 2)]
        {
            assert_eq!(decode::<u32>(text), Ok(want), "{text}");
        }
        assert_eq!(decode::<u32>("-1"), Err("line 1: cannot unmarshal !!int `-1` into uint32".into()));
        assert!(decode::<u32>("'0600'").is_err());
        assert!(decode::<isize>("99999999999999999999").is_err());
    }

    #[test]
    fn strings_keep_the_text_as_written() {
        for text in ["0123", "1.50", "yes", "0x10"] {
            assert_eq!(decode::<String>(text), Ok(text.to_owned()));
        }
        assert_eq!(decode::<String>("~"), Ok(String::new()));
        assert_eq!(decode::<String>("\"~\""), Ok("~".to_owned()));
    }

    #[test]
    fn a_wrong_type_names_its_line_and_cuts_long_values() {
        let err = decode::<Vec<String>>("/data/app.db-long").unwrap_err();
        assert_eq!(err, "line 1: cannot unmarshal !!str `/data/a...` into []string");
    }
}
