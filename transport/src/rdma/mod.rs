//! One-sided writes over RDMA: any device with verbs, soft-RoCE included.
//!
//! A connection is a TCP control connection and several reliable connected queue pairs: one for
//! messages, the others for data. The handshake's offer and answer carry their numbers, and the
//! keys of the arena; only a peer that passed the handshake learns them. The initiator's device
//! reads registered memory and writes into the peer's arena; the responder's CPU does nothing for
//! it. A marker is a send that consumes a receive, last on **every** data queue pair: when all of
//! them have arrived, everything before them is visible. The bytes are described in [`wire`].
//!
//! No receive ever runs short: a side sends only what the peer has said it has room for. What
//! was taken is told on the control connection, off the hot path, together with the life signs.
//!
//! Waiting spins for a configured time, then blocks in `poll` on a completion channel.
//!
//! Threads of an established connection: `rom-heartbeat` on both sides; a listener has
//! `rom-accept`. Writes, markers, messages and completions are handled in the calling threads.

#[cfg(feature = "rdma")]
mod choice;
#[cfg(all(test, feature = "rdma"))]
mod choice_tests;
pub mod devices;
pub mod wire;

#[cfg(feature = "rdma")]
mod channel;
#[cfg(feature = "rdma")]
mod credits;
#[cfg(feature = "rdma")]
mod discovery;
#[cfg(feature = "rdma")]
mod endpoint;
#[cfg(feature = "rdma")]
mod inbox;
#[cfg(feature = "rdma")]
mod lane;
#[cfg(feature = "rdma")]
mod opening;
#[cfg(feature = "rdma")]
mod outbox;
#[cfg(feature = "rdma")]
mod poster;
#[cfg(feature = "rdma")]
mod registration;
#[cfg(feature = "rdma")]
mod status;
#[cfg(feature = "rdma")]
mod verbs;
#[cfg(feature = "rdma")]
mod waiting;
#[cfg(feature = "rdma")]
mod watch;

use std::net::SocketAddr;
use std::time::Duration;

pub use devices::{DeviceInfo, GidInfo, GidKind, LinkKind, PortInfo, PortState, devices};

use crate::error::TransportError;
use crate::fabric::{Channel, Fabric, Listener};
pub use crate::stream::ThreadHook;

/// The knobs of the rdma fabric.
#[derive(Clone)]
pub struct RdmaConfig {
    /// The device by name; default: the one whose GID is the address of the control connection,
    /// else the first with an active port.
    pub device: Option<String>,
    /// The port of the device, from 1; default: the first active one.
    pub port: Option<u8>,
    /// The index of the GID; default: RoCE v2 with the address of the control connection, then
    /// another IPv4-mapped one, then IPv6. Only RoCE needs one.
    pub gid_index: Option<u8>,
    /// Largest packet payload in bytes: 256, 512, 1024, 2048 or 4096, at most the port's; default
    /// the port's. The smaller of both sides counts.
    pub mtu_bytes: Option<u32>,
    /// Data queue pairs of a connection, 1 to 16; default 2. The initiator's wish counts. More
    /// than one lets several engines of the device work; each costs memory on both sides.
    pub streams: usize,
    /// Writes on their way on each data queue pair; default 128, at least 16, at most what the
    /// device has. More hides a longer round trip.
    pub depth: u32,
    /// Longest single write in bytes, default 1 MiB; longer ones are cut, so that the queue pairs
    /// share them and a lost packet costs less.
    pub write_bytes_max: u32,
    /// How long to look at a completion queue before blocking. Default `None`: 20 us, but 0 with
    /// a single CPU or a software device, whose kernel needs the CPU to make the completion. A
    /// thread that spins burns its core.
    pub spin: Option<Duration>,
    /// DSCP (upper six bits) and ECN bits of the RoCE packets that this side sends, default 0.
    /// Priority flow control maps it to a class. InfiniBand: only between subnets.
    pub traffic_class: u8,
    /// Of the packets that this side sends: InfiniBand service level, 0 to 15, or RoCE priority, 0
    /// to 7; default 0.
    pub service_level: u8,
    /// Time between two heartbeats on the control connection, at least 1 ms; default 20 ms. The
    /// peer's `silent_after` must be at least three times as long, or the handshake fails.
    pub heartbeat_every: Duration,
    /// The connection ends as silent when nothing was heard on the control connection for this
    /// long; default 1 s. Queue pairs give up unacknowledged packets in about the same time (but not
    /// before 7 ms, and after 30 s at the latest).
    pub silent_after: Duration,
    /// How long an accepted connection may take to show its preface; default 2 s.
    pub preface_timeout: Duration,
    /// Accepted connections without a whole preface kept at a time, default 64; beyond that the
    /// oldest is dropped.
    pub strangers_max: usize,
    /// Called at the start of each of the fabric's threads, to pin it to a core; default none.
    pub on_thread_start: Option<ThreadHook>,
}

