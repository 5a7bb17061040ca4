//! Finding fixtures, and reading whole files in one call.

use std::path::{Path, PathBuf};

use litestream::error::Result;
use litestream::ltx::{Decoder, Encoder, Header, Trailer};
use litestream::sys::{File, Fs, OpenMode, OsFs};
use litestream::types::{Checksum, Pgno};

pub(crate) fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ltx")
}

pub(crate) fn bytes(name: &str) -> Vec<u8> {
    let path = dir().join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(crate) fn open(name: &str) -> Box<dyn File> {
    OsFs.open(&dir().join(name), OpenMode::Read).unwrap()
}

/// Names in a directory below the fixtures with this extension, without it, sorted.
pub(crate) fn names(below: &str, extension: &str) -> Vec<String> {
    let suffix = format!(".{extension}");
    let mut names: Vec<String> = std::fs::read_dir(dir().join(below))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(&suffix).map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// All of a file, as the decoder saw it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decoded {
    pub(crate) header: Header,
    pub(crate) pages: Vec<(Pgno, Vec<u8>)>,
    pub(crate) trailer: Trailer,
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Decoded> {
    let mut decoder = Decoder::new(bytes)?;
    let mut pages = Vec::new();
    let mut page = vec![0; decoder.header().page_size.len()];
    while let Some(pgno) = decoder.next_page(&mut page)? {
        assert_eq!(decoder.trailer(), None, "the trailer is not to be had before it was verified");
        pages.push((pgno, page.clone()));
    }
    assert_eq!(decoder.next_page(&mut page).unwrap(), None, "the end stays the end");
    assert_eq!(decoder.bytes_read(), bytes.len() as u64);
    Ok(Decoded { header: *decoder.header(), pages, trailer: *decoder.trailer().unwrap() })
}

pub(crate) fn encode(header: Header, pages: &[(Pgno, Vec<u8>)], post_apply: Checksum) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (pgno, data) in pages {
        encoder.page(*pgno, data).unwrap();
    }
    let announced = encoder.bytes_written();
    let (bytes, trailer) = encoder.finish(post_apply).unwrap();
    assert!(bytes.len() as u64 > announced);
    assert_eq!(trailer.post_apply, post_apply);
    bytes
}

/// The file as Litestream would write it: without database checksums.
pub(crate) fn without_checksums(bytes: &[u8]) -> Vec<u8> {
    let file = decode(bytes).unwrap();
    let header = Header { no_checksum: true, pre_apply: Checksum::NONE, ..file.header };
    encode(header, &file.pages, Checksum::NONE)
}
