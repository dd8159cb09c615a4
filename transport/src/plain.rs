//! What plain sockets move: memory through TCP streams with `sendmsg` and `recv` and nothing else,
//! the limit that the tcp fabric is measured against. With the feature `plain` only.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use crate::memory::Memory;
use crate::stream::socket::send_bursts_at_once;

/// Walks through a memory over and over, in spans of at most `span_bytes`.
struct Walk<'a> {
    memory: &'a Memory,
    span_bytes: usize,
    at: usize,
}

impl<'a> Walk<'a> {
    fn new(memory: &'a Memory, span_bytes: usize) -> Self {
        Walk { memory, span_bytes: span_bytes.max(1), at: 0 }
    }

    /// The rest of the span that the walk is in, at most `limit` bytes.
    fn span(&self, limit: u64) -> libc::iovec {
        let left_of_span = self.span_bytes - self.at % self.span_bytes;
        let len_bytes = left_of_span.min(self.memory.len_bytes() - self.at);
        let len_bytes = usize::try_from(limit).map_or(len_bytes, |limit| len_bytes.min(limit));
        libc::iovec { iov_base: self.memory.pointer(self.at, len_bytes).cast(), iov_len: len_bytes }
    }

    fn advance(&mut self, moved: usize) {
        self.at += moved;
        if self.at == self.memory.len_bytes() {
            self.at = 0;
        }
    }
}

/// Sends `memory` over and over, with calls of at most `span_bytes`, as long as `more` says that
/// bytes are left: it is asked with the bytes sent so far and answers with the most to send next,
/// 0 at the end. Returns the bytes sent. The socket gets the fabric's congestion control, so that the
/// two are alike.
pub fn send(
    socket: &TcpStream,
    memory: &Memory,
    span_bytes: usize,
    mut more: impl FnMut(u64) -> u64,
) -> io::Result<u64> {
    send_bursts_at_once(socket);
    let mut walk = Walk::new(memory, span_bytes);
    let mut sent = 0;
    loop {
        let limit = more(sent);
        if limit == 0 {
            return Ok(sent);
        }
        let mut span = walk.span(limit);
        // SAFETY: all fields of `msghdr` are integers and pointers, for which zero is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        (message.msg_iov, message.msg_iovlen) = (&raw mut span, 1);
        // SAFETY: the message names one span, which lies in live memory.
        let moved = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
        let moved = usize::try_from(moved).map_err(|_| io::Error::last_os_error())?;
        walk.advance(moved);
        sent += moved as u64;
    }
}

/// Receives into `memory` over and over, with calls of at most `span_bytes`, until the peer has
/// ended the stream. Returns the bytes received.
pub fn receive(socket: &TcpStream, memory: &Memory, span_bytes: usize) -> io::Result<u64> {
    let mut walk = Walk::new(memory, span_bytes);
    let mut received = 0;
    loop {
        let span = walk.span(u64::MAX);
        // SAFETY: the span lies in live memory of which no Rust reference exists.
        let moved = unsafe { libc::recv(socket.as_raw_fd(), span.iov_base, span.iov_len, 0) };
        let moved = usize::try_from(moved).map_err(|_| io::Error::last_os_error())?;
        if moved == 0 {
            return Ok(received);
        }
        walk.advance(moved);
        received += moved as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn what_is_sent_over_and_over_arrives_in_place() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listening");
        let sender = TcpStream::connect(listener.local_addr().expect("an address")).expect("connecting");
        let receiver = listener.accept().expect("accepting").0;
        let bytes: Vec<u8> = (0..12_288u32).map(|at| (at % 251) as u8).collect();
        let (source, target) = (Memory::anonymous(12_288), Memory::anonymous(12_288));
        source.write(0, &bytes);
        let total: u64 = 12_288 * 7;
        std::thread::scope(|scope| {
            let receiving = scope.spawn(|| receive(&receiver, &target, 5_000).expect("receiving"));
            let sent = send(&sender, &source, 4_096, |sent| total - sent).expect("sending");
            assert_eq!(sent, total);
            sender.shutdown(std::net::Shutdown::Write).expect("the end");
            assert_eq!(receiving.join().expect("the receiver"), total);
        });
        let mut seen = vec![0; 12_288];
        target.read(0, &mut seen);
        assert_eq!(seen, bytes);
    }
}
