//! The ends of protection.

use std::time::Duration;

use romulus_checkpoint::arbiter::{Ownership, Record};
use romulus_checkpoint::backup::BackupState;
use romulus_checkpoint::primary::PrimaryState;
use romulus_checkpoint::wire::message::ByeReason;
use romulus_checkpoint::{Generation, SessionId, nonce};

use crate::harness::{ArbiterMood, World, backup_config, primary_config};

fn protected(seed: u64) -> World {
    let mut world = World::new(seed);
    world.protect();
    world.run_for(Duration::from_millis(60));
    world
}

fn owner(world: &World) -> Ownership {
    world.record.as_ref().expect("a record").ownership.clone()
}

fn solo() -> Ownership {
    Ownership::Solo { primary: "alpha".into() }
}

#[test]
fn a_planned_failover_moves_the_guest_without_loss() {
    for seed in 0..20 {
        let mut world = protected(seed);
        world.act_primary(|primary, now, actions| primary.request_failover(now, actions).expect("protected"));
        world.run_until("the move", |world| world.activated.is_some());
        assert_eq!(world.activated.as_ref().unwrap()[0], world.count(), "nothing of the guest is lost");
        assert_eq!(world.released, world.count(), "nothing that it said is lost");
        world.run_until("the old guest's end", |world| world.destroyed);
        assert_eq!(world.primary.state(), PrimaryState::Lost);
        assert_eq!(world.backup.state(), BackupState::Active);
    }
}

#[test]
fn i8_a_failover_that_is_cut_off_leaves_one_guest_running() {
    for seed in 0..60 {
        let mut world = protected(seed);
        world.act_primary(|primary, now, actions| primary.request_failover(now, actions).expect("protected"));
        world.run_for(Duration::from_millis(2 * (seed % 15)));
        world.network = seed % 2 == 0;
        world.cut();
        world.run_for(Duration::from_secs(3));
        let here = world.running && !world.destroyed;
        assert!(here != world.activated.is_some(), "seed {seed}: {here} {:#?}", world.primary_log);
    }
}

/// Section 6.8 of the protocol: the backup may be asking its arbiter, for as long as it takes.
#[test]
fn a_failover_is_waited_for_as_long_as_the_connection_lives() {
    let mut world = protected(17);
    world.act_primary(|primary, now, actions| primary.request_failover(now, actions).expect("protected"));
    world.mood = ArbiterMood::Down;
    world.run_for(primary_config().suspect_after * 10);
    assert!(world.connected && !world.running, "{:#?}", world.primary_log);
    assert!(!world.primary_log.iter().any(|line| line.contains("good-bye")), "{:#?}", world.primary_log);
    world.mood = ArbiterMood::Well;
    world.run_until("the move", |world| world.activated.is_some());
    world.run_until("the old guest's end", |world| world.destroyed);
}

#[test]
fn a_failover_needs_a_connected_backup() {
    let mut world = World::new(1);
    world.act_primary(|primary, now, actions| {
        assert!(primary.request_failover(now, actions).unwrap_err().contains("Solo"));
    });
}

#[test]
fn a_backup_whose_standby_does_not_start_never_protects() {
    let mut world = World::new(3);
    world.trial = Err("no such machine".into());
    world.run_for(Duration::from_secs(1));
    assert_eq!(owner(&world), solo());
    assert_eq!(world.acks_sent, 0);
    assert!(world.primary_log.iter().any(|line| line.contains("no such machine")), "{:?}", world.primary_log);
    assert!(!world.primary_log.iter().any(|line| line.contains("State(Protected")));
    // Each attempt held some output; it has left on the grant, since nobody could take over.
    world.network = false;
    world.cut();
    world.run_for(Duration::from_millis(10));
    assert_eq!(world.released, world.count());
    world.trial = Ok(());
    world.network = true;
    world.protect();
}

#[test]
fn a_backup_that_leaves_lets_the_primary_go_alone_at_once() {
    let mut world = protected(4);
    let before = world.now;
    world.network = false;
    world.act_backup(|backup, now, actions| backup.request_stop(now, actions));
    world.run_until("alone", |world| world.primary.state() == PrimaryState::Solo);
    assert!(world.now.since(before) < Duration::from_millis(100), "before any suspicion");
    assert_eq!(owner(&world), solo());
    assert!(world.abandoned);
    assert_eq!(world.backup.state(), BackupState::Ended);
}

#[test]
fn a_guest_that_powered_off_is_never_resumed() {
    for connected in [true, false] {
        let mut world = protected(5);
        world.running = false;
        if !connected {
            world.network = false;
            world.cut();
        }
        world.act_primary(|primary, now, actions| primary.guest_gone(ByeReason::GuestEnded, now, actions));
        world.run_until("the end", |world| world.primary.state() == PrimaryState::Ended);
        assert_eq!(owner(&world), Ownership::Ended);
        assert_eq!(world.released, world.count(), "its last words are heard");
        world.run_for(Duration::from_secs(5));
        assert!(world.activated.is_none());
        assert_eq!(world.backup.state(), BackupState::Ended);
        assert!(world.abandoned);
    }
}

#[test]
fn a_guest_that_died_goes_on_at_the_backup() {
    for connected in [true, false] {
        let mut world = protected(6);
        world.running = false;
        let before = world.now;
        if !connected {
            world.network = false;
            world.cut();
        }
        world.act_primary(|primary, now, actions| primary.guest_gone(ByeReason::GuestDied, now, actions));
        world.run_until("takeover", |world| world.activated.is_some());
        assert!(!connected || world.now.since(before) < Duration::from_millis(100), "at once");
        world.run_until("the primary knows", |world| world.primary.state() == PrimaryState::Lost);
    }
}

