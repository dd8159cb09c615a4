//! Plain TCP streams, a thread for each on both ends: the limit of the tcp fabric.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use romulus_checkpoint::driver::anonymous_mapping;
use romulus_transport::{Memory, plain};

use super::super::load::{Moved, cpu_seconds};
use crate::exit::{Failure, OrFail};

/// Longest wait for the other end.
const PATIENCE: Duration = Duration::from_secs(60);
const PAGE_BYTES: usize = 4096;

/// Makes all pages of a memory exist.
pub fn touch(memory: &Memory) {
    (0..memory.len_bytes()).step_by(PAGE_BYTES).for_each(|offset| memory.write(offset, &[1]));
}

/// Memory whose pages exist.
pub fn touched(len_bytes: u64) -> Result<Memory, Failure> {
    let memory = anonymous_mapping(len_bytes as usize).or_fail(format!("mapping {len_bytes} bytes"))?;
    touch(&memory);
    Ok(memory)
}

/// The part of `memory` that stream `index` of `streams` has to itself.
fn part(memory: &Memory, index: usize, streams: usize) -> Memory {
    let part_bytes = memory.len_bytes() / streams;
    memory.part(index * part_bytes, part_bytes)
}

/// Runs `work` once for each stream, at the same time; the sum of what they return.
fn in_parallel(
    streams: &[TcpStream],
    work: impl Fn(usize, &TcpStream) -> Result<u64, Failure> + Sync,
) -> Result<u64, Failure> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = streams
            .iter()
            .enumerate()
            .map(|(index, stream)| scope.spawn(move || work(index, stream)))
            .collect();
        let panicked = |_| Err(Failure::failed("a thread of a plain stream panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).sum()
    })
}

/// Server: accepts the streams and receives until they end; tells each how much came.
pub fn receive(
    listener: &TcpListener,
    streams: usize,
    memory: &Memory,
    span_bytes: u64,
) -> Result<(), Failure> {
    let accept = |_| listener.accept().map(|(stream, _)| stream);
    let sockets: Vec<_> = (0..streams).map(accept).collect::<Result<_, _>>().or_fail("accepting")?;
    in_parallel(&sockets, |index, socket| {
        socket.set_read_timeout(Some(PATIENCE)).or_fail("a socket option")?;
        let memory = part(memory, index, streams);
        let received = plain::receive(socket, &memory, span_bytes as usize).or_fail("receiving")?;
        let mut answer = socket;
        answer.write_all(&received.to_le_bytes()).or_fail("answering")?;
        Ok(received)
    })?;
    Ok(())
}

/// Client: sends for so long over `streams` streams, in calls of `span_bytes`.
pub fn send(
    address: SocketAddr,
    streams: usize,
    memory: &Memory,
    span_bytes: u64,
    time: Duration,
) -> Result<Moved, Failure> {
    let connect = |_| {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    let sockets: Vec<_> = (0..streams)
        .map(connect)
        .collect::<std::io::Result<_>>()
        .or_fail(format!("connecting to {address}"))?;
    let (cpu, begun) = (cpu_seconds(), Instant::now());
    let bytes = in_parallel(&sockets, |index, socket| {
        // Something moves however short the time is.
        let more = |sent| if sent == 0 || begun.elapsed() < time { u64::MAX } else { 0 };
        let memory = part(memory, index, streams);
        let sent = plain::send(socket, &memory, span_bytes as usize, more).or_fail("sending")?;
        socket.shutdown(Shutdown::Write).or_fail("ending a stream")?;
        let mut received = [0; 8];
        let mut answer = socket;
        answer.read_exact(&mut received).or_fail("the server's count")?;
        match u64::from_le_bytes(received) {
            received if received == sent => Ok(sent),
            received => Err(Failure::failed(format!("{sent} bytes sent, {received} received"))),
        }
    })?;
    Ok(Moved { bytes, seconds: begun.elapsed().as_secs_f64(), cpu_seconds: cpu_seconds() - cpu })
}
