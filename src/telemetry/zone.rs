//! The time zone of log lines and of times that are shown.
//!
//! `TZ` may name a zone (`Asia/Tokyo`), which is a file below one of a few directories. The library finds
//! it only by reading through the whole directory, hundreds of files, at each start; so that file is opened
//! here. Everything else is left to the library: a path in `TZ`, a POSIX rule, `/etc/localtime`.

use std::path::{Component, Path};
use std::sync::OnceLock;

use jiff::tz::TimeZone;

use crate::sys::{Fs, OpenMode, OsFs, read_full_at};

/// Where systems keep their zones; the reference looks in the same places.
const DIRECTORIES: [&str; 3] = ["/usr/share/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo"];
/// The largest zone has 4 KB.
const MAX_BYTES: u64 = 1 << 20;

static ZONE: OnceLock<TimeZone> = OnceLock::new();

/// Decides on the zone, once: `tz` is the value of the environment variable.
pub(super) fn decide(tz: Option<&str>) {
    let _ =
        ZONE.get_or_init(|| tz.and_then(|tz| named(tz, &DIRECTORIES.map(Path::new))).unwrap_or_else(TimeZone::system));
}

/// The zone that was decided on.
pub fn local_zone() -> TimeZone {
    ZONE.get_or_init(TimeZone::system).clone()
}

fn named(tz: &str, directories: &[&Path]) -> Option<TimeZone> {
    let name = Path::new(tz.strip_prefix(':').unwrap_or(tz));
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.as_os_str().is_empty() {
        return None;
    }
    directories.iter().find_map(|dir| {
        let file = OsFs.open(&dir.join(name), OpenMode::Read).ok()?;
        let len = file.stat().ok()?.len.min(MAX_BYTES);
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        read_full_at(file.as_ref(), &mut bytes, 0).ok()?;
        TimeZone::tzif(name.to_str()?, &bytes).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest zone file there is: version 2, no transitions, one type, and a rule behind it.
    fn zone_file(seconds_east: i32, rule: &str) -> Vec<u8> {
        let mut block = b"TZif2".to_vec();
        block.extend([0; 15]);
        for count in [0_u32, 0, 0, 0, 1, 4] {
            block.extend(count.to_be_bytes());
        }
        block.extend(seconds_east.to_be_bytes());
        block.extend([0, 0]);
        block.extend(b"XST\0");
        [block.clone(), block, format!("\n{rule}\n").into_bytes()].concat()
    }

    #[test]
    fn a_name_is_a_file_below_a_zone_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("Asia")).unwrap();
        std::fs::write(dir.path().join("Asia/Tokyo"), zone_file(9 * 3600, "XST-9")).unwrap();
        std::fs::write(dir.path().join("junk"), "no zone").unwrap();
        let absent = dir.path().join("absent");
        let offset = |tz: &str| {
            let zone = named(tz, &[&absent, dir.path()])?;
            Some(zone.to_offset(jiff::Timestamp::UNIX_EPOCH).seconds())
        };
        assert_eq!(offset("Asia/Tokyo"), Some(9 * 3600));
        assert_eq!(offset(":Asia/Tokyo"), Some(9 * 3600));
        for other in ["", ":", "Asia", "junk", "Nope/Nope", "/etc/localtime", "Asia/../Asia/Tokyo", "XST-9"] {
            assert_eq!(offset(other), None, "{other}");
        }
    }
}
