//! Back-pressure: a guest whose every epoch fits the spares is held, never synchronized anew.

use std::time::Duration;

use romulus_checkpoint::primary::PrimaryConfig;
use romulus_checkpoint::{ArenaShape, Epoch};

use crate::harness::{PAGES, World, backup_config, primary_config, shape};

/// Few enough that two epochs of other pages do not fit.
const FEW: u64 = 4;

fn world(seed: u64, throttle_pause: Duration) -> World {
    let config = PrimaryConfig { throttle_pause, low_water_spares: 1, ..primary_config() };
    World::build(seed, ArenaShape { spares: FEW, ..shape() }, config, backup_config())
}

/// The guest writes one page after another, at most `most` of them in an epoch.
fn write_on(world: &mut World, next: &mut u64, most: usize) {
    if world.running && world.dirty.len() < most {
        *next = *next % (PAGES - 1) + 1;
        world.memory[*next as usize] += 1 << 32;
        world.dirty.insert(*next);
    }
}

/// A step in which the guest does nothing by itself.
fn rest(world: &mut World) {
    let running = std::mem::replace(&mut world.running, false);
    world.step();
    world.running |= running && world.throttled.is_none();
}

fn overflows(world: &World) -> usize {
    world.primary_log.iter().filter(|line| line.contains("Overflow")).count()
}

/// Returns how often the guest was held, and the overflows.
fn run_steady_load(seed: u64, throttle_pause: Duration) -> (u64, usize) {
    let mut world = world(seed, throttle_pause);
    world.protect();
    let (mut next, mut held) = (0, 0);
    let first = world.primary.acked();
    for _ in 0..2_000 {
        // The harness's guest adds page 0 and another one in each step.
        write_on(&mut world, &mut next, FEW as usize - 2);
        if world.dirty.len() as u64 > FEW - 2 {
            // As much as an epoch may have: the guest rests until its pause.
            rest(&mut world);
        } else {
            world.step();
        }
        held += u64::from(world.throttled.is_some());
    }
    let overflows = overflows(&world);
    // After an overflow they count anew.
    let acked = world.primary.acked();
    assert!(overflows > 0 || acked >= Epoch(first.0 + 100), "{acked} after {first}: {:?}", world.primary_log);
    world.primary_alive = false;
    world.running = false;
    world.cut();
    world.run_until("takeover", |world| world.activated.is_some());
    (held, overflows)
}

#[test]
fn i7_a_load_of_new_pages_is_held_and_never_overflows_while_each_epoch_fits() {
    let mut held = 0;
    for seed in 0..20 {
        let (times, overflows) = run_steady_load(seed, Duration::from_secs(3600));
        assert_eq!(overflows, 0, "seed {seed}");
        held += times;
    }
    assert!(held > 100, "the load is too light to show anything: held {held} times");
    // Without it the same load overflows.
    assert!((0..20).any(|seed| run_steady_load(seed, Duration::ZERO).1 > 0));
}

#[test]
fn i7_a_guest_is_paused_before_it_outgrows_the_spares_while_acks_are_late() {
    for (throttle_pause, expected) in [(Duration::from_secs(3600), false), (Duration::ZERO, true)] {
        let mut world = world(1, throttle_pause);
        world.protect();
        let mut next = 0;
        let mut overflowed = false;
        for round in 0..20 {
            // So long that without back-pressure the guest dirties everything meanwhile, and not so
            // long that the backup is suspected.
            for step in 0..30 {
                world.mute = step < 20;
                if step % 2 == 0 {
                    write_on(&mut world, &mut next, PAGES as usize);
                }
                rest(&mut world);
            }
            overflowed |= overflows(&world) > 0;
            assert!(world.connected, "round {round}: {:?}", world.primary_log);
        }
        assert_eq!(overflowed, expected, "throttle {throttle_pause:?}: {:?}", world.primary_log);
    }
}

#[test]
fn i8_a_guest_is_held_no_longer_than_allowed() {
    let allowed = Duration::from_millis(30);
    let mut world = world(3, allowed);
    world.protect();
    let (mut next, mut held) = (0, 0);
    let mut longest = 0;
    for step in 0..60 {
        world.mute = step >= 20;
        if step % 2 == 0 {
            write_on(&mut world, &mut next, PAGES as usize);
        }
        rest(&mut world);
        held = if world.throttled.is_some() { held + 1 } else { 0 };
        longest = longest.max(held);
    }
    // A step takes 2 ms.
    assert!((10..=16).contains(&longest), "held for {longest} steps: {:?}", world.primary_log);
}
