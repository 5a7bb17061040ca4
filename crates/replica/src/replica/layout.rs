//! Where an LTX file lies in a replica (`spec: backends` §2).

use super::Key;
use crate::error::Result;
use crate::ltx;
use crate::types::{Level, TxidRange};

/// How a backend names its level directories. The two are not interchangeable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `ltx/<level>/`: file, gs, abs, sftp, webdav, nats.
    Decimal,
    /// `<level as 4 hex digits>/`: s3, oss.
    Hex4,
}

impl Layout {
    /// The directory of a level, below the replica's root.
    ///
    /// # Errors
    /// None for the levels there are; keys are checked all the same.
    pub fn dir(self, level: Level) -> Result<Key> {
        match self {
            Self::Decimal => Key::new(format!("ltx/{level}")),
            Self::Hex4 => Key::new(format!("{:04x}", level.get())),
        }
    }

    /// The object of one LTX file.
    ///
    /// # Errors
    /// None for the levels and ranges there are.
    pub fn file(self, level: Level, txids: TxidRange) -> Result<Key> {
        self.dir(level)?.join(&ltx::file_name(txids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Txid;

    #[test]
    fn levels_are_decimal_below_ltx_or_four_hex_digits() {
        let txids = TxidRange::new(Txid::FIRST, Txid::new(0xff).unwrap()).unwrap();
        let name = "0000000000000001-00000000000000ff.ltx";
        assert_eq!(Layout::Decimal.file(Level::SNAPSHOT, txids).unwrap().as_str(), format!("ltx/9/{name}"));
        assert_eq!(Layout::Hex4.file(Level::SNAPSHOT, txids).unwrap().as_str(), format!("0009/{name}"));
    }
}
