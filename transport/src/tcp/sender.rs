//! Posts one-sided writes and markers: gathers headers and payload straight from registered memory into
//! the sockets, spread over the data streams as they take it.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;

use super::spans::Spans;
use super::wire::{
    DATA_HEADER_BYTES, DESCRIPTOR_BYTES, DataHeader, Descriptor, MAX_DESCRIPTORS, MAX_STREAMS,
    encode_data_header, encode_descriptor,
};
use crate::arena::ArenaShape;
use crate::error::TransportError;
use crate::fabric::{RegionId, Write};
use crate::memory::Memory;
use crate::stream::control::is_passing;
use crate::stream::link::{Link, reason_of};
use crate::stream::socket::{readable, wait, writable};

/// Payload of a frame in bytes, at most. Large: each system call wakes the receiver, and the
/// more it finds the cheaper it is.
const FRAME_BYTES_MAX: u64 = 4 << 20;
/// Payload of a frame in bytes, at least while there is more: towards the end of a call frames
/// become smaller, so that the streams finish together.
const FRAME_BYTES_MIN: u64 = 1 << 20;
/// Header and descriptors of a frame in bytes, at most.
const HEAD_BYTES: usize = DATA_HEADER_BYTES + MAX_DESCRIPTORS * DESCRIPTOR_BYTES;
/// Most registered regions.
const MAX_REGIONS: usize = 65_536;

/// What is left of the writes of one call.
struct Rest<'a> {
    writes: &'a [Write],
    /// Bytes of the first one that are posted already.
    done_bytes: u64,
    /// Bytes not posted yet.
    left_bytes: u64,
}

impl Rest<'_> {
    /// Takes a contiguous piece of at most `limit_bytes`: region, local offset, remote offset,
    /// length.
    fn take(&mut self, limit_bytes: u64) -> Option<(RegionId, u64, u64, u64)> {
        let (first, later) = self.writes.split_first()?;
        let len_bytes = (first.len_bytes - self.done_bytes).min(limit_bytes);
        let piece = (
            first.region,
            first.local_offset + self.done_bytes,
            first.remote_offset + self.done_bytes,
            len_bytes,
        );
        self.done_bytes += len_bytes;
        self.left_bytes = self.left_bytes.saturating_sub(len_bytes);
        if self.done_bytes == first.len_bytes {
            self.writes = later;
            self.done_bytes = 0;
        }
        Some(piece)
    }
}

/// The frame that a stream is sending, or a marker, or both.
struct Lane {
    head: Box<[u8; HEAD_BYTES]>,
    marker: Box<[u8; DATA_HEADER_BYTES]>,
    spans: Spans,
    /// The marker of the present call is sent, or in `spans`.
    is_marked: bool,
    /// What is left of a frame whose memory may change; empty otherwise.
    kept: Vec<u8>,
}

impl Lane {
    fn new() -> Self {
        Lane {
            head: Box::new([0; HEAD_BYTES]),
            marker: Box::new([0; DATA_HEADER_BYTES]),
            spans: Spans::with_capacity(MAX_DESCRIPTORS + 2),
            is_marked: false,
            // Room for whatever `write_now` may leave: a whole frame. Untouched it costs nothing.
            kept: Vec::with_capacity(FRAME_BYTES_MIN as usize + HEAD_BYTES),
        }
    }

    /// What is not sent yet is sent from a copy: the memory it comes from may change.
    fn keep(&mut self) {
        self.kept.clear();
        self.spans.copy_to(&mut self.kept);
        self.spans.clear();
        // SAFETY: the copy lives as long as `self`, and does not change before it is sent: the next
        // is made when the lane is empty.
        unsafe { self.spans.push(self.kept.as_mut_ptr(), self.kept.len()) }
    }

