//! What the sockets themselves move: a thread for each stream on both ends, `sendmsg` from one
//! memory and `recv` into another, nothing else.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use romulus_transport::Memory;

use crate::{EXTENT_BYTES, Measured, Meter, Options};

/// Moves the total over fresh streams.
pub(crate) fn measure(options: &Options, source: &Memory, target: &Memory) -> Measured {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listening");
    let address = listener.local_addr().expect("an address");
    let connect = |_| {
        let sender = TcpStream::connect(address).expect("connecting");
        sender.set_nodelay(true).expect("a socket option");
        (sender, listener.accept().expect("accepting").0)
    };
    let streams: Vec<(TcpStream, TcpStream)> = (0..options.streams).map(connect).collect();
    let each_bytes = (options.total_bytes() / options.streams as u64) as usize;
    let meter = Meter::start();
    std::thread::scope(|scope| {
        for (index, (sender, receiver)) in streams.iter().enumerate() {
            let part = |memory: &Memory| {
                let part_bytes = memory.len_bytes() / options.streams;
                memory.part(index * part_bytes, part_bytes)
            };
            let (source, target) = (part(source), part(target));
            let spawn = |name: &str| std::thread::Builder::new().name(name.into());
            spawn("plain-send")
                .spawn_scoped(scope, move || send(sender, &source, each_bytes))
                .expect("a thread");
            spawn("plain-recv")
                .spawn_scoped(scope, move || receive(receiver, &target, each_bytes))
                .expect("a thread");
        }
    });
    meter.finish((each_bytes * options.streams) as u64)
}

/// Walks through the memory over and over.
struct Walk<'a> {
    memory: &'a Memory,
    at: usize,
    left: usize,
}

impl Walk<'_> {
    /// The next span of at most an extent.
    fn span(&self) -> libc::iovec {
        let len_bytes = (EXTENT_BYTES as usize).min(self.memory.len_bytes() - self.at).min(self.left);
        libc::iovec { iov_base: self.memory.pointer(self.at, len_bytes).cast(), iov_len: len_bytes }
    }

    fn advance(&mut self, moved: isize) {
        let moved = usize::try_from(moved).expect("a call on a socket");
        assert!(moved > 0, "the stream has ended");
        self.left -= moved;
        self.at += moved;
        if self.at == self.memory.len_bytes() {
            self.at = 0;
        }
    }
}

fn send(socket: &TcpStream, memory: &Memory, left: usize) {
    let mut walk = Walk { memory, at: 0, left };
    while walk.left > 0 {
        let mut span = walk.span();
        // SAFETY: all fields of `msghdr` are integers and pointers, for which zero is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        (message.msg_iov, message.msg_iovlen) = (&raw mut span, 1);
        // SAFETY: the message names one span, which lies in live memory.
        walk.advance(unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) });
    }
}

fn receive(socket: &TcpStream, memory: &Memory, left: usize) {
    let mut walk = Walk { memory, at: 0, left };
    while walk.left > 0 {
        let span = walk.span();
        // SAFETY: the span lies in live memory of which no Rust reference exists.
        walk.advance(unsafe { libc::recv(socket.as_raw_fd(), span.iov_base, span.iov_len, 0) });
    }
}
