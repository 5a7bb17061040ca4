//! Go-style flags (`spec: cli` §2). Each command declares its flags once, in a [`CommandSpec`]; the
//! same table makes the help text and the clap command.
//!
//! Go's rules differ from clap's in what a user sees: `-name` is `--name`, parsing stops at the first
//! positional, a value may start with a dash, the last repetition wins, and the first problem from
//! the left is the one reported, in Go's words. So this module walks the arguments once, checks each
//! value, and hands clap a normalised line (`--name=value … -- positionals`) that cannot fail.

use std::time::Duration;

use jiff::SignedDuration;

use crate::types::{Txid, parse_duration};
use clap::{Arg, ArgAction, ArgMatches, Command};

/// What the user can say to one command.
#[derive(Debug)]
pub(super) struct CommandSpec {
    pub(super) name: &'static str,
    /// The line in the list of commands.
    pub(super) summary: &'static str,
    /// First paragraph of the help text.
    pub(super) about: &'static str,
    /// What follows `litestream <name>`, one per form.
    pub(super) synopsis: &'static [&'static str],
    pub(super) flags: &'static [Flag],
    /// Comment and command line.
    pub(super) examples: &'static [(&'static str, &'static str)],
}

/// One flag.
#[derive(Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// What stands for the value in help texts; empty for switches.
    pub(super) meta: &'static str,
    /// Lines of the help text; `{config}` becomes the default configuration path.
    pub(super) help: &'static [&'static str],
}

impl Flag {
    pub(super) const fn switch(name: &'static str, help: &'static [&'static str]) -> Self {
        Self { name, kind: Kind::Switch, meta: "", help }
    }

    pub(super) const fn value(
        name: &'static str,
        kind: Kind,
        meta: &'static str,
        help: &'static [&'static str],
    ) -> Self {
        Self { name, kind, meta, help }
    }
}

/// What a value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// On or off; takes a value only with `=`.
    Switch,
    Text,
    Int,
    Duration,
    /// 16 hex digits; zero means none.
    Txid,
    /// `0`…`9` or `all`.
    Level,
}

/// `-config`, wherever a configuration is loaded.
pub(super) const CONFIG: Flag =
    Flag::value("config", Kind::Text, "PATH", &["Specifies the configuration file.", "Defaults to {config}"]);

/// `-no-expand-env`, likewise.
pub(super) const NO_EXPAND_ENV: Flag =
    Flag::switch("no-expand-env", &["Leaves $NAME and ${NAME} in the configuration file as they are."]);

/// What came of a command line.
#[derive(Debug)]
pub(super) enum Parsed {
    Matched(Matches),
    /// Some spelling of `-h` was met first.
    Help,
    /// The message of the first problem.
    Wrong(String),
}

/// The flags and positionals of one command line.
#[derive(Debug)]
pub(super) struct Matches {
    flags: ArgMatches,
    pub(super) positionals: Vec<String>,
}

impl Matches {
    /// Whether a switch is on.
    pub(super) fn on(&self, name: &str) -> bool {
        self.flags.get_one::<bool>(name).copied().unwrap_or(false)
    }

    /// A text, empty when not given.
    pub(super) fn text(&self, name: &str) -> &str {
        self.flags.get_one::<String>(name).map_or("", String::as_str)
    }

    /// A text, if given.
    pub(super) fn text_opt(&self, name: &str) -> Option<&str> {
        self.flags.get_one::<String>(name).map(String::as_str)
    }

    /// A duration, if given; negative ones count as zero.
    pub(super) fn duration(&self, name: &str) -> Option<Duration> {
        self.flags.get_one::<SignedDuration>(name).map(|d| Duration::try_from(*d).unwrap_or_default())
    }

    /// A number, if given.
    pub(super) fn int(&self, name: &str) -> Option<i64> {
        self.flags.get_one::<i64>(name).copied()
    }
}

