//! What a connection is made of, from the handshake on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::RdmaConfig;
use super::choice::Choice;
use super::devices::LinkKind;
use super::inbox::{self, Exposed, Inbox, MARKER_RECEIVES, MESSAGE_RECEIVES};
use super::lane::Lane;
use super::outbox::{self, Outbox};
use super::poster::{Parts, Poster, Target};
use super::registration::Registered;
use super::verbs::{
    Access, Address, Capacity, CompletionQueue, Context, DeviceLimits, MemoryRegion, OpenError, Path,
    ProtectionDomain, QueuePair,
};
use super::wire::{Common, Link, MARKER_BYTES, MAX_NUMBER, MAX_SPANS, Pair, Span};
use crate::arena::Arena;
use crate::error::TransportError;
use crate::fabric::MAX_MESSAGE_BYTES;
use crate::memory::Memory;

/// Local places of a write, as a wish: scattered pages that go to one place travel together.
const SGES: u32 = 32;
/// Bytes that a send carries itself, as a wish: acknowledgements and markers fit.
const INLINE_BYTES: u32 = 128;
/// Sends wait this often for a receive. Credits make that needless, so it is finite.
const RECEIVER_RETRIES: u8 = 6;
/// Not 7: soft-RoCE takes that for "for ever".
const RETRIES: u8 = 6;
/// Default time of looking before blocking, where there is a CPU to spare.
const SPIN: Duration = Duration::from_micros(20);

pub(super) struct Opening {
    pub choice: Choice,
    pub context: Arc<Context>,
    pub domain: Arc<ProtectionDomain>,
    spin: Duration,
    depth: u32,
    write_bytes_max: u32,
    sges: u32,
    psns: Vec<u32>,
    data: Vec<QueuePair>,
    messages: Arc<QueuePair>,
    /// Completions of the initiator's writes and markers.
    written: Arc<CompletionQueue>,
    sent: Arc<CompletionQueue>,
    received: Arc<CompletionQueue>,
    receive_slots: MemoryRegion,
    send_slots: MemoryRegion,
    /// The initiator's markers to send, or the responder's to receive.
    marker_slots: MemoryRegion,
    arena: Vec<Registered>,
}

fn failed(what: String) -> impl FnOnce(io::Error) -> TransportError {
    |source| TransportError::Io { what, source }
}

fn open(choice: &Choice) -> Result<Arc<Context>, TransportError> {
    let device = &choice.device;
    Context::open(device).map_err(|error| match error {
        OpenError::NotFound => TransportError::NoDevice(format!("{device} has vanished")),
        OpenError::Refused(source) => {
            let what = format!("opening RDMA device {device} (access to /dev/infiniband is needed)");
            TransportError::Io { what, source }
        }
    })
}

fn slots(
    domain: &Arc<ProtectionDomain>,
    len_bytes: usize,
    access: Access,
) -> Result<MemoryRegion, TransportError> {
    MemoryRegion::register(domain, Memory::anonymous(len_bytes), access)
        .map_err(|error| super::registration::explain(&error, len_bytes as u64))
}

/// Makes a pair with as many of the places and inline bytes wished for as the device gives.
fn make_pair(
    domain: &Arc<ProtectionDomain>,
    sends: &Arc<CompletionQueue>,
    receives: &Arc<CompletionQueue>,
    mut capacity: Capacity,
) -> io::Result<(QueuePair, Capacity)> {
    loop {
        match QueuePair::new(domain, sends, receives, capacity) {
            Ok(pair) => return Ok((pair, capacity)),
            Err(_) if capacity.inline_bytes > 0 => capacity.inline_bytes = 0,
            Err(_) if capacity.sges > 1 => capacity.sges /= 2,
            Err(error) => return Err(error),
        }
    }
}

fn random_psn() -> Result<u32, TransportError> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| TransportError::Io {
        what: "drawing a packet number".into(),
        source: io::Error::other(error.to_string()),
    })?;
    Ok(u32::from_le_bytes(bytes) & MAX_NUMBER)
}

