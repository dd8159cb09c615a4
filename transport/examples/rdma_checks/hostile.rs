//! Peers that break the rules. The hostile side is the fabric's own initiator, fed with an answer
//! that was tampered with, or connected through a proxy that adds or withholds bytes.

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use romulus_transport::rdma::RdmaConfig;
use romulus_transport::rdma::wire::{Answer, Credits, encode_control_header, encode_credits};
use romulus_transport::stream::wire::{ControlHeader, ControlKind};
use romulus_transport::{CloseReason, TransportError};

use super::pair::{ARENA_BYTES, Pair, Place, expect_end, expect_parts, patient};

/// Writes through a spoilt answer: refused by name, and the arena is as it was.
fn refused(place: &Place, spoil: impl FnOnce(&mut Answer), offset: u64) {
    let pair = Pair::of(place.socket(), patient(), patient(), spoil).expect("a connection");
    let posted = pair.initiator.write(&[pair.write(offset, 4096)]).and_then(|()| pair.initiator.mark(1));
    let reason = expect_end(&*pair.initiator);
    let CloseReason::Failed(text) = &reason else { panic!("{reason:?}") };
    expect_parts(text, &["IBV_WC_REM_ACCESS_ERR", "write 1 on data queue pair", "key"]);
    if let Err(error) = posted {
        assert!(matches!(error, TransportError::Closed(_)), "{error:?}");
    }
    pair.initiator.close();
    let reason = expect_end(&*pair.responder);
    assert!(matches!(reason, CloseReason::Violation(_) | CloseReason::Peer(_)), "{reason:?}");
    assert!(pair.target_bytes().iter().all(|byte| *byte == 7), "bytes were placed");
}

pub fn a_forged_key_writes_nothing(place: &Place) {
    for flip in [1, 0x100, 0x8000_0000] {
        refused(place, |answer| answer.spans[0].key ^= flip, 0);
    }
}

pub fn an_offset_outside_the_arena_writes_nothing(place: &Place) {
    // The initiator believes in an arena of twice the length, and one that begins before.
    refused(place, |answer| answer.spans[0].len_bytes *= 2, ARENA_BYTES as u64);
    refused(place, |answer| answer.spans[0].len_bytes *= 2, ARENA_BYTES as u64 - 2048);
    refused(place, |answer| answer.spans[0].address -= 2048, 0);
}

/// What an old connection was told opens nothing on a new one.
pub fn keys_of_a_closed_connection_are_dead(place: &Place) {
    let mut old = None;
    let pair = Pair::of(place.socket(), patient(), patient(), |answer| old = Some(answer.spans[0]));
    let pair = pair.expect("a connection");
    pair.works();
    pair.responder.close();
    let old = old.expect("a span");
    refused(place, |answer| answer.spans[0] = old, 0);
    // What `works` has written is there, and nothing else.
    let as_left = |at: usize| if (100..5100).contains(&at) { 9 } else { 7 };
    assert!(
        pair.target_bytes().iter().enumerate().all(|(at, byte)| *byte == as_left(at)),
        "bytes were placed"
    );
    // A connection that lives does not open another one's memory either.
    let mut other = None;
    let living = Pair::of(place.socket(), patient(), patient(), |answer| other = Some(answer.spans[0]))
        .expect("a connection");
    let other = other.expect("a span");
    refused(place, |answer| answer.spans[0] = other, 0);
    assert!(living.target_bytes().iter().all(|byte| *byte == 7), "bytes were placed");
    living.works();
}

/// The initiator believes that it may have twice as many markers on their way, and nobody takes
/// them: it fails by itself, in finite time.
pub fn markers_without_credit_fail_by_name(place: &Place) {
    let pair = Pair::of(place.socket(), patient(), patient(), |answer| answer.markers *= 2);
    let pair = pair.expect("a connection");
    for marker in 1..=256 {
        if pair.initiator.mark(marker).is_err() {
            break;
        }
    }
    let reason = expect_end(&*pair.initiator);
    let CloseReason::Failed(text) = &reason else { panic!("{reason:?}") };
    expect_parts(text, &["IBV_WC_RNR_RETRY_EXC_ERR", "the marker in request", "credits"]);
}

