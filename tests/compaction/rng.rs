//! Seeded randomness, and how many histories to try.

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n`.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// `LITESTREAM_TEST_HISTORIES`, or `default`.
pub(crate) fn histories(default: u64) -> u64 {
    std::env::var("LITESTREAM_TEST_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// `LITESTREAM_TEST_SEED`: one seed only, to look at a failure.
pub(crate) fn seeds(default: u64) -> Vec<u64> {
    match std::env::var("LITESTREAM_TEST_SEED").ok().and_then(|n| n.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..histories(default)).collect(),
    }
}