impl Opening {
    /// Everything for a connection with `streams` data queue pairs.
    pub(super) fn new(
        choice: Choice,
        config: &RdmaConfig,
        streams: usize,
        is_initiator: bool,
    ) -> Result<Self, TransportError> {
        let context = open(&choice)?;
        let making = |what: &str| failed(format!("making {what} on RDMA device {}", choice.device));
        let limits = context.limits().map_err(making("a connection"))?;
        let depth = config.depth.clamp(16, limits.max_queue_depth.max(16));
        let queues = Queues::new(&context, &limits, streams, depth, is_initiator)
            .map_err(making("completion queues"))?;
        let domain = ProtectionDomain::new(&context).map_err(making("a protection domain"))?;
        let port = context.port(choice.port).map_err(making("a connection"))?;
        let sges = SGES.min(limits.max_sges as u32);
        let (written, received) = (&queues.written, &queues.received);
        let mut capacity = if is_initiator {
            Capacity { sends: depth, receives: 1, sges, inline_bytes: MARKER_BYTES as u32 }
        } else {
            Capacity { sends: 1, receives: MARKER_RECEIVES.into(), sges: 1, inline_bytes: 0 }
        };
        let mut data = Vec::with_capacity(streams);
        for _ in 0..streams {
            let made = make_pair(&domain, written, received, capacity);
            let (pair, made) = made.map_err(making("a data queue pair"))?;
            capacity.sges = made.sges;
            data.push(pair);
        }
        let message_capacity = Capacity {
            sends: outbox::SLOTS as u32,
            receives: MESSAGE_RECEIVES.into(),
            sges: 1,
            inline_bytes: INLINE_BYTES,
        };
        let made = make_pair(&domain, &queues.sent, received, message_capacity);
        let messages = Arc::new(made.map_err(making("the message queue pair"))?.0);
        let marker_bytes = usize::from(MARKER_RECEIVES) * MARKER_BYTES;
        let (marker_bytes, marker_access) = match is_initiator {
            true => (marker_bytes, Access::Send),
            false => (marker_bytes * streams, Access::Receive),
        };
        let receive_bytes = usize::from(MESSAGE_RECEIVES) * MAX_MESSAGE_BYTES;
        Ok(Opening {
            psns: (0..=streams).map(|_| random_psn()).collect::<Result<_, _>>()?,
            receive_slots: slots(&domain, receive_bytes, Access::Receive)?,
            send_slots: slots(&domain, outbox::SLOTS * MAX_MESSAGE_BYTES, Access::Send)?,
            marker_slots: slots(&domain, marker_bytes, marker_access)?,
            spin: spin(config, &choice),
            depth,
            write_bytes_max: config.write_bytes_max.clamp(4096, port.max_message_bytes.clamp(4096, 1 << 30)),
            sges: capacity.sges,
            data,
            messages,
            written: queues.written,
            sent: queues.sent,
            received: queues.received,
            arena: Vec::new(),
            choice,
            context,
            domain,
        })
    }

    /// How many data queue pairs there are.
    pub(super) fn streams(&self) -> usize {
        self.data.len()
    }

    /// What the peer must know of this side.
    pub(super) fn common(&self, heartbeat_every_us: u32) -> Common {
        let pair = |pair: &QueuePair, psn: &u32| Pair { number: pair.number(), psn: *psn };
        let (message_psn, data_psns) = self.psns.split_first().unwrap_or((&0, &[]));
        Common {
            heartbeat_every_us,
            link: match self.choice.link {
                LinkKind::InfiniBand => Link::InfiniBand,
                LinkKind::Ethernet => Link::Ethernet,
            },
            lid: self.choice.lid,
            mtu_bytes: self.choice.mtu_bytes,
            gid: self.choice.gid.map(|(gid, _)| gid.octets()).unwrap_or_default(),
            message_receives: MESSAGE_RECEIVES,
            messages: pair(&self.messages, message_psn),
            data: self.data.iter().zip(data_psns).map(|(data, psn)| pair(data, psn)).collect(),
        }
    }