#[test]
fn a_guest_that_died_is_unprotected_only_where_the_record_lets_nobody_take_over() {
    let died = |world: &mut World| {
        world.running = false;
        world.act_primary(|primary, now, actions| primary.guest_gone(ByeReason::GuestDied, now, actions));
    };
    // Alone, with output gone that no image covers.
    let mut world = protected(14);
    world.network = false;
    world.cut();
    world.run_until("alone", |world| world.primary.state() == PrimaryState::Solo);
    died(&mut world);
    assert_eq!((world.primary.state(), owner(&world)), (PrimaryState::Ended, solo()));
    assert!(world.primary.guest_died_unprotected());
    // Protected: the backup has it.
    let mut world = protected(15);
    died(&mut world);
    world.run_until("the primary knows", |world| world.primary.state() == PrimaryState::Lost);
    assert!(!world.primary.guest_died_unprotected());
    // Protected, and stopped before anybody knows.
    let mut world = protected(16);
    world.network = false;
    world.cut();
    died(&mut world);
    world.act_primary(|primary, now, actions| primary.request_stop(now, actions));
    assert_eq!(world.primary.state(), PrimaryState::Ended);
    assert!(!world.primary.guest_died_unprotected());
    world.run_until("takeover", |world| world.activated.is_some());
}

#[test]
fn a_guest_that_died_while_going_solo_is_handed_back() {
    let mut world = protected(7);
    world.network = false;
    world.cut();
    // The solo grant is sought, its outcome unknown, when the guest dies.
    world.mood = ArbiterMood::Deaf;
    world.run_for(Duration::from_millis(150));
    assert_eq!(owner(&world), solo());
    let released = world.released;
    world.running = false;
    world.act_primary(|primary, now, actions| primary.guest_gone(ByeReason::GuestDied, now, actions));
    world.mood = ArbiterMood::Well;
    world.run_until("takeover", |world| world.activated.is_some());
    assert_eq!(world.released, released, "nothing was released");
}

#[test]
fn a_guard_that_hands_the_record_back_makes_the_idle_backup_take_over() {
    let mut world = protected(8);
    let protected = world.record.clone().expect("a record");
    assert_eq!(protected.nonce, nonce::pairing(SessionId(0x1234), world.primary.identity().incarnation));
    // The primary's process dies; its guard goes solo and finds the guest dead as well.
    world.primary_alive = false;
    world.running = false;
    world.record = Some(protected.successor(solo(), 55));
    world.cut();
    world.run_until("idle", |world| world.backup.state() == BackupState::Solo);
    world.run_for(Duration::from_secs(4));
    assert!(world.activated.is_none());
    let generation = Generation(protected.generation.0 + 2);
    world.record = Some(Record { generation, ..protected });
    world.run_until("takeover", |world| world.activated.is_some());
}

#[test]
fn detaching_leaves_the_guest_alone_and_the_backup_idle() {
    for connected in [true, false] {
        let mut world = protected(9);
        if !connected {
            world.network = false;
            world.cut();
        }
        world.act_primary(|primary, now, actions| primary.request_stop(now, actions));
        world.run_until("the end", |world| world.primary.state() == PrimaryState::Ended);
        world.network = false;
        assert_eq!(owner(&world), solo());
        assert!(world.running && !world.destroyed);
        world.run_for(Duration::from_millis(10));
        assert_eq!(world.released, world.count());
        world.run_for(Duration::from_secs(3));
        assert!(world.activated.is_none());
        assert_eq!(world.backup.state(), BackupState::Solo);
        assert_eq!(world.abandoned, connected);
    }
}

#[test]
fn a_takeover_by_hand_needs_no_suspicion_and_a_record_that_allows_it() {
    let mut world = protected(10);
    world.act_backup(|backup, _, actions| {
        assert!(backup.request_takeover(false, actions).unwrap_err().contains("connected"));
        backup.request_takeover(true, actions).expect("forced");
    });
    world.run_until("takeover", |world| world.activated.is_some());
    world.run_until("the primary knows", |world| world.primary.state() == PrimaryState::Lost);

    let mut world = World::new(11);
    world.act_backup(|backup, _, actions| {
        assert!(backup.request_takeover(true, actions).is_err(), "nothing to resume");
    });
}

#[test]
fn an_activation_that_fails_can_be_repeated() {
    let mut world = protected(12);
    world.activation = Err("out of memory".into());
    world.primary_alive = false;
    world.running = false;
    world.cut();
    world.run_until("the attempt", |world| world.activated.is_some());
    assert_eq!(world.backup.state(), BackupState::Solo);
    world.activation = Ok(());
    world.act_backup(|backup, _, actions| backup.request_takeover(false, actions).expect("owned"));
    world.run_until("the guest", |world| world.backup.state() == BackupState::Active);
}

#[test]
fn i9_without_an_arbiter_only_the_move_that_is_automatic_is_made() {
    let primary = romulus_checkpoint::primary::PrimaryConfig {
        solo_automatic: false,
        shared_arbiter: false,
        ..primary_config()
    };
    let backup = romulus_checkpoint::backup::BackupConfig {
        takeover_automatic: false,
        shared_arbiter: false,
        ..backup_config()
    };
    let mut world = World::with(13, primary, backup);
    world.protect();
    world.network = false;
    world.cut();
    world.run_for(Duration::from_secs(3));
    assert_eq!(world.primary.state(), PrimaryState::Protected, "waits, its output held");
    assert_eq!(world.backup.state(), BackupState::Protected, "waits for a person");
    assert!(world.released < world.count());
    world.act_backup(|backup, _, actions| backup.request_takeover(false, actions).expect("by hand"));
    world.run_until("takeover", |world| world.activated.is_some());
}
