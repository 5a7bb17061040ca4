//! `cargo +nightly fuzz run control`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| litestream_fuzz::control(data));
