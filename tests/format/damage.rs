//! Cutting and flipping small real files.

use litestream::error::ErrorKind;
use litestream::ltx::{PageIndex, read_page, verify};
use litestream::sys::{Fs, OpenMode, OsFs};

use crate::fixture::{self, decode};

const SMALL: [&str; 3] = ["ls-512-L0-2-onepage.ltx", "ls-512-L0-1-tiny-snapshot.ltx", "chk-512-2b-nopages.ltx"];

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for name in SMALL.iter().chain(&["chk-512-1-snapshot.ltx", "legacy059-4096-L0-2-incremental.ltx"]) {
        let bytes = fixture::bytes(name);
        for len in 0..bytes.len() {
            let err = verify(&bytes[..len]).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Corrupt, "{name} cut to {len}: {err}");
        }
    }
}

#[test]
fn a_file_with_anything_behind_it_is_an_error() {
    for name in SMALL {
        let mut bytes = fixture::bytes(name);
        bytes.push(0);
        let err = verify(bytes.as_slice()).unwrap_err();
        assert!(err.to_string().starts_with("close reader: file checksum mismatch"), "{err}");
    }
}

#[test]
fn a_flipped_bit_is_an_error_or_changes_nothing() {
    for name in SMALL {
        let bytes = fixture::bytes(name);
        let original = decode(&bytes).unwrap();
        let mut harmless = 0;
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            match decode(&bad) {
                Ok(file) => {
                    harmless += 1;
                    assert_eq!(file, original, "{name} bit {bit}");
                }
                Err(err) => assert_eq!(err.kind(), ErrorKind::Corrupt, "{name} bit {bit}: {err}"),
            }
        }
        // Only match offsets into runs of equal bytes can change without changing the page.
        assert!(harmless < bytes.len(), "{name}: {harmless}");
    }
}

#[test]
fn a_flipped_bit_in_a_page_frame_of_the_old_format_is_an_error_or_changes_nothing() {
    let bytes = fixture::bytes("legacy059-4096-L0-2-incremental.ltx");
    let original = decode(&bytes).unwrap();
    // All of the metadata, and samples of the four thousand payload bytes.
    let samples = (100..4065).step_by(37);
    for at in (0..140).chain(samples).chain(4060..bytes.len()) {
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            if let Ok(file) = decode(&bad) {
                assert_eq!(file, original, "byte {at} bit {bit}");
            }
        }
    }
}

#[test]
fn random_access_to_a_damaged_file_is_an_error_or_a_page_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.ltx");
    for name in ["ls-512-L0-2-onepage.ltx", "ls-512-L0-1-tiny-snapshot.ltx"] {
        let bytes = fixture::bytes(name);
        let cuts = (0..bytes.len()).map(|len| bytes[..len].to_vec());
        let flips = (0..bytes.len()).flat_map(|at| {
            let bytes = &bytes;
            [0x01, 0x80, 0xff].map(move |mask| {
                let mut bad = bytes.clone();
                bad[at] ^= mask;
                bad
            })
        });
        for bad in cuts.chain(flips) {
            std::fs::write(&path, &bad).unwrap();
            let file = OsFs.open(&path, OpenMode::Read).unwrap();
            let Ok(index) = PageIndex::open(&*file) else { continue };
            let mut out = vec![0; index.header().page_size.len()];
            for (pgno, at) in index.iter() {
                let _ = read_page(&*file, at, pgno, index.header().page_size, &mut out);
            }
        }
    }
}
