//! A control connection in its handshake.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::StreamConfig;
use super::control::{Frame, Reader, Writer, is_passing};
use super::link::reason_of;
use super::socket::{Signal, configure, deadline_after, is_ready, readable, send_now, wait};
use super::wire::{Magic, Preface, WireError, encode_preface};
use crate::error::{CloseReason, TransportError};
use crate::fabric::MAX_HANDSHAKE_BYTES;

/// How long sending one message of the handshake may take.
const SEND_LIMIT: Duration = Duration::from_secs(10);

impl From<WireError> for TransportError {
    fn from(error: WireError) -> Self {
        TransportError::Handshake(error.to_string())
    }
}

pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> TransportError {
    let what = what.into();
    |source| TransportError::Io { what, source }
}

/// Two sides exchanging messages before the connection is established.
pub(crate) struct Dialog {
    pub socket: TcpStream,
    pub peer: SocketAddr,
    pub config: StreamConfig,
    pub reader: Reader,
    pub writer: Writer,
    /// This side has connected, and nothing has come yet.
    is_unanswered: bool,
    /// Never raised: a channel is used by one thread.
    never: Signal,
}

impl Dialog {
    /// Opens a control connection.
    pub(crate) fn connect(
        peer: SocketAddr,
        magic: Magic,
        timeout: Duration,
        config: StreamConfig,
    ) -> Result<Self, TransportError> {
        let socket = open(peer, magic, &Preface::Control, deadline_after(timeout), timeout, &config)?;
        Ok(Dialog { is_unanswered: true, ..Self::new(socket, peer, config)? })
    }

    /// Over a control connection that is open.
    pub(crate) fn new(
        socket: TcpStream,
        peer: SocketAddr,
        config: StreamConfig,
    ) -> Result<Self, TransportError> {
        let never = Signal::new().map_err(io_error("making an event descriptor"))?;
        let (reader, writer) = (Reader::new(), Writer::new());
        Ok(Dialog { socket, peer, config, reader, writer, is_unanswered: false, never })
    }

    pub(crate) fn timed_out(&self, what: &str, limit: Duration) -> TransportError {
        TransportError::TimedOut { what: format!("{what} {}", self.peer), limit }
    }

    /// Refuses a peer that would seem silent between two of its heartbeats.
    pub(crate) fn check_heartbeat(&self, heartbeat_every_us: u32) -> Result<(), TransportError> {
        let every = Duration::from_micros(heartbeat_every_us.into());
        if every * 3 > self.config.silent_after {
            let limit = self.config.silent_after;
            let what = format!("a heartbeat every {every:?} is too rare for a silence limit of {limit:?}");
            return Err(TransportError::Handshake(what));
        }
        Ok(())
    }

    /// A peer that goes without a word may not have understood even the preface.
    fn gone(&self, reason: CloseReason) -> TransportError {
        match reason {
            CloseReason::Peer(what) if self.is_unanswered => CloseReason::Peer(format!(
                "{what}; {} went without a word: is it Romulus, set to the same fabric?",
                self.peer
            )),
            other => other,
        }
        .into()
    }

    /// Sends one message.
    pub(crate) fn send(&mut self, message: &[u8]) -> Result<(), TransportError> {
        if message.len() > MAX_HANDSHAKE_BYTES {
            let what = format!("a message of {} bytes, at most {MAX_HANDSHAKE_BYTES}", message.len());
            return Err(TransportError::Invalid(what));
        }
        let deadline = Some(Instant::now() + SEND_LIMIT);
        self.writer.send(&self.socket, message, &self.never, deadline).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => self.timed_out("sending a message to", SEND_LIMIT),
            _ => self.gone(reason_of(&error, "sending a message")),
        })
    }

    /// Receives one message.
    pub(crate) fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, TransportError> {
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
                    Ok(0) => return Err(self.gone(CloseReason::Peer("it left during the handshake".into()))),
                    // No further look after the deadline: bytes that never end would prolong it.
                    Ok(_) => self.is_unanswered = false,
                    Err(error) if is_passing(&error) => {}
                    Err(error) => return Err(self.gone(reason_of(&error, "receiving a message"))),
                }
            }
        }
    }
}

/// Connects and shows the preface.
pub(crate) fn open(
    peer: SocketAddr,
    magic: Magic,
    preface: &Preface,
    deadline: Instant,
    limit: Duration,
    config: &StreamConfig,
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
    let preface = encode_preface(magic, preface);
    match send_now(&socket, &preface) {
        Ok(sent) if sent == preface.len() => Ok(socket),
        Ok(_) => Err(io_error(what())(io::ErrorKind::WriteZero.into())),
        Err(error) => Err(io_error(what())(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;
    use crate::stream::CongestionControl;
    use crate::stream::acceptor::StreamListener;
    use crate::stream::wire::{ControlHeader, ControlKind, encode_control_header};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn config() -> StreamConfig {
        StreamConfig {
            heartbeat_every: Duration::from_millis(20),
            silent_after: PATIENCE,
            preface_timeout: PATIENCE,
            strangers_max: 4,
            socket_buffer_bytes: None,
            congestion_control: CongestionControl::System,
            on_thread_start: None,
        }
    }

    #[test]
    fn a_peer_that_floods_with_heartbeats_does_not_prolong_the_wait() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut flooding = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        let mut dialog = Dialog::new(socket, peer, config()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let beat =
                    encode_control_header(&ControlHeader { kind: ControlKind::Heartbeat, len_bytes: 0 });
                let beats = beat.repeat(4096);
                // Ends when the dialog is gone; well behind the limit in any case.
                let start = Instant::now();
                while start.elapsed() < PATIENCE && flooding.write_all(&beats).is_ok() {}
            });
            let start = Instant::now();
            let error = dialog.receive(Duration::from_millis(200)).unwrap_err();
            assert!(matches!(error, TransportError::TimedOut { .. }), "{error}");
            assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
            drop(dialog);
        });
    }

    #[test]
    fn a_peer_of_another_fabric_is_told_apart() {
        let bind = (Ipv4Addr::LOCALHOST, 0).into();
        let listener = StreamListener::bind(bind, *b"ROM-ONE.", &config()).unwrap();
        let mut dialog = Dialog::connect(listener.address(), *b"ROM-TWO.", PATIENCE, config()).unwrap();
        let error = dialog.send(b"hello").and_then(|()| dialog.receive(PATIENCE)).unwrap_err();
        assert!(error.to_string().contains("the same fabric"), "{error}");
    }
}
