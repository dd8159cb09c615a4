//! One thread for each data stream: reads from the socket straight into the arena.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::spans::Spans;
use super::wire::{
    DATA_HEADER_BYTES, DESCRIPTOR_BYTES, DataHeader, MAX_DESCRIPTORS, WireError, decode_data_header,
    decode_descriptor,
};
use crate::arena::Arena;
use crate::error::CloseReason;
use crate::stream::fence::{Arrival, Fences};
use crate::stream::link::{Link, reason_of};
use crate::stream::socket::{readable, wait};

/// How often a stream that is too many markers ahead looks whether it may go on.
const RETRY: Duration = Duration::from_millis(1);

/// Why a receiver stops.
enum Stop {
    /// The endpoint is closed.
    Closed,
    /// The stream has ended.
    Lost(CloseReason),
    /// The peer broke the rules.
    Violation(String),
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Self {
        Stop::Violation(error.to_string())
    }
}

/// Receives one data stream.
pub(super) struct Receiver {
    link: Arc<Link>,
    stream: usize,
    arena: Arena,
    fences: Arc<Fences>,
    header: Box<[u8; DATA_HEADER_BYTES]>,
    descriptors: Box<[u8; MAX_DESCRIPTORS * DESCRIPTOR_BYTES]>,
    spans: Spans,
    markers: u64,
}

impl Receiver {
    pub(super) fn new(link: Arc<Link>, stream: usize, arena: Arena, fences: Arc<Fences>) -> Self {
        Receiver {
            link,
            stream,
            arena,
            fences,
            header: Box::new([0; DATA_HEADER_BYTES]),
            descriptors: Box::new([0; MAX_DESCRIPTORS * DESCRIPTOR_BYTES]),
            spans: Spans::with_capacity(MAX_DESCRIPTORS + 1),
            markers: 0,
        }
    }

    /// Receives until the connection ends.
    pub(super) fn run(mut self) {
        match self.receive_frames() {
            Ok(never) => match never {},
            Err(Stop::Closed) => {}
            Err(Stop::Lost(reason)) => self.link.lose(reason),
            Err(Stop::Violation(what)) => {
                self.link.end(CloseReason::Violation(format!("data stream {}: {what}", self.stream)));
            }
        }
        self.link.receiver_finished();
    }

    fn receive_frames(&mut self) -> Result<std::convert::Infallible, Stop> {
        self.spans.clear();
        self.expect_header();
        self.receive()?;
        loop {
            match decode_data_header(&self.header[..])? {
                DataHeader::Marker { marker } => {
                    self.announce(marker)?;
                    self.spans.clear();
                }
                DataHeader::Writes { count, payload_bytes } => {
                    self.receive_descriptors(count)?;
                    self.expect_payload(count, payload_bytes)?;
                }
            }
            // The next header comes with the payload before it, in the same system call.
            self.expect_header();
            self.receive()?;
        }
    }

    fn expect_header(&mut self) {
        // SAFETY: the boxed header lives as long as `self` and is looked at only after
        // `receive` has filled it.
        unsafe { self.spans.push(self.header.as_mut_ptr(), DATA_HEADER_BYTES) }
    }

    fn receive_descriptors(&mut self, count: usize) -> Result<(), Stop> {
        self.spans.clear();
        // SAFETY: `count` is at most MAX_DESCRIPTORS by the header's decoder; the boxed array
        // lives as long as `self` and is looked at only after `receive` has filled it.
        unsafe { self.spans.push(self.descriptors.as_mut_ptr(), count * DESCRIPTOR_BYTES) }
        self.receive()
    }

    /// Lists the places of a frame's payload; all are checked before the first byte is placed.
    fn expect_payload(&mut self, count: usize, payload_bytes: u64) -> Result<(), Stop> {
        self.spans.clear();
        let mut sum_bytes = 0u64;
        for bytes in self.descriptors[..count * DESCRIPTOR_BYTES].chunks_exact(DESCRIPTOR_BYTES) {
            let write = decode_descriptor(bytes)?;
            let len_bytes = u64::from(write.len_bytes);
            sum_bytes += len_bytes;
            let Some((memory, offset)) = self.arena.locate(write.offset, len_bytes) else {
                let Self { arena, .. } = self;
                let what =
                    format!("{write:?} leaves the arena of {} bytes or a chunk of it", arena.len_bytes());
                return Err(Stop::Violation(what));
            };
            let len_bytes = write.len_bytes as usize;
            // SAFETY: `arena` keeps its memory mapped and writable as long as `self` lives, and
            // no Rust reference into it exists.
            unsafe { self.spans.push(memory.pointer(offset, len_bytes), len_bytes) }
        }
        if sum_bytes != payload_bytes {
            return Err(Stop::Violation(format!("writes of {sum_bytes} bytes, announced {payload_bytes}")));
        }
        Ok(())
    }

    /// Fills all spans.
    fn receive(&mut self) -> Result<(), Stop> {
        let socket = &self.link.data[self.stream];
        while !self.spans.is_empty() {
            let received = self.spans.receive(socket.as_fd());
            if self.link.is_closed() {
                return Err(Stop::Closed);
            }
            match received {
                Ok(0) => {
                    let what = format!("data stream {} has ended", self.stream);
                    return Err(Stop::Lost(CloseReason::Peer(what)));
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let what = format!("receiving on data stream {}", self.stream);
                    return Err(Stop::Lost(reason_of(&error, &what)));
                }
            }
        }
        Ok(())
    }

    /// Brings a marker to the fences.
    fn announce(&mut self, marker: u64) -> Result<(), Stop> {
        loop {
            match self.fences.arrive(self.markers, marker) {
                Arrival::Counted => break,
                Arrival::Complete => {
                    self.link.wake.raise();
                    break;
                }
                Arrival::Disagrees => {
                    return Err(Stop::Violation(format!("marker {marker} is another on another stream")));
                }
                Arrival::Full => self.wait_for_fences()?,
            }
        }
        self.markers += 1;
        Ok(())
    }

    /// Many fences are untaken: lets the socket fill until one is.
    fn wait_for_fences(&self) -> Result<(), Stop> {
        let retry = Some(Instant::now() + RETRY);
        if self.link.end_reason().is_none() {
            let _ = wait(&mut [readable(&self.link.ended)], retry);
        } else {
            let _ = wait(&mut [], retry);
        }
        if self.link.is_closed() { Err(Stop::Closed) } else { Ok(()) }
    }
}
