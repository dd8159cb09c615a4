//! What the backup refuses, and that a refusal changes nothing.

use proptest::prelude::*;
use romulus_checkpoint::placement::committed::{CommittedMap, PlacementViolation};
use romulus_checkpoint::wire::message::Homing;
use romulus_checkpoint::{ArenaShape, FrameIndex, HomingSequence, PageIndex, Transfer};

const SHAPE: ArenaShape =
    ArenaShape { pages: 8, spares: 4, slots: 3, slot_bytes: 4096, copy_only_homes: false };

fn transfer(page: u64, frame: u64, pages: u64) -> Transfer {
    Transfer { first_page: PageIndex(page), first_frame: FrameIndex(frame), pages }
}

fn homing(page: u64, source: u64) -> Homing {
    Homing { page: PageIndex(page), source: FrameIndex(source) }
}

/// Page 2 in frame 8, page 3 in frame 9, all others at home.
fn displaced_map() -> CommittedMap {
    let mut map = CommittedMap::new(SHAPE);
    map.commit(&[transfer(0, 0, 8)], true).unwrap();
    map.commit(&[transfer(2, 8, 2)], false).unwrap();
    map
}

#[track_caller]
fn refused(map: &mut CommittedMap, transfers: &[Transfer]) -> PlacementViolation {
    let before = map.clone();
    let violation = map.commit(transfers, false).unwrap_err();
    assert_eq!(*map, before, "nothing was changed");
    violation
}

#[test]
fn rule_3_a_slot_is_checked_before_anything_changes() {
    use PlacementViolation::*;
    let map = &mut displaced_map();
    // In front of each bad transfer a good one, whose claim must not outlive the refusal.
    let good = transfer(0, 10, 1);
    let mut with = |bad| refused(map, &[good, bad]);
    assert!(matches!(with(transfer(8, 11, 1)), OutOfRange(_)));
    assert!(matches!(with(transfer(4, 11, 2)), OutOfRange(_)), "frames end at 12");
    assert!(matches!(with(transfer(4, 12, 1)), OutOfRange(_)));
    assert!(matches!(with(transfer(4, u64::MAX, 2)), OutOfRange(_)));
    assert!(matches!(with(transfer(u64::MAX, 11, 2)), OutOfRange(_)));
    assert!(matches!(with(transfer(4, 11, u64::MAX)), OutOfRange(_)));
    assert!(matches!(with(transfer(4, 11, 0)), OutOfRange(_)));
    assert!(matches!(with(transfer(4, 2, 1)), ForeignHome { .. }));
    assert!(matches!(with(transfer(2, 3, 1)), ForeignHome { .. }), "though frame 3 is free");
    assert!(matches!(with(transfer(0, 11, 1)), Twice(_)), "a page twice");
    assert!(matches!(with(transfer(4, 10, 1)), Twice(_)), "a frame twice");
    let in_use = |page, frame| InUse { page: PageIndex(page), frame: FrameIndex(frame) };
    assert_eq!(with(transfer(4, 4, 1)), in_use(4, 4), "a live home");
    assert_eq!(with(transfer(2, 2, 3)), in_use(4, 4), "a run into a live home");
    assert_eq!(with(transfer(4, 9, 1)), in_use(4, 9), "a spare of the map");
    assert!(matches!(refused(map, &[transfer(4, 10, 1), transfer(3, 11, 1)]), Twice(_)), "unsorted");
    map.commit(&[good, transfer(2, 2, 2)], false).unwrap();
}

