//! A control connection in its handshake.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::TcpConfig;
use super::acceptor::{Acceptor, Expectation};
use super::control::{Frame, Reader, Writer, is_passing};
use super::endpoint::TcpEndpoint;
use super::fence::Fences;
use super::heartbeat::Heartbeat;
use super::link::{Link, reason_of};
use super::receiver::Receiver;
use super::sender::{ArenaShape, Poster};
use super::socket::{Signal, configure, deadline_after, hung_up, is_ready, readable, send_now, wait};
use super::wire::{
    Answer, MAX_CHUNKS, Offer, Preface, Token, WireError, decode_answer, decode_offer, encode_answer,
    encode_offer, encode_preface,
};
use crate::arena::Arena;
use crate::error::{CloseReason, TransportError};
use crate::fabric::{Channel, Endpoint, MAX_HANDSHAKE_BYTES};

/// How long sending one message of the handshake may take.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// The responder's grant, until the data streams are here.
struct Granted {
    expectation: Expectation,
    arena: Arena,
}

enum Role {
    Initiator,
    Responder { acceptor: Arc<Acceptor>, granted: Option<Granted> },
}

pub(super) struct TcpChannel {
    socket: TcpStream,
    peer: SocketAddr,
    config: TcpConfig,
    reader: Reader,
    writer: Writer,
    /// Never raised: a channel is used by one thread.
    never: Signal,
    role: Role,
}

impl From<WireError> for TransportError {
    fn from(error: WireError) -> Self {
        TransportError::Handshake(error.to_string())
    }
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> TransportError {
    let what = what.into();
    |source| TransportError::Io { what, source }
}

impl TcpChannel {
    pub(super) fn connect(
        peer: SocketAddr,
        timeout: Duration,
        config: TcpConfig,
    ) -> Result<Self, TransportError> {
        let socket = open(peer, &Preface::Control, deadline_after(timeout), timeout, &config)?;
        Self::new(socket, peer, config, Role::Initiator)
    }

    pub(super) fn responder(
        socket: TcpStream,
        peer: SocketAddr,
        config: TcpConfig,
        acceptor: Arc<Acceptor>,
    ) -> Result<Self, TransportError> {
        Self::new(socket, peer, config, Role::Responder { acceptor, granted: None })
    }

    fn new(
        socket: TcpStream,
        peer: SocketAddr,
        config: TcpConfig,
        role: Role,
    ) -> Result<Self, TransportError> {
        let never = Signal::new().map_err(io_error("making an event descriptor"))?;
        Ok(TcpChannel { socket, peer, config, reader: Reader::new(), writer: Writer::new(), never, role })
    }

    fn timed_out(&self, what: &str, limit: Duration) -> TransportError {
        TransportError::TimedOut { what: format!("{what} {}", self.peer), limit }
    }

    /// Refuses a peer that would seem silent between two of its heartbeats.
    fn check_heartbeat(&self, heartbeat_every_us: u32) -> Result<(), TransportError> {
        let every = Duration::from_micros(heartbeat_every_us.into());
        if every * 3 > self.config.silent_after {
            let limit = self.config.silent_after;
            let what = format!("a heartbeat every {every:?} is too rare for a silence limit of {limit:?}");
            return Err(TransportError::Handshake(what));
        }
        Ok(())
    }

    fn heartbeat_every_us(&self) -> u32 {
        self.config.heartbeat_every().as_micros().min(u32::MAX.into()) as u32
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
            .map(|stream| open(self.peer, &preface(stream), deadline, timeout, &self.config))
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
                return Err(self.timed_out("data streams of", timeout));
            }
            let mut fds = [readable(&*granted.expectation.arrived), hung_up(&self.socket)];
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
        let (streams, is_initiator) = (data.len(), arena.is_none());
        let link = Link::new(self.socket, data).map_err(io_error("making an event descriptor"))?;
        let link = Arc::new(link);
        let writer = Arc::new(Mutex::new(self.writer));
        let fences = arena.as_ref().map(|_| Arc::new(Fences::new(streams)));
        let poster = Poster::new(if is_initiator { streams } else { 0 }, shape);
        // From here on dropping the endpoint closes the link and joins what was started.
        let endpoint =
            TcpEndpoint::new(Arc::clone(&link), self.reader, Arc::clone(&writer), poster, fences.clone());
        if let Some((arena, fences)) = arena.zip(fences) {
            for stream in 0..streams {
                let receiver = Receiver::new(Arc::clone(&link), stream, arena.clone(), Arc::clone(&fences));
                link.receiver_starts();
                let thread = self.config.spawn(format!("rom-data-{stream}"), move || receiver.run());
                endpoint.adopt(thread.map_err(io_error("starting a receiving thread"))?);
            }
        }
        let heartbeat = Heartbeat {
            link,
            writer,
            every: self.config.heartbeat_every(),
            silent_after: self.config.silent_after,
            // A responder establishes when the initiator has: it may beat only later.
            waits_for_peer: is_initiator,
        };
        let thread = self.config.spawn("rom-heartbeat".into(), move || heartbeat.run());
        endpoint.adopt(thread.map_err(io_error("starting the heartbeat thread"))?);
        Ok(Arc::new(endpoint))
    }
}

