//! One-sided writes over TCP.
//!
//! A connection is one control stream and several data streams to one listening port. The
//! receiver has a thread for each data stream that reads from the socket straight to the place
//! in the arena that a frame names; the sender gathers whole frames from registered memory with
//! vectored system calls, in the thread that posts. A marker travels last on each stream, so a
//! fence costs no round trip. The bytes are described in [`wire`].
//!
//! Only the initiator writes and marks; the responder has no arena to write into.
//!
//! Threads of an established connection: `rom-data-N` on the receiving side, `rom-heartbeat` on
//! both; a listener has `rom-accept`.

mod channel;
mod endpoint;
mod receiver;
mod sender;
mod spans;
pub mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use channel::TcpChannel;

use crate::error::TransportError;
use crate::fabric::{Channel, Fabric, Listener};
use crate::stream::StreamConfig;
use crate::stream::acceptor::StreamListener;
pub use crate::stream::{CongestionControl, ThreadHook};

/// The knobs of the tcp fabric.
#[derive(Clone)]
pub struct TcpConfig {
    /// Data streams of a connection, 1 to 16; default 2. The initiator's wish counts. Each costs
    /// the receiver a thread; more than one lets several cores copy.
    pub streams: usize,
    /// Time between two heartbeats, at least 1 ms; default 20 ms. The peer's `silent_after` must be at least
    /// three times as long, or the handshake fails.
    pub heartbeat_every: Duration,
    /// The connection ends as silent when nothing at all was received for this long; default
    /// 1 s. Shorter notices a dead peer sooner, and takes a stalled one for dead.
    pub silent_after: Duration,
    /// How long an accepted connection may take to show its preface; default 2 s.
    pub preface_timeout: Duration,
    /// Accepted connections without a whole preface kept at a time, default 64; beyond that the
    /// oldest is dropped.
    pub strangers_max: usize,
    /// Kernel buffer of each socket and direction in bytes; default `None`: the kernel adapts it
    /// up to its limits, which is best unless those are too low for the path.
    pub socket_buffer_bytes: Option<usize>,
    /// How each socket's kernel decides when to send; default [`CongestionControl::Bursts`].
    pub congestion_control: CongestionControl,
    /// Called at the start of each of the fabric's threads, to pin it to a core; default none.
    pub on_thread_start: Option<ThreadHook>,
}

impl Default for TcpConfig {
    fn default() -> Self {
        TcpConfig {
            streams: 2,
            heartbeat_every: Duration::from_millis(20),
            silent_after: Duration::from_secs(1),
            preface_timeout: Duration::from_secs(2),
            strangers_max: 64,
            socket_buffer_bytes: None,
            congestion_control: CongestionControl::Bursts,
            on_thread_start: None,
        }
    }
}

impl std::fmt::Debug for TcpConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpConfig")
            .field("streams", &self.streams)
            .field("heartbeat_every", &self.heartbeat_every)
            .field("silent_after", &self.silent_after)
            .field("preface_timeout", &self.preface_timeout)
            .field("strangers_max", &self.strangers_max)
            .field("socket_buffer_bytes", &self.socket_buffer_bytes)
            .field("congestion_control", &self.congestion_control)
            .finish_non_exhaustive()
    }
}

impl TcpConfig {
    fn streams(&self) -> usize {
        self.streams.clamp(1, wire::MAX_STREAMS)
    }

    fn stream(&self) -> StreamConfig {
        StreamConfig {
            heartbeat_every: self.heartbeat_every,
            silent_after: self.silent_after,
            preface_timeout: self.preface_timeout,
            strangers_max: self.strangers_max,
            socket_buffer_bytes: self.socket_buffer_bytes,
            congestion_control: self.congestion_control.clone(),
            on_thread_start: self.on_thread_start.clone(),
        }
    }
}

/// Connects and listens over TCP.
#[derive(Clone, Debug, Default)]
pub struct TcpFabric {
    config: TcpConfig,
}

impl TcpFabric {
    /// A fabric with these knobs.
    pub fn new(config: TcpConfig) -> Self {
        TcpFabric { config }
    }
}

impl Fabric for TcpFabric {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn connect(&self, peer: SocketAddr, timeout: Duration) -> Result<Box<dyn Channel>, TransportError> {
        Ok(Box::new(TcpChannel::connect(peer, timeout, self.config.stream(), self.config.streams())?))
    }

    fn listen(&self, address: SocketAddr) -> Result<Box<dyn Listener>, TransportError> {
        let config = self.config.stream();
        let listener = StreamListener::bind(address, wire::MAGIC, &config)?;
        Ok(Box::new(TcpFabricListener { listener, config }))
    }
}

/// Listens on one port.
struct TcpFabricListener {
    listener: StreamListener,
    config: StreamConfig,
}

impl Listener for TcpFabricListener {
    fn accept(&mut self, timeout: Duration) -> Result<Option<Box<dyn Channel>>, TransportError> {
        let Some((socket, peer)) = self.listener.accept(timeout) else { return Ok(None) };
        let acceptor = Arc::clone(self.listener.acceptor());
        let channel = TcpChannel::responder(socket, peer, self.config.clone(), acceptor)?;
        Ok(Some(Box::new(channel)))
    }

    fn local_address(&self) -> SocketAddr {
        self.listener.address()
    }
}
