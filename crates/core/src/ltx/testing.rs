//! Small files for the tests of this module.

use super::{Encoder, Header, WalPos};
use crate::types::{Checksum, PageSize, Pgno, Timestamp, Txid, TxidRange};

pub(super) fn pgno(n: u32) -> Pgno {
    Pgno::new(n).unwrap()
}

/// Header of a file with 512-byte pages and no tracked checksums.
pub(super) fn header(min: u64, max: u64, commit: u32) -> Header {
    Header {
        no_checksum: true,
        page_size: PageSize::new(512).unwrap(),
        commit,
        txids: TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap(),
        timestamp: Timestamp::from_millis(i64::try_from(max).unwrap()),
        pre_apply: Checksum::NONE,
        wal: WalPos::default(),
        node_id: 0,
    }
}

/// A page whose every byte is `fill`.
pub(super) fn page(fill: u8) -> Vec<u8> {
    vec![fill; 512]
}

/// A file of these pages: number and fill byte.
pub(super) fn file(header: Header, pages: &[(u32, u8)]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (n, fill) in pages {
        encoder.page(pgno(*n), &vec![*fill; header.page_size.len()]).unwrap();
    }
    encoder.finish(Checksum::NONE).unwrap().0
}
