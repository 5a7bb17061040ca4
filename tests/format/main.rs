//! LTX files of the real programs: decode, re-encode, damage, merge.

mod chains;
mod damage;
mod fixture;
mod invalid;
mod roundtrip;
mod valid;
