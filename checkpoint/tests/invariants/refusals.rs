//! What is refused, and that refusing changes nothing.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use romulus_checkpoint::arbiter::{Ownership, Record};
use romulus_checkpoint::backup::{Admission, Backup, BackupAction, BackupState};
use romulus_checkpoint::primary::{Primary, PrimaryAction, PrimaryState};
use romulus_checkpoint::wire::AckProof;
use romulus_checkpoint::wire::message::{
    ByeReason, ErrorCode, Hello, Homing, MachineIdentity, Message, encode,
};
use romulus_checkpoint::*;

use crate::harness::{PAGES, World, backup_config, layout, primary_config, shape};

fn bytes(identity: &Identity, message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(identity, message, &mut bytes);
    bytes
}

fn protected(seed: u64) -> World {
    let mut world = World::new(seed);
    world.protect();
    world.run_for(Duration::from_millis(60));
    world.flush();
    world
}

#[test]
fn i4_an_epoch_without_all_markers_is_not_committed() {
    let mut world = protected(1);
    let before = world.backup.committed();
    while world.primary.unacked() == 0 {
        world.now = world.now.after(Duration::from_millis(11));
        world.memory[0] += 1;
        world.dirty.insert(0);
        world.capture();
    }
    // Everything arrives but the markers.
    world.drop_markers();
    world.deliver_data();
    world.deliver_all_to_backup();
    assert_eq!(world.backup.committed(), before);
    world.act_backup(|backup, now, actions| backup.handle_fence(before.0 + 1, now, actions));
    assert_eq!(world.backup.committed(), before.next());
}

#[test]
fn i4_markers_without_the_commit_do_not_commit() {
    let mut world = protected(2);
    let before = world.backup.committed();
    while world.primary.unacked() == 0 {
        world.now = world.now.after(Duration::from_millis(11));
        world.capture();
    }
    world.deliver_data();
    assert_eq!(world.backup.committed(), before);
    world.deliver_all_to_backup();
    assert!(world.backup.committed() > before);
}

/// Why the backup ends the connection over a message of the primary; `None` when it takes it.
fn refused(world: &mut World, message: &Message) -> Option<String> {
    let said = world.backup_log.len();
    let identity = world.primary.identity();
    world.message_to_backup(&bytes(&identity, message));
    (!world.connected).then(|| world.backup_log[said..].join("; "))
}

fn home(page: u64) -> Message {
    let homing = Homing { page: PageIndex(page), source: FrameIndex(PAGES) };
    Message::Home { first_sequence: HomingSequence(1), homings: [homing].into_iter().collect() }
}

#[test]
fn home_and_invalidate_are_refused_while_the_image_is_synchronized() {
    let commit = Message::Commit { epoch: Epoch(1) };
    for copy_only_homes in [false, true] {
        let shape = ArenaShape { copy_only_homes, ..shape() };
        let begun = || {
            let mut world = World::build(8, shape, primary_config(), backup_config());
            world.run_until("connected", |world| world.connected);
            assert_eq!(world.backup.committed(), Epoch(0));
            world
        };
        let why = refused(&mut begun(), &home(0)).expect("nothing is placed yet");
        assert!(why.contains("Home before the first Commit"), "{why}");
        let why = refused(&mut begun(), &Message::Invalidate);
        if !copy_only_homes {
            assert!(why.is_some_and(|why| why.contains("Invalidate before the first Commit")));
            continue;
        }
        assert_eq!(why, None, "the first epoch may exceed the spares");
        // With the first part's Commit homings are legal; this one waits for the part itself.
        let mut world = begun();
        assert_eq!(refused(&mut world, &commit), None);
        assert_eq!(refused(&mut world, &home(0)), None);
    }
}

#[test]
fn after_invalidate_nothing_follows_until_the_promise() {
    let round = Message::RoundEnd { round: 1 };
    for (message, words) in [
        (Message::Invalidate, "after another Invalidate"),
        (home(1), "after Invalidate"),
        (round, "over a live image"),
    ] {
        let mut world = World::new(9);
        // The promise waits for the trial, and so do the acks: the primary sends no third epoch.
        world.trial_takes = Duration::from_secs(10);
        world.run_until("two epochs", |world| world.backup.committed() == Epoch(2));
        assert_eq!(refused(&mut world, &Message::Invalidate), None);
        let why = refused(&mut world, &message).expect("the primary waits for Invalidated");
        assert!(why.contains(words), "{message:?}: {why}");
    }
}

