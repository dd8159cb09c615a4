//! Writes that leave local memory at once.

use super::Subject;
use super::pair::Pair;
use crate::error::TransportError;
use crate::fabric::Write;

const PAGE: usize = 4096;
const PAGES: u64 = 4096;

/// What `write_now` took is placed as it was, though its memory changes as soon as the call returns,
/// and the next marker comes after it. A fabric may take nothing; the rest is written as usual.
pub fn what_is_written_now_may_change_at_once(subject: &Subject) {
    let bytes = PAGES as usize * PAGE;
    let pair = Pair::new(subject, bytes, &[bytes]);
    // Scattered, so that a frame has many parts; and a long one at the end.
    let scattered = PAGES / 2;
    let place = |page: u64| (page * 5 + 1) % scattered;
    let mut writes: Vec<Write> = (0..scattered)
        .map(|page| pair.write(page * PAGE as u64, place(page) * PAGE as u64, PAGE as u64))
        .collect();
    let half = scattered * PAGE as u64;
    writes.push(pair.write(half, half, half));
    let fill = |value: u8| {
        let page = [value; PAGE];
        (0..PAGES as usize).for_each(|index| pair.source.write(index * PAGE, &page));
    };
    for round in 1..=6u8 {
        let marker = u64::from(round);
        fill(round);
        let taken = pair.initiator.write_now(&writes).expect("write_now");
        assert!(taken <= writes.len());
        fill(0xee);
        if round % 2 == 0 {
            // Again, with what is left of a frame perhaps still on its way.
            fill(round);
            let more = pair.initiator.write_now(&writes[taken..]).expect("write_now");
            fill(0xee);
            fill(round);
            pair.initiator.write(&writes[taken + more..]).expect("writing the rest");
            pair.initiator.mark(marker).expect("marking");
        } else {
            fill(round);
            pair.initiator.write_and_mark(&writes[taken..], marker).expect("writing the rest and marking");
        }
        pair.expect_fence(marker);
        let wrong = pair.target_bytes().iter().position(|byte| *byte != round);
        assert_eq!(wrong, None, "round {round}");
        while pair.initiator.completed(marker, pair.patience).expect("completing") != marker {}
    }
    let outside = [pair.write(0, bytes as u64 - 1, 2)];
    if let Ok(taken) = pair.initiator.write_now(&outside) {
        assert_eq!(taken, 0, "a write that leaves the arena was taken");
    }
    pair.initiator.close();
    let after = pair.initiator.write_now(&writes);
    assert!(matches!(after, Ok(0) | Err(TransportError::Closed(_))), "after close: {after:?}");
}
