//! Every valid fixture against the values an independent decoder found.

use litestream::ltx::{PageIndex, page_checksum, read_page, verify};
use litestream::types::{Checksum, Pgno};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fixture::{self, decode, encode};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Describes a file the way the fixtures' JSON does.
fn describe(name: &str) -> Value {
    let file_name = format!("{name}.ltx");
    let bytes = fixture::bytes(&file_name);
    let file = decode(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    let index = PageIndex::open(&*fixture::open(&file_name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let h = &file.header;
    let mut rolling = None;
    let mut frames_end = 100;
    let pages: Vec<Value> = file
        .pages
        .iter()
        .map(|(pgno, data)| {
            let at = index.find(*pgno).unwrap();
            let flags = bytes[at.offset as usize + 5];
            let overhead = if flags == 1 { 10 } else { 6 };
            let sum = page_checksum(*pgno, data);
            rolling = Some(rolling.unwrap_or(Checksum::NONE).roll(sum));
            frames_end = at.offset + at.size;
            json!({
                "pgno": pgno.get(),
                "flags": format!("0x{flags:04x}"),
                "encoding": if flags == 1 { "lz4-block" } else { "lz4-frame" },
                "offset": at.offset,
                "frame_size": at.size,
                "compressed_size": at.size - overhead,
                "page_checksum": sum.to_string(),
                "data_sha256": hex(&Sha256::digest(data)),
            })
        })
        .collect();
    let index_at = frames_end + 6;
    json!({
        "file": file_name,
        "size": bytes.len(),
        "sha256": hex(&Sha256::digest(&bytes)),
        "header": {
            "flags": if h.no_checksum { "0x00000002" } else { "0x00000000" },
            "no_checksum": h.no_checksum,
            "page_size": h.page_size.get(),
            "commit": h.commit,
            "min_txid": h.txids.min().to_string(),
            "max_txid": h.txids.max().to_string(),
            "timestamp_ms": h.timestamp.millis(),
            "pre_apply_checksum": h.pre_apply.to_string(),
            "wal_offset": h.wal.offset,
            "wal_size": h.wal.size,
            "wal_salt1": format!("{:08x}", h.wal.salt1),
            "wal_salt2": format!("{:08x}", h.wal.salt2),
            "node_id": format!("{:016x}", h.node_id),
        },
        "page_count": index.len(),
        "pages": pages,
        "page_index": { "offset": index_at, "entries_size": bytes.len() as u64 - 24 - index_at },
        "trailer": {
            "post_apply_checksum": file.trailer.post_apply.to_string(),
            "file_checksum": file.trailer.file_checksum.to_string(),
        },
        "rolling_checksum_of_pages": rolling.unwrap_or(Checksum::NONE).to_string(),
    })
}

#[test]
fn every_value_of_every_valid_file_is_read_as_an_independent_decoder_reads_it() {
    let names = fixture::names("", "json");
    assert_eq!(names.len(), 29);
    for name in names {
        let text = std::fs::read_to_string(fixture::dir().join(format!("{name}.json"))).unwrap();
        let mut expected: Value = serde_json::from_str(&text).unwrap();
        expected.as_object_mut().unwrap().remove("source");
        assert_eq!(describe(&name), expected, "{name}");
    }
}

#[test]
fn single_pages_are_the_same_as_in_the_stream() {
    for name in fixture::names("", "ltx") {
        let name = format!("{name}.ltx");
        let stream = decode(&fixture::bytes(&name)).unwrap();
        let file = fixture::open(&name);
        let index = PageIndex::open(&*file).unwrap();
        assert_eq!(index.header(), &stream.header);
        assert_eq!(index.trailer(), &stream.trailer);
        assert_eq!(index.iter().count(), stream.pages.len());
        let mut out = vec![0; stream.header.page_size.len()];
        for ((pgno, at), (expected_pgno, data)) in index.iter().zip(&stream.pages) {
            assert_eq!(pgno, *expected_pgno);
            out.fill(0);
            read_page(&*file, at, pgno, stream.header.page_size, &mut out).unwrap();
            assert_eq!(&out, data, "{name} page {pgno}");
            let other = Pgno::new(pgno.get() + 1).unwrap();
            assert!(read_page(&*file, at, other, stream.header.page_size, &mut out).is_err());
            assert_eq!(index.find(other).is_some(), stream.pages.iter().any(|(p, _)| *p == other));
        }
    }
}

#[test]
fn a_file_we_encode_again_decodes_to_the_same() {
    for name in fixture::names("", "ltx") {
        let original = decode(&fixture::bytes(&format!("{name}.ltx"))).unwrap();
        let bytes = encode(original.header, &original.pages, original.trailer.post_apply);
        let again = decode(&bytes).unwrap();
        assert_eq!(again.header, original.header, "{name}");
        assert_eq!(again.pages, original.pages, "{name}");
        assert_eq!(again.trailer.post_apply, original.trailer.post_apply, "{name}");
    }
}

#[test]
fn a_whole_file_is_verified_in_one_call() {
    let bytes = fixture::bytes("ls-512-L0-2-incremental.ltx");
    let (header, trailer, summary) = verify(bytes.as_slice()).unwrap();
    let file = decode(&bytes).unwrap();
    assert_eq!((header, trailer), (file.header, file.trailer));
    assert_eq!((summary.pages, summary.bytes), (5, 2094));
}
