//! `cargo +nightly fuzz run ltx_merge`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| litestream_fuzz::ltx_merge(data));
