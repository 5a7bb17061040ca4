//! Merging real chains gives what the real compaction gave.

use litestream::error::ErrorKind;
use litestream::ltx::{Decoder, merge, parse_file_name};
use litestream::types::{Checksum, TxidRange};

use crate::fixture::{self, Decoded, decode, without_checksums};

fn merged(inputs: &[Vec<u8>]) -> Decoded {
    let decoders = inputs.iter().map(|bytes| Decoder::new(bytes.as_slice()).unwrap()).collect();
    let (bytes, header, trailer) = merge(decoders, Vec::new()).unwrap();
    let file = decode(&bytes).unwrap();
    assert_eq!((file.header, file.trailer), (header, trailer));
    file
}

fn level(chain: &str, level: &str) -> Vec<(TxidRange, Vec<u8>)> {
    let below = format!("chains/{chain}/{level}");
    let file = |name: &String| {
        let name = format!("{name}.ltx");
        (parse_file_name(&name).unwrap(), fixture::bytes(&format!("{below}/{name}")))
    };
    fixture::names(&below, "ltx").iter().map(file).collect()
}

/// The files of level 0 within a range.
fn inputs(chain: &str, range: TxidRange) -> Vec<Vec<u8>> {
    let within = |r: TxidRange| range.min() <= r.min() && r.max() <= range.max();
    level(chain, "0").into_iter().filter(|(r, _)| within(*r)).map(|(_, bytes)| bytes).collect()
}

#[test]
fn a_chain_merges_to_the_file_the_real_compaction_wrote() {
    let mut compared = 0;
    for chain in ["shrink-grow-1024", "legacy-mixed"] {
        for (range, bytes) in level(chain, "1") {
            let expected = decode(&bytes).unwrap();
            let ours = merged(&inputs(chain, range));
            assert_eq!(ours.header, expected.header, "{chain} {range}");
            assert_eq!(ours.pages, expected.pages, "{chain} {range}");
            compared += 1;
        }
    }
    assert_eq!(compared, 5);
}

#[test]
fn a_chain_merges_to_the_pages_of_the_real_snapshot() {
    for chain in ["shrink-grow-1024", "legacy-mixed", "page-512"] {
        for (range, bytes) in level(chain, "9") {
            let expected = decode(&bytes).unwrap();
            let ours = merged(&inputs(chain, range));
            assert_eq!(ours.header.commit, expected.header.commit, "{chain} {range}");
            assert_eq!(ours.pages, expected.pages, "{chain} {range}");
        }
    }
}

#[test]
fn merging_in_steps_gives_the_same_pages_as_merging_at_once() {
    let files: Vec<Vec<u8>> = level("shrink-grow-1024", "0").into_iter().map(|(_, bytes)| bytes).collect();
    let at_once = merged(&files);
    for cut in 1..files.len() {
        let half = |files: &[Vec<u8>]| {
            let inputs = files.iter().map(|b| Decoder::new(b.as_slice()).unwrap()).collect();
            merge(inputs, Vec::new()).unwrap().0
        };
        let in_steps = merged(&[half(&files[..cut]), half(&files[cut..])]);
        assert_eq!(in_steps.pages, at_once.pages, "cut after {cut}");
        assert_eq!(in_steps.header, at_once.header);
    }
}

#[test]
fn files_that_tracked_checksums_merge_alike_once_they_do_not() {
    let plain = |name: &str| without_checksums(&fixture::bytes(name));
    let (one, two, three) =
        (plain("chk-512-1-snapshot.ltx"), plain("chk-512-2-incremental.ltx"), plain("chk-512-3-truncating.ltx"));
    for (inputs, output) in [
        (vec![one.clone(), two.clone()], "chk-512-1-2-compacted.ltx"),
        (vec![one, two.clone(), three.clone()], "chk-512-1-3-compacted.ltx"),
        (vec![two, three], "chk-512-2-3-compacted.ltx"),
    ] {
        let expected = decode(&fixture::bytes(output)).unwrap();
        let ours = merged(&inputs);
        assert_eq!(ours.pages, expected.pages, "{output}");
        assert_eq!(ours.header.commit, expected.header.commit);
        assert_eq!(ours.header.txids, expected.header.txids);
        assert_eq!(ours.header.timestamp, expected.header.timestamp);
        assert_eq!(ours.trailer.post_apply, Checksum::NONE);
    }
}

#[test]
fn a_file_that_tracks_checksums_cannot_be_merged() {
    let bytes = fixture::bytes("chk-512-2-incremental.ltx");
    let err = merge(vec![Decoder::new(bytes.as_slice()).unwrap()], Vec::new()).unwrap_err();
    assert_eq!(err.to_string(), "pre-apply checksum not allowed");
    let bytes = fixture::bytes("chk-512-1-snapshot.ltx");
    let err = merge(vec![Decoder::new(bytes.as_slice()).unwrap()], Vec::new()).unwrap_err();
    assert_eq!(err.to_string(), "post-apply checksum not allowed");
}

#[test]
fn a_damaged_input_fails_the_merge_even_where_its_pages_are_dropped() {
    let mut files: Vec<Vec<u8>> = level("shrink-grow-1024", "0").into_iter().map(|(_, bytes)| bytes).collect();
    for n in 0..files.len() {
        let last = files[n].len() - 1;
        files[n][last] ^= 1;
        let inputs = files.iter().map(|b| Decoder::new(b.as_slice()).unwrap()).collect();
        let err = merge(inputs, Vec::new()).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Corrupt);
        assert!(err.to_string().contains("file checksum mismatch"), "{err}");
        files[n][last] ^= 1;
    }
}
