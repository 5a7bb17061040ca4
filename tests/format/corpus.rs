//! Plays the kept inputs of every fuzz target.

use std::path::Path;

#[path = "../../fuzz/targets.rs"]
#[allow(dead_code, unreachable_pub, reason = "a library of its own for the fuzzer")]
mod targets;

#[test]
fn no_kept_input_of_a_fuzz_target_makes_it_panic() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let inputs = std::fs::read_dir(corpus.join(name)).unwrap_or_else(|e| panic!("corpus of {name}: {e}"));
        let mut count = 0;
        for input in inputs {
            let path = input.unwrap().path();
            let data = std::fs::read(&path).unwrap();
            let ended = std::panic::catch_unwind(|| target(&data));
            assert!(ended.is_ok(), "{name}: {}", path.display());
            count += 1;
        }
        assert!(count > 0, "{name} has no inputs");
    }
}

/// Else the fuzzer would only see records that are refused at once.
#[test]
fn some_kept_leftovers_are_gone_on_from() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/leftovers");
    let inputs = std::fs::read_dir(corpus).unwrap().map(|input| std::fs::read(input.unwrap().path()).unwrap());
    let mut done: Vec<usize> = inputs.filter_map(|data| targets::gone_on_from(&data)).collect();
    done.sort_unstable();
    done.dedup();
    assert_eq!(done, [0, 1, 2]);
}

/// Whatever a fuzzer would find first is found without one as well.
#[test]
fn no_prefix_and_no_turned_byte_of_a_kept_input_makes_it_panic() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::TARGETS {
        for input in std::fs::read_dir(corpus.join(name)).unwrap().take(12) {
            let path = input.unwrap().path();
            let data = std::fs::read(&path).unwrap();
            let step = (data.len() / 40).max(1);
            for at in (0..data.len()).step_by(step) {
                let mut turned = data.clone();
                turned[at] ^= 1 << (at % 8);
                let ended = std::panic::catch_unwind(|| {
                    target(&data[..at]);
                    target(&turned);
                });
                assert!(ended.is_ok(), "{name}: {} at {at}", path.display());
            }
        }
    }
}
