//! The way of one card's packets: from the inlet into the ring, from the ring to the outlet.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;
use romulus_checkpoint::GateMark;

use super::link::Mac;
use super::lock;
use super::ring::{Consumer, MAX_FRAME_BYTES, Producer, Watch};
use super::tap::{Tap, VNET_HEADER_BYTES};

/// Frames moved before the other direction, and the other cards, get their turn.
pub(super) const BATCH: usize = 256;
/// Marks kept apart; more share the newest, and so leave later.
const MARKS: usize = 1024;
/// Where a frame's source address lies.
const SOURCE: std::ops::Range<usize> = VNET_HEADER_BYTES + 6..VNET_HEADER_BYTES + 12;

/// What stopped a read or write of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// Nothing more there.
    Done,
    /// The batch was full.
    Batch,
    /// No room: in the ring, or in the outlet.
    Full,
    /// The tap is gone.
    Broken,
}

/// Marks in the stream of packets.
#[derive(Debug)]
struct Marks {
    /// Each mark with the ring's position at that time.
    positions: VecDeque<(GateMark, u64)>,
}

/// One card's packets.
pub(super) struct Nic {
    reader: Mutex<Producer>,
    watch: Watch,
    marks: Mutex<Marks>,
    /// Position in the ring up to which packets may leave.
    limit: AtomicU64,
    /// All packets may leave.
    passing: AtomicBool,
    /// A tap of the gate is gone: nothing passes any more. Said once.
    broken: AtomicBool,
    inlet_mac: Mac,
    bound_bytes: u64,
    began: Instant,
    pub(super) counts: Counts,
    held_us: Mutex<Histogram<u64>>,
}

/// What passed, from the beginning.
#[derive(Debug, Default)]
pub(super) struct Counts {
    in_packets: AtomicU64,
    in_bytes: AtomicU64,
    out_packets: AtomicU64,
    out_bytes: AtomicU64,
    /// How often the bound was reached.
    bound_hits: AtomicU64,
    above_bound: AtomicBool,
    /// How often packets had to wait in the kernel since the ring was full.
    ring_full: AtomicU64,
    /// Packets that the bridge's side refused.
    refused: AtomicU64,
}

/// A snapshot of [`Counts`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Level {
    pub(super) held_packets: u64,
    pub(super) held_bytes: u64,
    pub(super) in_packets: u64,
    pub(super) out_packets: u64,
    pub(super) out_bytes: u64,
    pub(super) bound_hits: u64,
    pub(super) ring_full: u64,
    pub(super) refused: u64,
}

impl Nic {
    pub(super) fn new(producer: Producer, watch: Watch, inlet_mac: Mac, bound_bytes: u64) -> Self {
        Self {
            reader: Mutex::new(producer),
            watch,
            marks: Mutex::new(Marks { positions: VecDeque::with_capacity(MARKS) }),
            limit: AtomicU64::new(0),
            passing: AtomicBool::new(true),
            broken: AtomicBool::new(false),
            inlet_mac,
            bound_bytes,
            began: Instant::now(),
            counts: Counts::default(),
            held_us: Mutex::new(super::status::time_histogram()),
        }
    }

    /// Reads up to `most` frames from the inlet.
    pub(super) fn fill(&self, inlet: &Tap, most: usize) -> Stopped {
        let mut reader = lock(&self.reader);
        self.fill_locked(&mut reader, inlet, most)
    }