    /// Makes the next frame; false when nothing is left to send.
    fn fill(&mut self, rest: &mut Rest<'_>, regions: &[Memory], streams: u64) -> bool {
        let frame_bytes = (rest.left_bytes / (2 * streams)).clamp(FRAME_BYTES_MIN, FRAME_BYTES_MAX);
        self.spans.clear();
        // SAFETY: an empty span; the head takes its place below, when it is written.
        unsafe { self.spans.push(self.head.as_mut_ptr(), 0) }
        let (mut count, mut payload_bytes) = (0, 0);
        while count < MAX_DESCRIPTORS && payload_bytes < frame_bytes {
            let Some((region, local, remote, len_bytes)) = rest.take(frame_bytes - payload_bytes) else {
                break;
            };
            if len_bytes == 0 {
                continue;
            }
            let descriptor = Descriptor { offset: remote, len_bytes: len_bytes as u32 };
            let at = DATA_HEADER_BYTES + count * DESCRIPTOR_BYTES;
            self.head[at..at + DESCRIPTOR_BYTES].copy_from_slice(&encode_descriptor(&descriptor));
            let pointer = regions[region.0 as usize].pointer(local as usize, len_bytes as usize);
            // SAFETY: the region stays registered, and so mapped, as long as the poster lives.
            unsafe { self.spans.push(pointer, len_bytes as usize) }
            count += 1;
            payload_bytes += len_bytes;
        }
        if count == 0 {
            self.spans.clear();
            return false;
        }
        self.head[..DATA_HEADER_BYTES]
            .copy_from_slice(&encode_data_header(&DataHeader::Writes { count, payload_bytes }));
        let head_bytes = DATA_HEADER_BYTES + count * DESCRIPTOR_BYTES;
        // SAFETY: the boxed head has room for MAX_DESCRIPTORS descriptors, lives as long as
        // `self` and does not change until it is sent.
        unsafe { self.spans.replace_first(self.head.as_mut_ptr(), head_bytes) }
        true
    }

    /// Puts the call's marker behind the frame, if there is one: both leave in one system call, and
    /// wake the receiver once.
    fn append_marker(&mut self, marker: u64) {
        *self.marker = encode_data_header(&DataHeader::Marker { marker });
        // SAFETY: the boxed marker lives as long as `self`, and changes only with the next call, which
        // begins when all spans of this one are sent.
        unsafe { self.spans.push(self.marker.as_mut_ptr(), DATA_HEADER_BYTES) }
        self.is_marked = true;
    }

    /// Sends what fits; false when nothing does.
    fn push(&mut self, socket: &TcpStream) -> io::Result<bool> {
        match self.spans.send(socket.as_fd()) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) if is_passing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The posting side of a connection.
pub(super) struct Poster {
    regions: Vec<Memory>,
    arena: ArenaShape,
    lanes: Vec<Lane>,
    /// Where the next call starts, so that small loads use the streams in turn.
    next_lane: usize,
    last_marker: u64,
}

impl Poster {
    pub(super) fn new(streams: usize, arena: ArenaShape) -> Self {
        Poster {
            regions: Vec::new(),
            arena,
            lanes: (0..streams).map(|_| Lane::new()).collect(),
            next_lane: 0,
            last_marker: 0,
        }
    }

