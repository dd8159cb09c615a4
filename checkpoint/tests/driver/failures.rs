//! Connections that break, backups that die, steps that fail.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use romulus_checkpoint::metrics::Counter;
use romulus_checkpoint::synthetic::{Pace, SyntheticOptions, SyntheticStandby};
use romulus_checkpoint::wire::message::{ErrorCode, MachineIdentity, Message, decode, encode};
use romulus_checkpoint::{Identity, SessionId};
use romulus_transport::Fabric;
use romulus_transport::tcp::{TcpConfig, TcpFabric};

use super::harness::{BackupHost, Lab, PATIENCE, PrimaryHost, until};
use super::takeover::busy_guest;

fn take_over(lab: &Lab, primary: &PrimaryHost, backup: &BackupHost) {
    lab.kill_primary_host();
    lab.take_over(primary, backup);
}

#[test]
fn i7_after_a_broken_connection_it_goes_on_with_a_delta() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(5);
    for operations in [0, 1, 2, 3, 5, 8, 13, 34] {
        lab.primary_switch.plan(operations, false);
        until("the connection was cut", || lab.primary_switch.plan_is_over());
        primary.until_protected(4);
    }
    let metrics = primary.handle.status().metrics;
    assert!(metrics.counter(Counter::DeltaSyncs) >= 8, "{:?}", metrics.counters);
    assert_eq!(metrics.counter(Counter::FullSyncs), 1);
    assert_eq!(backup.standby.prepared(), 1);
    take_over(&lab, &primary, &backup);
}

#[test]
fn i7_a_synchronization_that_breaks_off_anywhere_begins_anew_and_is_exact() {
    for operations in [0, 1, 2, 3, 4, 6, 9, 14] {
        let lab = Lab::new(busy_guest());
        lab.primary_switch.plan(operations, false);
        let backup = lab.start_backup();
        let primary = lab.start_primary(backup.handle.local_address());
        until("the connection was cut", || lab.primary_switch.plan_is_over());
        primary.until_protected(3);
        take_over(&lab, &primary, &backup);
    }
}

#[test]
fn a_round_asked_for_on_a_connection_that_has_ended_is_not_sent_on_the_next() {
    for copy_only_homes in [false, true] {
        let lab = Lab {
            hold_tracking: true,
            tune_primary: if copy_only_homes { |options| options.copy_only_homes = true } else { |_| () },
            ..Lab::new(SyntheticOptions { registrable: !copy_only_homes, ..busy_guest() })
        };
        let backup = lab.start_backup();
        let primary = lab.start_primary(backup.handle.local_address());
        until("the first round is asked for", || primary.guest.is_asked_to_track());
        lab.primary_switch.cut();
        until("the next connection stands", || primary.handle.status().connections == 2);
        primary.guest.hold_tracking(false);
        primary.until_protected(3);
        assert_eq!(primary.handle.status().connections, 2, "{:#?}", primary.handle.status().reports);
        assert_eq!(backup.handle.status().metrics.counter(Counter::Refusals), 0);
        take_over(&lab, &primary, &backup);
    }
}

#[test]
fn an_epoch_larger_than_all_spares_is_synchronized_anew() {
    let lab = Lab {
        tune_primary: |options| {
            options.spares = 256;
            options.machine.low_water_spares = 128;
        },
        ..Lab::new(SyntheticOptions { regions: vec![900], pace: Pace::PerResume(60), ..busy_guest() })
    };
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    let before = primary.handle.status().overflows;
    while primary.handle.status().overflows == before {
        // More pages within one epoch than there are spares, whenever the pause comes.
        primary.guest.burst(2000);
        std::thread::sleep(Duration::from_millis(1));
    }
    primary.until_protected(5);
    assert!(primary.handle.status().metrics.counter(Counter::FullSyncs) >= 2);
    take_over(&lab, &primary, &backup);
}

#[test]
fn i9_a_primary_that_loses_its_backup_goes_on_alone_and_pairs_with_the_next() {
    let lab = Lab {
        tune_primary: |options| options.machine.suspect_after = Duration::from_millis(200),
        ..Lab::new(busy_guest())
    };
    let backup = lab.start_backup();
    let address = backup.handle.local_address();
    let primary = lab.start_primary(address);
    primary.until_protected(3);
    lab.kill_backup_host();
    until("the primary is alone", || primary.handle.status().state == "solo");
    until("output is free", || !lab.gate.holding.load(Ordering::SeqCst));
    assert!(!primary.guest.is_paused());
    // The dead backup's process ends; another one comes up at the same address.
    backup.stop();
    assert!(backup.standby.verdict().is_none());
    lab.backup_arbiter.unreachable.store(false, Ordering::SeqCst);
    let lab = Lab { backup_switch: super::cut::Switch::new(), ..lab };
    let revived = lab.start_backup_at(address);
    primary.until_protected(3);
    primary.stop();
    revived.stop();
}

