//! The machines against each other through encoded bytes, with tests named after the invariants.

mod beginning;
mod chaos;
mod connections;
mod copy_only;
mod endings;
mod harness;
mod refusals;
mod throttle;

use std::time::Duration;

use harness::{ArbiterMood, World};
use romulus_checkpoint::arbiter::Ownership;
use romulus_checkpoint::backup::BackupState;
use romulus_checkpoint::primary::{NotTaken, PrimaryState, Work};
use romulus_checkpoint::{Epoch, Extent, PageIndex};

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

#[test]
fn i1_an_ack_of_another_backup_than_the_record_names_releases_nothing() {
    let mut world = World::new(2);
    world.protect();
    let first = world.take_backup();
    world.run_until("alone", |world| world.primary.state() == PrimaryState::Solo);
    world.protect();
    world.run_for(Duration::from_millis(60));
    // The record names the second backup's image when the first one answers in its place, gives
    // up what it had and is synchronized anew; the arbiter is away.
    world.mood = ArbiterMood::Down;
    let second = world.take_backup();
    world.backup = first;
    world.connect();
    assert!(world.connected);
    let released = world.released;
    world.run_for(Duration::from_secs(1));
    assert!(world.primary.acked() > Epoch(5), "epochs are acked: {}", world.primary.acked());
    assert_eq!(world.released, released, "but the second backup could still take over");
    drop(second);
    world.mood = ArbiterMood::Well;
    world.protect();
    world.run_for(Duration::from_millis(100));
    assert!(world.released > released);
}

#[test]
fn i1_a_pause_from_before_output_was_let_go_ends_no_epoch() {
    let mut world = World::new(3);
    world.protect();
    world.run_for(Duration::from_millis(60));
    while !matches!(world.primary.next_work(world.now), Work::Checkpoint { .. }) {
        world.flush();
        world.now = world.now.after(Duration::from_millis(1));
    }
    world.primary.paused(world.now);
    // While the pages are being collected the backup is lost, output leaves on the grant, and
    // the backup comes back.
    world.cut();
    world.now = world.now.after(Duration::from_millis(150));
    world.act_primary(|primary, now, actions| primary.handle_tick(now, actions));
    assert_eq!(world.primary.state(), PrimaryState::Solo);
    world.connect();
    assert_eq!(world.primary.state(), PrimaryState::Syncing);
    world.memory[5] = 999;
    world.dirty.insert(5);
    let dirty: Vec<Extent> = std::mem::take(&mut world.dirty)
        .into_iter()
        .map(|page| Extent { first: PageIndex(page), pages: 1 })
        .collect();
    let (mut transfers, mut actions) = (Vec::new(), Vec::new());
    let placed = world.primary.place(&dirty, world.now, &mut transfers, &mut actions);
    assert_eq!(placed, Err(NotTaken::Superseded));
    // I7: its pages are part of the next one, which the harness compares at the takeover.
    world.protect();
    world.primary_alive = false;
    world.running = false;
    world.cut();
    world.run_until("takeover", |world| world.activated.is_some());
}
