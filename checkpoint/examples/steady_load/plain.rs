//! What the sockets themselves move: a thread for each stream on both ends, `sendmsg` from one
//! memory and `recv` into another, nothing else.

use std::io::IoSlice;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::Instant;

use romulus_transport::Memory;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

/// Bytes of one call.
const CALL_BYTES: usize = 1 << 20;

/// What a plain program reached.
#[derive(Clone, Copy)]
pub struct Plain {
    /// Bytes a second.
    pub rate: f64,
    /// CPU time of all its threads for each byte, in seconds.
    pub cpu_per_byte: f64,
}

/// Moves `total_bytes` from `source` to `target`, each walked through over and over, in parts of
/// `streams`. `congestion`: the sockets' congestion control, `None` for the system's choice.
pub fn measure(
    streams: usize,
    congestion: Option<&str>,
    source: &Memory,
    target: &Memory,
    total_bytes: u64,
) -> Plain {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listening");
    let address = listener.local_addr().expect("an address");
    let pairs: Vec<(TcpStream, TcpStream)> = (0..streams)
        .map(|_| {
            let sender = TcpStream::connect(address).expect("connecting");
            sender.set_nodelay(true).expect("a socket option");
            if let Some(name) = congestion {
                // As the fabric: where the kernel does not have it, its choice stays.
                let _ = rustix::net::sockopt::set_tcp_congestion(&sender, name);
            }
            (sender, listener.accept().expect("accepting").0)
        })
        .collect();
    let each = total_bytes as usize / streams;
    let used = Mutex::new(0.0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (index, (sender, receiver)) in pairs.iter().enumerate() {
            let part = |memory: &Memory| {
                let len = memory.len_bytes() / streams;
                memory.part(index * len, len)
            };
            let (source, target) = (part(source), part(target));
            let used = &used;
            let count = move || *used.lock().expect("no panic while it was held") += thread_cpu_seconds();
            scope.spawn(move || {
                walk(&source, each, |span| send(sender, span));
                count();
            });
            scope.spawn(move || {
                walk(&target, each, |span| receive(receiver, span));
                count();
            });
        }
    });
    let bytes = (each * streams) as f64;
    let used = used.into_inner().expect("no panic while it was held");
    Plain { rate: bytes / begun.elapsed().as_secs_f64(), cpu_per_byte: used / bytes }
}

fn thread_cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
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
