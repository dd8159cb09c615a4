//! The staging memory as pieces: `capture` fills one after the other, `sender` sends each as soon as
//! it is full and gives it back once its data has left.
//!
//! The piece given back last is taken first. Where the sender keeps up, a few pieces go round that
//! never leave the processor's cache: memory is then touched by an epoch as often as by a plain
//! copy into a socket (docs/decisions/steady-load.md).

use std::sync::Mutex;
use std::time::Duration;

use romulus_transport::{Memory, Write};

use crate::PAGE_BYTES;
use crate::driver::signal::{Signal, lock};
use crate::ids::Identity;

/// Length of a piece.
pub(super) const PIECE_BYTES: u64 = 1 << 20;

/// A part of the staging memory, and what is to be sent from it.
#[derive(Debug)]
pub(super) struct Piece {
    /// First byte in the staging memory.
    pub offset: u64,
    /// Writes from it, all within [`PIECE_BYTES`] bytes; room for one of each page.
    pub writes: Vec<Write>,
    /// Whose epoch its pages belong to.
    pub identity: Identity,
}

impl Piece {
    /// Length of its writes in bytes.
    pub fn bytes(&self) -> u64 {
        self.writes.iter().map(|write| write.len_bytes).sum()
    }
}

/// The pieces that are free.
#[derive(Debug)]
pub(super) struct Staging {
    memory: Memory,
    count: usize,
    free: Mutex<Vec<Piece>>,
    /// A piece was given back.
    pub freed: Signal,
}

impl Staging {
    /// Over `memory`, of which whole pieces are used. Who waits for one spins so long at first.
    pub fn new(memory: Memory, spin: Duration) -> Self {
        let count = memory.len_bytes() as u64 / PIECE_BYTES;
        let piece = |index| Piece {
            offset: index * PIECE_BYTES,
            writes: Vec::with_capacity((PIECE_BYTES / PAGE_BYTES) as usize),
            identity: Identity::default(),
        };
        let free = Mutex::new((0..count).rev().map(piece).collect());
        Self { memory, count: count as usize, free, freed: Signal::new(spin) }
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// How many pieces there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// A free piece, empty.
    pub fn take(&self) -> Option<Piece> {
        lock(&self.free).pop()
    }

    /// Whether no piece is free.
    pub fn is_exhausted(&self) -> bool {
        lock(&self.free).is_empty()
    }

    /// What was posted from the piece has left, or never will.
    pub fn give_back(&self, mut piece: Piece) {
        piece.writes.clear();
        lock(&self.free).push(piece);
        self.freed.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_piece_given_back_last_is_taken_first_and_each_only_once() {
        let staging = Staging::new(Memory::anonymous((3 << 20) + 4096), Duration::ZERO);
        assert_eq!(staging.count(), 3);
        let pieces: Vec<Piece> = std::iter::from_fn(|| staging.take()).collect();
        let offsets: Vec<u64> = pieces.iter().map(|piece| piece.offset).collect();
        assert_eq!(offsets, [0, 1 << 20, 2 << 20]);
        let mut pieces = pieces.into_iter();
        let (first, second) = (pieces.next().expect("three"), pieces.next().expect("three"));
        staging.give_back(second);
        staging.give_back(first);
        assert_eq!(staging.take().map(|piece| piece.offset), Some(0));
        assert_eq!(staging.take().map(|piece| piece.offset), Some(1 << 20));
        assert!(staging.take().is_none() && staging.is_exhausted());
    }
}
