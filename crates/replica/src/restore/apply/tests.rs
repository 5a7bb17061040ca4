use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::ltx::{Encoder, WalPos, merge};
use crate::sys::{FileStat, Fs, OpenMode, OsFs, OwnerMode};
use crate::types::{Checksum, Level, TxidRange};

const SIZE: u32 = 512;

fn info(min: u64, max: u64) -> FileInfo {
    let txids = TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap();
    FileInfo { level: Level::L0, txids, size: 1 << 20, created: Timestamp::from_millis(0) }
}

/// Content of page `pgno` as transaction `txid` wrote it.
fn page(pgno: u32, txid: u64, size: u32) -> Vec<u8> {
    (0..size).map(|n| (n as u64 * 7 + u64::from(pgno) * 31 + txid * 131) as u8).collect()
}

fn header(file: &FileInfo, size: u32) -> Header {
    Header {
        no_checksum: true,
        page_size: PageSize::new(size).unwrap(),
        commit: 1,
        txids: file.txids,
        timestamp: Timestamp::from_millis(file.txids.max().get() as i64),
        pre_apply: Checksum::NONE,
        wal: WalPos::default(),
        node_id: 0,
    }
}

fn encode(file: &FileInfo, commit: u32, pages: &BTreeMap<u32, u64>, size: u32) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), Header { commit, ..header(file, size) }).unwrap();
    for (pgno, txid) in pages {
        encoder.page(Pgno::new(*pgno).unwrap(), &page(*pgno, *txid, size)).unwrap();
    }
    encoder.finish(Checksum::NONE).unwrap().0
}

/// An LTX file `(min, max, commit, pages)`, its pages written by transaction `max`.
fn file(min: u64, max: u64, commit: u32, pages: &[u32]) -> (FileInfo, Vec<u8>) {
    let info = info(min, max);
    let pages = pages.iter().map(|pgno| (*pgno, max)).collect();
    let bytes = encode(&info, commit, &pages, SIZE);
    (info, bytes)
}

/// Applies files given oldest first.
fn restore(files: &[(FileInfo, Vec<u8>)]) -> Result<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let out = OsFs.open(&path, OpenMode::CreateNew(OwnerMode::PRIVATE_FILE)).unwrap();
    let listed = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let sources = files.iter().rev().map(|(info, bytes)| Ok((*info, bytes.as_slice())));
    let (applied, _) = apply(sources, listed, Start::Empty, None, out.as_ref()).map_err(|broken| broken.error)?;
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, applied.bytes());
    assert_eq!(applied.txid, files.last().unwrap().0.txids.max());
    Ok(bytes)
}

fn error(files: &[(FileInfo, Vec<u8>)]) -> String {
    let err = restore(files).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt, "{err}");
    err.to_string()
}

#[test]
fn the_newest_copy_of_each_page_wins() {
    let files = [file(1, 3, 4, &[1, 2, 3, 4]), file(4, 4, 5, &[2, 5]), file(3, 6, 5, &[1, 2])];
    let want: Vec<u8> = [(1, 6), (2, 6), (3, 3), (4, 3), (5, 4)].iter().flat_map(|(p, t)| page(*p, *t, SIZE)).collect();
    assert!(restore(&files).unwrap() == want);
}

#[test]
fn a_shrunk_database_is_shorter() {
    let files = [file(1, 1, 4, &[1, 2, 3, 4]), file(2, 2, 2, &[1])];
    assert!(restore(&files).unwrap() == [page(1, 2, SIZE), page(2, 1, SIZE)].concat());
}

#[test]
fn a_page_from_before_a_shrink_is_never_used() {
    let shrunk = [file(1, 1, 4, &[1, 2, 3, 4]), file(2, 2, 2, &[1])];
    let regrown = [shrunk[0].clone(), shrunk[1].clone(), file(3, 3, 4, &[3, 4])];
    assert!(restore(&regrown).unwrap()[2 * 512..] == [page(3, 3, SIZE), page(4, 3, SIZE)].concat());
    let incomplete = [shrunk[0].clone(), shrunk[1].clone(), file(3, 3, 4, &[4])];
    assert_eq!(
        error(&incomplete),
        "decode database: 0/0000000000000001-0000000000000001.ltx: \
         page 3 was cut off by a later transaction (commit 2) and is in none after it"
    );
}

