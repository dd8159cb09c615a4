//! Joins the markers of all data streams into fences, without a lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Markers that may be under way or untaken at a time; a stream that is further ahead waits.
const SLOTS: u64 = 256;
/// No marker has this number.
const NONE: u64 = u64::MAX;

/// What became of a stream's marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Other streams are still to come.
    Counted,
    /// It was the last: the fence can be taken.
    Complete,
    /// Another stream has another number at this place.
    Disagrees,
    /// Too many fences are untaken; try again later.
    Full,
}

#[derive(Debug)]
struct Slot {
    number: AtomicU64,
    arrivals: AtomicU32,
}

/// The fences of one connection. Each stream's thread brings its markers, in order and none left
/// out; one thread takes the fences.
#[derive(Debug)]
pub(crate) struct Fences {
    streams: u32,
    slots: Box<[Slot]>,
    taken: AtomicU64,
}

impl Fences {
    pub(crate) fn new(streams: usize) -> Self {
        let slot = |_| Slot { number: AtomicU64::new(NONE), arrivals: AtomicU32::new(0) };
        Fences { streams: streams as u32, slots: (0..SLOTS).map(slot).collect(), taken: AtomicU64::new(0) }
    }

    fn slot(&self, sequence: u64) -> &Slot {
        &self.slots[(sequence % SLOTS) as usize]
    }

    /// A stream's marker, the `sequence`-th of that stream from 0.
    pub(crate) fn arrive(&self, sequence: u64, marker: u64) -> Arrival {
        // Acquire: the slot's reset by `take` comes before its new use here.
        if sequence - self.taken.load(Ordering::Acquire) >= SLOTS {
            return Arrival::Full;
        }
        let slot = self.slot(sequence);
        match slot.number.compare_exchange(NONE, marker, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {}
            Err(number) if number == marker => {}
            Err(_) => return Arrival::Disagrees,
        }
        // Release: what this stream placed before the marker is visible to whoever sees the
        // count. The read-modify-writes of all streams form one release sequence.
        if slot.arrivals.fetch_add(1, Ordering::AcqRel) + 1 == self.streams {
            Arrival::Complete
        } else {
            Arrival::Counted
        }
    }

    /// The next fence that every stream has brought. For one thread at a time.
    pub(crate) fn take(&self) -> Option<u64> {
        let sequence = self.taken.load(Ordering::Relaxed);
        let slot = self.slot(sequence);
        if slot.arrivals.load(Ordering::Acquire) != self.streams {
            return None;
        }
        let marker = slot.number.load(Ordering::Relaxed);
        slot.number.store(NONE, Ordering::Relaxed);
        slot.arrivals.store(0, Ordering::Relaxed);
        self.taken.store(sequence + 1, Ordering::Release);
        Some(marker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_needs_every_stream_and_keeps_the_order() {
        let fences = Fences::new(2);
        assert_eq!(fences.arrive(0, 5), Arrival::Counted);
        assert_eq!(fences.arrive(1, 9), Arrival::Counted);
        assert_eq!(fences.take(), None);
        assert_eq!(fences.arrive(0, 5), Arrival::Complete);
        assert_eq!(fences.take(), Some(5));
        assert_eq!(fences.take(), None);
        assert_eq!(fences.arrive(1, 8), Arrival::Disagrees);
        assert_eq!(fences.arrive(1, 9), Arrival::Complete);
        assert_eq!(fences.take(), Some(9));
    }

    #[test]
    fn a_stream_too_far_ahead_waits_until_fences_are_taken() {
        let fences = Fences::new(1);
        for sequence in 0..SLOTS {
            assert_eq!(fences.arrive(sequence, sequence + 1), Arrival::Complete);
        }
        assert_eq!(fences.arrive(SLOTS, SLOTS + 1), Arrival::Full);
        assert_eq!(fences.take(), Some(1));
        assert_eq!(fences.arrive(SLOTS, SLOTS + 1), Arrival::Complete);
        for marker in 2..=SLOTS + 1 {
            assert_eq!(fences.take(), Some(marker));
        }
    }

    #[test]
    fn threads_bring_markers_and_one_takes_them_all_in_order() {
        const MARKERS: u64 = 20_000;
        let fences = Fences::new(3);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for sequence in 0..MARKERS {
                        while fences.arrive(sequence, sequence + 1) == Arrival::Full {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let mut last = 0;
            while last < MARKERS {
                match fences.take() {
                    Some(marker) => {
                        assert_eq!(marker, last + 1);
                        last = marker;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
    }
}