#[test]
fn rule_3_neither_end_of_a_pending_homing_is_a_target() {
    let map = &mut displaced_map();
    map.take_homings(HomingSequence(1), &[homing(2, 8)]).unwrap();
    assert!(matches!(refused(map, &[transfer(2, 2, 1)]), PlacementViolation::InUse { .. }));
    // The page moves on while its copy runs: both ends stay used until the copy ends.
    let copy = map.next_copy().unwrap();
    map.commit(&[transfer(2, 10, 1)], false).unwrap();
    assert_eq!(map.homed_through(), HomingSequence(0));
    assert!(matches!(refused(map, &[transfer(2, 2, 1)]), PlacementViolation::InUse { .. }));
    assert!(matches!(refused(map, &[transfer(5, 8, 1)]), PlacementViolation::InUse { .. }));
    map.copy_finished(copy.sequence);
    assert_eq!(map.homed_through(), HomingSequence(1));
    assert_eq!(map.frame_of(PageIndex(2)), FrameIndex(10), "a cancelled copy changes nothing");
    map.commit(&[transfer(2, 2, 1), transfer(5, 8, 1)], false).unwrap();
}

#[test]
fn copy_only_homes_are_no_targets() {
    let mut map = CommittedMap::new(ArenaShape { copy_only_homes: true, ..SHAPE });
    let violation = map.commit(&[transfer(1, 1, 1)], true).unwrap_err();
    assert_eq!(violation, PlacementViolation::CopyOnlyHome(PageIndex(1)));
    map.commit(&[transfer(1, 8, 1)], true).unwrap();
}

#[test]
fn rule_5_homings_are_refused_out_of_sequence_and_twice() {
    let map = &mut displaced_map();
    let before = map.clone();
    let mut refused = |first, homings: &[Homing]| {
        assert!(map.take_homings(HomingSequence(first), homings).is_err());
        assert_eq!(*map, before, "nothing was changed");
    };
    refused(0, &[homing(2, 8)]);
    refused(2, &[homing(2, 8)]);
    refused(1, &[homing(3, 9), homing(8, 8)]);
    refused(1, &[homing(3, 9), homing(2, 2)]);
    refused(1, &[homing(3, 9), homing(2, 12)]);
    refused(1, &[homing(3, 9), homing(3, 8)]);
    refused(1, &[homing(3, 9), homing(2, 9)]);
    // A homing whose page is not in its source is dropped, and passed at once.
    map.take_homings(HomingSequence(1), &[homing(4, 11)]).unwrap();
    assert_eq!((map.next_copy(), map.homed_through()), (None, HomingSequence(1)));
}

#[test]
fn rule_5_h_passes_homings_in_sequence_only() {
    let map = &mut displaced_map();
    map.take_homings(HomingSequence(1), &[homing(2, 8), homing(3, 9)]).unwrap();
    let (first, second) = (map.next_copy().unwrap(), map.next_copy().unwrap());
    map.copy_finished(second.sequence);
    assert_eq!(map.homed_through(), HomingSequence(0), "the first still touches memory");
    assert_eq!(map.frame_of(PageIndex(3)), FrameIndex(3));
    map.copy_finished(first.sequence);
    assert_eq!((map.homed_through(), map.displaced()), (HomingSequence(2), vec![]));
}

proptest! {
    #[test]
    fn i10_hostile_transfers_and_homings_never_panic_and_never_change_a_refused_map(
        epochs in prop::collection::vec(
            prop::collection::vec((0u64..10, 0u64..14, prop_oneof![0u64..5, Just(u64::MAX)]), 0..4), 0..12),
        homings in prop::collection::vec((0u64..10, 0u64..14), 0..12),
    ) {
        let mut map = displaced_map();
        let mut sequence = 1;
        for (index, epoch) in epochs.iter().enumerate() {
            let transfers: Vec<_> = epoch.iter().map(|(page, frame, pages)| transfer(*page, *frame, *pages)).collect();
            let before = map.clone();
            if map.commit(&transfers, false).is_err() {
                prop_assert_eq!(&map, &before);
            }
            if let Some((page, source)) = homings.get(index)
                && map.take_homings(HomingSequence(sequence), &[homing(*page, *source)]).is_ok()
            {
                sequence += 1;
            }
            if let Some(copy) = map.next_copy() && index % 2 == 0 {
                map.copy_finished(copy.sequence);
            }
            // The map stays one to one whatever was asked.
            let frames: std::collections::BTreeSet<_> = (0..8).map(|page| map.frame_of(PageIndex(page))).collect();
            prop_assert_eq!(frames.len(), 8);
        }
    }
}
