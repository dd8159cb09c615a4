//! Peers that say nothing, and peers that take nothing.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use romulus_transport::tcp::TcpConfig;
use romulus_transport::tcp::wire::*;
use romulus_transport::{CloseReason, Memory, TransportError, Write as OneSided};

use super::peer::*;

fn impatient() -> TcpConfig {
    let (silent_after, heartbeat_every) = (Duration::from_millis(300), Duration::from_millis(5));
    TcpConfig { silent_after, heartbeat_every, ..TcpConfig::default() }
}

#[test]
fn a_silent_initiator_is_noticed() {
    let mut raw = RawInitiator::new(impatient(), 2);
    raw.control.write_all(&message(b"the last sign of life")).unwrap();
    let (reason, _) = expect_end(&*raw.responder);
    assert!(
        matches!(reason, CloseReason::Silent(for_how_long) if for_how_long >= Duration::from_millis(300))
    );
    let sent = raw.responder.send(b"hello?");
    assert!(matches!(sent, Err(TransportError::Closed(CloseReason::Silent(_)))), "{sent:?}");
}

#[test]
fn a_silent_responder_is_noticed() {
    let mut raw = RawResponder::new(impatient(), 4096);
    raw.control.write_all(&message(b"the last sign of life")).unwrap();
    let (reason, _) = expect_end(&*raw.initiator);
    assert!(matches!(reason, CloseReason::Silent(_)), "{reason:?}");
}

#[test]
fn both_sides_send_heartbeats_while_nothing_else_happens() {
    let heartbeat = encode_control_header(&ControlHeader { kind: ControlKind::Heartbeat, len_bytes: 0 });
    let mut bytes = [0; 3 * CONTROL_HEADER_BYTES];
    let mut initiator = RawInitiator::new(patient(), 1);
    initiator.control.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes.as_slice(), heartbeat.repeat(3));

    let mut responder = RawResponder::new(patient(), 4096);
    let mut preface = [0; PREFACE_BYTES];
    responder.control.read_exact(&mut preface).unwrap();
    assert_eq!(decode_preface(&preface), Ok(Preface::Control));
    responder.control.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes.as_slice(), heartbeat.repeat(3));
}

#[test]
fn close_wakes_a_writer_whose_peer_takes_nothing() {
    let raw = RawResponder::new(patient(), 64 << 20);
    let region = raw.initiator.register(Memory::anonymous(64 << 20)).unwrap();
    let write = OneSided { region, local_offset: 0, remote_offset: 0, len_bytes: 64 << 20 };
    let has_begun = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            has_begun.store(true, Ordering::Release);
            raw.initiator.write(&[write])
        });
        while !has_begun.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        // Waits until the writer has filled the first stream's buffers.
        raw.data[0].peek(&mut [0]).unwrap();
        raw.initiator.close();
        let written = writer.join().unwrap();
        assert!(matches!(written, Err(TransportError::Closed(CloseReason::Local))), "{written:?}");
    });
}

#[test]
fn a_writer_whose_peer_falls_silent_ends() {
    let raw = RawResponder::new(impatient(), 64 << 20);
    let region = raw.initiator.register(Memory::anonymous(64 << 20)).unwrap();
    let write = OneSided { region, local_offset: 0, remote_offset: 0, len_bytes: 64 << 20 };
    let written = raw.initiator.write(&[write]);
    assert!(matches!(written, Err(TransportError::Closed(CloseReason::Silent(_)))), "{written:?}");
}

#[test]
fn a_peer_whose_heartbeats_are_too_rare_is_refused() {
    let mut listener = listen(impatient());
    let _stranger = open(listener.local_address(), &Preface::Control);
    let mut channel = accept(&mut *listener);
    let offer = encode_offer(&Offer { streams: 1, heartbeat_every_us: 200_000 });
    let answered = channel.answer(&offer, romulus_transport::Arena::new([Memory::anonymous(4096)]));
    assert!(matches!(answered, Err(TransportError::Handshake(_))), "{answered:?}");
}