/// Parses what follows the command's name.
pub(super) fn parse(spec: &CommandSpec, args: &[String]) -> Parsed {
    let mut normal = vec![spec.name.to_owned()];
    let mut rest = args;
    while let [arg, after @ ..] = rest {
        let Some(body) = arg.strip_prefix('-').filter(|b| !b.is_empty()) else { break };
        rest = after;
        if body == "-" {
            break;
        }
        let body = body.strip_prefix('-').unwrap_or(body);
        if body.starts_with(['-', '=']) {
            return Parsed::Wrong(format!("bad flag syntax: {arg}"));
        }
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        let Some(flag) = spec.flags.iter().find(|f| f.name == name) else {
            if matches!(name, "h" | "help") {
                return Parsed::Help;
            }
            return Parsed::Wrong(format!("flag provided but not defined: -{name}"));
        };
        let value = match (inline, flag.kind, rest) {
            (Some(value), ..) => value,
            (None, Kind::Switch, _) => "true",
            (None, _, [value, after @ ..]) => {
                rest = after;
                value
            }
            (None, _, []) => return Parsed::Wrong(format!("flag needs an argument: -{name}")),
        };
        match normalise(flag.kind, value) {
            Ok(value) => normal.push(format!("--{name}={value}")),
            Err(_) if flag.kind == Kind::Switch => {
                return Parsed::Wrong(format!("invalid boolean value {} for -{name}: parse error", go_quote(value)));
            }
            Err(why) => return Parsed::Wrong(format!("invalid value {} for flag -{name}: {why}", go_quote(value))),
        }
    }
    match command(spec).try_get_matches_from(normal) {
        Ok(flags) => Parsed::Matched(Matches { flags, positionals: rest.to_vec() }),
        Err(err) => Parsed::Wrong(err.to_string()),
    }
}

/// The clap definition of a command's flags.
fn command(spec: &CommandSpec) -> Command {
    let base = Command::new(spec.name).disable_help_flag(true).disable_version_flag(true).args_override_self(true);
    spec.flags.iter().fold(base, |command, flag| {
        let arg = Arg::new(flag.name).long(flag.name).action(ArgAction::Set).require_equals(true).num_args(1);
        command.arg(match flag.kind {
            Kind::Switch => arg.value_parser(clap::value_parser!(bool)),
            Kind::Int => arg.value_parser(clap::value_parser!(i64)),
            Kind::Duration => arg.value_parser(|text: &str| parse_duration(text)),
            Kind::Text | Kind::Txid | Kind::Level => arg.value_parser(clap::value_parser!(String)),
        })
    })
}

/// Checks a value and brings it into the form clap's value parser takes.
fn normalise(kind: Kind, value: &str) -> Result<String, String> {
    match kind {
        Kind::Switch => match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok("true".to_owned()),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok("false".to_owned()),
            _ => Err("parse error".to_owned()),
        },
        Kind::Text => Ok(value.to_owned()),
        Kind::Int => go_int(value).map(|n| n.to_string()),
        Kind::Duration => match parse_duration(value) {
            Ok(_) => Ok(value.to_owned()),
            Err(_) => Err("parse error".to_owned()),
        },
        Kind::Txid => match value {
            "0000000000000000" => Ok(String::new()),
            _ => value.parse::<Txid>().map(|t| t.to_string()).map_err(|_| "invalid txid format".to_owned()),
        },
        Kind::Level => go_level(value),
    }
}

fn go_level(value: &str) -> Result<String, String> {
    if value == "all" {
        return Ok(String::new());
    }
    let digits = value.strip_prefix(['-', '+']).unwrap_or(value);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("invalid level: must be 0-9 or \"all\"".to_owned());
    }
    match value.parse::<i64>() {
        Ok(n @ 0..=9) => Ok(n.to_string()),
        Ok(_) => Err("level must be between 0 and 9".to_owned()),
        Err(_) => Err("invalid level: must be 0-9 or \"all\"".to_owned()),
    }
}

/// A Go integer literal: sign, `0x 0o 0b 0` prefixes, underscores between digits.
fn go_int(text: &str) -> Result<i64, String> {
    let wrong = || "parse error".to_owned();
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = rest.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    // After a prefix an underscore may come first; it may never come last or twice.
    let body = if radix == 10 { digits } else { digits.strip_prefix('_').unwrap_or(digits) };
    if body.split('_').any(|part| part.is_empty() || !part.chars().all(|c| c.is_digit(radix))) {
        return Err(wrong());
    }
    let magnitude = i128::from_str_radix(&body.replace('_', ""), radix).unwrap_or(i128::MAX);
    let signed = if negative { -magnitude } else { magnitude };
    i64::try_from(signed).map_err(|_| "value out of range".to_owned())
}

