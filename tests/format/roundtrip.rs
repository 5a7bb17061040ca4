//! Generated files: what the encoder accepts, the decoder gives back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use litestream::ltx::{Decoder, Header, WalPos, merge, verify};
use litestream::types::{Checksum, PageSize, Pgno, Timestamp, Txid, TxidRange};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::fixture::{decode, encode};

/// A page from a seed: some compress well, some not at all.
fn page(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let noise = (seed % 5) as usize * size / 4;
    (0..size)
        .map(|n| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if n < noise { state as u8 } else { (n / 64) as u8 }
        })
        .collect()
}

fn header(page_size: PageSize, commit: u32, min: u64, max: u64) -> Header {
    Header {
        no_checksum: true,
        page_size,
        commit,
        txids: TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap(),
        timestamp: Timestamp::from_millis(1_700_000_000_000),
        pre_apply: Checksum::NONE,
        wal: WalPos::default(),
        node_id: 0,
    }
}

fn page_sizes() -> impl Strategy<Value = PageSize> {
    prop_oneof![4 => 9u32..=12, 1 => 13u32..=16].prop_map(|bits| PageSize::new(1 << bits).unwrap())
}

fn wal_positions() -> impl Strategy<Value = WalPos> {
    let some = (1..=i64::MAX as u64, 0..=i64::MAX as u64, any::<u32>(), any::<u32>());
    prop_oneof![
        Just(WalPos::default()),
        some.prop_map(|(offset, size, salt1, salt2)| WalPos { offset, size, salt1, salt2 }),
    ]
}

/// Returns what was asked for in pieces of changing size.
struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.1 = self.1 * 31 % 1009 + 1;
        let n = self.0.len().min(buf.len()).min(self.1);
        buf[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_is_what_is_decoded(
        page_size in page_sizes(),
        seeds in btree_map(1u32..200_000, any::<u64>(), 0..40),
        spare in 0u32..10,
        min in 2..1u64 << 62,
        more in 0..1u64 << 62,
        timestamp in any::<i64>(),
        wal in wal_positions(),
        node_id in any::<u64>(),
        pieces in 1usize..1000,
    ) {
        let lock_page = page_size.lock_page();
        let pages: Vec<(Pgno, Vec<u8>)> = seeds
            .iter()
            .map(|(n, seed)| (Pgno::new(*n).unwrap(), page(page_size.len(), *seed)))
            .filter(|(pgno, _)| *pgno != lock_page)
            .collect();
        let commit = pages.last().map_or(1, |(pgno, _)| pgno.get()) + spare;
        let header = Header {
            timestamp: Timestamp::from_millis(timestamp),
            wal,
            node_id,
            ..header(page_size, commit, min, min + more)
        };
        let bytes = encode(header, &pages, Checksum::NONE);
        let file = decode(&bytes).unwrap();
        prop_assert_eq!(file.header, header);
        prop_assert_eq!(&file.pages, &pages);
        let (_, trailer, summary) = verify(Pieces(&bytes, pieces)).unwrap();
        prop_assert_eq!(trailer, file.trailer);
        prop_assert_eq!(summary.bytes, bytes.len() as u64);
    }

    #[test]
    fn a_merge_is_the_files_applied_one_after_the_other(
        first in 1u32..12,
        changes in vec((btree_map(1u32..16, any::<u64>(), 0..8), 1u32..16), 1..6),
    ) {
        let page_size = PageSize::new(512).unwrap();
        let mut database: BTreeMap<u32, Vec<u8>> = (1..=first).map(|n| (n, page(512, n.into()))).collect();
        let mut files = vec![file_of(&database, first, 1)];
        for (txid, (seeds, commit)) in (2u64..).zip(changes) {
            let grown = database.len() as u32 + 1..=commit;
            // Like SQLite: a page that is new to the database is written.
            let numbers: BTreeSet<u32> = seeds.keys().copied().filter(|n| *n <= commit).chain(grown).collect();
            let pages: BTreeMap<u32, Vec<u8>> = numbers
                .into_iter()
                .map(|n| (n, page(512, seeds.get(&n).copied().unwrap_or(txid) ^ txid << 32)))
                .collect();
            files.push(file_of(&pages, commit, txid));
            database.extend(pages);
            database.retain(|n, _| *n <= commit);
        }
        let inputs = files.iter().map(|bytes| Decoder::new(bytes.as_slice()).unwrap()).collect();
        let (bytes, merged, _) = merge(inputs, Vec::new()).unwrap();
        prop_assert_eq!(merged.page_size, page_size);
        let pages = decode(&bytes).unwrap().pages.into_iter().map(|(n, data)| (n.get(), data));
        prop_assert_eq!(pages.collect::<BTreeMap<_, _>>(), database);
    }

    #[test]
    fn bytes_that_follow_a_valid_header_never_make_the_decoder_panic(
        tail in vec(any::<u8>(), 0..600),
        small in vec(0u8..4, 0..600),
        min in 1u64..3,
    ) {
        for noise in [&tail, &small] {
            let mut bytes = header(PageSize::new(512).unwrap(), 3, min, 5).encode().to_vec();
            bytes.extend(noise);
            prop_assert!(verify(bytes.as_slice()).is_err());
            // And as a page body in either encoding.
            for flags in [0u8, 1] {
                let mut bytes = header(PageSize::new(512).unwrap(), 3, min, 5).encode().to_vec();
                bytes.extend([0, 0, 0, 1, 0, flags]);
                if flags == 1 {
                    bytes.extend((noise.len().min(500) as u32).to_be_bytes());
                }
                bytes.extend(noise);
                prop_assert!(verify(bytes.as_slice()).is_err());
            }
        }
    }
}

fn file_of(pages: &BTreeMap<u32, Vec<u8>>, commit: u32, txid: u64) -> Vec<u8> {
    let pages: Vec<_> = pages.iter().map(|(n, data)| (Pgno::new(*n).unwrap(), data.clone())).collect();
    encode(header(PageSize::new(512).unwrap(), commit, txid, txid), &pages, Checksum::NONE)
}

/// More pages than any buffer or index chunk holds.
#[test]
fn a_file_larger_than_every_buffer_survives() {
    let page_size = PageSize::new(512).unwrap();
    let pages: Vec<_> = Pgno::range(1, 40_000, page_size).map(|p| (p, page(512, u64::from(p.get()) * 5))).collect();
    let mut bytes = encode(header(page_size, 40_000, 1, 1), &pages, Checksum::NONE);
    assert_eq!(decode(&bytes).unwrap().pages, pages);
    let last_index_byte = bytes.len() - 26;
    bytes[last_index_byte] ^= 0x40;
    let err = decode(&bytes).unwrap_err();
    assert!(err.to_string().contains("entries do not match the page frames"), "{err}");
}
