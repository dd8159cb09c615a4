//! The same through the fabric, with the protocol of the layer above: markers, commits, acks.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use romulus_transport::tcp::{TcpConfig, TcpFabric};
use romulus_transport::{Arena, Endpoint, Event, Fabric, Memory, MessageBuffer, RegionId, Write};

use crate::{EPOCH_BYTES, EXTENT_BYTES, Measured, Meter, Options, PAGE_BYTES};

const PATIENCE: Duration = Duration::from_secs(60);
/// What the sync load posts between two markers.
const ROUND_BYTES: u64 = 64 << 20;
/// Markers on their way at a time.
const DEPTH: u64 = 2;

fn connect(options: &Options, target: &Memory) -> (Arc<dyn Endpoint>, Arc<dyn Endpoint>) {
    let fabric = TcpFabric::new(TcpConfig { streams: options.streams, ..TcpConfig::default() });
    let mut listener = fabric.listen((Ipv4Addr::LOCALHOST, 0).into()).expect("listening");
    let mut initiator = fabric.connect(listener.local_address(), PATIENCE).expect("connecting");
    let mut responder = listener.accept(PATIENCE).expect("accepting").expect("a channel");
    let offer = initiator.offer().expect("an offer");
    let answer = responder.answer(&offer, Arena::new([target.clone()])).expect("an answer");
    let accepting = std::thread::spawn(move || responder.establish(None, PATIENCE).expect("establishing"));
    let initiator = initiator.establish(Some(&answer), PATIENCE).expect("establishing");
    (initiator, accepting.join().expect("the accepting thread"))
}

fn next(endpoint: &dyn Endpoint, message: &mut MessageBuffer) -> Event {
    loop {
        match endpoint.next_event(message, PATIENCE).expect("an event") {
            Event::Idle => {}
            Event::Closed(reason) => panic!("the connection ended: {reason}"),
            event => return event,
        }
    }
}

/// The receiving end: acknowledges an epoch when it has its fence and its commit.
fn acknowledge(endpoint: &dyn Endpoint, epochs: u64) {
    let mut message = MessageBuffer::default();
    let (mut fenced, mut committed) = (0, 0);
    for epoch in 1..=epochs {
        while fenced < epoch || committed < epoch {
            match next(endpoint, &mut message) {
                Event::Fenced { marker } => fenced = marker,
                _ => committed += 1,
            }
        }
        endpoint.send(&epoch.to_le_bytes()).expect("an ack");
    }
}

/// Runs epochs whose writes `post` makes, `total_bytes` in all.
fn run(
    options: &Options,
    source: &Memory,
    target: &Memory,
    (epochs, total_bytes): (u64, u64),
    mut post: impl FnMut(&dyn Endpoint, RegionId, u64),
) -> Measured {
    let (primary, backup) = connect(options, target);
    let region = primary.register(source.clone()).expect("registering");
    let mut message = MessageBuffer::default();
    let meter = Meter::start();
    std::thread::scope(|scope| {
        scope.spawn(|| acknowledge(&*backup, epochs));
        for epoch in 1..=epochs + DEPTH {
            if epoch > DEPTH {
                assert_eq!(next(&*primary, &mut message), Event::Message);
            }
            if epoch <= epochs {
                post(&*primary, region, epoch);
                primary.mark(epoch).expect("marking");
                primary.send(b"commit").expect("a commit");
            }
        }
    });
    let measured = meter.finish(total_bytes);
    assert_eq!(primary.bytes_written(), total_bytes);
    measured
}

/// Extents of 1 MiB, one after the other.
pub(crate) fn measure_sync(options: &Options, source: &Memory, target: &Memory) -> Measured {
    let epochs = options.total_bytes().div_ceil(ROUND_BYTES);
    let memory_bytes = source.len_bytes().min(target.len_bytes()) as u64;
    run(options, source, target, (epochs, epochs * ROUND_BYTES), |primary, region, epoch| {
        for extent in 0..ROUND_BYTES / EXTENT_BYTES {
            let at = ((epoch - 1) * ROUND_BYTES + extent * EXTENT_BYTES) % memory_bytes;
            let write = Write { region, local_offset: at, remote_offset: at, len_bytes: EXTENT_BYTES };
            primary.write(&[write]).expect("writing");
        }
    })
}

/// 50 MiB of pages from staging to scattered places, epoch by epoch.
pub(crate) fn measure_epochs(options: &Options, source: &Memory, target: &Memory) -> Measured {
    let epochs = options.total_bytes().div_ceil(EPOCH_BYTES);
    let pages = EPOCH_BYTES / PAGE_BYTES;
    let frames = target.len_bytes() as u64 / PAGE_BYTES;
    let mut writes = Vec::with_capacity(pages as usize);
    run(options, source, target, (epochs, epochs * EPOCH_BYTES), |primary, region, epoch| {
        writes.clear();
        writes.extend((0..pages).map(|page| {
            // A large odd step visits the frames in no order that a cache could guess.
            let frame = ((epoch * pages + page) * 40_503) % frames;
            let local_offset = epoch % 2 * EPOCH_BYTES + page * PAGE_BYTES;
            Write { region, local_offset, remote_offset: frame * PAGE_BYTES, len_bytes: PAGE_BYTES }
        }));
        primary.write(&writes).expect("writing");
    })
}