    pub(super) fn register(&mut self, memory: Memory) -> Result<RegionId, TransportError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(TransportError::Invalid(format!("more than {MAX_REGIONS} regions")));
        }
        self.regions.push(memory);
        Ok(RegionId(self.regions.len() as u32 - 1))
    }

    pub(super) fn last_marker(&self) -> u64 {
        self.last_marker
    }

    /// Sends writes and, on every stream, the marker behind them; returns when the kernel has copied
    /// all of it, and says how many bytes were written.
    pub(super) fn post(
        &mut self,
        link: &Link,
        writes: &[Write],
        marker: Option<u64>,
    ) -> Result<u64, TransportError> {
        for write in writes {
            self.check(write)?;
        }
        if let Some(marker) = marker {
            self.check_marker(marker)?;
            self.last_marker = marker;
        }
        let posted_bytes = writes.iter().fold(0u64, |sum, write| sum.saturating_add(write.len_bytes));
        let mut rest = Rest { writes, done_bytes: 0, left_bytes: posted_bytes };
        let streams = self.lanes.len() as u64;
        self.lanes.iter_mut().for_each(|lane| lane.is_marked = marker.is_none());
        loop {
            let mut progress = false;
            for turn in 0..self.lanes.len() {
                let index = (self.next_lane + turn) % self.lanes.len();
                let lane = &mut self.lanes[index];
                if lane.spans.is_empty() {
                    let is_filled = lane.fill(&mut rest, &self.regions, streams);
                    match marker {
                        Some(marker) if rest.writes.is_empty() && !lane.is_marked => {
                            lane.append_marker(marker)
                        }
                        _ if is_filled => {}
                        _ => continue,
                    }
                }
                progress |= push(lane, link, index)?;
            }
            let is_sent = |lane: &Lane| lane.is_marked && lane.spans.is_empty();
            if rest.writes.is_empty() && self.lanes.iter().all(is_sent) {
                break;
            }
            if !progress {
                self.wait_for_room(link)?;
            }
        }
        if !writes.is_empty() {
            self.next_lane = (self.next_lane + 1) % self.lanes.len().max(1);
        }
        Ok(posted_bytes)
    }

    /// Sends writes as far as the sockets take them now, whole ones only; returns how many and how
    /// many bytes. What is left of a frame that was begun is copied.
    pub(super) fn write_now(
        &mut self,
        link: &Link,
        writes: &[Write],
    ) -> Result<(usize, u64), TransportError> {
        for write in writes {
            self.check(write)?;
        }
        let streams = self.lanes.len();
        let (mut taken, mut taken_bytes) = (0, 0);
        let mut full = 0;
        while full < streams {
            let (count, bytes) = one_frame(&writes[taken..]);
            if count == 0 {
                break;
            }
            let index = self.next_lane;
            self.next_lane = (index + 1) % streams;
            let lane = &mut self.lanes[index];
            if !lane.spans.is_empty() {
                push(lane, link, index)?;
            }
            if lane.spans.is_empty() && self.begin_frame(link, index, &writes[taken..taken + count], bytes)? {
                (taken, taken_bytes) = (taken + count, taken_bytes + bytes);
                full = 0;
            } else {
                full += 1;
            }
        }
        Ok((taken, taken_bytes))
    }

    /// Makes one frame of the writes and sends what fits, the rest from a copy; false when nothing
    /// of it fits.
    fn begin_frame(
        &mut self,
        link: &Link,
        index: usize,
        writes: &[Write],
        bytes: u64,
    ) -> Result<bool, TransportError> {
        let lane = &mut self.lanes[index];
        let mut rest = Rest { writes, done_bytes: 0, left_bytes: bytes };
        if !lane.fill(&mut rest, &self.regions, 1) {
            return Ok(true);
        }
        debug_assert!(rest.left_bytes == 0, "the frame was measured by `one_frame`");
        let whole = lane.spans.len_bytes();
        while !lane.spans.is_empty() && push(lane, link, index)? {}
        if lane.spans.len_bytes() == whole {
            lane.spans.clear();
            return Ok(false);
        }
        if !lane.spans.is_empty() {
            lane.keep();
        }
        Ok(true)
    }

    fn check_marker(&self, marker: u64) -> Result<(), TransportError> {
        if self.lanes.is_empty() {
            return Err(TransportError::Invalid("only the initiator marks".into()));
        }
        if marker == 0 || marker == u64::MAX {
            return Err(TransportError::Invalid(format!("marker {marker} is reserved")));
        }
        Ok(())
    }

    /// Refuses a write that leaves its region or the peer's arena.
    fn check(&self, write: &Write) -> Result<(), TransportError> {
        let Some(region) = self.regions.get(write.region.0 as usize) else {
            return Err(TransportError::Invalid(format!("unknown {:?}", write.region)));
        };
        let end = write.local_offset.checked_add(write.len_bytes);
        if end.is_none_or(|end| end > region.len_bytes() as u64) {
            return Err(TransportError::Invalid(format!("{write:?} leaves its region of {region:?}")));
        }
        if !self.arena.holds(write.remote_offset, write.len_bytes) {
            let what = format!("{write:?} leaves the peer's arena or one chunk of it");
            return Err(TransportError::Invalid(what));
        }
        Ok(())
    }

    /// All streams are full: waits until one is not, or the connection has ended.
    fn wait_for_room(&self, link: &Link) -> Result<(), TransportError> {
        let mut fds = [const { None }; MAX_STREAMS + 1];
        fds[0] = Some(readable(&link.ended));
        let busy = self.lanes.iter().zip(&link.data).filter(|(lane, _)| !lane.spans.is_empty());
        let mut used = 1;
        for (_, socket) in busy {
            fds[used] = Some(writable(socket));
            used += 1;
        }
        let mut fds = fds.map(|fd| fd.unwrap_or_else(|| readable(&link.ended)));
        wait(&mut fds[..used], None)
            .map_err(|source| TransportError::Io { what: "waiting for room".into(), source })?;
        match link.end_reason() {
            Some(reason) => Err(reason.into()),
            None => Ok(()),
        }
    }
}

/// How many of the first writes go into one frame of [`Poster::write_now`], and their bytes.
fn one_frame(writes: &[Write]) -> (usize, u64) {
    let (mut count, mut bytes) = (0, 0u64);
    for write in writes.iter().take(MAX_DESCRIPTORS) {
        match bytes.checked_add(write.len_bytes) {
            Some(sum) if sum <= FRAME_BYTES_MIN => (count, bytes) = (count + 1, sum),
            _ => break,
        }
    }
    (count, bytes)
}

fn push(lane: &mut Lane, link: &Link, stream: usize) -> Result<bool, TransportError> {
    lane.push(&link.data[stream]).map_err(|error| {
        let reason = reason_of(&error, &format!("sending on data stream {stream}"));
        TransportError::Closed(link.end(reason))
    })
}
