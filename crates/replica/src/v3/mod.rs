//! Backups of Litestream 0.3.x, read only (`spec: v3-format`).
//!
//! A generation is a snapshot of the database file and the write-ahead logs that followed it, cut into
//! segments. Everything is an LZ4 frame. There are no transaction IDs; times are those of the objects.
//!
//! Guarantees:
//! 1. A log counts only as a whole: every frame of it must continue the checksum chain, the last one
//!    must commit, and nothing may follow. Litestream takes a damaged frame for the end (V1).
//! 2. Segments that are missing, or that overlap, are an error.
//! 3. Memory is bounded, whatever the objects claim.

mod apply;
mod list;
mod name;

pub use apply::{Applied, apply};
pub use list::{Backups, Piece, Plan, Segment, Snapshot, list};
