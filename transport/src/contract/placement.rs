//! Writes land where they say, and nowhere else.

use super::Subject;
use super::pair::{Pair, bytes_of};
use super::pattern::{Choices, fill};
use crate::error::TransportError;
use crate::fabric::{RegionId, Write};
use crate::memory::Memory;

const CHUNKS_BYTES: [usize; 3] = [1 << 20, 12_345, 3 << 20];

/// Writes of many sizes, to arbitrary offsets of an arena of several chunks, compared byte by
/// byte with a model.
pub fn writes_are_placed_exactly(subject: &Subject) {
    let pair = Pair::new(subject, 4 << 20, &CHUNKS_BYTES);
    fill(&pair.source, 1);
    let source = bytes_of(&pair.source);
    let mut model = vec![0; CHUNKS_BYTES.iter().sum()];
    let mut choices = Choices::new(2);
    for round in 1..=24u64 {
        // Writes between two markers may land in any order, so they do not overlap.
        let mut writes = Vec::new();
        let mut base = 0u64;
        for chunk_bytes in CHUNKS_BYTES {
            let end = base + chunk_bytes as u64;
            let mut at = base + choices.below(1 + 4096);
            while at < end {
                let longest = [1, 100, 4096, 4097, 300_000, 1_500_000][choices.below(6) as usize];
                let len_bytes = (1 + choices.below(longest)).min(end - at);
                let local = choices.below(source.len() as u64 - len_bytes + 1);
                writes.push(pair.write(local, at, len_bytes));
                model[at as usize..][..len_bytes as usize]
                    .copy_from_slice(&source[local as usize..][..len_bytes as usize]);
                at += len_bytes + choices.below(2) * choices.below(100_000);
            }
            base = end;
        }
        for index in (1..writes.len()).rev() {
            writes.swap(index, choices.below(index as u64 + 1) as usize);
        }
        let before = pair.initiator.bytes_written();
        let (first, second) = writes.split_at(writes.len() / 2);
        pair.initiator.write(first).expect("writing");
        pair.initiator.write(second).expect("writing");
        pair.initiator.mark(round).expect("marking");
        pair.expect_fence(round);
        assert!(pair.target_bytes() == model, "the arena differs from the model in round {round}");
        let posted: u64 = writes.iter().map(|write| write.len_bytes).sum();
        assert_eq!(pair.initiator.bytes_written() - before, posted);
    }
}

fn expect_invalid(result: Result<(), TransportError>, what: &str) {
    assert!(matches!(result, Err(TransportError::Invalid(_))), "{what}: {result:?}");
}

/// A write that leaves its region, the arena or a chunk is refused, together with everything in
/// the same call, and the connection goes on.
pub fn writes_out_of_bounds_are_refused_whole(subject: &Subject) {
    let pair = Pair::new(subject, 8192, &[4096, 4096]);
    fill(&pair.source, 3);
    let good = pair.write(0, 0, 100);
    let bad = [
        ("past the region", pair.write(8000, 0, 200)),
        ("far past the region", pair.write(1 << 40, 0, 1)),
        ("an overflowing local range", pair.write(u64::MAX, 0, 2)),
        ("past the arena", pair.write(0, 8000, 200)),
        ("far past the arena", pair.write(0, u64::MAX - 5, 1)),
        ("an overflowing remote range", pair.write(0, u64::MAX, 2)),
        ("across two chunks", pair.write(0, 4000, 200)),
        ("longer than all", pair.write(0, 0, u64::MAX)),
        ("an unknown region", Write { region: RegionId(77), ..good }),
    ];
    for (what, write) in bad {
        expect_invalid(pair.initiator.write(&[good, write]), what);
    }
    pair.initiator.mark(1).expect("marking");
    pair.expect_fence(1);
    assert!(pair.target_bytes().iter().all(|byte| *byte == 0), "something of a refused call was placed");
    assert_eq!(pair.initiator.bytes_written(), 0);
    pair.initiator
        .write(&[good, pair.write(100, 8191, 1), pair.write(0, 8192, 0)])
        .expect("writing to the edge");
    pair.initiator.mark(2).expect("marking");
    pair.expect_fence(2);
    let (source, target) = (bytes_of(&pair.source), pair.target_bytes());
    assert_eq!((&target[..100], target[8191]), (&source[..100], source[100]));
}

/// The responder has no arena to write into.
pub fn the_responder_cannot_write(subject: &Subject) {
    let pair = Pair::new(subject, 4096, &[4096]);
    let region = pair.responder.register(Memory::anonymous(4096)).expect("registering");
    let write = Write { region, local_offset: 0, remote_offset: 0, len_bytes: 1 };
    expect_invalid(pair.responder.write(&[write]), "a write by the responder");
    expect_invalid(pair.responder.mark(1), "a marker by the responder");
}

/// Writes name the region that they read, also one registered late.
pub fn registered_regions_are_told_apart(subject: &Subject) {
    let pair = Pair::new(subject, 4096, &[1 << 16]);
    let mut writes = vec![pair.write(0, 0, 4096)];
    for index in 1..16u8 {
        let memory = Memory::anonymous(4096);
        memory.write(0, &[index; 4096]);
        let region = pair.initiator.register(memory).expect("registering");
        let remote_offset = u64::from(index) * 4096;
        writes.push(Write { region, local_offset: 0, remote_offset, len_bytes: 4096 });
        pair.initiator.write(&writes[usize::from(index)..]).expect("writing");
    }
    pair.initiator.mark(1).expect("marking");
    pair.expect_fence(1);
    for (index, page) in pair.target_bytes().chunks(4096).enumerate() {
        assert!(page.iter().all(|byte| usize::from(*byte) == index), "page {index}");
    }
}