#[test]
fn strangers_garbage_and_other_guests_do_not_disturb_a_session() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let address = backup.handle.local_address();
    let primary = lab.start_primary(address);
    primary.until_protected(3);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 5000], &[0xff; 64]] {
        let mut stranger = std::net::TcpStream::connect(address).expect("it listens");
        // It may have been turned away already.
        let _ = stranger.write_all(garbage);
    }
    let _half_open = std::net::TcpStream::connect(address).expect("it listens");
    let other = Lab::new(SyntheticOptions { name: "other".into(), ..busy_guest() });
    let turned_away = other.start_primary(address);
    until("the other guest is turned away", || {
        turned_away.handle.status().reports.iter().any(|line| line.contains("serves guest"))
    });
    assert_eq!(turned_away.handle.status().state, "solo");
    turned_away.stop();
    assert_eq!(primary.handle.status().connections, 1);
    primary.until_protected(3);
    take_over(&lab, &primary, &backup);
}

/// Section 10 of the protocol: garbage instead of a header is closed without a word, and so is an Error.
#[test]
fn i10_a_stranger_is_answered_if_it_would_understand() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let fabric = TcpFabric::new(TcpConfig::default());
    let answer = |bytes: &[u8]| {
        let mut channel = fabric.connect(backup.handle.local_address(), PATIENCE).expect("it listens");
        channel.send(bytes).expect("it reads");
        let answer = channel.receive(PATIENCE).ok()?;
        let (identity, message) = decode(&answer).expect("a message");
        let Message::Error { code, .. } = message else { panic!("{message:?}") };
        Some((identity, code))
    };
    let identity = Identity { session: SessionId(7), ..Identity::default() };
    let message = |message: &Message| {
        let mut bytes = Vec::new();
        encode(&identity, message, &mut bytes);
        bytes
    };
    let mut heartbeat = message(&Message::Heartbeat { sequence: 1, progress: 2 });
    assert_eq!(answer(&heartbeat), Some((identity, ErrorCode::Violation)));
    *heartbeat.last_mut().expect("a body") ^= 1;
    assert_eq!(answer(&heartbeat), Some((identity, ErrorCode::Malformed)));
    heartbeat[0] ^= 1;
    assert_eq!(answer(&heartbeat), None);
    assert_eq!(answer(&message(&Message::Error { code: ErrorCode::Busy, text: "?".into() })), None);
    assert_eq!(backup.handle.status().refused, 4);
    backup.stop();
}

#[test]
fn machines_that_differ_are_refused_with_the_difference() {
    let lab = Lab::new(busy_guest());
    let mut machine: MachineIdentity = lab.guest_options.machine();
    machine.configuration[1] = "regions 7".into();
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let backup = lab.start_backup_with(listen, SyntheticStandby::with_machine(machine));
    let primary = lab.start_primary(backup.handle.local_address());
    until("the difference is told", || {
        primary.handle.status().reports.iter().any(|line| {
            line.contains("only the guest has `regions 2`")
                && line.contains("only the standby has `regions 7`")
        })
    });
    assert_eq!(primary.guest.pauses(), 0);
    primary.stop();
    backup.stop();
}

#[test]
fn a_backup_with_too_little_memory_says_so() {
    let lab =
        Lab { tune_backup: |options| options.machine.max_arena_bytes = 1 << 20, ..Lab::new(busy_guest()) };
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    until("the refusal is told", || {
        primary.handle.status().reports.iter().any(|line| line.contains("NoRoom"))
    });
    primary.stop();
    backup.stop();
}

#[test]
fn i8_a_step_that_fails_leaves_the_guest_running_and_loses_no_page() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    primary.guest.fail_state_saving(7);
    until("the failures were counted", || {
        primary.handle.status().metrics.counter(Counter::CaptureFailures) >= 7
    });
    primary.until_protected(3);
    take_over(&lab, &primary, &backup);
}

#[test]
fn a_standby_that_dies_is_prepared_anew() {
    let lab = Lab {
        tune_backup: |options| options.check_standby_every = Duration::from_millis(20),
        ..Lab::new(busy_guest())
    };
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    backup.standby.kill();
    until("another standby is prepared", || backup.standby.prepared() >= 2);
    primary.until_protected(3);
    take_over(&lab, &primary, &backup);
}

