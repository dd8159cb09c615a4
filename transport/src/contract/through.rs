//! Much more than fits goes through a small arena.

use super::Subject;
use super::pair::{Pair, expect_message};

const EPOCH_BYTES: u64 = 4 << 20;
const PAGE_BYTES: u64 = 4096;
/// Epochs on their way at a time; the arena holds no more.
const DEPTH: u64 = 4;

/// What stands at the start and at the end of a page.
fn stamp(epoch: u64, page: u64) -> [u8; 8] {
    (epoch << 20 | page).to_le_bytes()
}

/// Moves `through_bytes` in epochs through an arena of 16 MiB, half of it in pages at scattered
/// places, half in one piece; every page of every epoch is checked.
pub fn much_goes_through_a_small_arena(subject: &Subject) {
    let arena_bytes = (EPOCH_BYTES * DEPTH) as usize;
    let pair = Pair::new(subject, arena_bytes, &[arena_bytes]);
    let epochs = subject.through_bytes.div_ceil(EPOCH_BYTES);
    std::thread::scope(|scope| {
        scope.spawn(|| send(&pair, epochs));
        let pages = EPOCH_BYTES / PAGE_BYTES;
        for epoch in 1..=epochs {
            pair.expect_fence(epoch);
            for page in 0..pages {
                let at = (epoch % DEPTH * EPOCH_BYTES + place(page, pages) * PAGE_BYTES) as usize;
                for offset in [at, at + PAGE_BYTES as usize - 8] {
                    let mut found = [0; 8];
                    pair.target[0].read(offset, &mut found);
                    assert_eq!(found, stamp(epoch, page), "epoch {epoch}, page {page}");
                }
            }
            pair.responder.send(&epoch.to_le_bytes()).expect("acknowledging");
        }
    });
    assert_eq!(pair.initiator.bytes_written(), epochs * EPOCH_BYTES);
}

/// Where a page of an epoch lies in its area: the first half scattered, the second in order.
fn place(page: u64, pages: u64) -> u64 {
    let half = pages / 2;
    // An odd factor and a power of two: every place once.
    if page < half { page * 181 % half } else { page }
}

fn send(pair: &Pair, epochs: u64) {
    let pages = EPOCH_BYTES / PAGE_BYTES;
    for epoch in 1..=epochs {
        if epoch > DEPTH {
            let acknowledged = expect_message(&*pair.initiator, pair.patience);
            assert_eq!(acknowledged, (epoch - DEPTH).to_le_bytes());
            pair.initiator.completed(epoch - DEPTH, pair.patience).expect("completion");
        }
        let area = epoch % DEPTH * EPOCH_BYTES;
        let mut writes = Vec::with_capacity(pages as usize / 2 + 1);
        for page in 0..pages {
            let local = area + page * PAGE_BYTES;
            pair.source.write(local as usize, &stamp(epoch, page));
            pair.source.write((local + PAGE_BYTES) as usize - 8, &stamp(epoch, page));
            if page < pages / 2 {
                writes.push(pair.write(local, area + place(page, pages) * PAGE_BYTES, PAGE_BYTES));
            }
        }
        let half = area + EPOCH_BYTES / 2;
        writes.push(pair.write(half, half, EPOCH_BYTES / 2));
        pair.initiator.write(&writes).expect("writing");
        pair.initiator.mark(epoch).expect("marking");
    }
}
