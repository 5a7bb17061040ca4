//! The formats that Litestream's replicas are made of, and what reading and writing them stands on:
//!
//! * [`ltx`]: files with the pages that transactions changed. They are encoded, decoded, merged, and read page by page.
//! * [`wal`]: SQLite's write-ahead log, as bytes.
//! * [`types`]: transaction IDs, levels, page numbers, checksums, times.
//! * [`sys`]: files, clocks and randomness as traits, so that a simulation can stand below everything.
//! * [`error`]: one error type, with kinds to branch on.
//!
//! No SQLite is linked, and nothing here knows a network.
//!
//! ```
//! use litestream_core::ltx::{Decoder, Encoder, Header, WalPos};
//! use litestream_core::types::{Checksum, PageSize, Pgno, Timestamp, Txid, TxidRange};
//!
//! # fn main() -> litestream_core::error::Result<()> {
//! // A database of one page, as its first transaction left it.
//! let header = Header {
//!     no_checksum: true,
//!     page_size: PageSize::new(512)?,
//!     commit: 1,
//!     txids: TxidRange::new(Txid::FIRST, Txid::FIRST)?,
//!     timestamp: Timestamp::from_millis(1_700_000_000_000),
//!     pre_apply: Checksum::NONE,
//!     wal: WalPos::default(),
//!     node_id: 0,
//! };
//! let mut encoder = Encoder::new(Vec::new(), header)?;
//! encoder.page(Pgno::FIRST, &[7; 512])?;
//! let (file, _trailer) = encoder.finish(Checksum::NONE)?;
//!
//! // Pages may be used only once the end was reached: until then the file is not known to be whole.
//! let mut decoder = Decoder::new(file.as_slice())?;
//! let mut page = vec![0; decoder.header().page_size.len()];
//! assert_eq!(decoder.next_page(&mut page)?, Some(Pgno::FIRST));
//! assert_eq!(page, [7; 512]);
//! assert_eq!(decoder.next_page(&mut page)?, None);
//! # Ok(())
//! # }
//! ```

pub mod error;
pub mod ltx;
pub mod sys;
pub mod types;
pub mod wal;
