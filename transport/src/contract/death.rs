//! The peer's end is noticed, whenever it comes.

use super::Subject;
use super::pair::{Pair, channels, expect_end};
use crate::arena::Arena;
use crate::error::{CloseReason, TransportError};
use crate::fabric::{Endpoint, Event};
use crate::memory::Memory;

/// What an initiator does before it dies.
type Deed = fn(&Pair);
/// What an initiator tries until it notices.
type Attempt = fn(&Pair) -> Result<(), TransportError>;

fn write_much(pair: &Pair) {
    pair.initiator.write(&[pair.write(0, 0, 1 << 20)]).expect("writing");
}

const DEEDS: [(&str, Deed); 6] = [
    ("at once", |_| {}),
    ("after a write", write_much),
    ("after a marker", |pair| pair.initiator.mark(1).expect("marking")),
    ("after a write and a marker", |pair| {
        write_much(pair);
        pair.initiator.mark(1).expect("marking");
    }),
    ("after a message", |pair| pair.initiator.send(b"last words").expect("sending")),
    ("between two epochs", |pair| {
        write_much(pair);
        pair.initiator.mark(1).expect("marking");
        pair.initiator.send(b"one").expect("sending");
        write_much(pair);
        pair.initiator.mark(2).expect("marking");
        write_much(pair);
    }),
];

fn check_end(reason: &CloseReason, when: &str) {
    let from_peer = matches!(reason, CloseReason::Peer(_) | CloseReason::Failed(_));
    assert!(from_peer, "death {when} gave {reason:?}");
}

/// The initiator dies after each of its deeds; the responder gets what it gets in order, then
/// the end, and a fence only with all of its writes.
pub fn the_responder_notices_a_dead_initiator_at_each_point(subject: &Subject) {
    for (when, deed) in DEEDS {
        let pair = Pair::new(subject, 1 << 20, &[1 << 20]);
        pair.source.write(0, &vec![9; 1 << 20]);
        deed(&pair);
        pair.initiator.close();
        let (events, reason) = expect_end(&*pair.responder, pair.patience);
        check_end(&reason, when);
        let fences = events.iter().filter_map(|event| match event {
            Event::Fenced { marker } => Some(*marker),
            _ => None,
        });
        assert!(fences.clone().eq(1..=fences.count() as u64), "death {when}: {events:?}");
        if when.contains("write and a marker") && !events.is_empty() {
            assert!(
                pair.target_bytes().iter().all(|byte| *byte == 9),
                "death {when}: a fence without its write"
            );
        }
        let sent = pair.responder.send(b"too late");
        assert!(matches!(sent, Err(TransportError::Closed(_))), "death {when}: {sent:?}");
    }
}

/// The responder dies; the initiator notices while it waits, posts or sends.
pub fn the_initiator_notices_a_dead_responder_at_each_point(subject: &Subject) {
    for (when, deed) in DEEDS {
        let pair = Pair::new(subject, 1 << 20, &[1 << 20]);
        deed(&pair);
        pair.responder.close();
        let (_, reason) = expect_end(&*pair.initiator, pair.patience);
        check_end(&reason, when);
        refuses_everything(&*pair.initiator, &pair);
    }
    let attempts: [(&str, Attempt); 3] = [
        ("writing", |pair| pair.initiator.write(&[pair.write(0, 0, 1 << 20)])),
        ("marking", |pair| {
            pair.initiator.completed(1, pair.patience)?;
            pair.initiator.mark(1)
        }),
        ("sending", |pair| pair.initiator.send(&[1; 4096])),
    ];
    for (what, attempt) in attempts {
        let pair = Pair::new(subject, 1 << 20, &[1 << 20]);
        pair.responder.close();
        let start = std::time::Instant::now();
        let error = loop {
            match attempt(&pair) {
                Ok(()) => {
                    assert!(start.elapsed() < pair.patience, "{what} into the void for ever");
                    std::thread::yield_now();
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(error, TransportError::Closed(_)), "{what}: {error:?}");
    }
}

fn refuses_everything(endpoint: &dyn Endpoint, pair: &Pair) {
    let results = [endpoint.write(&[pair.write(0, 0, 1)]), endpoint.mark(1000), endpoint.send(b"anyone?")];
    for result in results {
        assert!(matches!(result, Err(TransportError::Closed(_))), "after the end: {result:?}");
    }
}

/// Either side may leave at each step of the handshake; the other gets an error in time.
pub fn a_peer_that_leaves_the_handshake_is_noticed(subject: &Subject) {
    let patience = subject.patience;
    let (_listener, initiator, mut responder) = channels(subject);
    drop(initiator);
    let received = responder.receive(patience);
    assert!(matches!(received, Err(TransportError::Closed(_))), "{received:?}");

    let (_listener, mut initiator, responder) = channels(subject);
    let offer = initiator.offer().expect("an offer");
    initiator.send(&offer).expect("sending the offer");
    drop(responder);
    let received = initiator.receive(patience);
    assert!(matches!(received, Err(TransportError::Closed(_))), "{received:?}");

    let (_listener, mut initiator, mut responder) = channels(subject);
    let offer = initiator.offer().expect("an offer");
    responder.answer(&offer, Arena::new([Memory::anonymous(4096)])).expect("an answer");
    drop(initiator);
    let established = responder.establish(None, patience);
    assert!(matches!(established, Err(TransportError::Closed(_))), "{:?}", established.err());

    let (_listener, mut initiator, mut responder) = channels(subject);
    let offer = initiator.offer().expect("an offer");
    let answer = responder.answer(&offer, Arena::new([Memory::anonymous(4096)])).expect("an answer");
    drop(responder);
    match initiator.establish(Some(&answer), patience) {
        Err(error) => {
            assert!(matches!(error, TransportError::Closed(_) | TransportError::Io { .. }), "{error:?}")
        }
        Ok(endpoint) => {
            check_end(&expect_end(&*endpoint, patience).1, "of the responder before it established")
        }
    }
}
