//! The cumulative checksum that chains the frames of a WAL.

/// Two running 32-bit sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct WalChecksum {
    /// First sum.
    pub s0: u32,
    /// Second sum.
    pub s1: u32,
}

impl WalChecksum {
    /// Continues the chain over `data`, whose length must be a multiple of 8; a rest is ignored.
    #[must_use]
    #[inline]
    pub fn update(self, big_endian: bool, data: &[u8]) -> Self {
        let (mut s0, mut s1) = (self.s0, self.s1);
        let (pairs, _) = data.as_chunks::<8>();
        if big_endian {
            for &[a, b, c, d, e, f, g, h] in pairs {
                s0 = s0.wrapping_add(u32::from_be_bytes([a, b, c, d])).wrapping_add(s1);
                s1 = s1.wrapping_add(u32::from_be_bytes([e, f, g, h])).wrapping_add(s0);
            }
        } else {
            for &[a, b, c, d, e, f, g, h] in pairs {
                s0 = s0.wrapping_add(u32::from_le_bytes([a, b, c, d])).wrapping_add(s1);
                s1 = s1.wrapping_add(u32::from_le_bytes([e, f, g, h])).wrapping_add(s0);
            }
        }
        Self { s0, s1 }
    }

    /// The chain as a number, for the field of an LTX header that Litestream leaves zero.
    #[must_use]
    pub fn as_node_id(self) -> u64 {
        (u64::from(self.s0) << 32) | u64::from(self.s1)
    }

    /// The reverse of [`WalChecksum::as_node_id`]; `None` for zero.
    #[must_use]
    pub fn from_node_id(node_id: u64) -> Option<Self> {
        let half = |n: u64| u32::try_from(n & u64::from(u32::MAX)).unwrap_or(0);
        (node_id != 0).then(|| Self { s0: half(node_id >> 32), s1: half(node_id) })
    }

    /// From the stored form: two big-endian words, whatever order the sums were made in.
    #[must_use]
    #[inline]
    pub fn decode(bytes: [u8; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self { s0: u32::from_be_bytes([a, b, c, d]), s1: u32::from_be_bytes([e, f, g, h]) }
    }
}
