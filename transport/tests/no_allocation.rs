//! In steady state no call of the tcp fabric allocates, nor does any of its threads.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use romulus_counting_allocator::{CountingAllocator, Watch};
use romulus_transport::tcp::{TcpConfig, TcpFabric};
use romulus_transport::{Arena, Endpoint, Event, Fabric, Memory, MessageBuffer, Write};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const PAGE_BYTES: u64 = 4096;
const PAGES: u64 = 2000;
const PATIENCE: Duration = Duration::from_secs(120);

fn pair(target: Memory) -> (Arc<dyn Endpoint>, Arc<dyn Endpoint>) {
    let silent_after = Duration::from_secs(60);
    let heartbeat_every = Duration::from_millis(2);
    let fabric = TcpFabric::new(TcpConfig { silent_after, heartbeat_every, ..TcpConfig::default() });
    let mut listener = fabric.listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let mut initiator = fabric.connect(listener.local_address(), PATIENCE).unwrap();
    let mut responder = listener.accept(PATIENCE).unwrap().unwrap();
    let answer = responder.answer(&initiator.offer().unwrap(), Arena::new([target])).unwrap();
    let accepting = std::thread::spawn(move || responder.establish(None, PATIENCE).unwrap());
    let initiator = initiator.establish(Some(&answer), PATIENCE).unwrap();
    (initiator, accepting.join().unwrap())
}

fn expect(endpoint: &dyn Endpoint, message: &mut MessageBuffer, expected: &Event) {
    loop {
        match endpoint.next_event(message, PATIENCE).unwrap() {
            Event::Idle => {}
            event => return assert_eq!(event, *expected),
        }
    }
}

/// An epoch as the layer above makes it: writes, marker and commit out, fence and commit in,
/// ack back. Also looks when nothing is there, and at completion.
fn epoch(
    number: u64,
    writes: &[Write],
    primary: &dyn Endpoint,
    backup: &dyn Endpoint,
    message: &mut MessageBuffer,
) {
    let taken = primary.write_now(writes).unwrap();
    primary.write(&writes[taken..]).unwrap();
    primary.mark(number).unwrap();
    expect(backup, message, &Event::Fenced { marker: number });
    primary.send(&number.to_le_bytes()).unwrap();
    expect(backup, message, &Event::Message);
    assert_eq!(message.message(), number.to_le_bytes());
    backup.send(&number.to_le_bytes()).unwrap();
    expect(primary, message, &Event::Message);
    assert_eq!(primary.completed(number, PATIENCE).unwrap(), number);
    assert_eq!(backup.next_event(message, Duration::ZERO).unwrap(), Event::Idle);
}

#[test]
fn epochs_do_not_allocate_on_either_side() {
    let bytes = (PAGES * 2 * PAGE_BYTES) as usize;
    let (source, target) = (Memory::anonymous(bytes), Memory::anonymous(bytes));
    let (primary, backup) = pair(target);
    let region = primary.register(source).unwrap();
    let scattered = |page: u64| Write {
        region,
        local_offset: page * PAGE_BYTES,
        remote_offset: (page * 2 + 1) * PAGE_BYTES,
        len_bytes: PAGE_BYTES,
    };
    let mut writes: Vec<Write> = (0..PAGES).map(scattered).collect();
    writes.push(Write { region, local_offset: 0, remote_offset: 0, len_bytes: bytes as u64 });
    let mut message = MessageBuffer::default();
    for number in 1..=20 {
        epoch(number, &writes, &*primary, &*backup, &mut message);
    }
    let watch = Watch::begin();
    for number in 21..=120 {
        epoch(number, &writes, &*primary, &*backup, &mut message);
    }
    let allocations = watch.times();
    assert_eq!(allocations, 0, "allocations in 100 epochs");
    std::hint::black_box(vec![0u8; 10]);
    assert!(watch.times() > 0, "the counter counts");
}
