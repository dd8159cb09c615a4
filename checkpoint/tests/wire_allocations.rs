//! What the codec allocates: nothing on the hot path, and never by a peer's word alone.

mod wire_samples;

use romulus_checkpoint::wire::message::{Message, decode, encode};
use romulus_checkpoint::wire::slot;
use romulus_checkpoint::{Epoch, FrameIndex, PageIndex, Transfer};
use romulus_counting_allocator::{CountingAllocator, of_thread};
use romulus_transport::Memory;
use wire_samples::{bytes_of, identity, messages};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// How often and how many bytes `work` allocates on this thread.
fn allocated(work: impl FnOnce()) -> (u64, u64) {
    let before = of_thread();
    work();
    let after = of_thread();
    (after.times - before.times, after.bytes - before.bytes)
}

fn is_hot(message: &Message) -> bool {
    !matches!(message, Message::Hello(_) | Message::Welcome(_) | Message::Error { .. })
}

#[test]
fn encoding_allocates_nothing_where_there_is_room() {
    let mut out = Vec::with_capacity(8192);
    for message in messages() {
        out.clear();
        let (times, bytes) = allocated(|| encode(&identity(), &message, &mut out));
        assert_eq!((times, bytes), (0, 0), "{message:?}");
    }
}

#[test]
fn decoding_a_message_of_the_hot_path_allocates_nothing() {
    for message in messages().iter().filter(|message| is_hot(message)) {
        let bytes = bytes_of(message);
        let (times, _) = allocated(|| drop(decode(&bytes)));
        assert_eq!(times, 0, "{message:?}");
    }
}

#[test]
fn slots_are_written_and_read_without_allocating() {
    let slot = Memory::anonymous(64 * 1024);
    let transfers: Vec<Transfer> = (0..1000)
        .map(|n| Transfer { first_page: PageIndex(n), first_frame: FrameIndex(5000 + n), pages: 1 })
        .collect();
    let mut read = Vec::with_capacity(1000);
    let (times, _) = allocated(|| {
        let offset = slot::state_offset_bytes(1000) as usize;
        let checksum = slot::checksum(&slot, offset, 3000);
        slot::encode(&identity(), Epoch(1), &transfers, 3000, checksum, &slot).unwrap();
        slot::decode(&slot, &identity(), Epoch(1), &mut read).unwrap();
    });
    assert_eq!(times, 0);
    assert_eq!(read, transfers);
}

#[test]
fn i10_what_a_message_claims_sizes_no_allocation() {
    for message in messages() {
        let sample = bytes_of(&message);
        for at in 64..sample.len().saturating_sub(1) {
            // The largest claim at every place, behind right checksums.
            let mut bytes = sample.clone();
            bytes[at..at + 2].fill(0xff);
            let body = crc32fast::hash(&bytes[64..]);
            bytes[56..60].copy_from_slice(&body.to_le_bytes());
            let header = crc32fast::hash(&bytes[..60]);
            bytes[60..64].copy_from_slice(&header.to_le_bytes());
            let (_, allocated_bytes) = allocated(|| drop(decode(&bytes)));
            let most = 4096 + 16 * sample.len() as u64;
            assert!(allocated_bytes <= most, "{allocated_bytes} bytes at {at} of {message:?}");
        }
    }
}