#[test]
fn i5_only_the_next_epoch_of_this_very_connection_commits() {
    type Change = fn(&mut Identity, &mut u64);
    let changes: [(&str, Change); 6] = [
        ("epoch", |_, epoch| *epoch += 1),
        ("epoch", |_, epoch| *epoch -= 1),
        ("session", |identity, _| identity.session.0 += 1),
        ("generation", |identity, _| identity.generation.0 += 1),
        ("incarnation", |identity, _| identity.incarnation.0 -= 1),
        ("connection", |identity, _| identity.connection.0 -= 1),
    ];
    for (what, change) in changes {
        let mut world = protected(3);
        let before = world.backup.committed();
        let (mut identity, mut epoch) = (world.primary.identity(), before.0 + 1);
        change(&mut identity, &mut epoch);
        world.message_to_backup(&bytes(&identity, &Message::Commit { epoch: Epoch(epoch) }));
        assert_eq!(world.backup.committed(), before);
        assert!(!world.connected, "{what}: the connection is closed");
        let text = world.backup_log.last().expect("a reason");
        assert!(world.backup_log.iter().any(|line| line.contains(what)), "{what}: {text}");
    }
}

#[test]
fn i1_an_ack_of_what_was_not_sent_releases_nothing() {
    let mut world = protected(4);
    world.run_for(Duration::from_millis(3));
    let released = world.released;
    let identity = world.primary.identity();
    for (committed, homed) in [(1 << 40, 0), (0, 0), (world.primary.acked().0, 1 << 40)] {
        let mut world = protected(4);
        let ack = Message::Ack {
            committed: Epoch(committed),
            homed_through: HomingSequence(homed),
            proof: AckProof::outgoing(),
        };
        let before = world.released;
        world.message_to_primary(&bytes(&identity, &ack));
        assert_eq!(world.released, before);
        assert!(!world.connected, "the connection is closed");
    }
    // An ack of an older connection.
    let stale = Identity { connection: ConnectionNumber(0), ..identity };
    let ack = Message::Ack {
        committed: world.primary.acked().next(),
        homed_through: HomingSequence(0),
        proof: AckProof::outgoing(),
    };
    world.message_to_primary(&bytes(&stale, &ack));
    assert_eq!(world.released, released);
}

/// What a machine says to its peer about a fault, and under which identity.
fn told_by_backup(actions: &[BackupAction]) -> Option<(Identity, ErrorCode)> {
    actions.iter().find_map(|action| match action {
        BackupAction::Send(identity, Message::Error { code, .. }) => Some((*identity, *code)),
        _ => None,
    })
}

fn told_by_primary(actions: &[PrimaryAction]) -> Option<(Identity, ErrorCode)> {
    actions.iter().find_map(|action| match action {
        PrimaryAction::Send(identity, Message::Error { code, .. }) => Some((*identity, *code)),
        _ => None,
    })
}

#[test]
fn a_fault_is_answered_by_either_side_and_an_error_by_none() {
    let identity = protected(10).primary.identity();
    let stale = Identity { session: SessionId(9), ..identity };
    let ack = Message::RoundAck { round: 9 };
    let mut torn = bytes(&identity, &Message::Error { code: ErrorCode::Busy, text: "?".into() });
    *torn.last_mut().unwrap() ^= 1;
    let cases = [
        (torn, None),
        (bytes(&identity, &ack), Some(ErrorCode::Violation)),
        (bytes(&stale, &ack), Some(ErrorCode::Stale)),
        (vec![7; 80], Some(ErrorCode::Malformed)),
        (bytes(&identity, &Message::Error { code: ErrorCode::Busy, text: "?".into() }), None),
        (bytes(&stale, &Message::Error { code: ErrorCode::Busy, text: "?".into() }), None),
    ];
    for (message, code) in cases {
        let mut world = protected(10);
        let told = code.map(|code| (identity, code));
        let (mut by_primary, mut by_backup) = (Vec::new(), Vec::new());
        world.primary.handle_message(&message, world.now, &mut by_primary).expect_err("it gives up");
        assert_eq!(told_by_primary(&by_primary), told, "{by_primary:?}");
        let outcome = world.backup.handle_message(&message, world.now, &mut by_backup);
        assert_eq!(outcome.map_err(|refusal| refusal.code).err(), code);
        assert_eq!(told_by_backup(&by_backup), told, "{by_backup:?}");
        assert!(by_backup.iter().any(|action| matches!(action, BackupAction::CloseConnection(_))));
    }
}

