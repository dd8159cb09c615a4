//! The machines against each other through encoded bytes, with tests named after the invariants.

mod chaos;
mod endings;
mod harness;
mod refusals;

use std::time::Duration;

use harness::World;
use romulus_checkpoint::arbiter::Ownership;
use romulus_checkpoint::backup::BackupState;
use romulus_checkpoint::primary::PrimaryState;

fn seeds() -> std::ops::Range<u64> {
    0..40
}

#[test]
fn i2_takeover_resumes_exactly_the_guest_at_the_last_committed_pause() {
    for seed in seeds() {
        let mut world = World::new(seed);
        world.protect();
        world.run_for(Duration::from_millis(100 + seed * 7));
        // The primary's host dies: the harness compares image, state and what was released.
        world.primary_alive = false;
        world.running = false;
        world.cut();
        world.run_until("takeover", |world| world.activated.is_some());
        assert_eq!(world.backup.state(), BackupState::Active);
    }
}

#[test]
fn i1_output_of_an_epoch_is_held_until_its_ack_and_goes_on_alone_only_with_the_grant() {
    let mut world = World::new(1);
    world.protect();
    world.run_for(Duration::from_millis(200));
    let before = world.released;
    assert!(before > 0 && before < world.count());
    world.backup_alive = false;
    world.network = false;
    world.cut();
    world.run_until("the solo grant", |world| world.primary.state() == PrimaryState::Solo);
    assert_eq!(world.record.as_ref().unwrap().ownership, Ownership::Solo { primary: "alpha".into() });
    world.run_for(Duration::from_millis(10));
    assert_eq!(world.released, world.count());
}

#[test]
fn i7_a_broken_connection_goes_on_with_a_delta_and_loses_no_page() {
    for seed in seeds() {
        let mut world = World::new(seed);
        world.protect();
        for _ in 0..5 {
            world.run_for(Duration::from_millis(30 + seed));
            world.cut();
            world.run_until("reconnected", |world| world.connected);
        }
        world.run_for(Duration::from_millis(200));
        assert!(world.primary_log.iter().any(|line| line.contains("Resumed")), "{:?}", world.primary_log);
        world.primary_alive = false;
        world.running = false;
        world.cut();
        world.run_until("takeover", |world| world.activated.is_some());
    }
}
