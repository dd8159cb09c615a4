//! A queue of frames in memory that is mapped once: one side fills it, the other empties it, and
//! neither waits for the other.
//!
//! The memory is cut into chunks. A frame is contiguous, behind a small header; what is left of a
//! chunk when the longest frame does not fit is skipped. Chunks that were emptied last are filled
//! first, so that a gate that holds little touches little memory, and that is warm. Positions count
//! bytes through all chunks ever filled, in order, and never go back.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::{MmapOptions, MmapRaw};

/// Longest frame, its virtio header included: 64 KiB of IP, an Ethernet header with two tags, and
/// room.
pub(super) const MAX_FRAME_BYTES: usize = 65_536 + 64;
const HEADER_BYTES: usize = 16;
/// Room asked for before a frame of unknown length is read.
const ROOM_BYTES: u64 = (MAX_FRAME_BYTES + HEADER_BYTES) as u64;
/// Length of a chunk: some cache, and little lost at its end.
const CHUNK_BYTES: u64 = 1 << 20;
/// Fetched into the cache ahead of a frame's turn: a full-size frame.
const FETCHED_BYTES: u64 = 1536;
/// Room is fetched into the cache so far ahead of the head: while the kernel finds the frames that will
/// fill it.
const ROOM_AHEAD_BYTES: u64 = 2 * FETCHED_BYTES;
const CACHE_LINE_BYTES: usize = 64;
/// Chunks at least: one is filled while another is emptied.
const LEAST_CHUNKS: u64 = 4;
/// Length in a header that says: go on in the next chunk.
const SKIP: u32 = u32::MAX;

struct Shared {
    memory: MmapRaw,
    /// The chunk at each place in the order of filling, modulo the number of chunks.
    order: Box<[AtomicU32]>,
    /// Chunks that hold nothing, the one emptied last at the end. Taken and given back once a chunk.
    free: Mutex<Vec<u32>>,
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

/// Tells where a queue stands, from any thread.
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

/// Maps a queue of about `len_bytes`, which the system backs with memory as it is touched.
pub(super) fn ring(len_bytes: u64) -> io::Result<(Producer, Consumer, Watch)> {
    let too_long = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let chunks = u32::try_from(len_bytes.div_ceil(CHUNK_BYTES).max(LEAST_CHUNKS)).map_err(too_long)?;
    let size = usize::try_from(u64::from(chunks) * CHUNK_BYTES).map_err(too_long)?;
    let map = MmapOptions::new().len(size).no_reserve_swap().map_anon()?;
    // Only a wish: a kernel without huge pages serves as well.
    let _ = map.advise(memmap2::Advice::HugePage);
    let memory = MmapRaw::from(map);
    let order = (0..chunks).map(|_| AtomicU32::new(0)).collect();
    // The first is being filled from the beginning.
    let free = Mutex::new((1..chunks).rev().collect());
    let shared = Arc::new(Shared { memory, order, free, head: AtomicU64::new(0), tail: AtomicU64::new(0) });
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
    fn chunk_at(&self, position: u64) -> &AtomicU32 {
        &self.order[(position / CHUNK_BYTES % self.order.len() as u64) as usize]
    }

    /// The place of a position in memory.
    fn place(&self, position: u64) -> usize {
        let chunk = u64::from(self.chunk_at(position).load(Ordering::Relaxed));
        (chunk * CHUNK_BYTES + position % CHUNK_BYTES) as usize
    }

    /// Fetches the frame at a position into the cache: it was put in long ago, and comes while the
    /// kernel copies the one before.
    fn fetch_frame(&self, position: u64) {
        let ahead = self.head.load(Ordering::Relaxed).saturating_sub(position);
        self.fetch(position, ahead.min(FETCHED_BYTES));
    }

    /// Fetches so much from a position on, as far as its chunk goes.
    fn fetch(&self, position: u64, len_bytes: u64) {
        let len_bytes = len_bytes.min(next_chunk(position) - position) as usize;
        let place = self.place(position);
        for offset in (0..len_bytes).step_by(CACHE_LINE_BYTES) {
            // SAFETY: the address is inside a chunk, and fetching changes nothing.
            unsafe {
                let line = self.memory.as_ptr().add(place + offset).cast::<i8>();
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line);
            }
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a frame of this length takes, with its header.
fn taken_bytes(length: usize) -> u64 {
    (HEADER_BYTES + length).next_multiple_of(HEADER_BYTES) as u64
}

/// The first position of the chunk after the one of this position.
fn next_chunk(position: u64) -> u64 {
    (position / CHUNK_BYTES + 1) * CHUNK_BYTES
}

impl Producer {
    /// Room for one frame of any length, or `None` when no chunk is free.
    pub(super) fn room(&mut self) -> Option<&mut [u8]> {
        let mut head = self.shared.head.load(Ordering::Relaxed);
        // Room for the header of a skip stays behind every frame: a frame that ended with its chunk would
        // leave the head in a chunk that was never taken.
        if next_chunk(head) - head < ROOM_BYTES + HEADER_BYTES as u64 {
            let chunk = self.shared.free().pop()?;
            // A header always fits: positions are multiples of its length.
            self.write_header(head, SKIP, 0);
            head = next_chunk(head);
            self.shared.chunk_at(head).store(chunk, Ordering::Relaxed);
            self.shared.head.store(head, Ordering::Release);
        }
        let place = self.shared.place(head) + HEADER_BYTES;
        // SAFETY: `ROOM_BYTES` from the head on are inside its chunk, which the consumer reads only up
        // to the head; there is one producer, borrowed for as long as the slice lives.
        Some(unsafe {
            std::slice::from_raw_parts_mut(self.shared.memory.as_mut_ptr().add(place), MAX_FRAME_BYTES)
        })
    }

    /// The room given last now holds a frame of `length` bytes.
    pub(super) fn commit(&mut self, length: usize, stamp: u64) {
        assert!(length <= MAX_FRAME_BYTES, "a frame fits its room");
        let head = self.shared.head.load(Ordering::Relaxed);
        self.write_header(head, length as u32, stamp);
        let taken = taken_bytes(length);
        self.shared.head.store(head + taken, Ordering::Release);
        let ahead = head + ROOM_AHEAD_BYTES;
        if ahead < next_chunk(head) {
            self.shared.fetch(ahead, taken.min(FETCHED_BYTES));
        }
    }

    fn write_header(&mut self, position: u64, length: u32, stamp: u64) {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&length.to_ne_bytes());
        header[8..].copy_from_slice(&stamp.to_ne_bytes());
        let place = self.shared.place(position);
        // SAFETY: a header at a multiple of its length is inside its chunk, and before the head is moved
        // beyond it the consumer does not read it.
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
                let emptied = shared.chunk_at(tail).load(Ordering::Relaxed);
                shared.tail.store(next_chunk(tail), Ordering::Release);
                shared.free().push(emptied);
                continue;
            }
            // SAFETY: as above, for the frame behind its header, which does not leave its chunk.
            let bytes = unsafe {
                std::slice::from_raw_parts(shared.memory.as_ptr().add(place + HEADER_BYTES), length as usize)
            };
            self.shared.fetch_frame(tail + taken_bytes(length as usize));
            return Some(Frame { bytes, stamp });
        }
    }