    fn fill_locked(&self, reader: &mut Producer, inlet: &Tap, most: usize) -> Stopped {
        let now = self.began.elapsed().as_micros() as u64;
        let (mut packets, mut bytes) = (0, 0);
        let mut stopped = Stopped::Batch;
        for _ in 0..most {
            let Some(room) = reader.room() else {
                self.counts.ring_full.fetch_add(1, Ordering::Relaxed);
                stopped = Stopped::Full;
                break;
            };
            let length = match inlet.read(room) {
                Ok(Some(length)) => length,
                Ok(None) => {
                    stopped = Stopped::Done;
                    break;
                }
                // A frame that the kernel cannot describe in a virtio header is lost, and no other.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    if self.counts.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                        tracing::warn!(%error, inlet = inlet.name(), "a packet could not be read");
                    }
                    continue;
                }
                Err(error) => {
                    stopped = self.note_broken(inlet, "inlet cannot be read", &error);
                    break;
                }
            };
            // What this host itself sends on the inlet, if anything, is not the guest's.
            if room[..length].get(SOURCE) == Some(&self.inlet_mac[..]) {
                continue;
            }
            reader.commit(length.min(MAX_FRAME_BYTES), now);
            packets += 1;
            bytes += length as u64;
        }
        if packets > 0 {
            self.counts.in_packets.fetch_add(packets, Ordering::Relaxed);
            self.counts.in_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.look_at_bound();
        }
        stopped
    }

    fn note_broken(&self, tap: &Tap, what: &str, error: &std::io::Error) -> Stopped {
        if !self.broken.swap(true, Ordering::SeqCst) {
            tracing::error!(%error, tap = tap.name(), "the gate's {what}");
        }
        Stopped::Broken
    }

    fn look_at_bound(&self) {
        let above = self.level().held_bytes >= self.bound_bytes;
        if self.counts.above_bound.swap(above, Ordering::Relaxed) != above && above {
            self.counts.bound_hits.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes up to `most` frames that may leave to the outlet; also tells how many.
    pub(super) fn empty(&self, consumer: &mut Consumer, outlet: &Tap, most: usize) -> (Stopped, u64) {
        let limit = self.may_leave();
        let now = self.began.elapsed().as_micros() as u64;
        let mut held = None;
        let (mut packets, mut bytes) = (0, 0);
        let mut stopped = Stopped::Batch;
        for _ in 0..most {
            let Some(frame) = consumer.front(limit) else {
                stopped = Stopped::Done;
                break;
            };
            let length = frame.bytes.len();
            match outlet.write(frame.bytes) {
                Ok(true) => {}
                Ok(false) => {
                    stopped = Stopped::Full;
                    break;
                }
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
                    stopped = self.note_broken(outlet, "outlet cannot be written", &error);
                    break;
                }
                Err(error) => {
                    if self.counts.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                        tracing::warn!(%error, outlet = outlet.name(), "a packet could not be released");
                    }
                }
            }
            // Locked once a batch, and only by this thread and snapshots.
            let histogram = held.get_or_insert_with(|| lock(&self.held_us));
            histogram.saturating_record(now.saturating_sub(frame.stamp));
            consumer.pop(length);
            packets += 1;
            bytes += length as u64;
        }
        drop(held);
        self.counts.out_packets.fetch_add(packets, Ordering::Relaxed);
        self.counts.out_bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.counts.above_bound.load(Ordering::Relaxed) {
            self.look_at_bound();
        }
        (stopped, packets)
    }

    /// Up to where packets may leave. The head is read before it is asked whether all may pass: what
    /// was read after a later [`hold`](Self::hold) is then surely not covered.
    fn may_leave(&self) -> u64 {
        let head = self.watch.head();
        if self.passing.load(Ordering::SeqCst) { head } else { self.limit.load(Ordering::SeqCst) }
    }

    /// From now on what is read is held until its mark is released.
    pub(super) fn hold(&self) {
        let reader = lock(&self.reader);
        lock(&self.marks).positions.clear();
        self.limit.fetch_max(self.watch.head(), Ordering::SeqCst);
        self.passing.store(false, Ordering::SeqCst);
        drop(reader);
    }

    /// Everything that the guest, which stands still, has sent so far belongs to `mark`. What the
    /// ring has no room for counts as sent later: it leaves later. `false`: the gate's taps are gone, and
    /// with them the way of its packets.
    pub(super) fn mark(&self, inlet: &Tap, mark: GateMark) -> bool {
        let mut reader = lock(&self.reader);
        // All that is queued; more than a queue's length can only be what this host sends.
        self.fill_locked(&mut reader, inlet, 2 * super::plumbing::INLET_QUEUE_PACKETS as usize);
        let position = self.watch.head();
        let positions = &mut lock(&self.marks).positions;
        if positions.len() == MARKS {
            positions.pop_back();
        }
        positions.push_back((mark, position));
        !self.broken.load(Ordering::SeqCst)
    }

    /// Lets everything up to a mark leave.
    pub(super) fn release(&self, through: GateMark) {
        let positions = &mut lock(&self.marks).positions;
        let mut limit = None;
        while positions.front().is_some_and(|(mark, _)| *mark <= through) {
            limit = positions.pop_front().map(|(_, position)| position);
        }
        if let Some(limit) = limit {
            self.limit.fetch_max(limit, Ordering::SeqCst);
        }
    }

    /// Lets everything leave, now and until [`hold`](Self::hold).
    pub(super) fn pass(&self) {
        self.passing.store(true, Ordering::SeqCst);
    }

    /// Whether everything that may leave has left.
    pub(super) fn has_released(&self) -> bool {
        self.watch.tail() >= self.may_leave()
    }

    pub(super) fn level(&self) -> Level {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.counts;
        // Out before in: what is counted between the two reads makes the level larger, not negative.
        let (out_packets, out_bytes) = (load(&counts.out_packets), load(&counts.out_bytes));
        let in_packets = load(&counts.in_packets);
        Level {
            held_packets: in_packets.saturating_sub(out_packets),
            in_packets,
            held_bytes: load(&counts.in_bytes).saturating_sub(out_bytes),
            out_packets,
            out_bytes,
            bound_hits: load(&counts.bound_hits),
            ring_full: load(&counts.ring_full),
            refused: load(&counts.refused),
        }
    }

    /// How long packets were held, in microseconds.
    pub(super) fn held_us(&self) -> Histogram<u64> {
        lock(&self.held_us).clone()
    }

    pub(super) fn bound_bytes(&self) -> u64 {
        self.bound_bytes
    }
}
