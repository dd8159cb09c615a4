//! Two connected endpoints, and helpers to wait for what must happen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Subject;
use crate::arena::Arena;
use crate::error::CloseReason;
use crate::fabric::{Channel, Endpoint, Event, Listener, MessageBuffer, RegionId, Write};
use crate::memory::Memory;

/// A connection whose initiator has one region, and whose responder an arena.
pub(super) struct Pair {
    pub initiator: Arc<dyn Endpoint>,
    pub responder: Arc<dyn Endpoint>,
    pub source: Memory,
    pub region: RegionId,
    pub target: Vec<Memory>,
    pub patience: Duration,
}

/// A listener and a channel's two ends.
pub(super) fn channels(subject: &Subject) -> (Box<dyn Listener>, Box<dyn Channel>, Box<dyn Channel>) {
    let mut listener = subject.listening.listen(subject.address).expect("listening");
    let initiator =
        subject.connecting.connect(listener.local_address(), subject.patience).expect("connecting");
    let responder = listener.accept(subject.patience).expect("accepting").expect("a channel in time");
    (listener, initiator, responder)
}

/// Shakes hands as the layer above does: the offer and the answer travel in messages.
pub(super) fn shake_hands(
    mut initiator: Box<dyn Channel>,
    mut responder: Box<dyn Channel>,
    arena: Arena,
    patience: Duration,
) -> (Arc<dyn Endpoint>, Arc<dyn Endpoint>) {
    let accepting = std::thread::spawn(move || {
        let offer = responder.receive(patience).expect("the offer");
        let answer = responder.answer(&offer, arena).expect("an answer");
        responder.send(&answer).expect("sending the answer");
        responder.establish(None, patience).expect("the responder's endpoint")
    });
    let offer = initiator.offer().expect("an offer");
    initiator.send(&offer).expect("sending the offer");
    let answer = initiator.receive(patience).expect("the answer");
    let initiator = initiator.establish(Some(&answer), patience).expect("the initiator's endpoint");
    (initiator, accepting.join().expect("the responder's thread"))
}

impl Pair {
    /// A pair with a region of `source_bytes` and an arena of these chunks.
    pub(super) fn new(subject: &Subject, source_bytes: usize, chunks_bytes: &[usize]) -> Self {
        let (_listener, initiator, responder) = channels(subject);
        let target: Vec<Memory> = chunks_bytes.iter().map(|bytes| Memory::anonymous(*bytes)).collect();
        let arena = Arena::new(target.clone());
        let (initiator, responder) = shake_hands(initiator, responder, arena, subject.patience);
        let source = Memory::anonymous(source_bytes);
        let region = initiator.register(source.clone()).expect("registering");
        Pair { initiator, responder, source, region, target, patience: subject.patience }
    }

    /// A write of this pair's region.
    pub(super) fn write(&self, local_offset: u64, remote_offset: u64, len_bytes: u64) -> Write {
        Write { region: self.region, local_offset, remote_offset, len_bytes }
    }

    /// Waits at the responder for a fence.
    pub(super) fn expect_fence(&self, marker: u64) {
        let event = expect_event(&*self.responder, &mut MessageBuffer::default(), self.patience);
        assert_eq!(event, Event::Fenced { marker });
    }

    /// The whole arena.
    pub(super) fn target_bytes(&self) -> Vec<u8> {
        self.target.iter().map(bytes_of).collect::<Vec<_>>().concat()
    }
}

/// All bytes of a memory.
pub(super) fn bytes_of(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; memory.len_bytes()];
    memory.read(0, &mut bytes);
    bytes
}

/// The next event that is not `Idle`.
pub(super) fn expect_event(
    endpoint: &dyn Endpoint,
    message: &mut MessageBuffer,
    patience: Duration,
) -> Event {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match endpoint.next_event(message, left).expect("next_event") {
            Event::Idle => assert!(Instant::now() < deadline, "nothing happened within {patience:?}"),
            event => return event,
        }
    }
}

/// The next message.
pub(super) fn expect_message(endpoint: &dyn Endpoint, patience: Duration) -> Vec<u8> {
    let mut message = MessageBuffer::default();
    let event = expect_event(endpoint, &mut message, patience);
    assert_eq!(event, Event::Message);
    message.message().to_vec()
}

/// What comes before the end, and the end, which must stay the same.
pub(super) fn expect_end(endpoint: &dyn Endpoint, patience: Duration) -> (Vec<Event>, CloseReason) {
    let mut message = MessageBuffer::default();
    let mut before = Vec::new();
    loop {
        match expect_event(endpoint, &mut message, patience) {
            Event::Closed(reason) => {
                let again = endpoint.next_event(&mut message, Duration::ZERO).expect("next_event");
                assert_eq!(again, Event::Closed(reason.clone()), "the end stays the same");
                return (before, reason);
            }
            event => before.push(event),
        }
    }
}
