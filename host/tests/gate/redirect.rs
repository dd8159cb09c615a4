//! The `redirect` gate.

use std::time::Duration;

use romulus_checkpoint::GateMark;
use romulus_checkpoint::gate::OutputGate;
use romulus_checkpoint::release::ReleaseToken;

use crate::world::{World, acked, grant, listing, with_memory};

/// Long enough that a frame which is not held would have come.
const MOMENT: Duration = Duration::from_millis(100);

#[test]
fn i1_nothing_leaves_before_its_release_and_all_leaves_after_in_order() {
    let world = World::new();
    world.send(0);
    world.expect([0]);
    let gate = world.gate();
    world.send(1);
    world.expect([1]);
    gate.hold().unwrap();
    (10..20).for_each(|number| world.send(number));
    gate.mark(GateMark(1)).unwrap();
    (20..30).for_each(|number| world.send(number));
    gate.mark(GateMark(2)).unwrap();
    (30..40).for_each(|number| world.send(number));
    assert_eq!(world.receive(MOMENT), None, "all is held");
    gate.release(&acked(1));
    world.expect(10..20);
    assert_eq!(world.receive(MOMENT), None, "the rest is held");
    gate.release(&acked(2));
    world.expect(20..30);
    gate.release(&ReleaseToken::solo(&grant()));
    world.expect(30..40);
    world.send(40);
    world.expect([40]);
    gate.detach().unwrap();
}

#[test]
fn a_detached_gate_leaves_nothing_behind() {
    let world = World::new();
    let before = listing();
    let gate = world.gate_with(&with_memory(8));
    gate.hold().unwrap();
    assert_ne!(listing(), before);
    gate.release(&ReleaseToken::solo(&grant()));
    gate.detach().unwrap();
    drop(gate);
    assert_eq!(listing(), before);
}
