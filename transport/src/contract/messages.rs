//! Small messages, ordered.

use std::time::Duration;

use super::Subject;
use super::pair::{Pair, expect_message};
use super::pattern::Choices;
use crate::error::TransportError;
use crate::fabric::{Endpoint, Event, MAX_MESSAGE_BYTES, MessageBuffer};

const MESSAGES: u64 = 1500;

fn content(index: u64) -> Vec<u8> {
    let mut choices = Choices::new(index);
    let longest = if index.is_multiple_of(10) { MAX_MESSAGE_BYTES as u64 } else { 64 };
    let len_bytes = match index {
        0 => 0,
        1 => MAX_MESSAGE_BYTES as u64,
        _ => choices.below(longest + 1),
    };
    (0..len_bytes).map(|_| choices.below(256) as u8).collect()
}

/// Messages of all lengths arrive whole and in order, in both directions at once, beside writes.
pub fn messages_keep_their_order_both_ways(subject: &Subject) {
    let pair = Pair::new(subject, 1 << 20, &[1 << 20]);
    let send_all = |endpoint: &dyn Endpoint, writes: bool| {
        for index in 0..MESSAGES {
            endpoint.send(&content(index)).expect("sending");
            if writes && index % 50 == 0 {
                endpoint.write(&[pair.write(0, 0, 1 << 20)]).expect("writing");
            }
        }
    };
    let receive_all = |endpoint: &dyn Endpoint| {
        for index in 0..MESSAGES {
            assert!(expect_message(endpoint, pair.patience) == content(index), "message {index}");
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| send_all(&*pair.initiator, true));
        scope.spawn(|| send_all(&*pair.responder, false));
        scope.spawn(|| receive_all(&*pair.initiator));
        receive_all(&*pair.responder);
    });
}

/// Any thread may send: messages do not mix, and those of one thread keep their order.
pub fn messages_of_many_threads_arrive_whole(subject: &Subject) {
    const THREADS: u8 = 4;
    const EACH: u32 = 200;
    let pair = Pair::new(subject, 4096, &[4096]);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let endpoint = &*pair.initiator;
            scope.spawn(move || {
                for index in 0..EACH {
                    let mut message = vec![thread; 5 + index as usize];
                    message[1..5].copy_from_slice(&index.to_le_bytes());
                    endpoint.send(&message).expect("sending");
                }
            });
        }
        let mut next = [0; THREADS as usize];
        for _ in 0..u32::from(THREADS) * EACH {
            let message = expect_message(&*pair.responder, pair.patience);
            let expected = &mut next[usize::from(message[0])];
            assert_eq!(message[1..5], u32::to_le_bytes(*expected));
            assert_eq!(message.len(), 5 + *expected as usize);
            assert!(message[5..].iter().all(|byte| *byte == message[0]));
            *expected += 1;
        }
    });
}

/// A message beyond the limit is refused, and the connection goes on.
pub fn messages_too_long_are_refused(subject: &Subject) {
    let pair = Pair::new(subject, 4096, &[4096]);
    let result = pair.initiator.send(&[0; MAX_MESSAGE_BYTES + 1]);
    assert!(matches!(result, Err(TransportError::Invalid(_))), "{result:?}");
    pair.initiator.send(b"fits").expect("sending");
    assert_eq!(expect_message(&*pair.responder, pair.patience), b"fits");
}

/// Where nothing happens, that is said after the timeout.
pub fn an_idle_connection_says_so(subject: &Subject) {
    let pair = Pair::new(subject, 4096, &[4096]);
    let mut message = MessageBuffer::default();
    for endpoint in [&pair.initiator, &pair.responder] {
        for timeout in [Duration::ZERO, Duration::from_millis(20)] {
            assert_eq!(endpoint.next_event(&mut message, timeout).expect("next_event"), Event::Idle);
        }
    }
}
