//! Copy-only homes: an image in parts is nothing to resume.

use std::time::Duration;

use romulus_checkpoint::arbiter::Ownership;
use romulus_checkpoint::backup::BackupState;
use romulus_checkpoint::extent::Transfer;
use romulus_checkpoint::primary::{PlacedEpoch, PrimaryState, Work};
use romulus_checkpoint::wire::message::{Message, encode};
use romulus_checkpoint::*;

use crate::harness::{PAGES, World, backup_config, primary_config, shape};

fn world(seed: u64, spares: u64) -> World {
    let shape = ArenaShape { copy_only_homes: true, spares, ..shape() };
    World::build(seed, shape, primary_config(), backup_config())
}

/// Until the backup has parts and no more.
fn in_parts(seed: u64) -> World {
    let mut world = world(seed, 3);
    world.run_until("a part is committed", |world| world.backup.committed() > Epoch(0));
    world
}

#[test]
fn i2_nothing_is_taken_over_from_parts() {
    let mut committed_parts = 0;
    for seed in 0..40 {
        let mut world = in_parts(seed);
        while world.backup.state() == BackupState::Syncing {
            committed_parts += 1;
            assert_ne!(world.primary.state(), PrimaryState::Protected);
            world.act_backup(|backup, _, actions| {
                let refused = backup.request_takeover(true, actions);
                assert!(refused.is_err(), "seed {seed}: {refused:?}");
            });
            world.step();
        }
        // The host dies at the next sight of parts.
        let mut world = in_parts(seed);
        if world.backup.state() != BackupState::Syncing {
            continue;
        }
        world.primary_alive = false;
        world.running = false;
        world.cut();
        world.run_for(Duration::from_secs(5));
        assert!(world.activated.is_none(), "seed {seed}");
        let owner = world.record.as_ref().map(|record| &record.ownership);
        assert_eq!(owner, Some(&Ownership::Solo { primary: "alpha".into() }), "seed {seed}");
    }
    assert!(committed_parts > 40);
}

#[test]
fn i7_an_image_of_few_spares_is_exact_at_takeover() {
    for seed in 0..40 {
        let mut world = world(seed, 3 + seed % 4);
        world.protect();
        world.run_for(Duration::from_millis(20 + seed * 7));
        // It may have been given up meanwhile, for an epoch larger than the spares.
        world.protect();
        world.primary_alive = false;
        world.running = false;
        world.cut();
        world.run_until("takeover", |world| world.activated.is_some());
    }
}

#[test]
fn a_part_over_a_whole_image_is_refused_and_changes_nothing() {
    let mut world = world(6, 6);
    world.protect();
    world.run_for(Duration::from_millis(60));
    world.flush();
    world.run_until("nothing is on its way", |world| world.primary.unacked() == 0);
    world.flush();
    let (identity, before) = (world.primary.identity(), world.backup.committed());
    let placed = PlacedEpoch { epoch: before.next(), identity, pages: 1 };
    // A frame that is free: a page may take any.
    let used: Vec<u64> = (0..6).map(|page| world.backup.frame_of(PageIndex(page)).0).collect();
    let free = (6..12).find(|frame| !used.contains(frame)).expect("not all spares are used");
    let transfer = Transfer { first_page: PageIndex(1), first_frame: FrameIndex(free), pages: 1 };
    world.send_epoch(&placed, &[transfer], &[]);
    let mut bytes = Vec::new();
    encode(&identity, &Message::Commit { epoch: placed.epoch }, &mut bytes);
    world.message_to_backup(&bytes);
    world.deliver_data();
    assert_eq!(world.backup.committed(), before);
    let log = &world.backup_log;
    assert!(log.iter().any(|line| line.contains("has no state")), "{log:#?}");
}

#[test]
fn there_are_no_rounds_with_copy_only_homes() {
    let mut world = world(7, 6);
    world.run_until("connected", |world| world.connected);
    let mut bytes = Vec::new();
    encode(&world.primary.identity(), &Message::RoundEnd { round: 1 }, &mut bytes);
    world.message_to_backup(&bytes);
    assert!(world.backup_log.iter().any(|line| line.contains("round 1")), "{:#?}", world.backup_log);
    assert!(!world.connected);
}

#[test]
fn a_first_epoch_larger_than_the_spares_is_given_up_before_anything_is_committed() {
    let mut world = world(8, 3);
    world.connect();
    // All pages are zero at both ends, so that no part is due, and then the guest writes them all.
    let work = world.primary.next_work(world.now);
    assert!(matches!(work, Work::Round { round: 1, everything: true }), "{work:?}");
    world.act_primary(|primary, now, actions| primary.round_listed(1, &[], now, actions));
    world.dirty.extend(0..PAGES);
    let before = world.primary.identity().incarnation;
    world.capture();
    assert_eq!(world.primary.state(), PrimaryState::Invalid);
    world.flush();
    assert!(world.connected, "{:#?}", world.backup_log);
    assert!(world.primary.identity().incarnation > before, "the backup has promised");
    world.protect();
}
