//! The posting side of a connection: cuts, joins and spreads writes over the data queue pairs,
//! and puts markers behind them.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::credits::Ledger;
use super::lane::{Lane, Piece};
use super::registration::Registered;
use super::status::{FLUSHED, WorkId, describe};
use super::verbs::{CompletionQueue, MemoryRegion};
use super::waiting::Waiter;
use super::wire::{MARKER_BYTES, MAX_STREAMS, Span};
use crate::arena::ArenaShape;
use crate::error::{CloseReason, TransportError};
use crate::fabric::{RegionId, Write};
use crate::stream::link::Link;

/// Most registered regions.
const MAX_REGIONS: usize = 65_536;

/// The peer's arena: what may be written, and where and with which key.
pub(super) struct Target {
    shape: ArenaShape,
    /// First offset and span, in order.
    spans: Vec<(u64, Span)>,
}

impl Target {
    pub(super) fn new(spans: &[Span]) -> Self {
        let mut chunks_bytes: Vec<u64> = Vec::new();
        let mut base = 0;
        let mut table = Vec::with_capacity(spans.len());
        for span in spans {
            match chunks_bytes.last_mut() {
                Some(chunk) if !span.begins_chunk => *chunk += span.len_bytes,
                _ => chunks_bytes.push(span.len_bytes),
            }
            table.push((base, *span));
            base += span.len_bytes;
        }
        Target { shape: ArenaShape::new(&chunks_bytes), spans: table }
    }

    /// Address and key of a byte of the arena, and how many bytes of its span follow.
    fn locate(&self, offset: u64) -> (u64, u32, u64) {
        let index = self.spans.partition_point(|(base, _)| *base <= offset) - 1;
        let (base, span) = &self.spans[index];
        let inside = offset - base;
        (span.address + inside, span.key, span.len_bytes - inside)
    }
}

/// A marker that has not left yet: which request of each lane it is.
struct Mark {
    number: u64,
    requests: [u64; MAX_STREAMS],
}

/// What the poster is made of.
pub(super) struct Parts {
    pub lanes: Vec<Lane>,
    pub queue: Arc<CompletionQueue>,
    pub spin: Duration,
    pub target: Target,
    /// Room for the numbers of all markers on their way.
    pub marker_slots: MemoryRegion,
    pub write_bytes_max: u32,
}

pub(super) struct Poster {
    lanes: Vec<Lane>,
    waiter: Waiter,
    target: Target,
    regions: Vec<Arc<Registered>>,
    marker_slots: MemoryRegion,
    write_bytes_max: u32,
    /// The lane of the last write.
    last_lane: usize,
    marks: VecDeque<Mark>,
    marks_max: usize,
    markers: u64,
    last_completed: u64,
}

/// Takes completions off the queue. The first failure is told, the rest are its consequences.
fn reap(queue: &CompletionQueue, lanes: &mut [Lane]) -> io::Result<bool> {
    let mut failure = None;
    let found = queue.poll(|completion| {
        let lane = WorkId::decode(completion.id).map(|id| (usize::from(id.lane), id.number));
        match lane.and_then(|(lane, number)| Some((lanes.get_mut(lane)?, number))) {
            Some((lane, number)) if completion.status == 0 => lane.complete(number),
            _ if completion.status == FLUSHED && failure.is_some() => {}
            _ => {
                failure.get_or_insert_with(|| describe(&completion));
            }
        }
    })?;
    match failure {
        Some(text) => Err(io::Error::other(text)),
        None => Ok(found > 0),
    }
}

