//! One-sided write bandwidth of the rdma fabric between two endpoints in this process:
//! `cargo run --release -p romulus-transport --example rdma_bandwidth -- --address 10.77.0.1:0`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Parser;
use romulus_transport::rdma::{RdmaConfig, RdmaFabric};
use romulus_transport::{Arena, Event, Fabric, Memory, MessageBuffer, Write};

const PATIENCE: Duration = Duration::from_secs(120);
/// Markers on their way at a time.
const WINDOW: u64 = 2;

#[derive(Parser)]
struct Options {
    /// Where to listen; port 0 for any.
    #[arg(long, default_value = "127.0.0.1:0")]
    address: SocketAddr,
    /// Length of each write in bytes.
    #[arg(long, default_value_t = 1 << 20)]
    write_bytes: u64,
    /// How long to write.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Data queue pairs.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// Writes on their way on each queue pair.
    #[arg(long, default_value_t = 128)]
    depth: u32,
    /// Bytes of the arena; writes go through it in turn.
    #[arg(long, default_value_t = 64 << 20)]
    arena_bytes: usize,
    /// Writes between two markers, at least.
    #[arg(long, default_value_t = 64)]
    mark_every: u64,
    /// Leave a gap of a page between two writes, so that none can be joined.
    #[arg(long)]
    scattered: bool,
}

fn main() {
    let options = Options::parse();
    let config = RdmaConfig {
        streams: options.streams,
        depth: options.depth,
        silent_after: Duration::from_secs(60),
        ..RdmaConfig::default()
    };
    let fabric = RdmaFabric::new(config);
    let mut listener = fabric.listen(options.address).expect("listening");
    let mut initiator = fabric.connect(listener.local_address(), PATIENCE).expect("connecting");
    let mut responder = listener.accept(PATIENCE).expect("accepting").expect("a channel");
    let arena = Arena::new([Memory::anonymous(options.arena_bytes)]);
    let registering = Instant::now();
    let answer = responder.answer(&initiator.offer().expect("an offer"), arena).expect("an answer");
    let registering = registering.elapsed();
    let accepting = std::thread::spawn(move || responder.establish(None, PATIENCE).expect("a responder"));
    let initiator = initiator.establish(Some(&answer), PATIENCE).expect("an initiator");
    let responder = accepting.join().expect("the accepting thread");
    let region = initiator.register(Memory::anonymous(options.arena_bytes)).expect("registering");

    let stride = options.write_bytes + if options.scattered { 4096 } else { 0 };
    let places = options.arena_bytes as u64 / stride;
    let batch = (1 << 20) / options.write_bytes;
    let writes: Vec<Write> = (0..places)
        .map(|index| Write {
            region,
            local_offset: index * stride,
            remote_offset: index * stride,
            len_bytes: options.write_bytes,
        })
        .collect();
    // As on a link: a window of markers on their way, the last of them ends the measurement.
    let mut message = MessageBuffer::default();
    let mut fenced = |marker: u64| {
        while responder.next_event(&mut message, PATIENCE).expect("an event") != (Event::Fenced { marker }) {}
    };
    let start = Instant::now();
    let (mut posted, mut marker) = (0, 0);
    while start.elapsed().as_secs_f64() < options.seconds {
        let end = posted + options.mark_every;
        while posted < end {
            for writes in writes.chunks(batch.max(1) as usize) {
                initiator.write(writes).expect("writing");
                posted += writes.len() as u64;
            }
        }
        marker += 1;
        initiator.mark(marker).expect("marking");
        if marker > WINDOW {
            fenced(marker - WINDOW);
        }
    }
    (marker.saturating_sub(WINDOW) + 1..=marker).for_each(fenced);
    let elapsed = start.elapsed();
    let bytes = posted * options.write_bytes;
    println!(
        "rdma fabric {} bytes {:9.1} MiB/s ({posted} writes; connecting took {registering:?})",
        options.write_bytes,
        bytes as f64 / f64::from(1 << 20) / elapsed.as_secs_f64()
    );
}