#[test]
fn a_missing_page_is_an_error() {
    let start = file(1, 1, 2, &[1, 2]);
    assert_eq!(
        error(&[start.clone(), file(2, 2, 5, &[4, 5])]),
        "decode database: nonsequential page numbers in snapshot transaction: 2,4"
    );
    assert_eq!(
        error(&[start, file(2, 2, 5, &[3, 4])]),
        "decode database: snapshot transaction file ends with page number 4, commit size is 5"
    );
}

#[test]
fn names_headers_and_neighbours_must_agree() {
    let (_, bytes) = file(2, 2, 2, &[1]);
    let start = file(1, 1, 2, &[1, 2]);
    assert_eq!(
        error(&[start.clone(), (info(2, 3), bytes)]),
        "decode database: 0/0000000000000002-0000000000000003.ltx: \
         file name does not match its header, which says 0000000000000002-0000000000000002"
    );
    assert_eq!(
        error(&[start.clone(), file(3, 3, 2, &[1])]),
        "decode database: 0/0000000000000001-0000000000000001.ltx: \
         non-contiguous transaction ids in input files: \
         (0000000000000001,0000000000000001) -> (0000000000000003,0000000000000003)"
    );
    assert_eq!(
        error(&[file(2, 2, 2, &[1, 2])]),
        "decode database: cannot decode non-snapshot LTX file to SQLite database"
    );
    let other = (info(2, 2), encode(&info(2, 2), 2, &BTreeMap::from([(1, 2)]), 1024));
    assert_eq!(
        error(&[start, other]),
        "decode database: 0/0000000000000001-0000000000000001.ltx: input files have mismatched page sizes: 512 != 1024"
    );
}

#[test]
fn a_damaged_file_is_found_wherever_it_is_in_the_chain() {
    // The second file supersedes every page of the first, which must be whole all the same.
    let good = [file(1, 1, 2, &[1, 2]), file(2, 2, 2, &[1, 2]), file(3, 3, 2, &[2])];
    assert!(restore(&good).is_ok());
    for (n, (info, bytes)) in good.iter().enumerate() {
        for at in [50, 150, bytes.len() - 20, bytes.len() - 1] {
            let mut files = good.clone();
            files[n].1[at] ^= 1;
            let text = restore(&files).unwrap_err().to_string();
            assert!(text.starts_with(&format!("decode database: {info}: ")), "{text}");
        }
        let mut files = good.clone();
        files[n].1.truncate(bytes.len() - 1);
        assert!(error(&files).starts_with(&format!("decode database: {info}: ")));
    }
}

#[test]
fn a_size_that_cannot_be_true_takes_no_memory() {
    assert_eq!(
        error(&[file(1, 1, 2, &[1, 2]), file(2, 2, u32::MAX, &[1])]),
        "decode database: 0/0000000000000002-0000000000000002.ltx: database of 4294967295 pages cannot be in 1109 bytes"
    );
}

#[test]
fn large_databases_go_through_many_batches() {
    let pages: Vec<u32> = (1..=9000).collect();
    let newer: Vec<u32> = (1..=9000).filter(|n| n % 3 == 0).collect();
    let files = [file(1, 1, 9000, &pages), file(2, 2, 9000, &newer)];
    let want: Vec<u8> = pages.iter().flat_map(|n| page(*n, if n % 3 == 0 { 2 } else { 1 }, SIZE)).collect();
    assert!(restore(&files).unwrap() == want);
}

/// Keeps no bytes, only what was written where.
#[derive(Debug, Default)]
struct Ranges {
    written: Mutex<BTreeMap<u64, u64>>,
    len: AtomicU64,
}

