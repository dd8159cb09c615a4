//! The control stream: messages, heartbeats and the goodbye, framed.

use std::io;
use std::net::TcpStream;
use std::time::Instant;

use super::socket::{Signal, is_ready, readable, receive_now, send_now, wait, writable};
use super::wire::{
    CONTROL_HEADER_BYTES, ControlHeader, ControlKind, WireError, decode_control_header, encode_control_header,
};
use crate::fabric::MAX_HANDSHAKE_BYTES;

const BUFFER_BYTES: usize = CONTROL_HEADER_BYTES + MAX_HANDSHAKE_BYTES;

/// A frame taken from a [`Reader`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Message(&'a [u8]),
    Heartbeat,
    Goodbye,
}

/// Collects incoming bytes and cuts them into frames.
#[derive(Debug)]
pub(crate) struct Reader {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Reader {
    pub(crate) fn new() -> Self {
        Reader { buffer: vec![0; BUFFER_BYTES].into(), start: 0, end: 0 }
    }

    /// The next frame, if all of it is here.
    pub(crate) fn next_frame(&mut self, limit_bytes: usize) -> Result<Option<Frame<'_>>, WireError> {
        let received = &self.buffer[self.start..self.end];
        let Some((header, rest)) = received.split_at_checked(CONTROL_HEADER_BYTES) else { return Ok(None) };
        let ControlHeader { kind, len_bytes } = decode_control_header(header, limit_bytes)?;
        if rest.len() < len_bytes {
            return Ok(None);
        }
        let body = self.start + CONTROL_HEADER_BYTES;
        self.start = body + len_bytes;
        Ok(Some(match kind {
            ControlKind::Message => Frame::Message(&self.buffer[body..body + len_bytes]),
            ControlKind::Heartbeat => Frame::Heartbeat,
            ControlKind::Goodbye => Frame::Goodbye,
        }))
    }

    /// Receives what is there. `Ok(0)` is the end of the stream. To be called only when
    /// [`next_frame`](Self::next_frame) has no frame: then there is room.
    pub(crate) fn fill(&mut self, socket: &TcpStream) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let received = receive_now(socket, &mut self.buffer[self.end..])?;
        self.end += received;
        Ok(received)
    }
}

/// Sends frames whole and in order, also when the socket takes only a part at a time.
#[derive(Debug)]
pub(crate) struct Writer {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Writer { buffer: vec![0; BUFFER_BYTES].into(), start: 0, end: 0 }
    }

    /// Sends a message, waiting for room until the deadline or until `stop` is raised. A message
    /// that was cut short is continued by the next call.
    pub(crate) fn send(
        &mut self,
        socket: &TcpStream,
        message: &[u8],
        stop: &Signal,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        self.flush(socket, stop, deadline)?;
        self.stage(ControlKind::Message, message);
        self.flush(socket, stop, deadline)
    }

    /// Sends a frame if that is possible without waiting; false if it is not. What is taken is
    /// sent whole, the rest of it by a later call if need be.
    pub(crate) fn send_if_room(
        &mut self,
        socket: &TcpStream,
        kind: ControlKind,
        body: &[u8],
    ) -> io::Result<bool> {
        if self.start < self.end {
            self.push(socket)?;
        }
        if self.start < self.end {
            return Ok(false);
        }
        self.stage(kind, body);
        self.push(socket)?;
        Ok(true)
    }

    fn stage(&mut self, kind: ControlKind, body: &[u8]) {
        let header = encode_control_header(&ControlHeader { kind, len_bytes: body.len() });
        self.buffer[..CONTROL_HEADER_BYTES].copy_from_slice(&header);
        self.buffer[CONTROL_HEADER_BYTES..][..body.len()].copy_from_slice(body);
        (self.start, self.end) = (0, CONTROL_HEADER_BYTES + body.len());
    }

    fn push(&mut self, socket: &TcpStream) -> io::Result<()> {
        match send_now(socket, &self.buffer[self.start..self.end]) {
            Ok(sent) => self.start += sent,
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn flush(&mut self, socket: &TcpStream, stop: &Signal, deadline: Option<Instant>) -> io::Result<()> {
        loop {
            if self.start < self.end {
                self.push(socket)?;
            }
            if self.start == self.end {
                return Ok(());
            }
            let mut fds = [writable(socket), readable(stop)];
            wait(&mut fds, deadline)?;
            if is_ready(&fds[1]) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            if !is_ready(&fds[0]) && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// Whether a call may succeed when it is made again.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn frames_arrive_whole_whatever_the_pieces() {
        let (mut client, server) = pair();
        let mut bytes =
            encode_control_header(&ControlHeader { kind: ControlKind::Message, len_bytes: 3 }).to_vec();
        bytes.extend(b"abc");
        bytes.extend(encode_control_header(&ControlHeader { kind: ControlKind::Goodbye, len_bytes: 0 }));
        let mut reader = Reader::new();
        let mut seen = Vec::new();
        for byte in bytes {
            client.write_all(&[byte]).unwrap();
            wait(&mut [readable(&server)], None).unwrap();
            reader.fill(&server).unwrap();
            match reader.next_frame(10).unwrap() {
                Some(Frame::Message(message)) => seen.push(message.to_vec()),
                Some(frame) => assert_eq!(frame, Frame::Goodbye),
                None => continue,
            }
        }
        assert_eq!(seen, [b"abc".to_vec()]);
        drop(client);
        assert_eq!(reader.fill(&server).unwrap(), 0);
    }

    #[test]
    fn a_message_that_finds_no_room_ends_at_the_deadline_and_goes_on_later() {
        let (client, server) = pair();
        let stop = Signal::new().unwrap();
        let mut writer = Writer::new();
        let message = [7; MAX_HANDSHAKE_BYTES];
        let mut sent = 0;
        let cut_short = loop {
            match writer.send(&client, &message, &stop, Some(Instant::now())) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(cut_short.kind(), io::ErrorKind::TimedOut);
        let reading = std::thread::spawn(move || {
            let mut reader = Reader::new();
            let mut received = 0;
            loop {
                match reader.next_frame(MAX_HANDSHAKE_BYTES).unwrap() {
                    Some(Frame::Message(message)) => {
                        assert!(
                            message.len() == MAX_HANDSHAKE_BYTES && message.iter().all(|byte| *byte == 7)
                        );
                        received += 1;
                    }
                    Some(frame) => panic!("unexpected {frame:?}"),
                    None => {
                        wait(&mut [readable(&server)], None).unwrap();
                        if reader.fill(&server).unwrap() == 0 {
                            return received;
                        }
                    }
                }
            }
        });
        writer.send(&client, &message, &stop, None).unwrap();
        drop(client);
        // The one that was cut short mid-frame was continued; one cut short before its first
        // byte was staged too.
        assert!([sent + 1, sent + 2].contains(&reading.join().unwrap()));
        stop.raise();
    }
}
