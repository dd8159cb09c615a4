//! The beginning of protection: when output begins to be held, and from when on the backup may take
//! over.

use std::time::Duration;

use romulus_checkpoint::Epoch;
use romulus_checkpoint::arbiter::Ownership;
use romulus_checkpoint::primary::{PrimaryState, Work};

use super::harness::{World, backup_config, primary_config};

/// As long as a real trial load, in intervals.
const TRIAL: Duration = Duration::from_millis(250);

fn with_slow_trial(seed: u64) -> World {
    let mut world = World::new(seed);
    world.trial_takes = TRIAL;
    world
}

fn is_protected(world: &World) -> bool {
    let record = world.record.as_ref().expect("a record");
    matches!(record.ownership, Ownership::Protected { .. })
}

#[test]
fn i1_clients_need_not_wait_for_the_trial_load() {
    for seed in 0..40 {
        let mut world = with_slow_trial(seed);
        let (mut tried, mut silent, mut longest) = (0, 0, 0);
        let mut released = 0;
        while !is_protected(&world) {
            world.step();
            tried += u32::from(world.tries());
            if world.tries() {
                assert!(!world.holds(), "seed {seed}: output is held while the state is loaded for trial");
                assert_eq!(world.released, world.count());
            }
            silent = if world.released == released { silent + 1 } else { 0 };
            longest = longest.max(silent);
            released = world.released;
        }
        assert!(tried > 100, "seed {seed}: no trial of {TRIAL:?}");
        // A step takes 2 ms: one epoch, or two where the first was not quick enough.
        assert!(longest <= 20, "seed {seed}: nothing left for {longest} steps");
        world.protect();
        world.run_for(Duration::from_millis(50));
        world.primary_alive = false;
        world.running = false;
        world.cut();
        // The harness compares what had left with what the resumed guest knows.
        world.run_until("takeover", |world| world.activated.is_some());
    }
}

/// The primary's host dies at every step up to protection. Whatever the backup has by then, it takes
/// over exactly if the record says so, and then it knows all that has left.
#[test]
fn i1_nobody_takes_over_from_an_epoch_of_the_time_when_output_was_free() {
    let (mut refused, mut taken) = (0, 0);
    for steps in 0.. {
        let mut world = with_slow_trial(5);
        (0..steps).for_each(|_| world.step());
        let end = world.primary.state() == PrimaryState::Protected;
        let image = world.backup.committed() > Epoch(0);
        let protected = is_protected(&world);
        world.primary_alive = false;
        world.running = false;
        world.cut();
        if protected {
            world.run_until("takeover", |world| world.activated.is_some());
            taken += 1;
        } else {
            world.run_for(Duration::from_millis(500));
            // Nor does it by the operator's word.
            world.act_backup(|backup, _, actions| drop(backup.request_takeover(true, actions)));
            world.run_for(Duration::from_millis(500));
            assert!(world.activated.is_none(), "step {steps}");
            assert!(world.holds() || world.released == world.count());
            refused += u32::from(image);
        }
        if end {
            break;
        }
    }
    assert!(refused > 100 && taken > 0, "{refused} deaths with an image before protection, {taken} after");
}

/// Output begins to be held while the capture of an epoch is under way that began before: that epoch covers
/// nothing of it, and the one that does begins at once all the same.
#[test]
fn the_first_epoch_that_is_waited_for_begins_at_once_also_after_a_capture_under_way() {
    let steps_until_held = {
        let mut world = World::new(7);
        (0..)
            .take_while(|_| {
                world.step();
                !world.holds()
            })
            .count()
    };
    let mut world = World::new(7);
    (0..steps_until_held).for_each(|_| world.step());
    assert!(!world.holds() && world.primary.acked() == Epoch(0) && world.primary.unacked() == 1);
    world.now = world.now.after(primary_config().interval);
    assert_eq!(world.primary.next_work(world.now), Work::Checkpoint { last: false });
    world.flush();
    assert!(world.holds() && world.primary.acked() == Epoch(1), "held since the first ack");
    world.checkpoint(false);
    assert_eq!(world.primary.unacked(), 1);
    assert_eq!(world.primary.next_work(world.now), Work::Checkpoint { last: false }, "at once");
    // That one ends what is held: the next is due an interval later.
    world.checkpoint(false);
    world.flush();
    assert!(matches!(world.primary.next_work(world.now), Work::Wait { .. }));
}

/// Nobody keeps a backup from taking over from its first epoch where nobody arbitrates.
#[test]
fn i1_without_an_arbiter_output_is_held_before_the_first_epoch() {
    let mut primary = primary_config();
    let mut backup = backup_config();
    (primary.shared_arbiter, backup.shared_arbiter) = (false, false);
    let mut world = World::with(1, primary, backup);
    world.trial_takes = TRIAL;
    world.run_until("a first epoch", |world| world.primary.unacked() > 0);
    assert!(world.holds());
    let released = world.released;
    world.run_until("an ack", |world| {
        assert!(world.holds());
        world.primary.acked() > Epoch(0)
    });
    world.run_for(Duration::from_millis(20));
    assert!(world.released > released);
}

/// A connection that comes back after the guest has run alone brings all that was written meanwhile.
#[test]
fn i1_output_is_free_also_while_the_time_alone_is_made_up_for() {
    let mut world = World::new(4);
    world.protect();
    world.run_for(Duration::from_millis(50));
    world.network = false;
    world.cut();
    world.run_until("alone", |world| world.primary.state() == PrimaryState::Solo);
    world.network = true;
    let acked = world.primary.acked();
    world.run_until("another epoch", |world| {
        assert!(!world.holds() || world.primary.acked() > acked, "held before the first epoch was acked");
        world.primary.acked() > acked
    });
    world.protect();
}

/// A takeover waits for a handshake under way: where there is something to take over from, no longer than
/// for a silent primary.
#[test]
fn a_handshake_is_waited_for_no_longer_than_a_primary_that_says_nothing() {
    let usual = Duration::from_secs(5);
    let mut world = World::new(6);
    assert_eq!(world.backup.handshake_patience(usual), usual, "there is nothing to take over");
    world.protect();
    assert_eq!(world.backup.handshake_patience(usual), backup_config().suspect_after);
    let short = Duration::from_millis(1);
    assert_eq!(world.backup.handshake_patience(short), short);
}