#[test]
fn a_refusal_after_a_promise_is_under_the_incarnation_that_was_promised() {
    let mut world = protected(11);
    let identity = world.primary.identity();
    let mut actions = Vec::new();
    let invalidate = bytes(&identity, &Message::Invalidate);
    world.backup.handle_message(&invalidate, world.now, &mut actions).expect("nothing is under way");
    let promised = actions.iter().find_map(|action| match action {
        BackupAction::Send(_, Message::Invalidated { incarnation }) => Some(*incarnation),
        _ => None,
    });
    let identity = Identity { incarnation: promised.expect("a promise"), ..identity };
    let commit = bytes(&identity, &Message::Commit { epoch: Epoch(9) });
    world.backup.handle_message(&commit, world.now, &mut actions).expect_err("the first is 1");
    assert_eq!(told_by_backup(&actions), Some((identity, ErrorCode::Violation)), "{actions:?}");
}

#[test]
fn i10_no_bytes_make_a_machine_panic() {
    let mut rng = SmallRng::seed_from_u64(1);
    for round in 0..400 {
        let mut world = if round % 40 == 0 { protected(round) } else { World::new(round) };
        world.run_until("connected", |world| world.connected);
        let identity = world.primary.identity();
        let messages = [
            Message::Commit { epoch: Epoch(rng.random_range(0..4)) },
            Message::RoundEnd { round: rng.random_range(0..4) },
            Message::RoundAck { round: rng.random_range(0..4) },
            Message::Invalidate,
            Message::Invalidated { incarnation: Incarnation(rng.random_range(0..600)) },
            Message::Heartbeat { sequence: 1, progress: 2 },
            Message::Bye { reason: ByeReason::GuestDied },
            Message::Bye { reason: ByeReason::BackupLeaves },
            Message::ByeAck { reason: ByeReason::Failover },
            Message::Error { code: ErrorCode::Busy, text: "?".into() },
        ];
        let mut good = bytes(&identity, &messages[rng.random_range(0..messages.len())]);
        if rng.random_bool(0.5) {
            let at = rng.random_range(0..good.len());
            good[at] ^= 1 << rng.random_range(0..8);
        }
        let mut noise = vec![0; rng.random_range(0..200)];
        rng.fill_bytes(&mut noise);
        for bytes in [good, noise] {
            if rng.random_bool(0.5) {
                world.message_to_backup(&bytes);
            } else {
                world.message_to_primary(&bytes);
            }
            let marker = rng.random_range(0..4) | u64::from(rng.random_bool(0.5)) << 63;
            world.act_backup(|backup, now, actions| backup.handle_fence(marker, now, actions));
        }
    }
}

fn hello(session: u128, generation: u64, connection: u64) -> Hello {
    let config = primary_config();
    Hello {
        versions: (1, 1),
        identity: Identity {
            session: SessionId(session),
            generation: Generation(generation),
            incarnation: Incarnation(0),
            connection: ConnectionNumber(connection),
        },
        primary: config.host,
        guest: config.guest,
        layout: layout(),
        arena: shape(),
        depth: config.depth,
        machine: MachineIdentity::default(),
        suspect_after_ms: 100,
        fabric_offer: Vec::new(),
    }
}

fn record(ownership: Ownership, generation: u64) -> Record {
    Record { ownership, generation: Generation(generation), nonce: 1 }
}

#[test]
fn i9_a_new_session_begins_only_under_a_solo_record_of_its_primary() {
    let now = Time::default();
    let solo = |primary: &str| Ownership::Solo { primary: primary.into() };
    let protected = Ownership::Protected { primary: "alpha".into(), backup: "beta".into() };
    let owned = Ownership::Owned { backup: "beta".into() };
    let refused = [
        Ok(Some(record(solo("gamma"), 5))),
        Ok(Some(record(solo("alpha"), 6))),
        Ok(Some(record(protected, 5))),
        Ok(Some(record(owned, 5))),
        Ok(Some(record(Ownership::Ended, 5))),
        Ok(None),
        Err("no answer".to_owned()),
    ];
    let hello = hello(1, 5, 1);
    for record in refused {
        let mut backup = Backup::new(backup_config(), now);
        assert_eq!(backup.admit(&hello.identity, &hello, now), Ok(Admission::NeedsRecord));
        let refusal = backup.admit_with_record(&hello.identity, &hello, record.clone(), now).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::NotGranted, "{record:?}: {refusal}");
    }
    let mut backup = Backup::new(backup_config(), now);
    let granted = Ok(Some(record(solo("alpha"), 5)));
    let admission = backup.admit_with_record(&hello.identity, &hello, granted, now);
    assert_eq!(admission, Ok(Admission::Prepare(shape())));
}

