//! The codec of messages and slots: round trips, single-bit flips, limits, hostile bytes (I10).

mod wire_samples;

use arrayvec::ArrayVec;
use proptest::prelude::*;
use romulus_checkpoint::wire::AckProof;
use romulus_checkpoint::wire::limits;
use romulus_checkpoint::wire::message::{
    ByeReason, DecodeError, ErrorCode, Homing, Message, VERSION, decode, encode,
};
use romulus_checkpoint::wire::slot::{self, SlotError};
use romulus_checkpoint::{Epoch, FrameIndex, HomingSequence, Identity, PageIndex, SessionId, Transfer};
use romulus_transport::Memory;
use romulus_transport::fabric::{MAX_HANDSHAKE_BYTES, MAX_MESSAGE_BYTES};
use wire_samples::{bytes_of, hello, identity, messages};

fn malformed(bytes: &[u8]) -> String {
    match decode(bytes) {
        Err(DecodeError::Malformed(why)) => why,
        other => panic!("expected a malformed message, got {other:?}"),
    }
}

/// Puts a correct header around a changed body or header, as a hostile peer would.
fn reseal(bytes: &mut [u8]) {
    let body = crc32fast::hash(&bytes[64..]);
    bytes[56..60].copy_from_slice(&body.to_le_bytes());
    let header = crc32fast::hash(&bytes[..60]);
    bytes[60..64].copy_from_slice(&header.to_le_bytes());
}

#[test]
fn every_message_comes_back_as_it_was_sent() {
    for message in messages() {
        let bytes = bytes_of(&message);
        let most = if matches!(message, Message::Hello(_)) { MAX_HANDSHAKE_BYTES } else { MAX_MESSAGE_BYTES };
        assert!(bytes.len() <= most);
        assert_eq!(decode(&bytes), Ok((identity(), message)));
    }
}

#[test]
fn i1_only_a_decoded_ack_proves_anything() {
    let sent = AckProof::outgoing();
    assert!(!sent.is_decoded());
    let message = Message::Ack { committed: Epoch(3), homed_through: HomingSequence(2), proof: sent };
    let Ok((_, Message::Ack { proof, .. })) = decode(&bytes_of(&message)) else { panic!("an Ack") };
    assert!(proof.is_decoded());
}

#[test]
fn i10_every_single_bit_flip_of_a_message_is_refused() {
    for message in messages() {
        let bytes = bytes_of(&message);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit} of {message:?}");
        }
    }
}

#[test]
fn i10_every_truncation_and_extension_is_refused() {
    for message in messages() {
        let bytes = bytes_of(&message);
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{len} bytes of {message:?}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode(&longer).is_err());
        // Also when the header is made to agree.
        let len = longer.len() as u32;
        longer[8..12].copy_from_slice(&len.to_le_bytes());
        reseal(&mut longer);
        assert!(decode(&longer).is_err(), "a byte behind {message:?}");
    }
}

#[test]
fn i10_values_out_of_their_limits_are_refused() {
    let resealed = |message: &Message, at: usize, with: &[u8]| {
        let mut bytes = bytes_of(message);
        bytes[at..at + with.len()].copy_from_slice(with);
        reseal(&mut bytes);
        malformed(&bytes)
    };
    let max = u64::MAX.to_le_bytes();
    let zero = 0u64.to_le_bytes();
    let hello = Message::Hello(hello());
    for (field, at, with) in [
        ("generation", 32, max),
        ("incarnation", 40, max),
        ("connection", 48, max),
        ("depth", 64 + 8, zero),
        ("depth", 64 + 8, max),
        ("pages", 64 + 16, zero),
        ("pages", 64 + 16, max),
        ("spares", 64 + 24, max),
        ("slots", 64 + 32, 2u64.to_le_bytes()), // K < D + 1
        ("slots", 64 + 32, max),
        ("slot length", 64 + 40, zero),
        ("multiple", 64 + 40, 4097u64.to_le_bytes()),
        ("slot length", 64 + 40, max),
    ] {
        let why = resealed(&hello, at, &with);
        assert!(why.contains(field), "{field} at {at}: {why}");
    }
    assert!(resealed(&hello, 64, &[0, 0]).contains("range"));
    assert!(resealed(&hello, 64 + 48, &[2]).contains("flags"));
    assert!(resealed(&hello, 64 + 52, &[0, 0]).contains("region"));
    assert!(resealed(&hello, 64 + 54, &[0xff, 0xff]).contains("configuration line"));
    assert!(resealed(&hello, 64 + 56, &[0xff; 4]).contains("fabric"));
    assert!(resealed(&hello, 12, &[1]).contains("reserved"));
    assert!(resealed(&hello, 6, &[14, 0]).contains("kind 14"));
    let commit = Message::Commit { epoch: Epoch(1) };
    assert!(resealed(&commit, 64, &zero).contains("epoch"));
    assert!(resealed(&commit, 64, &max).contains("epoch"));
    let bye = Message::Bye { reason: ByeReason::Failover };
    assert!(resealed(&bye, 64, &[6, 0]).contains("reason 6"));
    assert!(resealed(&bye, 66, &[1]).contains("reserved"));
    let error = Message::Error { code: ErrorCode::Busy, text: "x".into() };
    assert!(resealed(&error, 64, &[10, 0]).contains("code 10"));
    assert!(resealed(&error, 68, &[0xff]).contains("UTF-8"));
}