    /// Registers the arena for the peer; what to tell it.
    pub(super) fn expose(&mut self, arena: &Arena) -> Result<Vec<Span>, TransportError> {
        let mut spans = Vec::new();
        for (_, memory) in arena.chunks().iter().filter(|(_, memory)| memory.len_bytes() > 0) {
            let registered = Registered::new(&self.domain, memory, Access::RemoteWrite)?;
            spans.extend(registered.slices().iter().enumerate().map(|(index, slice)| Span {
                len_bytes: slice.memory().len_bytes() as u64,
                address: slice.address(),
                key: slice.remote_key(),
                begins_chunk: index == 0,
            }));
            self.arena.push(registered);
        }
        if spans.len() > MAX_SPANS {
            let what = format!("an arena of {} registered spans, at most {MAX_SPANS}", spans.len());
            return Err(TransportError::Invalid(what));
        }
        Ok(spans)
    }

    /// Connects all queue pairs with the peer's; from here on things may come in.
    pub(super) fn connect(
        &self,
        peer: &Common,
        config: &RdmaConfig,
        is_initiator: bool,
    ) -> Result<(), TransportError> {
        let port = self.choice.port;
        let own = self.common(0);
        let address = self.address(peer, &own)?;
        let timeout_exponent = timeout_exponent(config.silent_after);
        let path = |pair: &Pair, psn: u32| Path {
            queue_pair: pair.number,
            receive_psn: pair.psn,
            send_psn: psn,
            mtu_bytes: own.mtu_bytes.min(peer.mtu_bytes),
            port,
            address,
            service_level: config.service_level,
            traffic_class: config.traffic_class,
            timeout_exponent,
            retries: RETRIES,
            receiver_retries: RECEIVER_RETRIES,
        };
        let place = format!("port {port} of {}", self.choice.device);
        let connecting = |number: u32| {
            let gid = std::net::Ipv6Addr::from(peer.gid);
            let (lid, place) = (peer.lid, &place);
            failed(format!(
                "connecting {place} with the peer's queue pair {number} (GID {gid}, LID {lid}); can the \
                 address of the one GID be reached from the other's network interface?"
            ))
        };
        for (lane, (pair, (theirs, ours))) in
            self.data.iter().zip(peer.data.iter().zip(&own.data)).enumerate()
        {
            pair.initialize(port, !is_initiator).map_err(connecting(theirs.number))?;
            if !is_initiator {
                inbox::post_marker_receives(pair, &self.marker_slots, lane)
                    .map_err(connecting(theirs.number))?;
            }
            pair.connect(&path(theirs, ours.psn)).map_err(connecting(theirs.number))?;
        }
        let (theirs, messages) = (&peer.messages, &self.messages);
        messages.initialize(port, false).map_err(connecting(theirs.number))?;
        inbox::post_message_receives(messages, &self.receive_slots).map_err(connecting(theirs.number))?;
        messages.connect(&path(theirs, own.messages.psn)).map_err(connecting(theirs.number))
    }

    fn address(&self, peer: &Common, own: &Common) -> Result<Address, TransportError> {
        if peer.link != own.link {
            let what = format!(
                "the peer's port is {:?}, port {} of {} is {:?}; choose ports of one network",
                peer.link, self.choice.port, self.choice.device, own.link
            );
            return Err(TransportError::Handshake(what));
        }
        let asking = failed(format!("asking port {} of {}", self.choice.port, self.choice.device));
        let attributes = self.context.port(self.choice.port).map_err(asking)?;
        let index = self.choice.gid.map(|(_, index)| index);
        let global = match (peer.link, index) {
            (Link::Ethernet, _) if peer.gid == [0; 16] => {
                return Err(TransportError::Handshake("the peer's RoCE port has no GID".into()));
            }
            (Link::InfiniBand, _) if !attributes.grh_required => None,
            (_, Some(index)) => Some((peer.gid, index)),
            (_, None) => {
                let what = format!("port {} of {} has no GID", self.choice.port, self.choice.device);
                return Err(TransportError::NoDevice(what));
            }
        };
        Ok(Address { lid: peer.lid, global })
    }

