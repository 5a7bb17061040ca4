//! LTX files of the real programs: decode, re-encode, damage, merge.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic too")]

mod chains;
mod corpus;
mod damage;
mod fixture;
mod invalid;
mod roundtrip;
mod valid;