#[test]
fn a_hello_that_cannot_be_served_is_refused_with_the_numbers() {
    let now = Time::default();
    let mut backup = Backup::new(backup_config(), now);
    let good = hello(1, 5, 1);
    let mut refuse = |change: &dyn Fn(&mut Hello), code: ErrorCode, words: &str| {
        let mut hello = good.clone();
        change(&mut hello);
        let refusal = backup.admit(&hello.identity.clone(), &hello, now).unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.text.contains(words), "{words}: {refusal}");
        // Who has options names them.
        assert!(!refusal.text.contains("--"), "{refusal}");
    };
    refuse(&|hello| hello.versions = (2, 3), ErrorCode::Version, "2 to 3");
    refuse(&|hello| hello.suspect_after_ms = 200, ErrorCode::Violation, "200 ms");
    refuse(&|hello| hello.arena.slot_bytes = 1 << 30, ErrorCode::NoRoom, "lends 1 MiB");
    refuse(&|hello| hello.arena.pages += 1, ErrorCode::Violation, "7 pages");
    refuse(&|hello| hello.arena.spares = u64::MAX, ErrorCode::Violation, "too many");
    refuse(&|hello| hello.depth = 3, ErrorCode::Violation, "3 commit slots");
    refuse(&|hello| hello.identity.connection.0 = 0, ErrorCode::Violation, "connection 0");
    refuse(&|hello| hello.primary = "beta".into(), ErrorCode::Violation, "beta");
}

#[test]
fn i5_an_older_connection_and_another_session_do_not_disturb_the_present_one() {
    let mut world = protected(6);
    let identity = world.primary.identity();
    let same = hello(identity.session.0, identity.generation.0, identity.connection.0);
    let refusal = world.backup.admit(&same.identity, &same, world.now).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Stale);
    let other = hello(77, 9, 1);
    let refusal = world.backup.admit(&other.identity, &other, world.now).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Busy);
    let before = world.backup.committed();
    world.run_for(Duration::from_millis(100));
    assert!(world.backup.committed() > before);
    assert_eq!(world.backup.state(), BackupState::Protected);
}

#[test]
fn i9_a_second_process_of_the_backup_with_an_older_image_gets_no_grant() {
    // The first process keeps its image and is cut off; a second one of the same name takes its
    // place and is protected by; then both lose the primary.
    let mut world = protected(7);
    let first = world.take_backup();
    world.run_until("alone", |world| world.primary.state() == PrimaryState::Solo);
    world.protect();
    let record = world.record.clone();
    world.run_for(Duration::from_millis(100));
    assert_eq!(world.record, record);
    world.zombie(first);
    assert_eq!(world.record, record, "the record names another image");
    world.primary_alive = false;
    world.running = false;
    world.cut();
    world.run_until("takeover by the second", |world| world.activated.is_some());
}

#[test]
fn a_primary_of_one_session_is_not_confused_by_an_answer_of_another() {
    let config = primary_config();
    let now = Time::default();
    let solo = record(Ownership::Solo { primary: "alpha".into() }, 5);
    let machine = MachineIdentity { hypervisor: "model".into(), configuration: Vec::new() };
    let mut primary = Primary::new(config, layout(), machine, shape(), solo, now);
    let hello = primary.hello(Vec::new(), now);
    let welcome = wire::message::Welcome {
        version: 1,
        identity: Identity { session: SessionId(9), incarnation: Incarnation(256), ..hello.identity },
        backup: "beta".into(),
        committed: Epoch(0),
        homed_through: HomingSequence(0),
        fabric_answer: Vec::new(),
        proof: AckProof::outgoing(),
    };
    let identity = welcome.identity;
    let mut actions = Vec::new();
    let fault = primary.handle_answer(&bytes(&identity, &Message::Welcome(welcome)), now, &mut actions);
    assert!(fault.unwrap_err().text.contains("session"), "named");
    assert_eq!(primary.state(), PrimaryState::Solo);
}
