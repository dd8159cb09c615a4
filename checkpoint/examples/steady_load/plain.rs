//! What the sockets themselves move: a thread for each stream on both ends, `sendmsg` from one
//! memory and `recv` into another, nothing else.

use std::io::IoSlice;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use romulus_transport::Memory;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

/// Bytes of one call.
const CALL_BYTES: usize = 1 << 20;

/// Moves `total_bytes` from `source` to `target`, each walked through over and over, in parts of
/// `streams`; returns bytes a second.
pub fn measure(streams: usize, source: &Memory, target: &Memory, total_bytes: u64) -> f64 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listening");
    let address = listener.local_addr().expect("an address");
    let pairs: Vec<(TcpStream, TcpStream)> = (0..streams)
        .map(|_| {
            let sender = TcpStream::connect(address).expect("connecting");
            sender.set_nodelay(true).expect("a socket option");
            (sender, listener.accept().expect("accepting").0)
        })
        .collect();
    let each = total_bytes as usize / streams;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (index, (sender, receiver)) in pairs.iter().enumerate() {
            let part = |memory: &Memory| {
                let len = memory.len_bytes() / streams;
                memory.part(index * len, len)
            };
            let (source, target) = (part(source), part(target));
            scope.spawn(move || walk(&source, each, |span| send(sender, span)));
            scope.spawn(move || walk(&target, each, |span| receive(receiver, span)));
        }
    });
    (each * streams) as f64 / begun.elapsed().as_secs_f64()
}

fn walk(memory: &Memory, mut left: usize, mut call: impl FnMut(&mut [u8]) -> usize) {
    let mut at = 0;
    while left > 0 {
        let len = CALL_BYTES.min(memory.len_bytes() - at).min(left);
        // SAFETY: the range was checked by `pointer`; nothing else uses this part of the memory
        // while the measurement runs.
        let span = unsafe { std::slice::from_raw_parts_mut(memory.pointer(at, len), len) };
        let moved = call(span);
        assert!(moved > 0, "the stream has ended");
        left -= moved;
        at = (at + moved) % memory.len_bytes();
    }
}

fn send(socket: &TcpStream, span: &mut [u8]) -> usize {
    let mut nothing = SendAncillaryBuffer::default();
    sendmsg(socket.as_fd(), &[IoSlice::new(span)], &mut nothing, SendFlags::NOSIGNAL).expect("sending")
}

fn receive(socket: &TcpStream, span: &mut [u8]) -> usize {
    let (received, _) = recv(socket.as_fd(), span, RecvFlags::empty()).expect("receiving");
    received
}
