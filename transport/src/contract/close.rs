//! Closing is final: whatever the peer does, the arena stays as it is.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Subject;
use super::pair::{Pair, expect_end, expect_event};
use crate::error::{CloseReason, TransportError};
use crate::fabric::{Endpoint, Event, MessageBuffer};

const ARENA_BYTES: usize = 4 << 20;

/// The peer writes without pause, changing its memory all the time; the responder closes in the
/// middle of it. What the arena holds when `close` returns, it holds for good.
pub fn nothing_lands_after_close(subject: &Subject) {
    for round in 0..12u64 {
        let pair = Pair::new(subject, ARENA_BYTES, &[ARENA_BYTES / 2, ARENA_BYTES / 2]);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _over = SetOnDrop(&is_over);
            let hammer = scope.spawn(|| hammer(&pair));
            scope.spawn(|| {
                let mut bytes = vec![0u8; 4096];
                while !is_over.load(Ordering::Relaxed) {
                    let next = bytes[0].wrapping_add(1);
                    bytes.fill(next);
                    (0..ARENA_BYTES / 4096).for_each(|page| pair.source.write(page * 4096, &bytes));
                }
            });
            for _ in 0..round % 4 {
                let event = expect_event(&*pair.responder, &mut MessageBuffer::default(), pair.patience);
                assert!(matches!(event, Event::Fenced { .. }), "{event:?}");
            }
            pair.responder.close();
            let at_close = pair.target_bytes();
            let error = hammer.join().expect("the hammering thread");
            assert!(matches!(error, TransportError::Closed(_)), "{error:?}");
            assert!(pair.target_bytes() == at_close, "bytes landed after close, round {round}");
        });
        let (_, reason) = expect_end(&*pair.responder, pair.patience);
        assert_eq!(reason, CloseReason::Local);
    }
}

/// Tells the other threads of a check that it is over, also when it fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes until that fails.
fn hammer(pair: &Pair) -> TransportError {
    let half = ARENA_BYTES as u64 / 2;
    let mut writes = vec![pair.write(half, half, half)];
    writes.extend((0..half / 8192).map(|index| pair.write(index * 4096, index * 8192, 4096)));
    for marker in 1.. {
        let posted = pair.initiator.write(&writes).and_then(|()| pair.initiator.mark(marker));
        if let Err(error) = posted {
            return error;
        }
        // Fabrics that copy late need their own memory back, those that queue need room.
        let completed = pair.initiator.completed(marker, pair.patience);
        if let Err(error) = completed {
            return error;
        }
    }
    unreachable!("the markers do not run out")
}

/// `close` wakes who waits in `next_event`, works from several threads at once and again, and
/// every later call says that the connection was closed by this side.
pub fn close_is_final_and_wakes_waiters(subject: &Subject) {
    for side in 0..2 {
        let pair = Pair::new(subject, 4096, &[4096]);
        let endpoint: &dyn Endpoint = if side == 0 { &*pair.initiator } else { &*pair.responder };
        std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| expect_event(endpoint, &mut MessageBuffer::default(), pair.patience));
            for _ in 0..3 {
                scope.spawn(|| endpoint.close());
            }
            let event = waiting.join().expect("the waiting thread");
            assert_eq!(event, Event::Closed(CloseReason::Local));
        });
        endpoint.close();
        let sent = endpoint.send(b"x");
        assert!(matches!(sent, Err(TransportError::Closed(CloseReason::Local))), "after close: {sent:?}");
    }
}

/// An endpoint that is dropped is closed: the peer notices, and nothing lands.
pub fn dropping_an_endpoint_closes_it(subject: &Subject) {
    let Pair { initiator, responder, patience, .. } = Pair::new(subject, 4096, &[4096]);
    drop(responder);
    let (_, reason) = expect_end(&*initiator, patience);
    assert!(matches!(reason, CloseReason::Peer(_) | CloseReason::Failed(_)), "{reason:?}");

    let Pair { initiator, responder, patience, .. } = Pair::new(subject, 4096, &[4096]);
    drop(initiator);
    let (_, reason) = expect_end(&*responder, patience);
    assert!(matches!(reason, CloseReason::Peer(_) | CloseReason::Failed(_)), "{reason:?}");
}