    /// Takes the frame that [`front`](Self::front) gave, of this length.
    pub(super) fn pop(&mut self, length: usize) {
        let tail = self.shared.tail.load(Ordering::Relaxed);
        let taken = taken_bytes(length);
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
        let (mut producer, mut consumer, watch) = ring(0).unwrap();
        let length = |number: u64| (number * 7919 % 3000) as usize + 14;
        let (mut sent, mut received) = (0, 0);
        while received < 50_000 {
            while sent < received + 1_700 && put(&mut producer, sent, length(sent)) {
                sent += 1;
            }
            for _ in 0..1_500 {
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
        assert!(sent > 2_000, "{sent} frames fit");
        assert_eq!(take(&mut consumer, u64::MAX), Some((0, 1500)));
        for number in 1..sent {
            assert_eq!(take(&mut consumer, u64::MAX), Some((number, 1500)));
        }
        assert!(take(&mut consumer, u64::MAX).is_none() && put(&mut producer, 0, MAX_FRAME_BYTES));
    }

    #[test]
    fn a_frame_that_could_end_with_its_chunk_does_not() {
        let (mut producer, mut consumer, watch) = ring(0).unwrap();
        let rest = CHUNK_BYTES - 15 * ROOM_BYTES;
        let last = rest as usize - HEADER_BYTES;
        // Laps enough for every chunk's place to be stale.
        for lap in 0..3 * LEAST_CHUNKS {
            let lengths = [MAX_FRAME_BYTES; 14].into_iter().chain([last, MAX_FRAME_BYTES, 60, 60]);
            for (number, length) in lengths.enumerate() {
                assert!(put(&mut producer, lap * 100 + number as u64, length));
                assert_ne!(watch.head() % CHUNK_BYTES, 0, "no frame ends a chunk");
            }
            // The next lap begins with a chunk.
            let (mut count, mut taken) = (0, 0);
            while let Some((number, _)) = take(&mut consumer, u64::MAX) {
                assert_eq!(number, lap * 100 + count);
                (count, taken) = (count + 1, number);
            }
            assert_eq!((count, taken), (18, lap * 100 + 17));
            while CHUNK_BYTES - watch.head() % CHUNK_BYTES >= ROOM_BYTES + HEADER_BYTES as u64 {
                assert!(put(&mut producer, 0, MAX_FRAME_BYTES) && take(&mut consumer, u64::MAX).is_some());
            }
        }
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
    fn little_that_is_held_touches_little_memory() {
        let (mut producer, mut consumer, _) = ring(64 << 20).unwrap();
        let mut highest = 0;
        for number in 0..100_000 {
            assert!(put(&mut producer, number, 1500));
            if number >= 1_000 {
                assert!(take(&mut consumer, u64::MAX).is_some());
            }
            highest = highest.max(producer.shared.place(producer.shared.head.load(Ordering::Relaxed)));
        }
        assert!(highest as u64 <= 4 * CHUNK_BYTES, "{highest} for 1.5 MB that are held");
    }
}
