//! Both directions against the real Litestream 0.5.17.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic too")]

mod ltx;
mod reference;
