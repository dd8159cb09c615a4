//! The seam that every fabric implements: connect, shake hands, then write one-sidedly.
//!
//! A connection begins as a [`Channel`] that only carries messages. The layer above shakes hands
//! over it; the fabric's own parameters (ports, keys, queue pairs) ride along as opaque bytes,
//! so that only a peer that passed the handshake learns a key. [`Channel::establish`] turns it
//! into an [`Endpoint`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::arena::Arena;
use crate::error::{CloseReason, TransportError};
use crate::memory::Memory;

/// Longest message over an [`Endpoint`], in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4096;
/// Longest message over a [`Channel`], in bytes.
pub const MAX_HANDSHAKE_BYTES: usize = 64 * 1024;

/// A kind of network: makes and accepts connections.
pub trait Fabric: Send + Sync {
    /// The name used in options and reports: `tcp`, `rdma`, `sim`.
    fn name(&self) -> &'static str;
    /// Opens a channel to a listening peer.
    fn connect(&self, peer: SocketAddr, timeout: Duration) -> Result<Box<dyn Channel>, TransportError>;
    /// Listens for peers.
    fn listen(&self, address: SocketAddr) -> Result<Box<dyn Listener>, TransportError>;
}

/// Accepts channels. Garbage, half-open and slow strangers cost bounded memory and never block
/// the acceptance of others.
pub trait Listener: Send {
    /// The next channel, or `None` after `timeout`.
    fn accept(&mut self, timeout: Duration) -> Result<Option<Box<dyn Channel>>, TransportError>;
    /// The address bound, with the real port where 0 was asked.
    fn local_address(&self) -> SocketAddr;
}

/// A connection in its handshake: ordered messages of at most [`MAX_HANDSHAKE_BYTES`].
pub trait Channel: Send {
    /// Who is at the other end, for logs.
    fn peer(&self) -> SocketAddr;
    /// Sends one message.
    fn send(&mut self, message: &[u8]) -> Result<(), TransportError>;
    /// Receives one message.
    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, TransportError>;
    /// Initiator: this fabric's parameters for the peer, to travel inside the first message.
    fn offer(&mut self) -> Result<Vec<u8>, TransportError>;
    /// Responder: exposes `arena` to this one connection and returns the parameters for the
    /// initiator. Keys are new for each connection.
    fn answer(&mut self, offer: &[u8], arena: Arena) -> Result<Vec<u8>, TransportError>;
    /// Finishes. The initiator passes the responder's answer; the responder passes `None`.
    fn establish(
        self: Box<Self>,
        answer: Option<&[u8]>,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, TransportError>;
}

/// Names memory registered with [`Endpoint::register`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegionId(pub u32);

/// One one-sided write: bytes of a registered region to an offset of the peer's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// The registered region to read from.
    pub region: RegionId,
    /// First byte in the region.
    pub local_offset: u64,
    /// First byte in the peer's arena.
    pub remote_offset: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// What [`Endpoint::next_event`] saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message is in the buffer that was passed.
    Message,
    /// The peer's marker has arrived on **every** data stream: every write that the peer posted
    /// before it is placed, and visible to this CPU. Markers come in the order posted.
    Fenced {
        /// The marker's number.
        marker: u64,
    },
    /// Nothing happened in the time given.
    Idle,
    /// The connection has ended; every later call gives the same.
    Closed(CloseReason),
}

/// Room for one received message; reused, so that receiving does not allocate.
#[derive(Debug)]
pub struct MessageBuffer {
    bytes: Box<[u8; MAX_MESSAGE_BYTES]>,
    len_bytes: usize,
}

impl Default for MessageBuffer {
    fn default() -> Self {
        Self { bytes: Box::new([0; MAX_MESSAGE_BYTES]), len_bytes: 0 }
    }
}

impl MessageBuffer {
    /// The message received last.
    pub fn message(&self) -> &[u8] {
        &self.bytes[..self.len_bytes]
    }

    /// For fabrics: the whole room.
    pub fn room(&mut self) -> &mut [u8; MAX_MESSAGE_BYTES] {
        &mut self.bytes
    }

    /// For fabrics: says how much of the room the message fills.
    pub fn set_len_bytes(&mut self, len_bytes: usize) {
        assert!(len_bytes <= MAX_MESSAGE_BYTES);
        self.len_bytes = len_bytes;
    }
}

/// An established connection.
///
/// Threads: at most one thread posts ([`write`](Self::write), [`mark`](Self::mark),
/// [`write_and_mark`](Self::write_and_mark), [`completed`](Self::completed)), at most one beside it
/// calls [`write_now`](Self::write_now), at most one waits in [`next_event`](Self::next_event), any
/// may [`send`](Self::send) and [`close`](Self::close). None of the calls allocates in steady
/// state.
///
/// Order: writes of one marker and the next may be placed in any order among each other; a
/// marker comes after all writes posted before it. Messages keep their order among themselves
/// and have none against writes and markers.
pub trait Endpoint: Send + Sync {
    /// Makes local memory readable for writes, for the life of the endpoint.
    fn register(&self, memory: Memory) -> Result<RegionId, TransportError>;
    /// Posts one-sided writes. Returns once they are queued; the memory must stay unchanged
    /// until [`completed`](Self::completed) has reached the next marker. A write that leaves the
    /// local region or the peer's arena is refused before anything is posted.
    fn write(&self, writes: &[Write]) -> Result<(), TransportError>;
    /// Posts the first of `writes`, as many as leave local memory at once without waiting for the
    /// peer, and says how many: their memory may change as soon as this returns, and the next
    /// marker comes after them. None is always a right answer, and the only one of a fabric that
    /// reads local memory later; none while another thread posts. Refuses as `write` does.
    fn write_now(&self, writes: &[Write]) -> Result<usize, TransportError> {
        let _ = writes;
        Ok(0)
    }
    /// Puts a marker last on every data stream. The number is the caller's and need not grow;
    /// one that is still on its way (see [`completed`](Self::completed)) may be refused, 0
    /// and `u64::MAX` are.
    fn mark(&self, marker: u64) -> Result<(), TransportError>;
    /// [`write`](Self::write) and then [`mark`](Self::mark), in fewer steps where the fabric can.
    /// Refused as either is; what was written before a refused marker waits for the next.
    fn write_and_mark(&self, writes: &[Write], marker: u64) -> Result<(), TransportError> {
        self.write(writes)?;
        self.mark(marker)
    }
    /// The last marker, in the order posted, before which all writes have left local memory (0:
    /// none has); waits up to `timeout` until `marker`, posted before, is that one or an earlier
    /// one.
    fn completed(&self, marker: u64, timeout: Duration) -> Result<u64, TransportError>;
    /// Sends a message of at most [`MAX_MESSAGE_BYTES`].
    fn send(&self, message: &[u8]) -> Result<(), TransportError>;
    /// Waits up to `timeout` for what comes next. Events received before the end of the
    /// connection come before [`Event::Closed`].
    fn next_event(&self, message: &mut MessageBuffer, timeout: Duration) -> Result<Event, TransportError>;
    /// Ends the connection for good. When this returns, nothing the peer sent or still sends can
    /// change the arena, and all threads that could have are joined. Idempotent; wakes waiters.
    fn close(&self);
    /// Bytes written one-sidedly so far.
    fn bytes_written(&self) -> u64;
    /// Number of data streams.
    fn streams(&self) -> usize;
}
