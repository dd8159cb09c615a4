//! What comes late, when its connection is gone and the next one stands already.

use romulus_checkpoint::arbiter::{Ownership, Record};
use romulus_checkpoint::backup::{Actions, Admission, Backup, BackupAction};
use romulus_checkpoint::primary::Work;
use romulus_checkpoint::wire::message::{ErrorCode, Hello, Message};
use romulus_checkpoint::{Extent, PageIndex, Time};

use super::harness::{PAGES, World, backup_config};

/// A connection that the world did not make by itself, nor makes again.
fn connected(seed: u64) -> World {
    let mut world = World::new(seed);
    world.network = false;
    world.connect();
    assert!(world.connected);
    world
}

#[test]
fn i8_a_round_of_an_old_connection_adds_nothing_to_the_first_epoch_of_the_next() {
    for seed in 0..10 {
        let mut world = connected(seed);
        assert_eq!(world.primary.next_work(world.now), Work::Round { round: 1, everything: true });
        world.cut();
        world.connect();
        // The sender finds out only now that it cannot send the round.
        world.primary.round_failed(1, &[Extent { first: PageIndex(0), pages: PAGES }]);
        world.run_until("the first epoch", |world| world.placed_pages > 0);
        assert!(world.placed_pages < PAGES, "seed {seed}: all pages are copied in the pause");
    }
}

/// A Hello of a new session, under a record that admits it.
fn hello(world: &mut World) -> (Hello, Record) {
    let hello = world.primary.hello(Vec::new(), world.now);
    let ownership = Ownership::Solo { primary: "alpha".into() };
    let record = Record { ownership, generation: hello.identity.generation, nonce: 1 };
    (hello, record)
}

/// Says Welcome to a first primary.
fn welcome(backup: &mut Backup, now: Time, actions: &mut Actions) {
    let (hello, record) = hello(&mut World::new(1));
    let admission = backup.admit_with_record(&hello.identity, &hello, Ok(Some(record)), now);
    assert_eq!(admission, Ok(Admission::Prepare(hello.arena)));
    let (_, answer) = backup.welcome(&hello, Vec::new(), now, actions);
    assert!(matches!(answer, Message::Welcome(_)), "{answer:?}");
}

#[test]
fn a_slow_handshake_that_nothing_waits_for_becomes_a_connection() {
    let begun = Time::default();
    let (mut backup, mut actions) = (Backup::new(backup_config(), begun), Actions::new());
    welcome(&mut backup, begun, &mut actions);
    let later = begun.after(backup_config().suspect_after * 3);
    backup.handle_tick(later, &mut actions);
    assert!(!actions.iter().any(|action| matches!(action, BackupAction::CloseConnection(_))), "{actions:?}");
    assert!(backup.handle_connected(later, &mut actions));
    // From here on it is held against the clock of all connections.
    let silent = later.after(backup_config().suspect_after);
    backup.handle_tick(silent, &mut actions);
    assert!(actions.iter().any(|action| matches!(action, BackupAction::CloseConnection(_))), "{actions:?}");
}

#[test]
fn a_connection_that_was_given_up_in_its_handshake_is_not_taken() {
    let now = Time::default();
    let (mut backup, mut actions) = (Backup::new(backup_config(), now), Actions::new());
    welcome(&mut backup, now, &mut actions);
    backup.request_stop(now, &mut actions);
    assert!(!backup.handle_connected(now, &mut actions));
    // Nor is it on the other side.
    let mut world = connected(2);
    world.act_primary(|primary, now, actions| {
        primary.handle_disconnected("an older end that is told late", now, actions);
        assert!(!primary.handle_connected(now, actions));
    });
}

/// What a copy touches is given back only when no copy runs, whoever the image belonged to.
#[test]
fn i2_copies_of_an_image_that_is_forgotten_are_waited_for() {
    let mut world = World::new(4);
    world.protect();
    let next_copy = |_| {
        world.step();
        world.backup.next_homing()
    };
    let copy = (0..10_000).find_map(next_copy).expect("a copy is due");
    world.network = false;
    world.cut();
    let (mut hello, record) = hello(&mut World::new(1));
    hello.identity.session.0 += 1;
    let now = world.now;
    let admission = world.backup.admit_with_record(&hello.identity.clone(), &hello, Ok(Some(record)), now);
    assert_eq!(admission, Ok(Admission::Prepare(hello.arena)));
    assert!(!world.backup.quiesce_homing(), "the copy still runs");
    let (_, answer) = world.backup.welcome(&hello, Vec::new(), now, &mut Actions::new());
    assert!(matches!(answer, Message::Error { code: ErrorCode::Busy, .. }), "{answer:?}");
    world.act_backup(|backup, now, actions| backup.homing_finished(&copy, now, actions));
    assert!(world.backup.quiesce_homing());
    let (_, answer) = world.backup.welcome(&hello, Vec::new(), now, &mut Actions::new());
    assert!(matches!(answer, Message::Welcome(_)), "{answer:?}");
}
