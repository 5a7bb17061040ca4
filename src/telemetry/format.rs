//! The three shapes of a log line. Pure: a record in, a line out.

use jiff::SignedDuration;
use jiff::tz::TimeZone;
use tracing::Level;

use crate::types::{Timestamp, format_duration};

/// Shape of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// `time=… level=… msg=… key=value`
    #[default]
    Text,
    /// One JSON object.
    Json,
    /// `HH:MM:SS LVL message key=value`, with colours on a terminal.
    Pretty,
}

/// One record.
pub(super) struct Record<'a> {
    pub(super) time: Timestamp,
    pub(super) zone: &'a TimeZone,
    pub(super) level: Level,
    pub(super) source: Option<(&'a str, u32)>,
    pub(super) message: &'a str,
    pub(super) attributes: &'a [Attribute],
}

/// A name and a value; dots in the name make groups.
#[derive(Debug, Clone)]
pub(super) struct Attribute {
    pub(super) name: &'static str,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Int(i64),
    Uint(u64),
    Float(f64),
    Bool(bool),
    /// Nanoseconds.
    Duration(i128),
}

impl Value {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Int(n) => n.to_string(),
            Self::Uint(n) => n.to_string(),
            Self::Float(n) => n.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::Duration(nanos) => {
                format_duration(SignedDuration::from_nanos(i64::try_from(*nanos).unwrap_or(i64::MAX)))
            }
        }
    }

    fn json(&self) -> String {
        match self {
            Self::Text(text) => json_string(text),
            Self::Duration(nanos) => nanos.to_string(),
            Self::Float(n) if !n.is_finite() => json_string(&n.to_string()),
            other => other.text(),
        }
    }
}

/// The line of a record, newline included.
pub(super) fn line(record: &Record<'_>, shape: Shape, colour: bool) -> String {
    let mut out = match shape {
        Shape::Text => text(record),
        Shape::Json => json(record),
        Shape::Pretty => pretty(record, colour),
    };
    out.push('\n');
    out
}

fn text(record: &Record<'_>) -> String {
    let mut out = format!("time={} level={}", local_time(record, Some(3)), record.level);
    if let Some((file, line)) = record.source {
        out.push_str(&format!(" source={}", quoted(&format!("{file}:{line}"))));
    }
    out.push_str(" msg=");
    out.push_str(&quoted(record.message));
    for attribute in record.attributes {
        out.push_str(&format!(" {}={}", quoted(attribute.name), quoted(&attribute.value.text())));
    }
    out
}

fn json(record: &Record<'_>) -> String {
    let mut out = format!("{{\"time\":\"{}\",\"level\":\"{}\"", local_time(record, None), record.level);
    if let Some((file, line)) = record.source {
        out.push_str(&format!(",\"source\":{{\"file\":{},\"line\":{line}}}", json_string(file)));
    }
    out.push_str(&format!(",\"msg\":{}", json_string(record.message)));
    let mut group: Option<&str> = None;
    for attribute in record.attributes {
        let (prefix, name) = match attribute.name.split_once('.') {
            Some((prefix, name)) => (Some(prefix), name),
            None => (None, attribute.name),
        };
        if group != prefix {
            if group.is_some() {
                out.push('}');
            }
            if let Some(prefix) = prefix {
                out.push_str(&format!(",{}:{{", json_string(prefix)));
            }
            group = prefix;
        }
        if !out.ends_with('{') {
            out.push(',');
        }
        out.push_str(&format!("{}:{}", json_string(name), attribute.value.json()));
    }
    out.push_str(if group.is_some() { "}}" } else { "}" });
    out
}

fn pretty(record: &Record<'_>, colour: bool) -> String {
    const DIM: &str = "\x1b[2m";
    let paint = |code: &str, text: String| if colour { format!("{code}{text}\x1b[0m") } else { text };
    let (name, code) = match record.level {
        Level::TRACE => ("TRACE", None),
        Level::DEBUG => ("DBG", None),
        Level::INFO => ("INF", Some("\x1b[92m")),
        Level::WARN => ("WRN", Some("\x1b[93m")),
        Level::ERROR => ("ERR", Some("\x1b[91m")),
    };
    let clock = &local_time(record, Some(3))[11..19];
    let level = code.map_or_else(|| name.to_owned(), |code| paint(code, name.to_owned()));
    let mut out = format!("{} {level}", paint(DIM, clock.to_owned()));
    if let Some((file, line)) = record.source {
        out.push_str(&format!(" {}", paint(DIM, format!("{file}:{line}"))));
    }
    out.push_str(&format!(" {}", one_line(record.message)));
    for attribute in record.attributes {
        let key = paint(DIM, format!("{}=", attribute.name));
        out.push_str(&format!(" {key}{}", quoted(&attribute.value.text())));
    }
    out
}

/// The message is not quoted in pretty lines, but must not break out of its line either.
fn one_line(message: &str) -> String {
    if message.chars().any(char::is_control) { quote(message) } else { message.to_owned() }
}

