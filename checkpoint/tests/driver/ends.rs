//! Ends that are wanted: planned failover, stop, power-off.

use std::sync::atomic::Ordering;

use romulus_checkpoint::driver::backup::BackupOutcome;
use romulus_checkpoint::driver::primary::PrimaryOutcome;
use romulus_checkpoint::guest::GuestEvent;

use super::harness::{Lab, until};
use super::takeover::busy_guest;

#[test]
fn a_planned_failover_moves_the_guest_without_loss() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(5);
    primary.handle.request_failover().expect("a backup stands ready");
    assert_eq!(primary.wait(), PrimaryOutcome::TakenOver);
    backup.assert_exact_takeover();
    // Not one write was lost: what runs is the guest of its last pause here.
    let state = backup.standby.verdict().expect("activated").state;
    assert_eq!(state, primary.guest.last_state());
    assert_eq!(state.writes, primary.guest.writes());
    assert!(primary.guest.is_destroyed());
    assert!(!lab.pause_flag.load(Ordering::SeqCst));
}

#[test]
fn after_a_stop_the_guest_runs_on_untouched_and_the_backup_is_free_for_the_next() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    for _ in 0..2 {
        let primary = lab.start_primary(backup.handle.local_address());
        primary.until_protected(3);
        primary.stop();
        assert!(!lab.gate.holding.load(Ordering::SeqCst));
        assert!(lab.gate.detached.swap(false, Ordering::SeqCst));
        lab.gate.marks.lock().unwrap().clear();
        let writes = primary.guest.writes();
        assert!(primary.guest.writes() >= writes);
        assert!(backup.handle.request_takeover(true).is_err(), "nothing is left to take over");
    }
    backup.stop();
    assert!(backup.standby.verdict().is_none());
}

#[test]
fn i8_a_gate_that_cannot_be_taken_away_is_no_success() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    lab.gate.stuck.store(true, Ordering::SeqCst);
    primary.handle.request_stop();
    match primary.wait() {
        PrimaryOutcome::Failed(why) => assert!(why.contains("output gate") && why.contains("stuck"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(!primary.guest.is_paused());
    backup.stop();
}

#[test]
fn a_guest_that_has_powered_off_is_never_resumed() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    primary.guest.power_off();
    assert_eq!(primary.wait(), PrimaryOutcome::GuestEnded);
    assert!(!lab.pause_flag.load(Ordering::SeqCst));
    until("the backup knows", || backup.handle.status().state == "ended");
    assert!(backup.handle.request_takeover(true).is_err());
    backup.stop();
    assert!(backup.standby.verdict().is_none());
}

#[test]
fn a_guest_whose_process_died_goes_on_at_the_backup() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    primary.guest.event(GuestEvent::Died("killed".into()));
    assert!(matches!(backup.wait(), BackupOutcome::Activated(_)));
    backup.assert_exact_takeover();
    assert!(matches!(primary.wait(), PrimaryOutcome::GuestDied(_) | PrimaryOutcome::TakenOver));
}

#[test]
fn a_guest_that_dies_unprotected_runs_nowhere_and_the_outcome_says_so() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    backup.stop();
    until("output is free", || !lab.gate.holding.load(Ordering::SeqCst));
    primary.guest.event(GuestEvent::Died("killed".into()));
    assert_eq!(primary.wait(), PrimaryOutcome::GuestDiedUnprotected("killed".into()));
    assert_eq!(backup.standby.verdict(), None);
}

#[test]
fn a_guest_that_dies_within_a_pause_goes_on_at_the_backup() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    primary.guest.die_in_next_pause();
    backup.assert_exact_takeover();
    assert!(matches!(primary.wait(), PrimaryOutcome::GuestDied(_) | PrimaryOutcome::TakenOver));
    assert!(!lab.pause_flag.load(Ordering::SeqCst));
}

#[test]
fn i9_a_primary_that_fails_after_it_told_the_backup_to_go_on_leaves_the_guest_paused() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(5);
    lab.primary_switch.panic_after_failover_bye.store(true, Ordering::SeqCst);
    primary.handle.request_failover().expect("a backup stands ready");
    assert!(matches!(primary.wait(), PrimaryOutcome::Failed(_)));
    assert!(primary.guest.is_paused() && lab.pause_flag.load(Ordering::SeqCst));
    backup.assert_exact_takeover();
    assert_eq!(backup.standby.verdict().expect("activated").state, primary.guest.last_state());
    assert!(primary.guest.is_paused());
}

#[test]
fn a_backup_that_leaves_lets_the_primary_go_on_alone() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    backup.stop();
    until("the primary is alone", || primary.handle.status().state == "solo");
    until("output is free", || !lab.gate.holding.load(Ordering::SeqCst));
    primary.stop();
}
