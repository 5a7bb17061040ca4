//! `cargo +nightly fuzz run replica_url`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| litestream_fuzz::replica_url(data));
