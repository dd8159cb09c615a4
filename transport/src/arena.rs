//! The receiver's memory as one linear range of byte offsets over several mapped chunks.

use crate::memory::Memory;

/// What a peer may write into: chunks of memory, addressed as one range `0..len_bytes`.
/// A single write never crosses the border of a chunk.
#[derive(Clone, Debug, Default)]
pub struct Arena {
    chunks: Vec<(u64, Memory)>,
    len_bytes: u64,
}

impl Arena {
    /// An arena over these chunks, in this order.
    pub fn new(chunks: impl IntoIterator<Item = Memory>) -> Self {
        let mut arena = Arena::default();
        for memory in chunks {
            let base = arena.len_bytes;
            arena.len_bytes += memory.len_bytes() as u64;
            arena.chunks.push((base, memory));
        }
        arena
    }

    /// Total length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The chunks in order: first byte offset and memory.
    pub fn chunks(&self) -> &[(u64, Memory)] {
        &self.chunks
    }

    /// The memory behind `len_bytes` bytes at `offset`: chunk and offset in it; `None` when the
    /// range leaves the arena or crosses a chunk border.
    pub fn locate(&self, offset: u64, len_bytes: u64) -> Option<(&Memory, usize)> {
        let end = offset.checked_add(len_bytes)?;
        if end > self.len_bytes {
            return None;
        }
        let index = self.chunks.partition_point(|(base, _)| *base <= offset).checked_sub(1)?;
        let (base, memory) = &self.chunks[index];
        (end - base <= memory.len_bytes() as u64).then(|| (memory, (offset - base) as usize))
    }
}

/// The shape of the peer's arena: chunks by first offset and length.
#[derive(Debug, Default)]
pub(crate) struct ArenaShape(Vec<(u64, u64)>);

impl ArenaShape {
    /// From the lengths of the chunks in order, whose sum must not overflow.
    pub(crate) fn new(chunks_bytes: &[u64]) -> Self {
        let mut base = 0;
        let chunk = |len_bytes: &u64| {
            let chunk = (base, *len_bytes);
            base += len_bytes;
            chunk
        };
        ArenaShape(chunks_bytes.iter().map(chunk).collect())
    }

    /// Whether a write fits into one chunk.
    pub(crate) fn holds(&self, offset: u64, len_bytes: u64) -> bool {
        let index = self.0.partition_point(|(base, _)| *base <= offset);
        let Some((base, chunk_bytes)) = index.checked_sub(1).map(|index| self.0[index]) else { return false };
        (offset - base).checked_add(len_bytes).is_some_and(|end| end <= chunk_bytes)
    }
}