impl Default for RdmaConfig {
    fn default() -> Self {
        RdmaConfig {
            device: None,
            port: None,
            gid_index: None,
            mtu_bytes: None,
            streams: 2,
            depth: 128,
            write_bytes_max: 1 << 20,
            spin: None,
            traffic_class: 0,
            service_level: 0,
            heartbeat_every: Duration::from_millis(20),
            silent_after: Duration::from_secs(1),
            preface_timeout: Duration::from_secs(2),
            strangers_max: 64,
            on_thread_start: None,
        }
    }
}

impl std::fmt::Debug for RdmaConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RdmaConfig")
            .field("device", &self.device)
            .field("port", &self.port)
            .field("gid_index", &self.gid_index)
            .field("mtu_bytes", &self.mtu_bytes)
            .field("streams", &self.streams)
            .field("depth", &self.depth)
            .field("write_bytes_max", &self.write_bytes_max)
            .field("spin", &self.spin)
            .field("traffic_class", &self.traffic_class)
            .field("service_level", &self.service_level)
            .field("heartbeat_every", &self.heartbeat_every)
            .field("silent_after", &self.silent_after)
            .field("preface_timeout", &self.preface_timeout)
            .field("strangers_max", &self.strangers_max)
            .finish_non_exhaustive()
    }
}

/// Connects and listens over RDMA.
#[derive(Clone, Debug, Default)]
pub struct RdmaFabric {
    #[cfg_attr(not(feature = "rdma"), expect(dead_code))]
    config: RdmaConfig,
}

impl RdmaFabric {
    /// A fabric with these knobs. Looks at no device yet: connecting and listening do.
    pub fn new(config: RdmaConfig) -> Self {
        RdmaFabric { config }
    }

    /// Looks whether there is a device as the knobs say, with an active port.
    ///
    /// # Errors
    /// [`TransportError::NoDevice`] where there is none to use, [`TransportError::Invalid`] where
    /// the knobs name a device, port, GID or MTU that is not there; both with what is.
    pub fn check(&self) -> Result<(), TransportError> {
        #[cfg(feature = "rdma")]
        return self.config.choose(std::net::Ipv4Addr::UNSPECIFIED.into(), None).map(drop);
        #[cfg(not(feature = "rdma"))]
        return Err(built_without());
    }
}

#[cfg(feature = "rdma")]
impl Fabric for RdmaFabric {
    fn name(&self) -> &'static str {
        "rdma"
    }

    fn connect(&self, peer: SocketAddr, timeout: Duration) -> Result<Box<dyn Channel>, TransportError> {
        Ok(Box::new(channel::RdmaChannel::connect(peer, timeout, self.config.clone())?))
    }

    fn listen(&self, address: SocketAddr) -> Result<Box<dyn Listener>, TransportError> {
        Ok(Box::new(channel::RdmaListener::bind(address, self.config.clone())?))
    }
}

#[cfg(not(feature = "rdma"))]
impl Fabric for RdmaFabric {
    fn name(&self) -> &'static str {
        "rdma"
    }

    fn connect(&self, _: SocketAddr, _: Duration) -> Result<Box<dyn Channel>, TransportError> {
        Err(built_without())
    }

    fn listen(&self, _: SocketAddr) -> Result<Box<dyn Listener>, TransportError> {
        Err(built_without())
    }
}

#[cfg(not(feature = "rdma"))]
fn built_without() -> TransportError {
    let why = "built without RDMA; build with the feature `rdma`, or use the tcp fabric";
    TransportError::NoDevice(why.into())
}
