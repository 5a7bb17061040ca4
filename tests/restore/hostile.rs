//! Files that somebody has tampered with: refused, or not different at all; never a panic, never vast.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use litestream::error::ErrorKind;
use litestream::ltx::{Decoder, Header, crc64};
use litestream::restore::Request;
use litestream::types::Pgno;

use super::support::Scene;

/// Everything a file says: header and pages.
fn content(bytes: &[u8]) -> Option<(Header, Vec<(Pgno, u64)>)> {
    let mut decoder = Decoder::new(bytes).ok()?;
    let header = *decoder.header();
    let mut page = vec![0; header.page_size.len()];
    let mut pages = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page).ok()? {
        pages.push((pgno, crc64(&page)));
    }
    Some((header, pages))
}

/// Most memory a process may take that reads damaged files.
const LIMIT_KB: u64 = 64 * 1024;

/// Runs the test `name` in a process of its own, and `body` there; what that process took at most must be
/// within the limit. Other tests of this one would be measured with it.
fn alone(name: &str, body: impl FnOnce()) {
    const INSIDE: &str = "HOSTILE_TEST_ALONE";
    if std::env::var_os(INSIDE).is_some() {
        body();
        if cfg!(target_os = "linux") {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
            assert!(peak <= LIMIT_KB, "{peak} KB of memory");
            println!("peak: {peak} KB");
        }
        return;
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
    let ran = child.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

/// The 50 smallest whole LTX files there are.
fn samples() -> Vec<(PathBuf, Vec<u8>)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true if path.file_name().is_some_and(|name| name != "invalid") => walk(&path, found),
                false if path.extension().is_some_and(|ext| ext == "ltx") => found.push(path),
                _ => {}
            }
        }
    }
    let mut paths = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"), &mut paths);
    // Large ones are not even read: the memory they take would be this test's own.
    paths.sort_by_key(|path| (fs::metadata(path).unwrap().len(), path.clone()));
    paths.truncate(400);
    let mut files: Vec<_> = paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    files.dedup_by(|a, b| a.1 == b.1);
    // Among the states to take over from there is a damaged file.
    files.retain(|(_, bytes)| content(bytes).is_some());
    files.truncate(50);
    assert_eq!(files.len(), 50);
    files
}

#[test]
fn fifty_files_cut_at_every_length_are_refused() {
    alone("hostile::fifty_files_cut_at_every_length_are_refused", || {
        for (path, bytes) in samples() {
            assert!(content(&bytes).is_some(), "{}", path.display());
            for len in 0..bytes.len() {
                assert!(content(&bytes[..len]).is_none(), "{} cut to {len}", path.display());
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(content(&longer).is_none(), "{} with a byte more", path.display());
        }
    });
}

#[test]
fn a_flip_of_any_byte_of_fifty_files_is_noticed_or_void() {
    alone("hostile::a_flip_of_any_byte_of_fifty_files_is_noticed_or_void", || {
        let mut void = 0;
        for (path, bytes) in samples() {
            let was = content(&bytes);
            let mut flipped = bytes.clone();
            for at in 0..bytes.len() {
                for mask in [0x01, 0x80] {
                    flipped[at] ^= mask;
                    if let Some(is) = content(&flipped) {
                        assert!(Some(&is) == was.as_ref(), "{} byte {at} ^ {mask:#x}", path.display());
                        void += 1;
                    }
                    flipped[at] ^= mask;
                }
            }
        }
        // A compressed page may be written in more than one way.
        println!("{void} flips changed nothing");
    });
}

#[tokio::test]
async fn links_and_foreign_names_in_a_replica_are_not_followed() {
    let scene = Scene::of("page-512");
    let good = scene.ltx(0, 1, 1);
    let aside = scene.out_dir().join("elsewhere");
    for entry in fs::read_dir(good.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        let moved = aside.join(path.file_name().unwrap());
        fs::create_dir_all(&aside).unwrap();
        fs::copy(&path, &moved).unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&moved, &path).unwrap();
    }
    for level in 1..=9 {
        let _ = fs::remove_dir_all(good.parent().unwrap().parent().unwrap().join(level.to_string()));
    }
    let dir = good.parent().unwrap();
    for name in ["..ltx", "0000000000000001-00000000000000021.ltx", "0000000000000001-0000000000000002.ltx\n"] {
        fs::write(dir.join(name), "x").unwrap();
    }
    fs::create_dir(dir.join("0000000000000001-0000000000000009.ltx")).unwrap();
    let err = scene.restore(&Request::new(scene.output())).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound, "{err}");
}

#[tokio::test]
async fn sizes_that_cannot_be_are_refused_before_anything_is_made_for_them() {
    for (at, bytes) in [
        (12, &u32::MAX.to_be_bytes()[..]),
        (12, &[0x7f, 0, 0, 0]),
        (8, &[0, 1, 0, 0]),
        (100, &u32::MAX.to_be_bytes()),
        (106, &u32::MAX.to_be_bytes()),
        (106, &[0, 0x7f, 0xff, 0xff]),
    ] {
        let scene = Scene::of("page-512");
        let path = scene.ltx(0, 1, 1);
        let mut file = fs::read(&path).unwrap();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, file).unwrap();
        let _ = fs::remove_dir_all(scene.object("ltx/9"));
        let err = scene.restore(&Request::new(scene.output())).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Corrupt, "{at}: {err}");
        assert!(err.to_string().contains("0/0000000000000001-0000000000000001.ltx"), "{at}: {err}");
        assert!(scene.outputs().is_empty());
    }
}