/// Stands between the two on the control connection.
struct Proxy {
    address: SocketAddr,
    is_stopped: Arc<AtomicBool>,
    /// Towards the listener, and towards the initiator.
    ends: std::sync::mpsc::Receiver<(TcpStream, TcpStream)>,
}

impl Proxy {
    fn new(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((target.ip(), 0)).expect("the proxy's port");
        let address = listener.local_addr().expect("its address");
        let is_stopped = Arc::new(AtomicBool::new(false));
        let (sender, ends) = std::sync::mpsc::channel();
        let stop = Arc::clone(&is_stopped);
        std::thread::spawn(move || {
            let near = listener.accept().expect("the initiator").0;
            let far = TcpStream::connect(target).expect("the listener");
            for (mut from, mut to) in [
                (near.try_clone().expect("a clone"), far.try_clone().expect("a clone")),
                (far.try_clone().expect("a clone"), near.try_clone().expect("a clone")),
            ] {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    while let Ok(count @ 1..) = from.read(&mut bytes) {
                        // Stopped: the connection stays open, and nothing comes.
                        if !stop.load(Ordering::Acquire) && to.write_all(&bytes[..count]).is_err() {
                            break;
                        }
                    }
                });
            }
            let _ = sender.send((far, near));
        });
        Proxy { address, is_stopped, ends }
    }
}

fn through_proxy(place: &Place, config: &RdmaConfig) -> (Pair, Proxy) {
    let proxy = std::cell::OnceCell::new();
    let make = |target| proxy.get_or_init(|| Proxy::new(target)).address;
    let pair = Pair::through(place.socket(), Some(&make), config.clone(), config.clone(), |_| {});
    (pair.expect("a connection"), proxy.into_inner().expect("the proxy was asked"))
}

/// A peer that says it released what was never sent.
pub fn false_credits_end_the_connection(place: &Place) {
    let cases = [Credits { markers: 0, messages: u64::MAX }, Credits { markers: 1, messages: 0 }];
    for credits in cases {
        for to_responder in [true, false] {
            let (pair, proxy) = through_proxy(place, &patient());
            let (mut far, mut near) = proxy.ends.recv().expect("both ends");
            let note = encode_credits(&credits);
            let header = ControlHeader { kind: ControlKind::Message, len_bytes: note.len() };
            let frame = [&encode_control_header(&header)[..], &note].concat();
            let (end, endpoint) =
                if to_responder { (&mut far, &pair.responder) } else { (&mut near, &pair.initiator) };
            end.write_all(&frame).expect("injecting");
            let reason = expect_end(&**endpoint);
            let CloseReason::Violation(text) = &reason else { panic!("{reason:?}") };
            expect_parts(text, &["released", "sent"]);
        }
    }
}

/// The control connection falls silent, though its network still stands.
pub fn a_peer_that_stops_is_noticed(place: &Place) {
    let silent_after = Duration::from_millis(500);
    let (pair, proxy) = through_proxy(place, &RdmaConfig { silent_after, ..RdmaConfig::default() });
    pair.works();
    // Both have heard the other: until then they wait longer.
    std::thread::sleep(silent_after);
    proxy.is_stopped.store(true, Ordering::Release);
    let start = Instant::now();
    let mut noticed = 0;
    for endpoint in [&pair.initiator, &pair.responder] {
        let reason = expect_end(&**endpoint);
        // Whoever notices first ends the connection of the other.
        assert!(matches!(reason, CloseReason::Silent(_) | CloseReason::Peer(_)), "{reason:?}");
        noticed += usize::from(matches!(reason, CloseReason::Silent(_)));
    }
    assert!(noticed > 0, "nobody noticed the silence");
    // With room for a busy machine.
    let limit = silent_after * 8;
    assert!(start.elapsed() < limit, "noticed only after {:?}", start.elapsed());
}
