//! What servers with directories have in common: clean paths, and temporary names that tell their age.

use crate::sys::World;

/// Suffix of files that are not objects yet.
pub(super) const TEMP_SUFFIX: &str = ".tmp";
/// A temporary file this old, in seconds, belongs to a writer that died.
const STALE_AFTER: i64 = 24 * 3600;

/// Joins and cleans like the reference: no empty components, no `.`, `..` resolved.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if path.starts_with('/') { format!("/{joined}") } else { joined }
}

fn seconds(world: &World) -> i64 {
    world.clock.now().millis().div_euclid(1000)
}

/// A name beside `path` that nobody else uses: `<path>.<seconds>.<random>.tmp`, hexadecimal.
pub(super) fn temp_path(world: &World, path: &str) -> String {
    format!("{path}.{:08x}.{:08x}{TEMP_SUFFIX}", seconds(world), world.random.next_u64() >> 32)
}

/// Whether a name is that of a temporary file whose writer must have died.
pub(super) fn is_stale(world: &World, name: &str) -> bool {
    born(name).is_some_and(|born| born < seconds(world) - STALE_AFTER)
}

/// When a temporary file was made, in seconds; `None` if it is none of ours or of Litestream's
/// (`<name>.<process>.<nanoseconds>.tmp`).
fn born(name: &str) -> Option<i64> {
    let (rest, last) = name.strip_suffix(TEMP_SUFFIX)?.rsplit_once('.')?;
    let (object, middle) = rest.rsplit_once('.')?;
    if !object.ends_with(".ltx") {
        return None;
    }
    let hex = |text: &str| text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if hex(middle) && hex(last) {
        return i64::from_str_radix(middle, 16).ok();
    }
    middle.parse::<u32>().ok()?;
    last.parse::<i64>().ok().map(|nanoseconds| nanoseconds / 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_like_those_of_the_reference() {
        for (path, want) in [
            ("", ""),
            (".", ""),
            ("/", "/"),
            ("/a//b/./c/", "/a/b/c"),
            ("a/../b", "b"),
            ("/../x", "/x"),
            ("../x", "../x"),
            ("rel/dir", "rel/dir"),
        ] {
            assert_eq!(clean(path), want, "{path:?}");
        }
    }

    #[test]
    fn temporary_files_tell_their_age() {
        for (name, want) in [
            ("x.ltx.6a000000.0000002a.tmp", Some(0x6a00_0000)),
            ("x.ltx.4711.1795221709248000000.tmp", Some(1_795_221_709)),
            ("x.ltx.tmp", None),
            ("x.db.6a000000.0000002a.tmp", None),
            ("x.ltx.6a000000.0000002a", None),
            ("x.ltx.0123456789abcdef.tmp", None),
        ] {
            assert_eq!(born(name), want, "{name}");
        }
        let world = World::system();
        let fresh = temp_path(&world, "x.ltx");
        assert!(born(&fresh).is_some() && !is_stale(&world, &fresh), "{fresh}");
        assert!(is_stale(&world, "x.ltx.6a000000.0000002a.tmp"));
    }
}
