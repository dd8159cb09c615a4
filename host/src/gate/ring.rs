//! A ring of frames in memory that is mapped once: one side fills it, the other empties it, and
//! neither waits for the other.
//!
//! Positions count bytes and never go back; a position modulo the length is a place. Each frame is
//! contiguous behind a small header. Where the rest of the ring is too short for the longest frame
//! it is skipped; an empty ring begins anew at its first place, so that a gate that holds little
//! touches little memory.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// Longest frame, its virtio header included: 64 KiB of IP, an Ethernet header with two tags, and
/// room.
pub(super) const MAX_FRAME_BYTES: usize = 65_536 + 64;
const HEADER_BYTES: usize = 16;
/// Room asked for before a frame of unknown length is read.
const ROOM_BYTES: u64 = (MAX_FRAME_BYTES + HEADER_BYTES) as u64;
/// Length in a header that says: go on at the ring's begin.
const SKIP: u32 = u32::MAX;
/// An empty ring begins anew once its place is beyond this: about a second-level cache.
const KEEP_WARM_BYTES: u64 = 512 << 10;

struct Shared {
    memory: MmapRaw,
    /// Length in bytes, a multiple of the header's.
    len: u64,
    /// Everything before it is written.
    head: AtomicU64,
    /// Everything before it was taken.
    tail: AtomicU64,
}

/// The side that fills.
pub(super) struct Producer {
    shared: Arc<Shared>,
}

/// The side that empties.
pub(super) struct Consumer {
    shared: Arc<Shared>,
}

/// Tells where a ring stands, from any thread.
#[derive(Clone)]
pub(super) struct Watch {
    shared: Arc<Shared>,
}

/// A frame at the ring's end.
pub(super) struct Frame<'a> {
    pub(super) bytes: &'a [u8],
    /// What the producer noted with it.
    pub(super) stamp: u64,
}

/// Maps a ring of about `len_bytes`, which the system backs with memory as it is touched.
pub(super) fn ring(len_bytes: u64) -> io::Result<(Producer, Consumer, Watch)> {
    let len = len_bytes.max(4 * ROOM_BYTES).next_multiple_of(HEADER_BYTES as u64);
    let size = usize::try_from(len).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let memory = MmapRaw::from(MmapOptions::new().len(size).no_reserve_swap().map_anon()?);
    let shared = Arc::new(Shared { memory, len, head: AtomicU64::new(0), tail: AtomicU64::new(0) });
    Ok((Producer { shared: Arc::clone(&shared) }, Consumer { shared: Arc::clone(&shared) }, Watch { shared }))
}

impl Watch {
    /// Everything before it was put in.
    pub(super) fn head(&self) -> u64 {
        self.shared.head.load(Ordering::Acquire)
    }

    /// Everything before it was taken.
    pub(super) fn tail(&self) -> u64 {
        self.shared.tail.load(Ordering::Acquire)
    }
}

impl Shared {
    /// The place of a position.
    fn place(&self, position: u64) -> usize {
        (position % self.len) as usize
    }

    fn left_in_lap(&self, position: u64) -> u64 {
        self.len - position % self.len
    }
}

impl Producer {
    /// Room for one frame of any length, or `None` when the ring is full.
    pub(super) fn room(&mut self) -> Option<&mut [u8]> {
        let shared = &*self.shared;
        let mut head = shared.head.load(Ordering::Relaxed);
        let tail = shared.tail.load(Ordering::Acquire);
        let left = shared.left_in_lap(head);
        let begins_anew = tail == head && head % shared.len >= KEEP_WARM_BYTES;
        let skipped = if left < ROOM_BYTES || begins_anew { left } else { 0 };
        if shared.len - (head - tail) < skipped + ROOM_BYTES {
            return None;
        }
        if skipped > 0 {
            // Never less than a header: positions and the length are multiples of it.
            self.write_header(head, SKIP, 0);
            head += skipped;
            self.shared.head.store(head, Ordering::Release);
        }
        let place = self.shared.place(head) + HEADER_BYTES;
        // SAFETY: `ROOM_BYTES` from the head on are inside the mapping (the lap is long enough) and
        // behind no frame that the consumer may read (checked against the tail above); there is one
        // producer, borrowed for as long as the slice lives.
        Some(unsafe {
            std::slice::from_raw_parts_mut(self.shared.memory.as_mut_ptr().add(place), MAX_FRAME_BYTES)
        })
    }

    /// The room given last now holds a frame of `length` bytes.
    pub(super) fn commit(&mut self, length: usize, stamp: u64) {
        assert!(length <= MAX_FRAME_BYTES, "a frame fits its room");
        let head = self.shared.head.load(Ordering::Relaxed);
        self.write_header(head, length as u32, stamp);
        let taken = (HEADER_BYTES + length).next_multiple_of(HEADER_BYTES) as u64;
        self.shared.head.store(head + taken, Ordering::Release);
    }

