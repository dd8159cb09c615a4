//! A control connection in its handshake, and the port that accepts them.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::RdmaConfig;
use super::choice::{Choice, choose};
use super::credits::Ledger;
use super::devices::devices;
use super::endpoint::{RdmaEndpoint, Shared};
use super::inbox::{MARKER_RECEIVES, MESSAGE_RECEIVES};
use super::opening::Opening;
use super::watch::Watch;
use super::wire::{
    Answer, Common, Credits, Link as WireLink, MAGIC, MAX_CHUNKS, MAX_STREAMS, decode_answer, decode_credits,
    decode_offer, encode_answer, encode_credits, encode_offer,
};
use crate::arena::Arena;
use crate::error::{CloseReason, TransportError};
use crate::fabric::{Channel, Endpoint, Listener};
use crate::stream::acceptor::StreamListener;
use crate::stream::dialog::{Dialog, io_error};
use crate::stream::heartbeat::Heartbeat;
use crate::stream::link::Link;
use crate::stream::{CongestionControl, StreamConfig};

impl RdmaConfig {
    fn streams(&self) -> usize {
        self.streams.clamp(1, MAX_STREAMS)
    }

    fn stream(&self) -> StreamConfig {
        StreamConfig {
            heartbeat_every: self.heartbeat_every,
            silent_after: self.silent_after,
            preface_timeout: self.preface_timeout,
            strangers_max: self.strangers_max,
            socket_buffer_bytes: None,
            congestion_control: CongestionControl::System,
            on_thread_start: self.on_thread_start.clone(),
        }
    }

    /// What a connection uses whose control connection has this address here.
    pub(super) fn choose(&self, local: IpAddr, peer: Option<&Common>) -> Result<Choice, TransportError> {
        let peer = peer.filter(|peer| peer.link == WireLink::Ethernet);
        choose(&devices()?, self, local, peer.map(|peer| peer.gid.into()))
    }
}

/// Listens on one port.
pub(super) struct RdmaListener {
    listener: StreamListener,
    config: RdmaConfig,
}

impl RdmaListener {
    pub(super) fn bind(address: SocketAddr, config: RdmaConfig) -> Result<Self, TransportError> {
        // A device that cannot be used is told now, not when the first peer comes.
        config.choose(address.ip(), None)?;
        let listener = StreamListener::bind(address, MAGIC, &config.stream())?;
        Ok(RdmaListener { listener, config })
    }
}

impl Listener for RdmaListener {
    fn accept(&mut self, timeout: Duration) -> Result<Option<Box<dyn Channel>>, TransportError> {
        let Some((socket, peer)) = self.listener.accept(timeout) else { return Ok(None) };
        let dialog = Dialog::new(socket, peer, self.config.stream())?;
        let role = Role::Responder(None);
        Ok(Some(Box::new(RdmaChannel { dialog, config: self.config.clone(), role })))
    }

    fn local_address(&self) -> SocketAddr {
        self.listener.address()
    }
}

enum Role {
    /// With what was offered.
    Initiator(Option<Opening>),
    /// With what was answered, and how many messages the peer has room for.
    Responder(Option<(Opening, u16)>),
}

pub(super) struct RdmaChannel {
    dialog: Dialog,
    config: RdmaConfig,
    role: Role,
}

impl RdmaChannel {
    pub(super) fn connect(
        peer: SocketAddr,
        timeout: Duration,
        config: RdmaConfig,
    ) -> Result<Self, TransportError> {
        config.choose(peer.ip(), None)?;
        let dialog = Dialog::connect(peer, MAGIC, timeout, config.stream())?;
        Ok(RdmaChannel { dialog, config, role: Role::Initiator(None) })
    }

    /// This host's address of the control connection.
    fn local_ip(&self) -> Result<IpAddr, TransportError> {
        let address = self.dialog.socket.local_addr();
        Ok(address.map_err(io_error("asking for the control connection's address"))?.ip())
    }

    fn open(&self, peer: Option<&Common>, streams: usize) -> Result<Opening, TransportError> {
        let choice = self.config.choose(self.local_ip()?, peer)?;
        Opening::new(choice, &self.config, streams, matches!(self.role, Role::Initiator(_)))
    }

    fn finish_initiator(
        mut self,
        opening: Opening,
        answer: &Answer,
    ) -> Result<Arc<dyn Endpoint>, TransportError> {
        self.dialog.check_heartbeat(answer.common.heartbeat_every_us)?;
        let (granted, offered) = (answer.common.data.len(), self.config.streams());
        if granted != offered {
            let what = format!("{granted} data queue pairs were granted, {offered} offered");
            return Err(TransportError::Handshake(what));
        }
        opening.connect(&answer.common, &self.config, true)?;
        // Until the responder has this, it sends nothing: this side could not have received it.
        self.dialog.send(&encode_credits(&Credits::default()))?;
        let limit =
            Credits { markers: answer.markers.into(), messages: answer.common.message_receives.into() };
        let own_limit = Credits { markers: 0, messages: MESSAGE_RECEIVES.into() };
        self.start(opening, limit, own_limit, Some(answer))
    }

