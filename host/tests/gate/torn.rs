//! What somebody takes away of a gate while it holds.

use std::time::Duration;

use romulus_checkpoint::GateMark;
use romulus_checkpoint::gate::OutputGate;

use crate::gate_lab::{acked, run};
use crate::redirect::{MOMENT, opened, side_of};
use crate::world::{World, eventually, expect_as_before, ip, listing};

pub fn torn() {
    let world = World::new();
    let before = listing();
    let gate = world.gate();
    gate.hold().unwrap();
    // All of it, and the filter that holds alone.
    let away = ["qdisc del dev guest0 clsact", "filter del dev guest0 ingress"];
    for (times, away) in (1..).zip([away, away].concat()) {
        run("tc", away);
        world.send(times);
        world.expect([times]);
        let lost = || {
            let status = gate.status().remove(0);
            (status.filter_lost == times).then_some(status)
        };
        let status = eventually("the loss of the filter is noticed", lost);
        assert!(status.unheld_ms_at_most > 0, "{status:?}");
        world.send(10 + times);
        assert_eq!(world.receive(MOMENT), None, "it is held again");
        gate.mark(GateMark(times)).unwrap();
        gate.release(&acked(times));
        world.expect([10 + times]);
    }
    // Whether or not that is noticed before.
    run("tc", "filter del dev guest0 ingress");
    gate.detach().unwrap();
    drop(gate);
    expect_as_before(&before);
}

pub fn half_torn() {
    let world = World::new();
    let before = listing();
    let gate = world.gate();
    gate.hold().unwrap();
    let diverts = || run("tc", "filter show dev guest0 egress").contains("mirred");
    let mended = || eventually("what is beside the filter is set again", || diverts().then_some(()));
    // What does not hold was taken away alone.
    run("tc", "filter del dev guest0 egress");
    world.send(1);
    mended();
    // All of it, and it cannot be set again in one go: the tap has left its bridge.
    ip("link set guest0 nomaster");
    run("tc", "qdisc del dev guest0 clsact");
    eventually("the filter is set again", || (gate.status()[0].filter_lost == 1).then_some(()));
    assert!(!diverts());
    ip("link set guest0 master br0");
    mended();
    world.send(2);
    assert_eq!(world.receive(MOMENT), None, "it is held");
    gate.mark(GateMark(1)).unwrap();
    gate.release(&acked(1));
    world.expect([1, 2]);
    assert_eq!(gate.status()[0].filter_lost, 1, "what holds was away once");
    gate.release(&opened());
    gate.detach().unwrap();
    drop(gate);
    expect_as_before(&before);
}

pub fn taken_away() {
    for side in ["inlet", "outlet"] {
        let world = World::new();
        let before = listing();
        let gate = world.gate();
        gate.hold().unwrap();
        world.send(1);
        gate.mark(GateMark(1)).unwrap();
        ip(&format!("link del {}", side_of(&gate, side)));
        gate.release(&acked(1));
        let mut mark = 1;
        let error = eventually("the loss is noticed", || {
            mark += 1;
            gate.mark(GateMark(mark)).err()
        });
        assert!(error.to_string().contains("guest0"), "{error}");
        assert!(gate.mark(GateMark(mark + 1)).is_err(), "for good");
        // Protection ends, and the guest has its network back.
        gate.release(&opened());
        gate.detach().unwrap();
        drop(gate);
        expect_as_before(&before);
        while world.receive(Duration::ZERO).is_some() {}
        world.send(2);
        world.expect([2]);
    }
}