    fn write_header(&mut self, position: u64, length: u32, stamp: u64) {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&length.to_ne_bytes());
        header[8..].copy_from_slice(&stamp.to_ne_bytes());
        let place = self.shared.place(position);
        // SAFETY: a header at a multiple of its length is inside the mapping, and before the head is
        // moved beyond it the consumer does not read it.
        unsafe {
            let target = self.shared.memory.as_mut_ptr().add(place);
            std::ptr::copy_nonoverlapping(header.as_ptr(), target, HEADER_BYTES);
        }
    }
}

impl Consumer {
    /// The oldest frame if it lies before `limit`, a position told by a [`Watch`].
    pub(super) fn front(&mut self, limit: u64) -> Option<Frame<'_>> {
        let shared = &*self.shared;
        let end = shared.head.load(Ordering::Acquire).min(limit);
        loop {
            let tail = shared.tail.load(Ordering::Relaxed);
            if tail >= end {
                return None;
            }
            let place = shared.place(tail);
            // SAFETY: everything between tail and head is written, begins with a header, and stays
            // untouched by the producer until the tail is moved, which needs this borrow.
            let header: &[u8] =
                unsafe { std::slice::from_raw_parts(shared.memory.as_ptr().add(place), HEADER_BYTES) };
            let length = u32::from_ne_bytes(header[..4].try_into().expect("four bytes"));
            let stamp = u64::from_ne_bytes(header[8..].try_into().expect("eight bytes"));
            if length == SKIP {
                shared.tail.store(tail + shared.left_in_lap(tail), Ordering::Release);
                continue;
            }
            // SAFETY: as above, for the frame behind its header, which does not cross the end.
            let bytes = unsafe {
                std::slice::from_raw_parts(shared.memory.as_ptr().add(place + HEADER_BYTES), length as usize)
            };
            return Some(Frame { bytes, stamp });
        }
    }

    /// Takes the frame that [`front`](Self::front) gave, of this length.
    pub(super) fn pop(&mut self, length: usize) {
        let tail = self.shared.tail.load(Ordering::Relaxed);
        let taken = (HEADER_BYTES + length).next_multiple_of(HEADER_BYTES) as u64;
        self.shared.tail.store(tail + taken, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(producer: &mut Producer, number: u64, length: usize) -> bool {
        let Some(room) = producer.room() else { return false };
        room[..length].fill(number as u8);
        producer.commit(length, number);
        true
    }

    fn take(consumer: &mut Consumer, limit: u64) -> Option<(u64, usize)> {
        let frame = consumer.front(limit)?;
        assert!(frame.bytes.iter().all(|byte| *byte == frame.stamp as u8), "frame {}", frame.stamp);
        let taken = (frame.stamp, frame.bytes.len());
        consumer.pop(taken.1);
        Some(taken)
    }

    #[test]
    fn frames_come_out_as_they_went_in_over_many_laps() {
        let (mut producer, mut consumer, watch) = ring(300_000).unwrap();
        let length = |number: u64| (number * 7919 % 3000) as usize + 14;
        let (mut sent, mut received) = (0, 0);
        while received < 20_000 {
            while sent < received + 40 && put(&mut producer, sent, length(sent)) {
                sent += 1;
            }
            for _ in 0..23 {
                let Some(taken) = take(&mut consumer, u64::MAX) else { break };
                assert_eq!(taken, (received, length(received)));
                received += 1;
            }
        }
        while take(&mut consumer, u64::MAX).is_some() {}
        assert_eq!(watch.tail(), watch.head());
    }

    #[test]
    fn a_full_ring_refuses_and_loses_nothing() {
        let (mut producer, mut consumer, _) = ring(0).unwrap();
        let mut sent = 0;
        while put(&mut producer, sent, 1500) {
            sent += 1;
        }
        assert!(sent > 100, "{sent} frames fit");
        assert_eq!(take(&mut consumer, u64::MAX), Some((0, 1500)));
        for number in 1..sent {
            assert_eq!(take(&mut consumer, u64::MAX), Some((number, 1500)));
        }
        assert!(take(&mut consumer, u64::MAX).is_none() && put(&mut producer, 0, MAX_FRAME_BYTES));
    }

    #[test]
    fn nothing_beyond_the_limit_is_given() {
        let (mut producer, mut consumer, watch) = ring(1 << 20).unwrap();
        let mut expected = 0;
        for number in 0..2_000 {
            assert!(put(&mut producer, number, 60));
            if number % 100 == 49 {
                let limit = watch.head();
                assert!(put(&mut producer, number + 1_000_000, 0), "one beyond the limit");
                let mut taken = Vec::new();
                while let Some((stamp, _)) = take(&mut consumer, limit) {
                    taken.push(stamp);
                }
                assert_eq!(taken.last(), Some(&number), "exactly to the limit");
                expected += 1;
            }
        }
        assert_eq!(expected, 20);
    }

    #[test]
    fn an_idle_ring_stays_in_its_first_part() {
        let (mut producer, mut consumer, _) = ring(64 << 20).unwrap();
        for number in 0..100_000 {
            assert!(put(&mut producer, number, 1500));
            assert!(take(&mut consumer, u64::MAX).is_some());
            let place = producer.shared.place(producer.shared.head.load(Ordering::Relaxed));
            assert!((place as u64) < KEEP_WARM_BYTES + ROOM_BYTES, "{place}");
        }
    }
}