impl Channel for TcpChannel {
    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn send(&mut self, message: &[u8]) -> Result<(), TransportError> {
        if message.len() > MAX_HANDSHAKE_BYTES {
            let what = format!("a message of {} bytes, at most {MAX_HANDSHAKE_BYTES}", message.len());
            return Err(TransportError::Invalid(what));
        }
        let deadline = Some(Instant::now() + SEND_LIMIT);
        self.writer.send(&self.socket, message, &self.never, deadline).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => self.timed_out("sending a message to", SEND_LIMIT),
            _ => reason_of(&error, "sending a message").into(),
        })
    }

    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, TransportError> {
        let deadline = deadline_after(timeout);
        let mut last_look = false;
        loop {
            match self.reader.next_frame(MAX_HANDSHAKE_BYTES) {
                Ok(Some(Frame::Message(message))) => return Ok(message.to_vec()),
                Ok(Some(Frame::Heartbeat | Frame::Goodbye)) => continue,
                Ok(None) => {}
                Err(error) => return Err(CloseReason::Violation(error.to_string()).into()),
            }
            if last_look {
                return Err(self.timed_out("receiving a message from", timeout));
            }
            let mut fds = [readable(&self.socket)];
            wait(&mut fds, Some(deadline)).map_err(io_error("waiting for a message"))?;
            last_look = Instant::now() >= deadline;
            if is_ready(&fds[0]) {
                match self.reader.fill(&self.socket) {
                    Ok(0) => return Err(CloseReason::Peer("it left during the handshake".into()).into()),
                    Ok(_) => last_look = false,
                    Err(error) if is_passing(&error) => {}
                    Err(error) => return Err(reason_of(&error, "receiving a message").into()),
                }
            }
        }
    }

    fn offer(&mut self) -> Result<Vec<u8>, TransportError> {
        if !matches!(self.role, Role::Initiator) {
            return Err(TransportError::Invalid("only the initiator offers".into()));
        }
        let streams = self.config.streams();
        Ok(encode_offer(&Offer { streams, heartbeat_every_us: self.heartbeat_every_us() }))
    }

    fn answer(&mut self, offer: &[u8], arena: Arena) -> Result<Vec<u8>, TransportError> {
        if matches!(self.role, Role::Initiator) {
            return Err(TransportError::Invalid("only the responder answers".into()));
        }
        let offer = decode_offer(offer)?;
        self.check_heartbeat(offer.heartbeat_every_us)?;
        if arena.chunks().len() > MAX_CHUNKS {
            return Err(TransportError::Invalid(format!("an arena of more than {MAX_CHUNKS} chunks")));
        }
        let heartbeat_every_us = self.heartbeat_every_us();
        let Role::Responder { acceptor, granted } = &mut self.role else {
            return Err(TransportError::Invalid("only the responder answers".into()));
        };
        let mut token = Token::default();
        getrandom::fill(&mut token)
            .map_err(|error| io_error("drawing a token")(io::Error::other(error.to_string())))?;
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
            (Role::Initiator, Some(answer)) => {
                let answer = decode_answer(answer)?;
                self.check_heartbeat(answer.heartbeat_every_us)?;
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

/// Connects and shows the preface.
fn open(
    peer: SocketAddr,
    preface: &Preface,
    deadline: Instant,
    limit: Duration,
    config: &TcpConfig,
) -> Result<TcpStream, TransportError> {
    let what = || format!("connecting to {peer}");
    let left = deadline.saturating_duration_since(Instant::now());
    // A timeout of zero is an error of its own to the standard library.
    let socket = TcpStream::connect_timeout(&peer, left.max(Duration::from_millis(1)));
    let socket = socket.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => TransportError::TimedOut { what: what(), limit },
        _ => io_error(what())(error),
    })?;
    configure(&socket, config).map_err(io_error(what()))?;
    let preface = encode_preface(preface);
    match send_now(&socket, &preface) {
        Ok(sent) if sent == preface.len() => Ok(socket),
        Ok(_) => Err(io_error(what())(io::ErrorKind::WriteZero.into())),
        Err(error) => Err(io_error(what())(error)),
    }
}
