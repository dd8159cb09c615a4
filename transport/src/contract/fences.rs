//! Markers fence writes.

use std::time::{Duration, Instant};

use super::Subject;
use super::pair::{Pair, expect_end, expect_event, expect_message};
use super::pattern::Choices;
use crate::error::{CloseReason, TransportError};
use crate::fabric::{Event, MessageBuffer};

const ROUNDS: u64 = 100;
const AREA_BYTES: u64 = 1280 * 1024;
/// The last write of a round: long, so that one stream is still busy when others are through.
const LAST_BYTES: u64 = 1024 * 1024;
/// Rounds on their way at a time, each with an area of its own.
const DEPTH: u64 = 4;

/// At a fence, every write posted before it is there, while later rounds are on their way. The
/// receiver acknowledges a round by a message once it has looked, then its area is used again.
pub fn a_fence_comes_after_every_write_before_it(subject: &Subject) {
    let pair = Pair::new(subject, (AREA_BYTES * DEPTH) as usize, &[(AREA_BYTES * DEPTH) as usize]);
    let (initiator, responder) = (&*pair.initiator, &*pair.responder);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut choices = Choices::new(4);
            for round in 1..=ROUNDS {
                if round > DEPTH {
                    let acknowledged = expect_message(initiator, pair.patience);
                    assert_eq!(acknowledged, (round - DEPTH).to_le_bytes());
                }
                initiator.completed(round.saturating_sub(DEPTH), pair.patience).expect("completion");
                let area = round % DEPTH * AREA_BYTES;
                pair.source.write(area as usize, &vec![round as u8; AREA_BYTES as usize]);
                let (mut at, last) = (0, AREA_BYTES - LAST_BYTES);
                while at < last {
                    let len_bytes = (1 + choices.below(60_000)).min(last - at);
                    initiator.write(&[pair.write(area + at, area + at, len_bytes)]).expect("writing");
                    at += len_bytes;
                }
                let last = [pair.write(area + last, area + last, LAST_BYTES)];
                if round % 2 == 0 {
                    initiator.write(&last).expect("writing");
                    initiator.mark(round).expect("marking");
                } else {
                    initiator.write_and_mark(&last, round).expect("writing and marking");
                }
            }
        });
        for round in 1..=ROUNDS {
            look_for_fence(&pair, round);
            let mut bytes = vec![0; AREA_BYTES as usize];
            pair.target[0].read((round % DEPTH * AREA_BYTES) as usize, &mut bytes);
            let missing = bytes.iter().filter(|byte| **byte != round as u8).count();
            assert_eq!(missing, 0, "bytes missing at the fence of round {round}");
            responder.send(&round.to_le_bytes()).expect("acknowledging");
        }
    });
}

/// Looks all the time instead of waiting, so as to see a fence that comes too soon.
fn look_for_fence(pair: &Pair, marker: u64) {
    let mut message = MessageBuffer::default();
    let start = Instant::now();
    loop {
        match pair.responder.next_event(&mut message, Duration::ZERO).expect("next_event") {
            Event::Idle => assert!(start.elapsed() < pair.patience, "no fence {marker}"),
            event => return assert_eq!(event, Event::Fenced { marker }),
        }
    }
}

/// Fences come one for each marker, also for those without writes, and when the receiver looks
/// late; numbers may be any.
pub fn markers_come_in_order_and_none_is_left_out(subject: &Subject) {
    const MARKERS: u64 = 2000;
    let pair = Pair::new(subject, 4096, &[4096]);
    let number = |index: u64| (index % 2) << 63 | (MARKERS - index);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for index in 0..MARKERS {
                let write = [pair.write(0, index % 4000, 64)];
                let posted = match index % 4 {
                    0 => pair.initiator.write(&write).and_then(|()| pair.initiator.mark(number(index))),
                    1 => pair.initiator.write_and_mark(&write, number(index)),
                    2 => pair.initiator.write_and_mark(&[], number(index)),
                    _ => pair.initiator.mark(number(index)),
                };
                posted.expect("marking");
            }
        });
        for index in 0..MARKERS {
            pair.expect_fence(number(index));
        }
    });
}

/// Numbers need not grow and may come again, once they are not on their way any more; 0 and
/// the greatest are refused, and the connection goes on.
pub fn markers_need_not_grow(subject: &Subject) {
    let pair = Pair::new(subject, 4096, &[4096]);
    let markers = [5, 4, 1 << 63 | 1, 5, u64::MAX - 1, 1];
    for marker in markers {
        pair.initiator.mark(marker).expect("marking");
        assert_eq!(pair.initiator.completed(marker, pair.patience).expect("completion"), marker);
        for refused in [0, u64::MAX] {
            for result in [pair.initiator.mark(refused), pair.initiator.write_and_mark(&[], refused)] {
                assert!(matches!(result, Err(TransportError::Invalid(_))), "marker {refused}: {result:?}");
            }
        }
    }
    for marker in markers {
        pair.expect_fence(marker);
    }
    let event = pair.responder.next_event(&mut MessageBuffer::default(), Duration::ZERO).expect("next_event");
    assert_eq!(event, Event::Idle);
}

/// Local completion comes for every marker, and memory may change after it.
pub fn completion_reaches_every_marker(subject: &Subject) {
    let pair = Pair::new(subject, 1 << 20, &[1 << 20]);
    for round in 1..=20u64 {
        pair.source.write(0, &vec![round as u8; 1 << 20]);
        pair.initiator.write(&[pair.write(0, 0, 1 << 20)]).expect("writing");
        pair.initiator.mark(round).expect("marking");
        assert_eq!(pair.initiator.completed(round, pair.patience).expect("completion"), round);
        pair.source.write(0, &vec![0xee; 1 << 20]);
        pair.expect_fence(round);
        assert!(pair.target_bytes().iter().all(|byte| *byte == round as u8), "round {round}");
    }
    let last = pair.initiator.completed(1, Duration::ZERO).expect("completion");
    assert_eq!(last, 20, "the last is told, not the one asked for");
    pair.initiator.close();
    let (_, reason) = expect_end(&*pair.initiator, pair.patience);
    assert_eq!(reason, CloseReason::Local);
    let event = expect_event(&*pair.responder, &mut MessageBuffer::default(), pair.patience);
    assert!(matches!(event, Event::Closed(_)), "{event:?}");
}
