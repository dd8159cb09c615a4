//! Everything at random: cuts, silence, a dead or deaf arbiter, restarts, ends, deaths. The
//! harness checks at every release and takeover; here the end is checked.

use std::time::Duration;

use rand::Rng;
use romulus_checkpoint::arbiter::Ownership;
use romulus_checkpoint::backup::BackupState;
use romulus_checkpoint::primary::PrimaryState;
use romulus_checkpoint::{ArenaShape, Epoch};

use crate::harness::{ArbiterMood, World, backup_config, primary_config, shape};

fn disturb(world: &mut World) {
    match world.rng.random_range(0..16) {
        0..=2 => world.cut(),
        3 => {
            world.network = false;
            world.cut();
        }
        4 => world.network = true,
        5 => world.mood = ArbiterMood::Down,
        6 => world.mood = ArbiterMood::Deaf,
        7..=9 => world.mood = ArbiterMood::Well,
        10 => {
            world.act_primary(|primary, now, actions| {
                let _ = primary.request_failover(now, actions);
            });
        }
        11 if !matches!(world.backup.state(), BackupState::Active | BackupState::TakingOver) => {
            world.restart_backup()
        }
        11 => {}
        14 => world.trial = Err("no standby".into()),
        12 => world.trial = Ok(()),
        // A silent network: nothing arrives, nobody is told.
        _ => world.mute = !world.mute,
    }
}

#[test]
fn i9_whatever_happens_one_guest_goes_on() {
    for seed in 0..200 {
        let spares = 3 + seed % 6;
        let shape = ArenaShape { spares, copy_only_homes: seed % 3 == 0, ..shape() };
        let mut world = World::build(seed, shape, primary_config(), backup_config());
        for _ in 0..60 {
            let wait = world.rng.random_range(0..120);
            world.run_for(Duration::from_millis(wait));
            disturb(&mut world);
            assert!(world.activated.is_none() || !world.primary_output_goes_on(), "seed {seed}");
        }
        // Peace: it ends with one guest that runs.
        world.network = true;
        world.mute = false;
        world.mood = ArbiterMood::Well;
        world.trial = Ok(());
        world.run_for(Duration::from_secs(2));
        world.run_until("one side has it", |world| {
            matches!(world.primary.state(), PrimaryState::Protected | PrimaryState::Lost)
        });
        // A guest that is held for want of frames runs again soon.
        let primary_runs = (world.running || world.throttled.is_some()) && !world.destroyed;
        let backup_runs = world.activated.is_some();
        assert!(
            primary_runs != backup_runs,
            "seed {seed}: {primary_runs} {backup_runs} {:?} {:#?} {:#?}",
            world.record,
            world.primary_log,
            world.backup_log
        );
        assert_eq!(backup_runs, world.primary.state() == PrimaryState::Lost, "seed {seed}");
    }
}

#[test]
fn i2_a_host_that_dies_at_any_moment_leaves_an_exact_image() {
    for seed in 0..200 {
        let spares = 3 + seed % 6;
        let shape = ArenaShape { spares, copy_only_homes: seed % 3 == 0, ..shape() };
        let mut world = World::build(seed, shape, primary_config(), backup_config());
        let rounds = world.rng.random_range(0..20);
        for _ in 0..rounds {
            let wait = world.rng.random_range(0..120);
            world.run_for(Duration::from_millis(wait));
            disturb(&mut world);
        }
        world.primary_alive = false;
        world.running = false;
        world.network = true;
        world.mute = false;
        world.cut();
        world.mood = ArbiterMood::Well;
        world.run_for(Duration::from_secs(5));
        let owner = world.record.as_ref().map(|record| record.ownership.clone());
        let taken = world.activated.is_some() || world.destroyed;
        assert_eq!(taken, matches!(owner, Some(Ownership::Owned { .. })), "seed {seed}: {owner:?}");
        // Nobody takes over only where the image was given up and the record could not follow.
        if matches!(owner, Some(Ownership::Protected { .. })) {
            let refused = world.backup_log.iter().any(|line| line.contains("not granted"));
            assert!(!refused || world.backup.committed() == Epoch(0), "seed {seed}: {:#?}", world.backup_log);
        }
    }
}