    /// The initiator's parts of an endpoint.
    pub(super) fn into_initiator(self, spans: &[Span]) -> (Poster, Outbox, Inbox) {
        let Opening { data, depth, sges, spin, .. } = self;
        let lanes = data.into_iter().enumerate();
        let lanes = lanes.map(|(index, pair)| Lane::new(pair, index, depth, sges as usize)).collect();
        let poster = Poster::new(Parts {
            lanes,
            queue: self.written,
            spin,
            target: Target::new(spans),
            marker_slots: self.marker_slots,
            write_bytes_max: self.write_bytes_max,
        });
        let outbox = Outbox::new(Arc::clone(&self.messages), self.sent, self.send_slots, spin);
        let inbox = Inbox::new(self.messages, self.receive_slots, None, self.received, spin);
        (poster, outbox, inbox)
    }

    /// The responder's parts of an endpoint.
    pub(super) fn into_responder(self) -> (Outbox, Inbox) {
        let exposed = Exposed { pairs: self.data, marker_slots: self.marker_slots, _arena: self.arena };
        let outbox = Outbox::new(Arc::clone(&self.messages), self.sent, self.send_slots, self.spin);
        let inbox = Inbox::new(self.messages, self.receive_slots, Some(exposed), self.received, self.spin);
        (outbox, inbox)
    }
}

struct Queues {
    written: Arc<CompletionQueue>,
    sent: Arc<CompletionQueue>,
    received: Arc<CompletionQueue>,
}

impl Queues {
    /// Queues with room for everything at once: a queue pair that fails completes all it has.
    fn new(
        context: &Arc<Context>,
        limits: &DeviceLimits,
        streams: usize,
        depth: u32,
        is_initiator: bool,
    ) -> io::Result<Self> {
        let streams = streams as u32;
        let make = |entries: u32| CompletionQueue::new(context, entries.min(limits.max_completions));
        let (writes, markers) =
            if is_initiator { (streams * depth, 1) } else { (1, streams * u32::from(MARKER_RECEIVES)) };
        Ok(Queues {
            written: make(writes + 16)?,
            sent: make(outbox::SLOTS as u32 + 16)?,
            received: make(markers + u32::from(MESSAGE_RECEIVES) + 16)?,
        })
    }
}

fn spin(config: &RdmaConfig, choice: &Choice) -> Duration {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    let default = if choice.is_software || cpus < 2 { Duration::ZERO } else { SPIN };
    config.spin.unwrap_or(default)
}

/// The largest exponent with which all retries together take no longer than `limit`, within
/// bounds (7 ms and 30 s in all): a lost last packet is sent again after one timeout, so that it
/// must not be longer than the limit asks for.
fn timeout_exponent(limit: Duration) -> u8 {
    let units = limit.as_nanos() / 4096 / u128::from(RETRIES + 1);
    (units.max(1).ilog2() as u8).clamp(8, 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_take_no_longer_than_the_detection_time() {
        let total = |exponent: u8| Duration::from_nanos(4096 << exponent) * u32::from(RETRIES + 1);
        for limit in [Duration::from_millis(20), Duration::from_millis(200), Duration::from_secs(10)] {
            let exponent = timeout_exponent(limit);
            assert!(total(exponent) <= limit, "{limit:?}: {:?}", total(exponent));
            assert!(total(exponent) * 2 > limit, "{limit:?}: {:?}", total(exponent));
        }
        assert_eq!(timeout_exponent(Duration::ZERO), 8);
        assert_eq!(timeout_exponent(Duration::from_secs(3600)), 20);
    }
}
