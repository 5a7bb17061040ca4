//! The real program restores what our encoder wrote.

use std::path::{Path, PathBuf};

use litestream::ltx::{Decoder, Encoder, Header, file_name, merge};
use litestream::types::{Level, Pgno};

use crate::reference;

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ltx").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Decodes a file, writes its pages into `database`, and encodes it again.
fn apply_and_encode(bytes: &[u8], database: &mut Vec<u8>) -> (Header, Vec<u8>) {
    let mut decoder = Decoder::new(bytes).unwrap();
    let header = *decoder.header();
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    let mut page = vec![0; header.page_size.len()];
    let size = u64::from(header.commit) * u64::from(header.page_size.get());
    database.resize(size as usize, 0);
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        encoder.page(pgno, &page).unwrap();
        put_page(database, pgno, &page);
    }
    let (bytes, _) = encoder.finish(decoder.trailer().unwrap().post_apply).unwrap();
    (header, bytes)
}

fn put_page(database: &mut [u8], pgno: Pgno, page: &[u8]) {
    let at = (pgno.get() as usize - 1) * page.len();
    database[at..at + page.len()].copy_from_slice(page);
}

fn put_file(root: &Path, level: Level, header: &Header, bytes: &[u8]) -> PathBuf {
    let dir = root.join("ltx").join(level.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join(file_name(header.txids));
    std::fs::write(&path, bytes).unwrap();
    path
}

fn restore(root: &Path) -> Vec<u8> {
    let out = root.join("restored");
    let url = format!("file://{}", root.display());
    let run = reference::run(&["restore", "-o", out.to_str().unwrap(), &url]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    std::fs::read(&out).unwrap()
}

const CHAINS: &[&[&str]] = &[
    &["ls-512-L0-1-snapshot.ltx", "ls-512-L0-2-incremental.ltx"],
    &["ls-512-L0-1-tiny-snapshot.ltx", "ls-512-L0-2-onepage.ltx"],
    &["ls-1024-L0-1-before-truncate.ltx", "ls-1024-L0-2-truncating-commit.ltx"],
    &["ls-4096-L0-1-snapshot.ltx", "ls-4096-L0-2-incremental.ltx"],
    &["ls-65536-L0-1-snapshot.ltx", "ls-65536-L0-2-incremental.ltx"],
    &["legacy059-4096-L0-1-snapshot.ltx", "legacy059-4096-L0-2-incremental.ltx"],
    &["legacy059-65536-L0-1-snapshot.ltx", "legacy059-65536-L0-2-incremental.ltx"],
];

#[test]
fn litestream_restores_files_we_encoded() {
    for chain in CHAINS {
        let dir = tempfile::tempdir().unwrap();
        let mut database = Vec::new();
        for name in *chain {
            let (header, bytes) = apply_and_encode(&fixture(name), &mut database);
            put_file(dir.path(), Level::L0, &header, &bytes);
        }
        assert!(restore(dir.path()) == database, "{chain:?}");
    }
}

#[test]
fn litestream_restores_files_we_merged() {
    for chain in CHAINS {
        let dir = tempfile::tempdir().unwrap();
        let mut database = Vec::new();
        let files: Vec<Vec<u8>> = chain.iter().map(|name| fixture(name)).collect();
        for bytes in &files {
            apply_and_encode(bytes, &mut database);
        }
        let inputs = files.iter().map(|bytes| Decoder::new(bytes.as_slice()).unwrap()).collect();
        let (bytes, header, _) = merge(inputs, Vec::new()).unwrap();
        put_file(dir.path(), Level::new(1).unwrap(), &header, &bytes);
        assert!(restore(dir.path()) == database, "{chain:?}");
    }
}

#[test]
fn litestream_restores_pages_no_compressor_can_shrink() {
    let (header, _) = apply_and_encode(&fixture("ls-65536-L0-1-snapshot.ltx"), &mut Vec::new());
    let mut first = Vec::new();
    let mut database = Vec::new();
    apply_and_encode(&fixture("ls-65536-L0-1-snapshot.ltx"), &mut first);
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    let mut state = 7u64;
    for pgno in Pgno::range(1, header.commit, header.page_size) {
        let mut page = vec![0; header.page_size.len()];
        page.fill_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        if pgno == Pgno::FIRST {
            // Restore looks at the header of the database.
            page[..100].copy_from_slice(&first[..100]);
        }
        encoder.page(pgno, &page).unwrap();
        database.extend_from_slice(&page);
    }
    let (bytes, _) = encoder.finish(Default::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    put_file(dir.path(), Level::L0, &header, &bytes);
    assert!(restore(dir.path()) == database);
}