#[test]
fn i10_a_homing_list_is_bounded() {
    let mut homings = ArrayVec::new();
    homings.push(Homing { page: PageIndex(1), source: FrameIndex(9) });
    let bytes = bytes_of(&Message::Home { first_sequence: HomingSequence(1), homings });
    let with_count = |count: u16| {
        let mut bytes = bytes.clone();
        bytes[72..74].copy_from_slice(&count.to_le_bytes());
        reseal(&mut bytes);
        malformed(&bytes)
    };
    assert!(with_count(0).contains("0 homings"));
    assert!(with_count(2).contains("bytes"));
    assert!(with_count(129).contains("129 homings"));
}

#[test]
fn a_message_of_another_version_says_so_and_an_error_of_any_version_is_read() {
    let mut bytes = bytes_of(&Message::Invalidate);
    bytes[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
    reseal(&mut bytes);
    assert_eq!(decode(&bytes), Err(DecodeError::Version { theirs: VERSION + 1 }));
    let message = Message::Error { code: ErrorCode::Version, text: "speaks 2 to 3".into() };
    let mut bytes = bytes_of(&message);
    bytes[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
    reseal(&mut bytes);
    assert_eq!(decode(&bytes), Ok((identity(), message)));
}

#[test]
fn an_error_text_is_cut_at_a_character_and_cleaned() {
    let long = Message::Error { code: ErrorCode::NoRoom, text: format!("{}{}", "x".repeat(1023), "ß") };
    let Ok((_, Message::Error { text, .. })) = decode(&bytes_of(&long)) else { panic!("an Error") };
    assert_eq!(text, "x".repeat(1023));
    let escape = Message::Error { code: ErrorCode::NoRoom, text: "a\u{1b}[2J\nb".into() };
    let Ok((_, Message::Error { text, .. })) = decode(&bytes_of(&escape)) else { panic!("an Error") };
    assert_eq!(text, "a [2J b");
}

#[test]
fn i10_a_hello_beyond_the_limits_is_refused_by_every_decoder() {
    let refused = |change: &dyn Fn(&mut romulus_checkpoint::wire::message::Hello)| {
        let mut hello = hello();
        change(&mut hello);
        malformed(&bytes_of(&Message::Hello(hello)))
    };
    let most = limits::MAX_PAGES;
    assert!(
        refused(&|hello| {
            hello.arena.pages = most;
            hello.arena.spares = most;
        })
        .contains("frames")
    );
    assert!(refused(&|hello| hello.guest.clear()).contains("empty"));
    assert!(refused(&|hello| hello.guest = "a\nb".into()).contains("control"));
    assert!(refused(&|hello| hello.guest = "g".repeat(limits::MAX_NAME_BYTES + 1)).contains("exceeds"));
    assert!(refused(&|hello| hello.machine.configuration = vec![String::new(); 1025]).contains("line"));
    assert!(refused(&|hello| hello.machine.configuration = vec!["x".repeat(1025)]).contains("exceeds"));
    assert!(refused(&|hello| hello.machine.configuration = vec!["x".repeat(70_000)]).contains("exceeds"));
    assert!(refused(&|hello| hello.layout.regions[0].name.clear()).contains("empty"));
    assert!(refused(&|hello| hello.layout.regions[0].pages = 0).contains("pages"));
    assert!(refused(&|hello| hello.layout.regions[0].pages += 1).contains("pages"));
    assert!(
        refused(&|hello| hello.layout.regions[1].name = hello.layout.regions[0].name.clone())
            .contains("twice")
    );
}

fn any_identity() -> impl Strategy<Value = Identity> {
    let number = 0..=limits::MAX_NUMBER;
    (any::<u128>(), number.clone(), number.clone(), number).prop_map(
        |(session, generation, incarnation, connection)| Identity {
            session: SessionId(session),
            generation: romulus_checkpoint::Generation(generation),
            incarnation: romulus_checkpoint::Incarnation(incarnation),
            connection: romulus_checkpoint::ConnectionNumber(connection),
        },
    )
}

fn any_transfers() -> impl Strategy<Value = Vec<Transfer>> {
    let transfer = (1..1u64 << 20, 0..1u64 << 30, 0..1u64 << 31).prop_map(|(pages, page, frame)| Transfer {
        first_page: PageIndex(page),
        first_frame: FrameIndex(frame),
        pages,
    });
    proptest::collection::vec(transfer, 0..300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn i10_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn i10_resealed_mutations_never_panic(which in 0..64usize, at in 0..4096usize, with in any::<[u8; 8]>()) {
        let all = messages();
        let mut bytes = bytes_of(&all[which % all.len()]);
        let at = at % (bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&with);
        reseal(&mut bytes);
        if let Ok((identity, message)) = decode(&bytes) {
            // Whatever is taken can be said again, and means the same.
            let mut again = Vec::new();
            encode(&identity, &message, &mut again);
            prop_assert_eq!(decode(&again), Ok((identity, message)));
        }
    }

    #[test]
    fn slots_come_back_as_they_were_written(
        identity in any_identity(),
        epoch in 1..=limits::MAX_NUMBER,
        transfers in any_transfers(),
        state in proptest::collection::vec(any::<u8>(), 0..5000),
    ) {
        let slot = Memory::anonymous(16 * 1024);
        let offset = slot::state_offset_bytes(transfers.len() as u64);
        slot.write(offset as usize, &state);
        let used = slot::encode(
            &identity, Epoch(epoch), &transfers, state.len() as u64, crc32fast::hash(&state), &slot,
        ).unwrap();
        prop_assert_eq!(used, offset + state.len() as u64);
        let mut read = Vec::new();
        let header = slot::decode(&slot, &identity, Epoch(epoch), &mut read).unwrap();
        prop_assert_eq!(&read, &transfers);
        prop_assert_eq!(header.state_bytes, state.len() as u64);
        prop_assert_eq!(header.state_offset_bytes, offset);
        prop_assert_eq!(header.transfers, transfers.len() as u64);
    }

    #[test]
    fn as_many_transfers_fit_as_max_transfers_says(slot_bytes in 0..100_000u64, state_bytes in 0..100_000u64) {
        let most = slot::max_transfers(slot_bytes, state_bytes);
        if most > 0 {
            prop_assert!(slot::state_offset_bytes(most) + state_bytes <= slot_bytes);
        }
        prop_assert!(slot::state_offset_bytes(most + 1) + state_bytes > slot_bytes);
    }
}

/// A slot of three transfers and a state of 100 bytes; its used length.
fn sample_slot() -> (Memory, Identity, Epoch, usize) {
    let slot = Memory::anonymous(4096);
    let transfers: Vec<Transfer> = (0..3)
        .map(|n| Transfer { first_page: PageIndex(n * 10), first_frame: FrameIndex(100 + n), pages: 1 + n })
        .collect();
    let state = [0xa5; 100];
    slot.write(slot::state_offset_bytes(3) as usize, &state);
    let checksum = crc32fast::hash(&state);
    let used = slot::encode(&identity(), Epoch(7), &transfers, 100, checksum, &slot).unwrap();
    (slot, identity(), Epoch(7), used as usize)
}

#[test]
fn i10_every_single_bit_flip_of_a_slot_is_refused() {
    let (slot, identity, epoch, used) = sample_slot();
    let mut transfers = Vec::new();
    slot::decode(&slot, &identity, epoch, &mut transfers).unwrap();
    for bit in 0..used * 8 {
        let mut byte = [0];
        slot.read(bit / 8, &mut byte);
        slot.write(bit / 8, &[byte[0] ^ (1 << (bit % 8))]);
        assert!(slot::decode(&slot, &identity, epoch, &mut transfers).is_err(), "bit {bit}");
        assert!(transfers.is_empty());
        slot.write(bit / 8, &byte);
    }
    slot::decode(&slot, &identity, epoch, &mut transfers).unwrap();
}

#[test]
fn i5_a_slot_of_another_epoch_or_identity_is_a_mismatch() {
    let (slot, identity, epoch, _) = sample_slot();
    let mut transfers = Vec::new();
    let mut refused = |identity: Identity, epoch: Epoch| {
        let outcome = slot::decode(&slot, &identity, epoch, &mut transfers);
        assert!(matches!(outcome, Err(SlotError::Mismatch { .. })), "{outcome:?}");
    };
    refused(identity, Epoch(8));
    refused(Identity { session: SessionId(1), ..identity }, epoch);
    refused(Identity { generation: identity.generation.next(), ..identity }, epoch);
    refused(Identity { incarnation: identity.incarnation.next(), ..identity }, epoch);
    refused(Identity { connection: identity.connection.next(), ..identity }, epoch);
}

#[test]
fn i10_resealed_hostile_slots_are_refused() {
    let hostile = |at: usize, with: &[u8]| {
        let (slot, identity, epoch, _) = sample_slot();
        let mut bytes = [0; 4096];
        slot.read(0, &mut bytes);
        bytes[at..at + with.len()].copy_from_slice(with);
        let extents = crc32fast::hash(&bytes[128..256]);
        bytes[96..100].copy_from_slice(&extents.to_le_bytes());
        let header = crc32fast::hash(&bytes[..124]);
        bytes[124..128].copy_from_slice(&header.to_le_bytes());
        slot.write(0, &bytes);
        slot::decode(&slot, &identity, epoch, &mut Vec::new()).unwrap_err().to_string()
    };
    let max = u64::MAX.to_le_bytes();
    for (part, at, with) in [
        ("version 2", 4, &2u16.to_le_bytes()[..]),
        ("reserved", 6, &[1]),
        ("extents exceed", 64, &max),
        ("kind 0", 64, &4u64.to_le_bytes()[..]),
        ("state begins", 64, &6u64.to_le_bytes()[..]),
        ("pages", 72, &max),
        ("state of", 80, &max),
        ("exceed a slot", 80, &100_000u64.to_le_bytes()),
        ("state begins", 88, &max),
        ("checksum of the state", 100, &[1, 2, 3, 4]),
        ("reserved", 104, &[1]),
        ("empty or out of range", 128, &max),
        ("empty or out of range", 136, &max),
        ("empty or out of range", 144, &[0]),
        ("kind 2", 148, &2u16.to_le_bytes()),
        ("reserved bytes of an extent", 150, &[1]),
        ("not zero", 200, &[1]),
    ] {
        let why = hostile(at, with);
        assert!(why.contains(part), "{part} at {at}: {why}");
    }
}

#[test]
fn a_slot_without_room_is_refused_before_anything_is_written() {
    let slot = Memory::anonymous(128);
    let transfer = Transfer { first_page: PageIndex(0), first_frame: FrameIndex(0), pages: 1 };
    for (transfers, state_bytes) in [(&[transfer][..], 0), (&[], 1), (&[], u64::MAX)] {
        slot::encode(&identity(), Epoch(1), transfers, state_bytes, 0, &slot).unwrap_err();
    }
    let mut bytes = [1; 128];
    slot.read(0, &mut bytes);
    assert_eq!(bytes, [0; 128]);
    let tiny = Memory::anonymous(64);
    assert!(slot::decode(&tiny, &identity(), Epoch(1), &mut Vec::new()).is_err());
}

#[test]
fn transfers_beyond_any_arena_are_not_encoded() {
    let slot = Memory::anonymous(4096);
    for (page, frame, pages) in [(0, 0, 0), (u64::MAX, 0, 1), (0, u64::MAX, 2), (0, 0, 1 << 40)] {
        let transfer = Transfer { first_page: PageIndex(page), first_frame: FrameIndex(frame), pages };
        slot::encode(&identity(), Epoch(1), &[transfer], 0, 0, &slot).unwrap_err();
    }
}

#[test]
fn the_example_of_the_protocol_text_is_what_is_encoded() {
    let text = include_str!("../../docs/protocol.md");
    let example = text.split("```hex\n").nth(1).and_then(|rest| rest.split("```").next());
    let example: String = example.expect("an example").split_whitespace().collect();
    let bytes = bytes_of(&Message::Commit { epoch: Epoch(42) });
    let encoded: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(example, encoded);
}

#[test]
fn i10_a_state_changed_after_the_slot_was_read_is_not_loaded() {
    let (slot, identity, epoch, used) = sample_slot();
    let header = slot::decode(&slot, &identity, epoch, &mut Vec::new()).unwrap();
    assert_eq!(slot::read_state(&slot, &header).unwrap(), [0xa5; 100]);
    slot.write(used - 1, &[0]);
    assert!(slot::read_state(&slot, &header).unwrap_err().to_string().contains("checksum of the state"));
    assert!(slot::read_state(&slot.part(0, 128), &header).is_err());
}
