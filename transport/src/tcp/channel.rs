//! A control connection in its handshake.

use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::endpoint::TcpEndpoint;
use super::receiver::Receiver;
use super::sender::Poster;
use super::wire::{
    Answer, MAGIC, MAX_CHUNKS, Offer, Preface, Token, decode_answer, decode_offer, encode_answer,
    encode_offer,
};
use crate::arena::{Arena, ArenaShape};
use crate::error::{CloseReason, TransportError};
use crate::fabric::{Channel, Endpoint};
use crate::stream::StreamConfig;
use crate::stream::acceptor::{Acceptor, Expectation};
use crate::stream::dialog::{Dialog, io_error, open};
use crate::stream::fence::Fences;
use crate::stream::heartbeat::Heartbeat;
use crate::stream::link::Link;
use crate::stream::socket::{deadline_after, hung_up, is_ready, readable, wait};

/// The responder's grant, until the data streams are here.
struct Granted {
    expectation: Expectation,
    arena: Arena,
}

enum Role {
    /// With so many data streams wanted.
    Initiator {
        streams: usize,
    },
    Responder {
        acceptor: Arc<Acceptor>,
        granted: Option<Granted>,
    },
}

pub(super) struct TcpChannel {
    dialog: Dialog,
    role: Role,
}

impl TcpChannel {
    pub(super) fn connect(
        peer: SocketAddr,
        timeout: Duration,
        config: StreamConfig,
        streams: usize,
    ) -> Result<Self, TransportError> {
        let dialog = Dialog::connect(peer, MAGIC, timeout, config)?;
        Ok(TcpChannel { dialog, role: Role::Initiator { streams } })
    }

    pub(super) fn responder(
        socket: TcpStream,
        peer: SocketAddr,
        config: StreamConfig,
        acceptor: Arc<Acceptor>,
    ) -> Result<Self, TransportError> {
        let dialog = Dialog::new(socket, peer, config)?;
        Ok(TcpChannel { dialog, role: Role::Responder { acceptor, granted: None } })
    }

    /// Opens the data streams, each with its preface.
    fn open_data_streams(
        &self,
        answer: &Answer,
        timeout: Duration,
    ) -> Result<Vec<TcpStream>, TransportError> {
        let deadline = deadline_after(timeout);
        let preface = |stream| Preface::Data { stream: stream as u8, token: answer.token };
        (0..answer.streams)
            .map(|stream| {
                open(self.dialog.peer, MAGIC, &preface(stream), deadline, timeout, &self.dialog.config)
            })
            .collect()
    }

    /// Waits for the data streams of the initiator.
    fn await_data_streams(
        &self,
        granted: &Granted,
        timeout: Duration,
    ) -> Result<Vec<TcpStream>, TransportError> {
        let deadline = deadline_after(timeout);
        loop {
            if let Some(streams) = granted.expectation.take() {
                return Ok(streams);
            }
            if Instant::now() >= deadline {
                return Err(self.dialog.timed_out("data streams of", timeout));
            }
            let mut fds = [readable(&*granted.expectation.arrived), hung_up(&self.dialog.socket)];
            wait(&mut fds, Some(deadline)).map_err(io_error("waiting for data streams"))?;
            if is_ready(&fds[1]) {
                return Err(CloseReason::Peer("it left before the data streams were open".into()).into());
            }
            granted.expectation.arrived.clear();
        }
    }

