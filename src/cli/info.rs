//! `litestream info`: what the running daemon says about itself.

use jiff::SignedDuration;

use super::client::{Client, JSON, SOCKET, TIMEOUT_ASK, no_arguments};
use super::flags::{CommandSpec, Matches};
use super::{App, Failure, output};
use crate::server::api::Info;
use crate::types::format_duration;

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "info",
    summary: "shows the running daemon",
    about: "The info command shows version, process, uptime and number of databases of the running daemon.",
    synopsis: &["[OPTIONS]"],
    flags: &[JSON, SOCKET, TIMEOUT_ASK],
    examples: &[
        ("Ask the daemon at the default socket.", "litestream info"),
        ("For programs, at another socket.", "litestream info -json -socket /run/app/litestream.sock"),
    ],
};

pub(super) fn run(_app: &mut App, matches: &Matches) -> Result<(), Failure> {
    let client = Client::new(SPEC.name, matches, 10);
    no_arguments(matches)?;
    client.check_timeout()?;
    let info: Info = client.get("/info")?;
    if matches.on("json") {
        return output::print(&output::json(&info)?);
    }
    let Info { version, pid, uptime_seconds, started_at, database_count } = &info;
    output::print(&format!(
        "Litestream {version}\n  PID:        {pid}\n  Uptime:     {}\n  Started at: {}\n  Databases:  {database_count}\n",
        format_duration(SignedDuration::from_secs(*uptime_seconds)),
        whole_seconds(started_at)
    ))
}

/// An RFC 3339 time without its fraction.
pub(super) fn whole_seconds(time: &str) -> String {
    let Some((seconds, rest)) = time.split_once('.') else { return time.to_owned() };
    format!("{seconds}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_is_cut_off_and_the_zone_kept() {
        for (time, want) in [
            ("2026-01-02T03:04:05.678Z", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05.678901+09:00", "2026-01-02T03:04:05+09:00"),
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        ] {
            assert_eq!(whole_seconds(time), want);
        }
    }
}
