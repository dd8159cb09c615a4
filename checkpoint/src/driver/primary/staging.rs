//! The staging memory as a ring: taken by `capture` in the order of the epochs, given back by
//! `sender` in the same order once the data has left.

use std::sync::atomic::{AtomicU64, Ordering};

use romulus_transport::Memory;

/// Positions count bytes ever taken; a position's place in the memory is its remainder.
#[derive(Debug)]
pub(super) struct Staging {
    memory: Memory,
    len_bytes: u64,
    taken: AtomicU64,
    released: AtomicU64,
}

/// Bytes taken from the ring, contiguous in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// First byte in the staging memory.
    pub offset: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// What to pass to [`Staging::release`] when it is no longer read.
    pub end: u64,
}

impl Staging {
    /// A ring over `memory`, of which whole multiples of `unit_bytes` are used.
    pub fn new(memory: Memory, unit_bytes: u64) -> Self {
        let len_bytes = memory.len_bytes() as u64 / unit_bytes * unit_bytes;
        Self { memory, len_bytes, taken: AtomicU64::new(0), released: AtomicU64::new(0) }
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Takes up to `wanted` bytes that lie together, at least `least`; `None` when so many are not
    /// free. Only one thread takes. Both are multiples of the unit.
    pub fn take(&self, wanted: u64, least: u64) -> Option<Span> {
        let taken = self.taken.load(Ordering::Relaxed);
        let free = self.len_bytes - (taken - self.released.load(Ordering::Acquire));
        let place = taken % self.len_bytes;
        let to_the_end = self.len_bytes - place;
        // Here, up to the end of the memory, or from its start: then what is left at the end is
        // skipped, and released with this span.
        let here = free.min(to_the_end);
        let at_start = free.saturating_sub(to_the_end);
        let span = if here >= wanted || (here >= least && here >= at_start) {
            Span { offset: place, len_bytes: wanted.min(here), end: 0 }
        } else if at_start >= least {
            Span { offset: 0, len_bytes: wanted.min(at_start), end: to_the_end }
        } else {
            return None;
        };
        let end = taken + span.end + span.len_bytes;
        self.taken.store(end, Ordering::Relaxed);
        Some(Span { end, ..span })
    }

    /// The end of the span taken last.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Everything up to the span that ends here may be taken again.
    pub fn release(&self, end: u64) {
        self.released.fetch_max(end, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(bytes: usize) -> Staging {
        Staging::new(Memory::anonymous(bytes), 4)
    }

    #[test]
    fn spans_follow_each_other_and_come_back() {
        let ring = ring(17);
        let a = ring.take(8, 8).expect("empty ring");
        let b = ring.take(8, 4).expect("half full");
        assert_eq!((a.offset, a.len_bytes, b.offset, b.len_bytes), (0, 8, 8, 8));
        assert_eq!(ring.take(4, 4), None);
        ring.release(a.end);
        assert_eq!(ring.take(8, 4).map(|span| (span.offset, span.len_bytes)), Some((0, 8)));
    }

    #[test]
    fn a_span_is_never_split_at_the_end() {
        let ring = ring(16);
        let a = ring.take(12, 4).expect("empty ring");
        assert_eq!(ring.take(8, 8), None);
        ring.release(a.end);
        let b = ring.take(8, 8).expect("free after the wrap");
        assert_eq!((b.offset, b.len_bytes), (0, 8));
        ring.release(b.end);
        let c = ring.take(16, 4).expect("all free");
        assert!(c.len_bytes >= 8, "{c:?}");
    }

    #[test]
    fn an_empty_ring_of_twice_the_least_always_has_room() {
        for place in (0..64).step_by(4) {
            for wanted in (32..=128).step_by(4) {
                let ring = ring(64);
                let before = ring.take(place, 0).expect("empty ring");
                ring.release(before.end);
                let span = ring.take(wanted, 32);
                assert!(span.is_some_and(|span| span.len_bytes >= 32), "{place} {wanted}: {span:?}");
            }
        }
    }

    #[test]
    fn no_byte_is_in_two_live_spans() {
        let ring = ring(64);
        let mut live: std::collections::VecDeque<Span> = Default::default();
        let mut taken = 0;
        for step in 0..10_000u64 {
            let wanted = 4 * (1 + step * 7919 % 9);
            match ring.take(wanted, 4 * (1 + step % 2)) {
                Some(span) => {
                    assert!(span.offset + span.len_bytes <= 64 && span.len_bytes <= wanted);
                    let overlaps = |other: &Span| {
                        span.offset < other.offset + other.len_bytes
                            && other.offset < span.offset + span.len_bytes
                    };
                    assert!(!live.iter().any(overlaps), "{span:?} in {live:?}");
                    live.push_back(span);
                    taken += 1;
                }
                None => {
                    let oldest = live.pop_front().expect("an empty ring has room");
                    ring.release(oldest.end);
                }
            }
        }
        assert!(taken > 1000);
    }
}
