//! What the sockets themselves move: a thread for each stream on both ends, `sendmsg` from one
//! memory and `recvmsg` into another, nothing else.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::Instant;

use romulus_checkpoint::PAGE_BYTES;
use romulus_transport::Memory;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg};

/// Bytes of one call.
const CALL_BYTES: usize = 1 << 20;

/// Which bytes of its memory a plain program moves.
#[derive(Clone, Copy, PartialEq)]
pub enum Places {
    /// All of them, one after the other.
    Whole,
    /// Every other page or so, as a guest writes them: half of all pages, by chance.
    Pages,
}

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
    places: Places,
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
            let (source, target) = (calls(&part(source), places), calls(&part(target), places));
            let used = &used;
            let count = move || *used.lock().expect("no panic while it was held") += thread_cpu_seconds();
            scope.spawn(move || {
                walk(&source, each, |spans| send(sender, spans));
                count();
            });
            scope.spawn(move || {
                walk(&target, each, |spans| receive(receiver, spans));
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

/// A part of the memory: its address, and its length in bytes.
type Span = (usize, usize);

/// What each system call moves, of about `CALL_BYTES`.
fn calls(memory: &Memory, places: Places) -> Vec<Vec<Span>> {
    let page_bytes = PAGE_BYTES as usize;
    let address = |at, len| memory.pointer(at, len) as usize;
    let len_bytes = memory.len_bytes();
    match places {
        Places::Whole => (0..len_bytes)
            .step_by(CALL_BYTES)
            .map(|at| (at, CALL_BYTES.min(len_bytes - at)))
            .map(|(at, len)| vec![(address(at, len), len)])
            .collect(),
        Places::Pages => {
            let mut random = 1u64;
            let pages: Vec<Span> = (0..len_bytes / page_bytes)
                .filter(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    random >> 63 == 0
                })
                .map(|page| (address(page * page_bytes, page_bytes), page_bytes))
                .collect();
            pages.chunks(CALL_BYTES / page_bytes).map(<[Span]>::to_vec).collect()
        }
    }
}

fn walk(calls: &[Vec<Span>], mut left: usize, mut call: impl FnMut(&[Span])) {
    for spans in calls.iter().cycle() {
        if left == 0 {
            return;
        }
        let len_bytes: usize = spans.iter().map(|(_, len)| len).sum();
        if len_bytes <= left {
            call(spans);
            left -= len_bytes;
        } else {
            call(&[(spans[0].0, spans[0].1.min(left))]);
            left -= spans[0].1.min(left);
        }
    }
}

fn send(socket: &TcpStream, spans: &[Span]) {
    let mut slices: Vec<IoSlice<'_>> = spans
        .iter()
        // SAFETY: the addresses come from `pointer`, which checked them; nothing writes to this
        // part of the memory while the measurement runs.
        .map(|&(address, len)| IoSlice::new(unsafe { std::slice::from_raw_parts(address as *const u8, len) }))
        .collect();
    let mut slices = &mut slices[..];
    while !slices.is_empty() {
        let mut nothing = SendAncillaryBuffer::default();
        let sent = sendmsg(socket.as_fd(), slices, &mut nothing, SendFlags::NOSIGNAL).expect("sending");
        IoSlice::advance_slices(&mut slices, sent);
    }
}

fn receive(socket: &TcpStream, spans: &[Span]) {
    let mut slices: Vec<IoSliceMut<'_>> = spans
        .iter()
        .map(|&(address, len)| {
            // SAFETY: the addresses come from `pointer`, which checked them; nothing else uses this
            // part of the memory while the measurement runs.
            IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(address as *mut u8, len) })
        })
        .collect();
    let mut slices = &mut slices[..];
    while !slices.is_empty() {
        let mut nothing = RecvAncillaryBuffer::default();
        let received = recvmsg(socket.as_fd(), slices, &mut nothing, RecvFlags::empty()).expect("receiving");
        assert!(received.bytes > 0, "the stream has ended");
        IoSliceMut::advance_slices(&mut slices, received.bytes);
    }
}
