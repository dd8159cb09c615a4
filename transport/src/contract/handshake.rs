//! Connecting, and being refused.

use std::time::Duration;

use super::Subject;
use super::pair::{Pair, channels, expect_event, shake_hands};
use crate::arena::Arena;
use crate::error::TransportError;
use crate::fabric::{Event, MAX_HANDSHAKE_BYTES, MessageBuffer, Write};
use crate::memory::Memory;

fn garbage() -> Vec<Vec<u8>> {
    vec![vec![], vec![0], vec![0; 24], vec![0xff; 64], vec![1; 1000], b"GET / HTTP/1.1\r\n\r\n".to_vec()]
}

/// Parameters that make no sense are refused on both sides, and long messages too; the listener
/// goes on.
pub fn garbage_in_the_handshake_is_refused(subject: &Subject) {
    for bytes in garbage() {
        let (_listener, mut initiator, mut responder) = channels(subject);
        let refused = responder.answer(&bytes, Arena::new([Memory::anonymous(4096)]));
        assert!(matches!(refused, Err(TransportError::Handshake(_))), "{refused:?}");
        initiator.offer().expect("an offer");
        let refused = initiator.establish(Some(&bytes), subject.patience);
        assert!(matches!(refused, Err(TransportError::Handshake(_))), "{:?}", refused.err());
    }
    let (_listener, mut initiator, mut responder) = channels(subject);
    let too_long = initiator.send(&vec![0; MAX_HANDSHAKE_BYTES + 1]);
    assert!(matches!(too_long, Err(TransportError::Invalid(_))), "{too_long:?}");
    let nothing = responder.receive(Duration::from_millis(1));
    assert!(matches!(nothing, Err(TransportError::TimedOut { .. })), "{nothing:?}");
    let longest: Vec<u8> = (0..MAX_HANDSHAKE_BYTES).map(|index| index as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| initiator.send(&longest).expect("sending"));
        assert!(responder.receive(subject.patience).expect("receiving") == longest);
    });
    let wrong_role = initiator.answer(&[], Arena::default());
    assert!(matches!(wrong_role, Err(TransportError::Invalid(_))), "{wrong_role:?}");
    let wrong_role = responder.offer();
    assert!(matches!(wrong_role, Err(TransportError::Invalid(_))), "{wrong_role:?}");
    let Pair { .. } = Pair::new(subject, 4096, &[4096]);
}

/// Connections of one listener have nothing to do with each other, whatever the order in which
/// they are made and end.
pub fn a_listener_serves_many_connections_apart(subject: &Subject) {
    const CONNECTIONS: u8 = 12;
    let mut listener = subject.listening.listen(subject.address).expect("listening");
    let address = listener.local_address();
    assert_ne!(address.port(), 0);
    let _idle_strangers: Vec<_> =
        (0..8).map(|_| subject.connecting.connect(address, subject.patience).expect("connecting")).collect();
    let mut waiting = Vec::new();
    while waiting.len() < 8 {
        waiting.push(listener.accept(subject.patience).expect("accepting").expect("a stranger"));
    }
    let mut pairs = Vec::new();
    for byte in 1..=CONNECTIONS {
        let initiator = subject.connecting.connect(address, subject.patience).expect("connecting");
        let responder = listener.accept(subject.patience).expect("accepting").expect("a channel");
        let target = Memory::anonymous(4096);
        let (initiator, responder) =
            shake_hands(initiator, responder, Arena::new([target.clone()]), subject.patience);
        pairs.push((byte, initiator, responder, target));
    }
    drop(listener);
    for (byte, initiator, _, _) in &pairs {
        let source = Memory::anonymous(4096);
        source.write(0, &[*byte; 4096]);
        let region = initiator.register(source).expect("registering");
        let write = Write { region, local_offset: 0, remote_offset: 0, len_bytes: 4096 };
        initiator.write(&[write]).expect("writing");
        initiator.mark(u64::from(*byte)).expect("marking");
        if byte % 3 == 0 {
            initiator.send(&[*byte]).expect("sending");
        }
    }
    for (byte, _, responder, target) in pairs.iter().rev() {
        let mut message = MessageBuffer::default();
        let mut events = vec![expect_event(&**responder, &mut message, subject.patience)];
        if byte % 3 == 0 {
            events.push(expect_event(&**responder, &mut message, subject.patience));
            assert_eq!(message.message(), [*byte]);
            assert!(events.contains(&Event::Message));
        }
        assert!(events.contains(&Event::Fenced { marker: u64::from(*byte) }), "{events:?}");
        let mut bytes = [0; 4096];
        target.read(0, &mut bytes);
        assert_eq!(bytes, [*byte; 4096]);
        responder.close();
    }
}

/// Connecting where nobody listens, and listening where somebody does, are errors.
pub fn nobody_listens_is_an_error(subject: &Subject) {
    let mut listener = subject.listening.listen(subject.address).expect("listening");
    let address = listener.local_address();
    assert!(subject.listening.listen(address).is_err(), "two listeners on one address");
    assert!(listener.accept(Duration::ZERO).expect("accepting").is_none());
    drop(listener);
    assert!(subject.connecting.connect(address, Duration::from_millis(500)).is_err());
}
