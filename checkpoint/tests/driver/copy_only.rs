//! Copy-only homes: the standby's memory is its own, and pages reach it by homing alone.

use std::time::Duration;

use romulus_checkpoint::driver::primary::PrimaryOptions;
use romulus_checkpoint::metrics::Counter;
use romulus_checkpoint::synthetic::{Pace, SyntheticOptions};
use romulus_checkpoint::wire::record::Role;

use super::harness::{Lab, until};
use super::takeover::busy_guest;
use super::verifier;

/// Few spares: the first synchronization takes many parts.
fn few_spares(options: &mut PrimaryOptions) {
    options.copy_only_homes = true;
    options.spares = 400;
    options.machine.low_water_spares = 200;
    options.machine.sync_target_pages = 128;
}

fn lab() -> Lab {
    Lab {
        tune_primary: few_spares,
        ..Lab::new(SyntheticOptions { registrable: false, pace: Pace::PerResume(60), ..busy_guest() })
    }
}

#[test]
fn i2_the_standbys_own_memory_is_the_guest_of_the_last_committed_pause() {
    for operations in [0, 1, 2, 5, 17, 40, 101] {
        let lab = lab();
        let backup = lab.start_backup();
        let primary = lab.start_primary(backup.handle.local_address());
        primary.until_protected(5);
        assert!(backup.handle.status().arena_bytes < 900 * 4096, "the homes are no part of the arena");
        lab.primary_switch.plan(operations, true);
        until("the host is dead", || lab.primary_switch.is_dead());
        lab.kill_primary_host();
        lab.take_over(&primary, &backup);
        assert_eq!(backup.handle.status().arena_bytes, 0, "the running guest's memory is let go");
    }
}

#[test]
fn i2_a_synchronization_in_parts_that_breaks_off_anywhere_is_nothing_to_resume() {
    for operations in [0, 1, 2, 3, 4, 6, 9, 14, 20, 27] {
        let lab = lab();
        lab.primary_switch.plan(operations, false);
        let backup = lab.start_backup();
        let primary = lab.start_primary(backup.handle.local_address());
        until("the connection was cut", || lab.primary_switch.plan_is_over());
        primary.until_protected(3);
        lab.kill_primary_host();
        lab.take_over(&primary, &backup);
    }
}

#[test]
fn i7_with_copy_only_homes_a_broken_connection_costs_a_delta() {
    let lab = lab();
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(5);
    for operations in [0, 1, 3, 8, 21] {
        lab.primary_switch.plan(operations, false);
        until("the connection was cut", || lab.primary_switch.plan_is_over());
        primary.until_protected(4);
    }
    let metrics = primary.handle.status().metrics;
    assert!(metrics.counter(Counter::DeltaSyncs) >= 5, "{:?}", metrics.counters);
    assert_eq!(metrics.counter(Counter::FullSyncs), 1);
    lab.kill_primary_host();
    lab.take_over(&primary, &backup);
}

#[test]
fn an_epoch_larger_than_all_spares_is_synchronized_anew_in_parts() {
    let lab = lab();
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    let before = primary.handle.status().overflows;
    while primary.handle.status().overflows == before {
        primary.guest.burst(2000);
        std::thread::sleep(Duration::from_millis(1));
    }
    primary.until_protected(5);
    assert!(primary.handle.status().metrics.counter(Counter::FullSyncs) >= 2);
    lab.kill_primary_host();
    lab.take_over(&primary, &backup);
}

#[test]
fn an_image_lost_with_its_standby_is_not_taken_over_and_built_anew() {
    let lab = Lab {
        tune_primary: |options| {
            few_spares(options);
            options.machine.suspect_after = Duration::from_millis(200);
        },
        tune_backup: |options| options.check_standby_every = Duration::from_millis(20),
        ..lab()
    };
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    backup.standby.kill();
    until("another standby is prepared", || backup.standby.prepared() >= 2);
    primary.until_protected(3);
    assert!(primary.handle.status().metrics.counter(Counter::FullSyncs) >= 2);
    lab.kill_primary_host();
    lab.take_over(&primary, &backup);
}

#[test]
fn a_planned_failover_with_copy_only_homes_moves_the_guest_without_loss() {
    let lab = lab();
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(5);
    primary.handle.request_failover().expect("a backup stands ready");
    primary.wait();
    backup.assert_exact_takeover();
    assert_eq!(backup.standby.verdict().expect("activated").state, primary.guest.last_state());
}

#[test]
fn an_activation_that_fails_is_tried_again_over_the_same_memory() {
    let lab = lab();
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    backup.standby.fail_activate(2);
    lab.kill_primary_host();
    lab.take_over(&primary, &backup);
    assert_eq!((backup.standby.activations(), backup.standby.prepared()), (3, 1));
}

#[test]
fn the_independent_reader_agrees_with_sessions_of_copy_only_homes() {
    let lab = Lab { record: true, ..lab() };
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(5);
    for operations in [3, 20] {
        lab.primary_switch.plan(operations, false);
        until("the connection was cut", || lab.primary_switch.plan_is_over());
        primary.until_protected(3);
    }
    let before = primary.handle.status().overflows;
    while primary.handle.status().overflows == before {
        primary.guest.burst(2000);
        std::thread::sleep(Duration::from_millis(1));
    }
    primary.until_protected(3);
    primary.stop();
    backup.stop();
    for (good, report) in verifier::verify(&[Role::Primary, Role::Backup].map(|role| lab.recording(role))) {
        assert!(good, "{report}");
    }
}