impl File for Ranges {
    fn read_at(&self, _: &mut [u8], _: u64) -> Result<usize> {
        Ok(0)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.written.lock().unwrap().insert(offset, offset + buf.len() as u64);
        Ok(())
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.len.store(len, Ordering::Relaxed);
        Ok(())
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
    fn stat(&self) -> Result<FileStat> {
        Err(Error::invalid("no file"))
    }
    fn set_modified(&self, _: Timestamp) -> Result<()> {
        Ok(())
    }
}

#[test]
fn the_lock_page_is_left_to_the_zeros_of_the_file_system() {
    let size = PageSize::new(65536).unwrap();
    let lock_page = size.lock_page().get();
    let info = info(1, 1);
    let mut encoder = Encoder::new(Vec::new(), Header { commit: lock_page + 1, ..header(&info, 65536) }).unwrap();
    for pgno in Pgno::range(1, lock_page + 1, size) {
        encoder.page(pgno, &[1; 65536]).unwrap();
    }
    let (bytes, _) = encoder.finish(Checksum::NONE).unwrap();
    let out = Ranges::default();
    let (applied, _) =
        apply(std::iter::once(Ok((info, bytes.as_slice()))), bytes.len() as u64, Start::Empty, None, &out).unwrap();
    assert_eq!(applied.pages, 16386);
    assert_eq!(out.len.into_inner(), 16386 * 65536);
    let mut end = 0;
    for (from, to) in out.written.into_inner().unwrap() {
        assert_eq!(from, if end == 1 << 30 { end + 65536 } else { end });
        assert!(to - from <= 1 << 20);
        end = to;
    }
    assert_eq!(end, 16386 * 65536);
}

#[test]
fn a_write_error_comes_out_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    std::fs::write(&path, "").unwrap();
    let read_only = OsFs.open(&path, OpenMode::Read).unwrap();
    let (info, bytes) = file(1, 1, 9000, &(1..=9000).collect::<Vec<_>>());
    let sources = std::iter::once(Ok((info, bytes.as_slice())));
    let err = apply(sources, bytes.len() as u64, Start::Empty, None, read_only.as_ref()).unwrap_err().error;
    assert_eq!(err.to_string(), format!("write {}: bad file descriptor", path.display()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Two ways to the same database: page by page from the newest, or merged and then decoded.
    #[test]
    fn applying_is_merging_and_decoding(
        first in 1..40_u32,
        rest in proptest::collection::vec((1..60_u32, proptest::collection::btree_set(1..60_u32, 0..20)), 0..6),
    ) {
        let mut files = vec![file(1, 1, first, &(1..=first).collect::<Vec<_>>())];
        for (n, (commit, pages)) in rest.iter().enumerate() {
            let pages: Vec<u32> = pages.iter().copied().filter(|pgno| pgno <= commit).collect();
            files.push(file(n as u64 + 2, n as u64 + 2, *commit, &pages));
        }
        let inputs = files.iter().map(|(_, bytes)| Decoder::new(bytes.as_slice()).unwrap()).collect();
        let merged = merge(inputs, Vec::new()).map(|(bytes, header, _)| (bytes, header));
        match (restore(&files), merged) {
            (Ok(restored), Ok((bytes, header))) => {
                let mut decoder = Decoder::new(bytes.as_slice()).unwrap();
                let mut want = Vec::new();
                let mut buf = vec![0; SIZE as usize];
                while decoder.next_page(&mut buf).unwrap().is_some() {
                    want.extend_from_slice(&buf);
                }
                prop_assert_eq!(want.len(), header.commit as usize * SIZE as usize);
                prop_assert!(restored == want);
            }
            (Err(ours), Err(theirs)) => prop_assert_eq!(ours.kind(), theirs.kind()),
            (ours, theirs) => prop_assert!(false, "apply: {:?}, merge: {:?}", ours.map(drop), theirs.map(drop)),
        }
    }
}
