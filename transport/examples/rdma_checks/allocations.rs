//! In steady state no call of the rdma fabric allocates, nor does any of its threads.

use std::time::Duration;

use romulus_counting_allocator::{CountingAllocator, Watch};
use romulus_transport::rdma::{RdmaConfig, RdmaFabric};
use romulus_transport::{Arena, Endpoint, Event, Fabric, Memory, MessageBuffer, Write};

use super::pair::{PATIENCE, Place, expect_event, patient};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const PAGE_BYTES: u64 = 4096;
const PAGES: u64 = 500;

/// An epoch as the layer above makes it: writes, marker and commit out, fence and commit in,
/// ack back. Also looks when nothing is there, and at completion.
fn epoch(
    number: u64,
    writes: &[Write],
    primary: &dyn Endpoint,
    backup: &dyn Endpoint,
    message: &mut MessageBuffer,
) {
    primary.write(writes).expect("writing");
    primary.mark(number).expect("marking");
    assert_eq!(expect_event(backup, message), Event::Fenced { marker: number });
    primary.send(&number.to_le_bytes()).expect("sending");
    assert_eq!(expect_event(backup, message), Event::Message);
    assert_eq!(message.message(), number.to_le_bytes());
    backup.send(&number.to_le_bytes()).expect("sending");
    assert_eq!(expect_event(primary, message), Event::Message);
    assert_eq!(primary.completed(number, PATIENCE).expect("completion"), number);
    assert_eq!(backup.next_event(message, Duration::ZERO).expect("an event"), Event::Idle);
}

pub fn epochs_do_not_allocate_on_either_side(place: &Place) {
    let bytes = (PAGES * 2 * PAGE_BYTES) as usize;
    let (source, target) = (Memory::anonymous(bytes), Memory::anonymous(bytes));
    let heartbeat_every = Duration::from_millis(2);
    let fabric = RdmaFabric::new(RdmaConfig { heartbeat_every, ..patient() });
    let mut listener = fabric.listen(place.socket()).expect("listening");
    let mut initiator = fabric.connect(listener.local_address(), PATIENCE).expect("connecting");
    let mut responder = listener.accept(PATIENCE).expect("accepting").expect("a channel");
    let offer = initiator.offer().expect("an offer");
    let answer = responder.answer(&offer, Arena::new([target])).expect("an answer");
    let accepting = std::thread::spawn(move || responder.establish(None, PATIENCE));
    let primary = initiator.establish(Some(&answer), PATIENCE).expect("an initiator");
    let backup = accepting.join().expect("the accepting thread").expect("a responder");
    let region = primary.register(source).expect("registering");
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
    // More than there are credits for markers, so that credits go back as well.
    for number in 21..=220 {
        epoch(number, &writes, &*primary, &*backup, &mut message);
    }
    let allocations = watch.times();
    assert_eq!(allocations, 0, "allocations in 200 epochs");
    std::hint::black_box(vec![0u8; 10]);
    assert!(watch.times() > 0, "the counter counts");
}