    fn finish_responder(
        mut self,
        opening: Opening,
        message_receives: u16,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, TransportError> {
        let ready = decode_credits(&self.dialog.receive(timeout)?);
        if ready.as_ref() != Ok(&Credits::default()) {
            let what = format!("{ready:?} where the initiator says that it is ready");
            return Err(CloseReason::Violation(what).into());
        }
        let limit = Credits { markers: 0, messages: message_receives.into() };
        let own_limit = Credits { markers: MARKER_RECEIVES.into(), messages: MESSAGE_RECEIVES.into() };
        self.start(opening, limit, own_limit, None)
    }

    /// Starts the heartbeat thread of a connection whose queue pairs are all connected.
    fn start(
        self,
        opening: Opening,
        limit: Credits,
        own_limit: Credits,
        answer: Option<&Answer>,
    ) -> Result<Arc<dyn Endpoint>, TransportError> {
        let RdmaChannel { dialog, config, .. } = self;
        let stream = dialog.config;
        let descriptor = || io_error("making an event descriptor");
        let link = Arc::new(Link::new(dialog.socket, Vec::new()).map_err(descriptor())?);
        let ledger = Ledger::new(limit, own_limit).map_err(descriptor())?;
        let writer = Arc::new(Mutex::new(dialog.writer));
        let (context, domain) = (Arc::clone(&opening.context), Arc::clone(&opening.domain));
        let (device, port) = (opening.choice.device.clone(), opening.choice.port);
        let is_initiator = answer.is_some();
        let streams = opening.streams();
        let (poster, outbox, inbox) = match answer {
            Some(answer) => {
                let (poster, outbox, inbox) = opening.into_initiator(&answer.spans);
                (Some(poster), outbox, inbox)
            }
            None => {
                let (outbox, inbox) = opening.into_responder();
                (None, outbox, inbox)
            }
        };
        let shared = Arc::new(Shared {
            link: Arc::clone(&link),
            ledger,
            writer: Arc::clone(&writer),
            poster: Mutex::new(poster),
            outbox: Mutex::new(Some(outbox)),
            inbox: Mutex::new(Some(inbox)),
            domain,
            context,
            device,
            port,
            silent_after: config.silent_after,
            port_down: Mutex::new(None),
        });
        // From here on dropping the endpoint closes everything.
        let endpoint = RdmaEndpoint::new(Arc::clone(&shared), streams, is_initiator);
        let heartbeat = Heartbeat {
            link,
            writer,
            every: stream.heartbeat_every(),
            silent_after: stream.silent_after,
            // A responder establishes when the initiator has: it may beat only later.
            waits_for_peer: is_initiator,
        };
        let watch = Watch::new(shared, dialog.reader, heartbeat);
        let thread = stream.spawn("rom-heartbeat".into(), move || watch.run());
        endpoint.adopt(thread.map_err(io_error("starting the heartbeat thread"))?);
        Ok(Arc::new(endpoint))
    }
}

impl Channel for RdmaChannel {
    fn peer(&self) -> SocketAddr {
        self.dialog.peer
    }

    fn send(&mut self, message: &[u8]) -> Result<(), TransportError> {
        self.dialog.send(message)
    }

    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, TransportError> {
        self.dialog.receive(timeout)
    }

    fn offer(&mut self) -> Result<Vec<u8>, TransportError> {
        if !matches!(self.role, Role::Initiator(_)) {
            return Err(TransportError::Invalid("only the initiator offers".into()));
        }
        let opening = self.open(None, self.config.streams())?;
        let offer = encode_offer(&opening.common(self.dialog.config.heartbeat_every_us()));
        self.role = Role::Initiator(Some(opening));
        Ok(offer)
    }

    fn answer(&mut self, offer: &[u8], arena: Arena) -> Result<Vec<u8>, TransportError> {
        if matches!(self.role, Role::Initiator(_)) {
            return Err(TransportError::Invalid("only the responder answers".into()));
        }
        let offer = decode_offer(offer)?;
        self.dialog.check_heartbeat(offer.heartbeat_every_us)?;
        if arena.chunks().len() > MAX_CHUNKS {
            return Err(TransportError::Invalid(format!("an arena of more than {MAX_CHUNKS} chunks")));
        }
        let mut opening = self.open(Some(&offer), offer.data.len())?;
        let spans = opening.expose(&arena)?;
        opening.connect(&offer, &self.config, false)?;
        let common = opening.common(self.dialog.config.heartbeat_every_us());
        self.role = Role::Responder(Some((opening, offer.message_receives)));
        Ok(encode_answer(&Answer { common, markers: MARKER_RECEIVES, spans }))
    }

    fn establish(
        mut self: Box<Self>,
        answer: Option<&[u8]>,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, TransportError> {
        match (&mut self.role, answer) {
            (Role::Initiator(opening), Some(answer)) => {
                let answer = decode_answer(answer)?;
                let Some(opening) = opening.take() else {
                    return Err(TransportError::Invalid("establishing before the offer".into()));
                };
                self.finish_initiator(opening, &answer)
            }
            (Role::Responder(granted), None) => {
                let Some((opening, message_receives)) = granted.take() else {
                    return Err(TransportError::Invalid("establishing before the answer".into()));
                };
                self.finish_responder(opening, message_receives, timeout)
            }
            _ => Err(TransportError::Invalid("the initiator alone passes the answer".into())),
        }
    }
}