    /// Starts the threads of a connection whose streams are all open.
    fn start(
        self,
        data: Vec<TcpStream>,
        arena: Option<Arena>,
        shape: ArenaShape,
    ) -> Result<Arc<dyn Endpoint>, TransportError> {
        let config = self.dialog.config;
        let (streams, is_initiator) = (data.len(), arena.is_none());
        let link = Link::new(self.dialog.socket, data).map_err(io_error("making an event descriptor"))?;
        let link = Arc::new(link);
        let writer = Arc::new(Mutex::new(self.dialog.writer));
        let fences = arena.as_ref().map(|_| Arc::new(Fences::new(streams)));
        let poster = Poster::new(if is_initiator { streams } else { 0 }, shape);
        // From here on dropping the endpoint closes the link and joins what was started.
        let endpoint = TcpEndpoint::new(
            Arc::clone(&link),
            self.dialog.reader,
            Arc::clone(&writer),
            poster,
            fences.clone(),
        );
        if let Some((arena, fences)) = arena.zip(fences) {
            for stream in 0..streams {
                let receiver = Receiver::new(Arc::clone(&link), stream, arena.clone(), Arc::clone(&fences));
                link.receiver_starts();
                let thread = config.spawn(format!("rom-data-{stream}"), move || receiver.run());
                endpoint.adopt(thread.map_err(io_error("starting a receiving thread"))?);
            }
        }
        let heartbeat = Heartbeat {
            link,
            writer,
            every: config.heartbeat_every(),
            silent_after: config.silent_after,
            // A responder establishes when the initiator has: it may beat only later.
            waits_for_peer: is_initiator,
        };
        let thread = config.spawn("rom-heartbeat".into(), move || heartbeat.run());
        endpoint.adopt(thread.map_err(io_error("starting the heartbeat thread"))?);
        Ok(Arc::new(endpoint))
    }
}

impl Channel for TcpChannel {
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
        let Role::Initiator { streams } = self.role else {
            return Err(TransportError::Invalid("only the initiator offers".into()));
        };
        let heartbeat_every_us = self.dialog.config.heartbeat_every_us();
        Ok(encode_offer(&Offer { streams, heartbeat_every_us }))
    }

    fn answer(&mut self, offer: &[u8], arena: Arena) -> Result<Vec<u8>, TransportError> {
        let Role::Responder { acceptor, granted } = &mut self.role else {
            return Err(TransportError::Invalid("only the responder answers".into()));
        };
        let offer = decode_offer(offer)?;
        self.dialog.check_heartbeat(offer.heartbeat_every_us)?;
        if arena.chunks().len() > MAX_CHUNKS {
            return Err(TransportError::Invalid(format!("an arena of more than {MAX_CHUNKS} chunks")));
        }
        let heartbeat_every_us = self.dialog.config.heartbeat_every_us();
        let mut token = Token::default();
        getrandom::fill(&mut token)
            .map_err(|error| io_error("drawing a token")(std::io::Error::other(error.to_string())))?;
        let expectation =
            acceptor.expect(token, offer.streams).map_err(io_error("making an event descriptor"))?;
        let chunks_bytes = arena.chunks().iter().map(|(_, memory)| memory.len_bytes() as u64).collect();
        *granted = Some(Granted { expectation, arena });
        Ok(encode_answer(&Answer { streams: offer.streams, heartbeat_every_us, token, chunks_bytes }))
    }

    fn establish(
        mut self: Box<Self>,
        answer: Option<&[u8]>,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, TransportError> {
        match (&mut self.role, answer) {
            (Role::Initiator { .. }, Some(answer)) => {
                let answer = decode_answer(answer)?;
                self.dialog.check_heartbeat(answer.heartbeat_every_us)?;
                let data = self.open_data_streams(&answer, timeout)?;
                let shape = ArenaShape::new(&answer.chunks_bytes);
                self.start(data, None, shape)
            }
            (Role::Responder { granted, .. }, None) => {
                let Some(granted) = granted.take() else {
                    return Err(TransportError::Invalid("establishing before the answer".into()));
                };
                let data = self.await_data_streams(&granted, timeout)?;
                let Granted { arena, expectation } = granted;
                drop(expectation);
                self.start(data, Some(arena), ArenaShape::default())
            }
            _ => Err(TransportError::Invalid("the initiator alone passes the answer".into())),
        }
    }
}
