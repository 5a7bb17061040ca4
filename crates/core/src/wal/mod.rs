//! SQLite's write-ahead log, as bytes in a file (`spec: replication` §5).
//!
//! Everything here is untrusted input: parsers are total and allocate a bounded amount. A short
//! read is reported as what it is (the file ends here, on or off a frame boundary); whether that
//! is the end of the log is for the caller to decide, who knows what SQLite believes.

mod checksum;
mod frame;
mod header;
mod page_map;
mod reader;

pub use checksum::WalChecksum;
pub use frame::FrameHeader;
pub use header::{Salts, WalHeader};
pub use page_map::{PageMap, Segment};
pub use reader::{FrameReader, Step, Stop, read_frame_header, read_slot};
