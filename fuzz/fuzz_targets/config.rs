//! `cargo +nightly fuzz run config`
#![no_main]

use std::panic;

libfuzzer_sys::fuzz_target!(
    init: {
        // The YAML parser panics at some inputs, which the program catches; the fuzzer would end before that.
        let end = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !info.location().is_some_and(|at| at.file().contains("libyaml-safer")) {
                end(info);
            }
        }));
    },
    |data: &[u8]| litestream_fuzz::config(data)
);
