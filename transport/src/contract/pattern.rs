//! Content that tells where it belongs.

use crate::memory::Memory;

/// SplitMix64, for choices that repeat.
pub(super) struct Choices(u64);

impl Choices {
    pub(super) fn new(seed: u64) -> Self {
        Choices(seed)
    }

    /// A number below `bound`, which must not be 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Fills a memory with bytes drawn from a seed.
pub(super) fn fill(memory: &Memory, seed: u64) {
    let mut choices = Choices::new(seed);
    let words = memory.len_bytes().div_ceil(8);
    let mut bytes: Vec<u8> = (0..words).flat_map(|_| choices.below(u64::MAX).to_le_bytes()).collect();
    bytes.truncate(memory.len_bytes());
    memory.write(0, &bytes);
}
