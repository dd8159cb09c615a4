//! A peer past the handshake that breaks the rules: the connection ends with the reason, and
//! nothing of the offending frame is placed.

use std::io::Write;

use romulus_transport::tcp::wire::*;
use romulus_transport::{CloseReason, Event, MessageBuffer};

use super::peer::*;

const END: u64 = ARENA_BYTES as u64;
const BORDER: u64 = END / 2;

#[test]
fn frames_that_leave_the_arena_or_lie_place_nothing() {
    let mut too_many = encode_data_header(&DataHeader::Writes { count: 1, payload_bytes: 1 }).to_vec();
    too_many[2..4].copy_from_slice(&u16::MAX.to_le_bytes());
    let mut reserved = writes(&[(0, 1)], 1, &[1]);
    reserved[DATA_HEADER_BYTES + 13] = 1;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("past the arena", writes(&[(0, 8), (END - 4, 8)], 16, &[1; 16])),
        ("far past the arena", writes(&[(0, 8), (u64::MAX - 2, 8)], 16, &[1; 16])),
        ("across two chunks", writes(&[(0, 8), (BORDER - 4, 8)], 16, &[1; 16])),
        ("longer than the arena", writes(&[(0, 8), (0, u32::MAX)], 8 + u64::from(u32::MAX), &[1; 16])),
        ("an empty write", writes(&[(0, 8), (0, 0)], 8, &[1; 8])),
        ("less payload than announced", writes(&[(0, 8)], 9, &[1; 9])),
        ("more payload than announced", writes(&[(0, 8), (8, 8)], 8, &[1; 16])),
        ("no writes at all", writes(&[], 8, &[1; 8])),
        ("too many writes", too_many),
        ("a reserved byte", reserved),
        ("an unknown frame", vec![9; 64]),
        ("another protocol", b"GET / HTTP/1.1\r\nHost: example\r\n\r\n".to_vec()),
        ("marker zero", [vec![2], vec![0; 15]].concat()),
        ("a message on a data stream", message(&[1; 40])),
    ];
    for (what, bytes) in cases {
        let mut raw = RawInitiator::new(patient(), 2);
        raw.data[1].write_all(&bytes).unwrap();
        expect_violation(&*raw.responder, what);
        assert!(raw.target_bytes().iter().all(|byte| *byte == 7), "{what}: bytes were placed");
    }
}

#[test]
fn streams_that_disagree_about_a_marker_end_the_connection() {
    let cases = [
        ("another number on another stream", marker(5), marker(6)),
        ("another order", [marker(5), marker(6)].concat(), [marker(6), marker(5)].concat()),
        ("one left out", [marker(5), marker(6), marker(7)].concat(), [marker(5), marker(7)].concat()),
    ];
    for (what, first, second) in cases {
        let mut raw = RawInitiator::new(patient(), 2);
        raw.data[0].write_all(&first).unwrap();
        raw.data[1].write_all(&second).unwrap();
        expect_violation(&*raw.responder, what);
    }
}

#[test]
fn a_good_frame_in_single_bytes_is_placed() {
    let mut raw = RawInitiator::new(patient(), 1);
    let payload: Vec<u8> = (100..140).collect();
    let bytes = [writes(&[(BORDER - 20, 20), (END - 20, 20)], 40, &payload), marker(1)].concat();
    for byte in bytes {
        raw.data[0].write_all(&[byte]).unwrap();
    }
    let event = raw.responder.next_event(&mut MessageBuffer::default(), PATIENCE).unwrap();
    assert_eq!(event, Event::Fenced { marker: 1 });
    let mut expected = vec![7; ARENA_BYTES];
    expected[BORDER as usize - 20..BORDER as usize].copy_from_slice(&payload[..20]);
    expected[ARENA_BYTES - 20..].copy_from_slice(&payload[20..]);
    assert_eq!(raw.target_bytes(), expected);
}

#[test]
fn a_marker_that_only_some_streams_have_is_no_fence() {
    let mut raw = RawInitiator::new(patient(), 3);
    raw.data[0].write_all(&[marker(1), marker(2)].concat()).unwrap();
    raw.data[1].write_all(&[marker(1), marker(2)].concat()).unwrap();
    raw.data[2].write_all(&marker(1)).unwrap();
    let mut buffer = MessageBuffer::default();
    let event = raw.responder.next_event(&mut buffer, PATIENCE).unwrap();
    assert_eq!(event, Event::Fenced { marker: 1 });
    drop(raw.data.pop());
    let (reason, fences) = expect_end(&*raw.responder);
    assert!(matches!(reason, CloseReason::Peer(_)), "{reason:?}");
    assert_eq!(fences, 0);
}

#[test]
fn a_flood_of_markers_costs_bounded_memory_and_loses_none() {
    const MARKERS: u64 = 5000;
    let mut raw = RawInitiator::new(patient(), 1);
    let bytes: Vec<u8> = (1..=MARKERS).flat_map(marker).collect();
    raw.data[0].write_all(&bytes).unwrap();
    drop(raw.data.pop());
    let (reason, fences) = expect_end(&*raw.responder);
    assert!(matches!(reason, CloseReason::Peer(_)), "{reason:?}");
    assert_eq!(fences as u64, MARKERS);
}

#[test]
fn control_frames_that_lie_end_the_connection() {
    let mut long_heartbeat =
        encode_control_header(&ControlHeader { kind: ControlKind::Heartbeat, len_bytes: 0 });
    long_heartbeat[0] = 1;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("an unknown kind", vec![0, 0, 0, 0, 9, 0, 0, 0]),
        ("a reserved byte", vec![0, 0, 0, 0, 1, 0, 0, 1]),
        ("a message beyond the limit", message(&[0; 4097])),
        ("a message of four gigabytes", vec![255, 255, 255, 255, 1, 0, 0, 0]),
        ("a heartbeat with a body", long_heartbeat.to_vec()),
    ];
    for (what, bytes) in cases {
        let mut raw = RawInitiator::new(patient(), 1);
        raw.control.write_all(&message(b"good")).unwrap();
        raw.control.write_all(&bytes).unwrap();
        let mut buffer = MessageBuffer::default();
        assert_eq!(raw.responder.next_event(&mut buffer, PATIENCE).unwrap(), Event::Message, "{what}");
        assert_eq!(buffer.message(), b"good");
        expect_violation(&*raw.responder, what);
    }
}

#[test]
fn what_was_received_before_the_end_comes_before_it() {
    let mut raw = RawInitiator::new(patient(), 2);
    raw.control.write_all(&message(b"commit")).unwrap();
    for stream in &mut raw.data {
        stream.write_all(&[writes(&[(0, 100)], 100, &[9; 100]), marker(1)].concat()).unwrap();
    }
    raw.control.write_all(&message(b"bye")).unwrap();
    let goodbye = encode_control_header(&ControlHeader { kind: ControlKind::Goodbye, len_bytes: 0 });
    raw.control.write_all(&goodbye).unwrap();
    let RawInitiator { responder, control, data, .. } = raw;
    drop((control, data));
    let mut buffer = MessageBuffer::default();
    let mut seen = Vec::new();
    let reason = loop {
        match responder.next_event(&mut buffer, PATIENCE).unwrap() {
            Event::Closed(reason) => break reason,
            Event::Message => seen.push(buffer.message().to_vec()),
            Event::Fenced { marker } => seen.push(vec![marker as u8]),
            Event::Idle => panic!("no end"),
        }
    };
    assert_eq!(reason, CloseReason::Peer("closed".into()));
    seen.sort();
    assert_eq!(seen, [vec![1], b"bye".to_vec(), b"commit".to_vec()]);
}