/// A text in double quotes, as Go's `%q` shows it.
pub(super) fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    static SPEC: CommandSpec = CommandSpec {
        name: "test",
        summary: "",
        about: "",
        synopsis: &[],
        flags: &[
            CONFIG,
            Flag::switch("json", &[]),
            Flag::value("n", Kind::Int, "N", &[]),
            Flag::value("wait", Kind::Duration, "D", &[]),
            Flag::value("txid", Kind::Txid, "TXID", &[]),
            Flag::value("level", Kind::Level, "LEVEL", &[]),
        ],
        examples: &[],
    };

    fn matched(args: &[&str]) -> Matches {
        match run(args) {
            Parsed::Matched(matches) => matches,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    fn run(args: &[&str]) -> Parsed {
        parse(&SPEC, &args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    }

    fn wrong(args: &[&str]) -> String {
        match run(args) {
            Parsed::Wrong(message) => message,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn one_dash_and_two_are_the_same() {
        for args in [&["-config", "a", "-json"][..], &["--config=a", "--json=T"], &["--config", "a", "-json=1"]] {
            let matches = matched(args);
            assert_eq!((matches.text("config"), matches.on("json")), ("a", true), "{args:?}");
        }
    }

    #[test]
    fn flags_end_at_the_first_positional_a_lone_dash_or_two() {
        assert_eq!(matched(&["a", "-json"]).positionals, ["a", "-json"]);
        assert_eq!(matched(&["-", "-json"]).positionals, ["-", "-json"]);
        assert_eq!(matched(&["-json", "--", "-x"]).positionals, ["-x"]);
        assert_eq!(matched(&["-json", "false"]).positionals, ["false"]);
        assert_eq!(matched(&[""]).positionals, [""]);
    }

    #[test]
    fn a_value_may_look_like_a_flag_and_may_be_empty() {
        assert_eq!(matched(&["-config", "-h"]).text("config"), "-h");
        assert_eq!(matched(&["-config="]).text("config"), "");
        assert_eq!(matched(&["-config", "--"]).text("config"), "--");
        assert_eq!(matched(&["-config=a=b"]).text("config"), "a=b");
    }

    #[test]
    fn the_last_repetition_wins() {
        assert_eq!(matched(&["-config", "a", "-config", "b"]).text("config"), "b");
        assert!(!matched(&["-json", "-json=false"]).on("json"));
    }

    #[test]
    fn integers_are_go_literals() {
        for (text, want) in
            [("5", 5), ("-5", -5), ("0x1F", 31), ("0b11", 3), ("017", 15), ("1_000", 1000), ("0x_f", 15)]
        {
            assert_eq!(matched(&["-n", text]).int("n"), Some(want), "{text}");
        }
        for text in ["", "abc", "1__0", "_1", "1_", "0x", "09", "1.5"] {
            assert_eq!(wrong(&["-n", text]), format!("invalid value {text:?} for flag -n: parse error"));
        }
        assert!(wrong(&["-n", "99999999999999999999"]).ends_with("value out of range"));
        assert!(wrong(&["-n", "99999999999999999999999999999999999999999999"]).ends_with("value out of range"));
    }

    #[test]
    fn problems_are_reported_from_the_left_in_go_words() {
        for (args, want) in [
            (&["-x", "-h"][..], "flag provided but not defined: -x"),
            (&["-config"], "flag needs an argument: -config"),
            (&["---json"], "bad flag syntax: ---json"),
            (&["-=x"], "bad flag syntax: -=x"),
            (&["-json=maybe"], "invalid boolean value \"maybe\" for -json: parse error"),
            (&["-wait", "5"], "invalid value \"5\" for flag -wait: parse error"),
            (&["-txid", "3"], "invalid value \"3\" for flag -txid: invalid txid format"),
            (&["-level", "10"], "invalid value \"10\" for flag -level: level must be between 0 and 9"),
            (&["-level", "ALL"], "invalid value \"ALL\" for flag -level: invalid level: must be 0-9 or \"all\""),
            (&["-JSON"], "flag provided but not defined: -JSON"),
        ] {
            assert_eq!(wrong(args), want);
        }
        for args in [&["-h", "-x"][..], &["--help"], &["-h=1"], &["-json", "--h"]] {
            assert!(matches!(run(args), Parsed::Help), "{args:?}");
        }
    }

    #[test]
    fn txids_are_normalised_and_zero_is_none() {
        assert_eq!(matched(&["-txid", "00000000000000FF"]).text("txid"), "00000000000000ff");
        assert_eq!(matched(&["-txid", "0000000000000000"]).text("txid"), "");
        assert_eq!(matched(&["-level", "01"]).text("level"), "1");
    }
}
