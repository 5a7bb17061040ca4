//! Every file a strict reader must reject.

use litestream::error::ErrorKind;
use litestream::ltx::{PageIndex, verify};
use serde_json::Value;

use crate::fixture;

/// Where we say something else than the reference, because we look earlier or more closely.
const OWN_WORDS: &[(&str, &str)] = &[
    ("datasize-huge.ltx", "decode page 0: read compressed data: data size 4294967280 out of bounds for page size 512"),
    ("lz4-short-block.ltx", "decode page 0: decompress block: 400 bytes instead of a page of 512"),
    ("pages-out-of-order.ltx", "decode page 1: out-of-order page numbers: 3,2"),
    ("page-duplicate.ltx", "decode page 1: out-of-order page numbers: 2,2"),
    ("page-beyond-commit.ltx", "decode page 0: page number 10 out-of-bounds for commit size 9"),
    ("snapshot-gap.ltx", "decode page 1: nonsequential page numbers in snapshot transaction: 1,3"),
    ("snapshot-short.ltx", "close reader: snapshot transaction file ends with page number 2, commit size is 4"),
    ("nochecksum-postapply-valid-crc.ltx", "close reader: post-apply checksum not allowed"),
    ("index-size-wrong.ltx", "close reader: read page index: page index size is "),
    ("index-offset-wrong.ltx", "close reader: read page index: entries do not match the page frames"),
    ("index-missing-entry.ltx", "close reader: read page index: "),
    ("trunc-after-endmarker.ltx", "close reader: read page index: EOF"),
    ("trunc-after-endmarker-plus3.ltx", "close reader: read page index: EOF"),
];

fn manifest() -> Vec<Value> {
    serde_json::from_slice(&fixture::bytes("invalid/manifest.json")).unwrap()
}

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key].as_str().unwrap()
}

#[test]
fn every_damaged_file_is_rejected_with_the_known_message() {
    let manifest = manifest();
    assert_eq!(manifest.len(), fixture::names("invalid", "ltx").len());
    let mut wrong = Vec::new();
    for entry in manifest.iter().filter(|e| e["strict_reader_must_reject"] == true) {
        let file = text(entry, "file");
        let err = verify(fixture::bytes(&format!("invalid/{file}")).as_slice()).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Corrupt, "{file}: {err}");
        let own = OWN_WORDS.iter().find(|(name, _)| *name == file).map(|(_, words)| *words);
        let expected = own.unwrap_or(text(entry, "reference_decoder_result"));
        if !err.to_string().starts_with(expected) {
            wrong.push(format!("{file}:\n  got      {err}\n  expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_random_access_reader_never_panics_on_a_damaged_file() {
    let mut accepted = Vec::new();
    for entry in manifest() {
        let file = text(&entry, "file").to_owned();
        match PageIndex::open(&*fixture::open(&format!("invalid/{file}"))) {
            Ok(_) => accepted.push(file),
            Err(err) => assert_eq!(err.kind(), ErrorKind::Corrupt, "{file}: {err}"),
        }
    }
    // What only shows in the pages or the checksum is left to the streaming reader.
    for seen in ["index-size-wrong.ltx", "index-offset-wrong.ltx", "index-missing-entry.ltx", "page-duplicate.ltx"] {
        assert!(!accepted.iter().any(|f| f == seen), "{seen}");
    }
}