#[test]
fn a_guest_that_does_not_start_keeps_its_image_for_another_attempt() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    backup.standby.fail_activate(3);
    lab.kill_primary_host();
    until("the connection's end was seen", || !backup.handle.status().connected);
    backup.handle.request_takeover(false).expect("there is an epoch to take over from");
    until("the failure is told", || {
        backup.handle.status().reports.iter().any(|line| line.contains("ask for the takeover again"))
    });
    assert_eq!(backup.standby.activations(), 3);
    assert!(backup.standby.verdict().is_none());
    take_over(&lab, &primary, &backup);
}

#[test]
fn nothing_is_started_over_an_image_that_the_guest_may_have_run_on() {
    let lab = Lab {
        tune_backup: |options| options.check_standby_every = Duration::from_millis(5),
        ..Lab::new(busy_guest())
    };
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    backup.standby.fail_running(true);
    lab.kill_primary_host();
    until("the connection's end was seen", || !backup.handle.status().connected);
    let failures = || {
        let reports = backup.handle.status().reports;
        reports.iter().filter(|line| line.contains("could not be started from epoch")).count()
    };
    backup.handle.request_takeover(false).expect("there is an epoch to take over from");
    until("the failure is told", || failures() == 1);
    backup.standby.fail_running(false);
    backup.handle.request_takeover(false).expect("the guest is owned here");
    until("the failure is told again", || failures() == 2);
    assert_eq!(backup.standby.activations(), 1);
    assert!(backup.standby.verdict().is_none());
    backup.stop();
    lab.primary_arbiter.unreachable.store(false, Ordering::SeqCst);
    primary.handle.request_stop();
    primary.wait();
}

#[test]
fn i2_a_state_that_was_changed_after_its_commit_is_not_started() {
    let lab = Lab::new(busy_guest());
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    lab.kill_primary_host();
    until("the connection's end was seen", || !backup.handle.status().connected);
    let (shape, arena) = backup.lent.lock().unwrap().clone().expect("an arena is lent");
    // Whichever slot holds the committed epoch: one byte of its state is another.
    for number in 0..shape.slots {
        let slot = arena.slots.part((number * shape.slot_bytes) as usize, shape.slot_bytes as usize);
        let mut state_offset = [0; 8];
        slot.read(88, &mut state_offset);
        let at = u64::from_le_bytes(state_offset) as usize;
        let mut byte = [0];
        slot.read(at, &mut byte);
        slot.write(at, &[!byte[0]]);
    }
    backup.handle.request_takeover(false).expect("there is an epoch to take over from");
    until("the failure is told", || {
        backup.handle.status().reports.iter().any(|line| line.contains("changed in this host's memory"))
    });
    assert_eq!(backup.standby.activations(), 0);
    backup.stop();
    lab.primary_arbiter.unreachable.store(false, Ordering::SeqCst);
    primary.handle.request_stop();
    primary.wait();
}

#[test]
fn a_replaced_standby_that_differs_is_ended_and_tried_again() {
    let lab = Lab {
        tune_backup: |options| options.check_standby_every = Duration::from_millis(20),
        ..Lab::new(busy_guest())
    };
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    primary.until_protected(3);
    backup.standby.differ(true);
    backup.standby.kill();
    until("it was ended more than once", || backup.standby.abandoned() >= 2);
    assert!(backup.handle.status().reports.iter().any(|line| line.contains("differs from the guest")));
    backup.standby.differ(false);
    until("another standby stands ready", || {
        backup.handle.status().reports.iter().any(|line| line.contains("another standby stands ready"))
    });
    take_over(&lab, &primary, &backup);
}

#[test]
fn held_output_beyond_the_bound_ends_the_epoch_early() {
    let lab = Lab {
        tune_primary: |options| {
            options.machine.interval = Duration::from_secs(20);
            options.poll_every = Duration::from_millis(1);
        },
        ..Lab::new(busy_guest())
    };
    let backup = lab.start_backup();
    let primary = lab.start_primary(backup.handle.local_address());
    until("it is protected", || primary.handle.status().state == "protected");
    let before = primary.handle.status().epochs_committed;
    lab.gate.held_bytes.store(2 << 20, Ordering::SeqCst);
    until("an epoch has ended", || primary.handle.status().epochs_committed > before);
    assert!(primary.handle.status().metrics.counter(Counter::EarlyEpochs) > 0);
    lab.gate.held_bytes.store(0, Ordering::SeqCst);
    primary.stop();
    backup.stop();
}