/// RFC 3339 in the local zone: with `decimals` digits, or with as many as are needed.
fn local_time(record: &Record<'_>, decimals: Option<usize>) -> String {
    let Ok(at) = jiff::Timestamp::from_millisecond(record.time.millis()) else {
        return "1970-01-01T00:00:00Z".to_owned();
    };
    let at = at.to_zoned(record.zone.clone());
    let fraction = format!("{:03}", at.millisecond());
    let fraction = match decimals {
        Some(n) => format!(".{}", &fraction[..n.min(3)]),
        None if fraction == "000" => String::new(),
        None => format!(".{}", fraction.trim_end_matches('0')),
    };
    let offset = if at.offset().seconds() == 0 { "Z".to_owned() } else { at.strftime("%:z").to_string() };
    format!("{}{fraction}{offset}", at.strftime("%Y-%m-%dT%H:%M:%S"))
}

/// A value as it stands between blanks: quoted when it would not be read back as one word.
fn quoted(text: &str) -> String {
    let awkward = |c: char| matches!(c, ' ' | '=' | '"') || !printable(c);
    if text.is_empty() || text.contains(awkward) { quote(text) } else { text.to_owned() }
}

fn printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control() || c == '\x7f';
    }
    // What Rust would escape is what Go would; combining marks are the exception, and printable.
    !c.is_control() && !c.is_whitespace() && (c.escape_debug().count() == 1 || c.is_alphanumeric()) && c != '\u{FFFD}'
}

/// Go's quoted form.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            ' ' => out.push(' '),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if printable(c) || c == '\u{FFFD}' => out.push(c),
            c if u32::from(c) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    static UTC: TimeZone = TimeZone::UTC;

    fn record<'a>(message: &'a str, attributes: &'a [Attribute]) -> Record<'a> {
        Record {
            time: Timestamp::from_millis(1_763_683_378_712),
            zone: &UTC,
            level: Level::INFO,
            source: None,
            message,
            attributes,
        }
    }

    fn attribute(name: &'static str, text: &str) -> Attribute {
        Attribute { name, value: Value::Text(text.to_owned()) }
    }

    #[test]
    fn values_are_quoted_only_when_they_must_be() {
        for (text, want) in [
            ("plain", "plain"),
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("a=b", "\"a=b\""),
            ("say \"x\"", "\"say \\\"x\\\"\""),
            ("C:\\x'y&<z>", "C:\\x'y&<z>"),
            ("naïve-日本", "naïve-日本"),
            ("line\nbreak", "\"line\\nbreak\""),
            ("\u{85}", "\"\\u0085\""),
            ("\x1b[0m", "\"\\x1b[0m\""),
        ] {
            assert_eq!(quoted(text), want);
        }
    }

    #[test]
    fn groups_are_dotted_in_text_and_nested_in_json() {
        let attributes =
            [attribute("level", "1"), attribute("txid.min", "a"), attribute("txid.max", "b"), attribute("size", "x")];
        let record = record("done", &attributes);
        assert_eq!(
            line(&record, Shape::Text, false),
            "time=2025-11-21T00:02:58.712Z level=INFO msg=done level=1 txid.min=a txid.max=b size=x\n"
        );
        assert_eq!(
            line(&record, Shape::Json, false),
            "{\"time\":\"2025-11-21T00:02:58.712Z\",\"level\":\"INFO\",\"msg\":\"done\",\"level\":\"1\",\
             \"txid\":{\"min\":\"a\",\"max\":\"b\"},\"size\":\"x\"}\n"
        );
        let only_group = [attribute("txid.min", "a")];
        let nested = line(&Record { attributes: &only_group, ..record }, Shape::Json, false);
        assert!(nested.ends_with("\"txid\":{\"min\":\"a\"}}\n"), "{nested}");
    }

    #[test]
    fn pretty_lines_have_colours_only_on_a_terminal() {
        let attributes = [attribute("path", "/a b")];
        let record = record("initialized db", &attributes);
        assert_eq!(line(&record, Shape::Pretty, false), "00:02:58 INF initialized db path=\"/a b\"\n");
        assert_eq!(
            line(&record, Shape::Pretty, true),
            "\x1b[2m00:02:58\x1b[0m \x1b[92mINF\x1b[0m initialized db \x1b[2mpath=\x1b[0m\"/a b\"\n"
        );
    }

    #[test]
    fn a_zone_east_of_greenwich_is_written_as_offset() {
        let zone = TimeZone::fixed(jiff::tz::offset(9));
        let record = Record { zone: &zone, ..record("x", &[]) };
        assert!(text(&record).starts_with("time=2025-11-21T09:02:58.712+09:00 "));
    }

    #[test]
    fn a_message_cannot_forge_a_second_line() {
        for shape in [Shape::Text, Shape::Json, Shape::Pretty] {
            assert_eq!(line(&record("a\nlevel=ERROR", &[]), shape, false).lines().count(), 1);
        }
    }
}
