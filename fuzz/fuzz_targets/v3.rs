//! `cargo +nightly fuzz run v3`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| litestream_fuzz::v3(data));
