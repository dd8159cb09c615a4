//! Strangers at the port: they cost little, and others get through.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use romulus_transport::tcp::wire::*;
use romulus_transport::tcp::{TcpConfig, TcpFabric};
use romulus_transport::{Arena, Event, Fabric, Listener, Memory, MessageBuffer, TransportError};

use super::peer::*;

/// A real peer connects, shakes hands and is heard.
fn expect_service(listener: &mut dyn Listener) {
    let fabric = TcpFabric::new(patient());
    let mut initiator = fabric.connect(listener.local_address(), PATIENCE).unwrap();
    initiator.send(b"it is me").unwrap();
    // Strangers with a right preface come first; they have nothing to say.
    let mut responder = loop {
        let mut channel = accept(listener);
        match channel.receive(Duration::from_millis(50)) {
            Ok(message) => {
                assert_eq!(message, b"it is me");
                break channel;
            }
            Err(error) => assert!(!matches!(error, TransportError::Invalid(_)), "{error:?}"),
        }
    };
    let answer =
        responder.answer(&initiator.offer().unwrap(), Arena::new([Memory::anonymous(4096)])).unwrap();
    let accepting = std::thread::spawn(move || responder.establish(None, PATIENCE).unwrap());
    let primary = initiator.establish(Some(&answer), PATIENCE).unwrap();
    let backup = accepting.join().unwrap();
    primary.mark(1).unwrap();
    let event = backup.next_event(&mut MessageBuffer::default(), PATIENCE).unwrap();
    assert_eq!(event, Event::Fenced { marker: 1 });
}

fn strangers(address: SocketAddr, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let stranger = |_| {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // The listener may have dropped it already.
        let _ = socket.write_all(bytes);
        socket
    };
    (0..count).map(stranger).collect()
}

/// Waits until the listener has let go of a stranger.
fn expect_dropped(mut stranger: TcpStream) {
    let read = stranger.read(&mut [0; 16]);
    let is_over = match &read {
        Ok(count) => *count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    assert!(is_over, "{read:?}");
}

#[test]
fn garbage_is_dropped_at_once() {
    let mut listener = listen(patient());
    let long = vec![0xaa; 100_000];
    let mut version = encode_preface(&Preface::Control);
    version[8] = 9;
    for bytes in [&b"GET / HTTP/1.1\r\nHost: example\r\n\r\n"[..], &[0; 32], &long, &version] {
        for stranger in strangers(listener.local_address(), 3, bytes) {
            expect_dropped(stranger);
        }
    }
    let unknown = encode_preface(&Preface::Data { stream: 0, token: [9; 16] });
    for stranger in strangers(listener.local_address(), 3, &unknown) {
        expect_dropped(stranger);
    }
    expect_service(&mut *listener);
}

#[test]
fn half_open_strangers_are_dropped_after_a_while() {
    let preface_timeout = Duration::from_millis(50);
    let mut listener = listen(TcpConfig { preface_timeout, ..patient() });
    let half = &encode_preface(&Preface::Control)[..20];
    let mut waiting = strangers(listener.local_address(), 5, half);
    waiting.extend(strangers(listener.local_address(), 5, &[]));
    for stranger in waiting {
        expect_dropped(stranger);
    }
    expect_service(&mut *listener);
}

#[test]
fn a_crowd_of_half_open_strangers_does_not_keep_a_peer_out() {
    let config = TcpConfig { strangers_max: 8, preface_timeout: Duration::from_secs(600), ..patient() };
    let mut listener = listen(config);
    let half = &encode_preface(&Preface::Control)[..31];
    let crowd = strangers(listener.local_address(), 200, half);
    expect_service(&mut *listener);
    // All but the last few were pushed out by those after them.
    let dropped = crowd.len() - 8;
    crowd.into_iter().take(dropped).for_each(expect_dropped);
}

#[test]
fn strangers_with_a_right_preface_wait_in_a_bounded_queue() {
    let mut listener = listen(patient());
    let preface = encode_preface(&Preface::Control);
    let crowd = strangers(listener.local_address(), 100, &preface);
    for stranger in crowd.into_iter().take(36) {
        expect_dropped(stranger);
    }
    for _ in 0..64 {
        drop(accept(&mut *listener));
    }
    expect_service(&mut *listener);
}

#[test]
fn a_token_opens_only_the_streams_it_was_given_for() {
    let mut listener = listen(patient());
    let address = listener.local_address();
    let _control = open(address, &Preface::Control);
    let mut channel = accept(&mut *listener);
    let offer = encode_offer(&Offer { streams: 2, heartbeat_every_us: 1000 });
    let answer = channel.answer(&offer, Arena::new([Memory::anonymous(4096)])).unwrap();
    let token = decode_answer(&answer).unwrap().token;
    let data = |stream, token| open(address, &Preface::Data { stream, token });
    let mut guess = token;
    guess[15] ^= 1;
    expect_dropped(data(0, guess));
    expect_dropped(data(2, token));
    let first = data(0, token);
    expect_dropped(data(0, token));
    let second = data(1, token);
    let responder = channel.establish(None, PATIENCE).unwrap();
    expect_dropped(data(0, token));
    assert_eq!(responder.streams(), 2);
    drop((first, second));
    let (_, fences) = expect_end(&*responder);
    assert_eq!(fences, 0);
}

#[test]
fn a_channel_that_is_given_up_takes_its_token_along() {
    let mut listener = listen(patient());
    let address = listener.local_address();
    let _control = open(address, &Preface::Control);
    let mut channel = accept(&mut *listener);
    let offer = encode_offer(&Offer { streams: 2, heartbeat_every_us: 1000 });
    let answer = channel.answer(&offer, Arena::new([Memory::anonymous(4096)])).unwrap();
    let token = decode_answer(&answer).unwrap().token;
    let early = open(address, &Preface::Data { stream: 0, token });
    let established = channel.establish(None, Duration::from_millis(50));
    assert!(matches!(established, Err(TransportError::TimedOut { .. })), "{:?}", established.err());
    expect_dropped(early);
    expect_dropped(open(address, &Preface::Data { stream: 1, token }));
}
