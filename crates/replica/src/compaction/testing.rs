//! Files as listings show them, for the tests of this module.

use crate::replica::FileInfo;
use crate::types::{Level, Timestamp, Txid, TxidRange};

pub(super) fn file(level: u8, min: u64, max: u64, created: i64) -> FileInfo {
    let txids = TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap();
    FileInfo { level: Level::new(level).unwrap(), txids, size: 200, created: Timestamp::from_millis(created) }
}