impl Poster {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { lanes, queue, spin, target, marker_slots, write_bytes_max } = parts;
        let marks_max = marker_slots.memory().len_bytes() / MARKER_BYTES;
        Poster {
            lanes,
            waiter: Waiter::new(queue, spin),
            target,
            regions: Vec::new(),
            marker_slots,
            write_bytes_max,
            last_lane: 0,
            marks: VecDeque::with_capacity(marks_max),
            marks_max,
            markers: 0,
            last_completed: 0,
        }
    }

    pub(super) fn register(&mut self, region: Arc<Registered>) -> Result<RegionId, TransportError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(TransportError::Invalid(format!("more than {MAX_REGIONS} regions")));
        }
        self.regions.push(region);
        Ok(RegionId(self.regions.len() as u32 - 1))
    }

    /// Looks for completions; an error means that the connection has failed.
    pub(super) fn look(&mut self) -> io::Result<bool> {
        let found = reap(&self.waiter.queue, &mut self.lanes)?;
        while let Some(mark) = self.marks.front() {
            let has_left = |(lane, request): (&Lane, &u64)| lane.completed() >= *request;
            if !self.lanes.iter().zip(&mark.requests).all(has_left) {
                break;
            }
            self.last_completed = mark.number;
            self.marks.pop_front();
        }
        Ok(found)
    }

    /// Waits until something may have changed.
    fn wait(
        &mut self,
        link: &Link,
        ledger: &Ledger,
        deadline: Option<Instant>,
    ) -> Result<(), TransportError> {
        let Self { waiter, lanes, .. } = self;
        let queue = Arc::clone(&waiter.queue);
        let waited = waiter.wait(&[&link.ended, &ledger.marker_room], deadline, || {
            Ok(reap(&queue, lanes)? || link.is_ended())
        });
        waited.map_err(|error| failed(link, &error))?;
        ledger.marker_room.clear();
        self.checked_look(link)
    }

    fn checked_look(&mut self, link: &Link) -> Result<(), TransportError> {
        self.look().map_err(|error| failed(link, &error))?;
        match link.end_reason() {
            Some(reason) => Err(reason.into()),
            None => Ok(()),
        }
    }

    /// Posts writes; says how many bytes.
    pub(super) fn write(
        &mut self,
        link: &Link,
        ledger: &Ledger,
        writes: &[Write],
    ) -> Result<u64, TransportError> {
        for write in writes {
            self.check(write)?;
        }
        let mut posted_bytes = 0u64;
        for write in writes {
            posted_bytes = posted_bytes.saturating_add(write.len_bytes);
            let mut done = 0;
            while done < write.len_bytes {
                let piece = self.piece(write, done);
                self.post(link, ledger, &piece)?;
                done += u64::from(piece.len_bytes);
            }
        }
        self.flush_all(link)?;
        // Keeps the queues short without waiting.
        self.checked_look(link)?;
        Ok(posted_bytes)
    }

    /// Refuses a write that leaves its region or the peer's arena.
    fn check(&self, write: &Write) -> Result<(), TransportError> {
        let Some(region) = self.regions.get(write.region.0 as usize) else {
            return Err(TransportError::Invalid(format!("unknown {:?}", write.region)));
        };
        let end = write.local_offset.checked_add(write.len_bytes);
        if end.is_none_or(|end| end > region.len_bytes()) {
            let len_bytes = region.len_bytes();
            return Err(TransportError::Invalid(format!("{write:?} leaves its region of {len_bytes} bytes")));
        }
        if !self.target.shape.holds(write.remote_offset, write.len_bytes) {
            let what = format!("{write:?} leaves the peer's arena or one chunk of it");
            return Err(TransportError::Invalid(what));
        }
        Ok(())
    }

    /// The piece of a checked write that begins after `done` bytes.
    fn piece(&self, write: &Write, done: u64) -> Piece {
        let region = &self.regions[write.region.0 as usize];
        let (slice, inside, local_bytes) = region.locate(write.local_offset + done);
        let (remote_address, remote_key, remote_bytes) = self.target.locate(write.remote_offset + done);
        let len_bytes =
            (write.len_bytes - done).min(local_bytes).min(remote_bytes).min(u64::from(self.write_bytes_max));
        Piece {
            local_address: slice.address() + inside,
            local_key: slice.local_key(),
            remote_address,
            remote_key,
            len_bytes: len_bytes as u32,
        }
    }

    fn post(&mut self, link: &Link, ledger: &Ledger, piece: &Piece) -> Result<(), TransportError> {
        let most_bytes = self.write_bytes_max;
        if self.lanes[self.last_lane].grow(piece, most_bytes) {
            return Ok(());
        }
        let index = self.lane_with_room(link, ledger)?;
        self.last_lane = index;
        let lane = &mut self.lanes[index];
        let enough = lane.listed_bytes() >= u64::from(most_bytes);
        let flushed = if enough { lane.flush() } else { Ok(()) };
        flushed.and_then(|()| lane.begin(piece)).map_err(|error| failed(link, &posting(error)))
    }

    /// The lane that was given the least, among those that have room.
    fn lane_with_room(&mut self, link: &Link, ledger: &Ledger) -> Result<usize, TransportError> {
        loop {
            let open = self.lanes.iter().enumerate().filter(|(_, lane)| lane.has_room());
            if let Some((index, _)) = open.min_by_key(|(_, lane)| lane.bytes()) {
                return Ok(index);
            }
            self.flush_all(link)?;
            self.checked_look(link)?;
            if !self.lanes.iter().any(Lane::has_room) {
                self.wait(link, ledger, None)?;
            }
        }
    }

    fn flush_all(&mut self, link: &Link) -> Result<(), TransportError> {
        for lane in &mut self.lanes {
            lane.flush().map_err(|error| failed(link, &posting(error)))?;
        }
        Ok(())
    }

    /// Puts a marker last on every lane.
    pub(super) fn mark(&mut self, link: &Link, ledger: &Ledger, marker: u64) -> Result<(), TransportError> {
        if marker == 0 || marker == u64::MAX {
            return Err(TransportError::Invalid(format!("marker {marker} is reserved")));
        }
        self.checked_look(link)?;
        while self.marks.len() >= self.marks_max || !self.lanes.iter().all(Lane::has_room) {
            self.wait(link, ledger, None)?;
        }
        while !ledger.take_marker() {
            self.wait(link, ledger, None)?;
        }
        let offset = (self.markers % self.marks_max as u64) as usize * MARKER_BYTES;
        self.marker_slots.memory().write(offset, &marker.to_le_bytes());
        self.markers += 1;
        let mut requests = [0; MAX_STREAMS];
        for (lane, request) in self.lanes.iter_mut().zip(&mut requests) {
            let posted = lane.mark(&self.marker_slots, offset, MARKER_BYTES);
            posted.map_err(|error| failed(link, &posting(error)))?;
            *request = lane.posted();
        }
        self.marks.push_back(Mark { number: marker, requests });
        Ok(())
    }

    /// Waits until the marker has left, if it is on its way; the last one that has.
    pub(super) fn completed(
        &mut self,
        link: &Link,
        ledger: &Ledger,
        marker: u64,
        deadline: Instant,
    ) -> Result<u64, TransportError> {
        self.look().map_err(|error| failed(link, &error))?;
        while self.marks.iter().any(|mark| mark.number == marker) {
            if let Some(reason) = link.end_reason() {
                return Err(reason.into());
            }
            if Instant::now() >= deadline {
                break;
            }
            self.wait(link, ledger, Some(deadline))?;
        }
        Ok(self.last_completed)
    }
}

fn posting(error: io::Error) -> io::Error {
    io::Error::other(format!("posting on a data queue pair: {error}"))
}

fn failed(link: &Link, error: &io::Error) -> TransportError {
    TransportError::Closed(link.end(CloseReason::Failed(error.to_string())))
}
