//! The quantities this program is about, one type each, so that they cannot be mixed up.

mod integrity;
mod level;
mod page;
mod pos;
mod txid;
mod units;

pub use integrity::IntegrityCheck;
pub use level::Level;
pub use page::{PageSize, Pgno};
pub use pos::Checksum;
pub use txid::{Txid, TxidRange};
pub use units::{Timestamp, format_duration, format_timestamp, parse_duration, parse_timestamp};
