//! What a gate does not serve, and says so before it touches anything.

use romulus_checkpoint::gate::OutputGate;
use romulus_host::gate::{NicSpec, RedirectGate, RedirectOptions, can_redirect};

use crate::gate_lab::run;
use crate::world::{World, expect_as_before, ip, listing};

pub fn bridges() {
    let world = World::new();
    let missing = NicSpec { tap: "nothing0".into(), ..world.spec() };
    assert!(can_redirect(&missing).unwrap_err().to_string().contains("no such interface"));
    can_redirect(&world.spec()).unwrap();
    ip("link set guest0 nomaster");
    let before = listing();
    let text = can_redirect(&world.spec()).unwrap_err().to_string();
    assert!(
        text.contains("guest0") && text.contains("in no bridge") && text.contains("ip link set"),
        "{text}"
    );
    assert!(RedirectGate::new(&[world.spec()], &RedirectOptions::default()).is_err());
    expect_as_before(&before);
}

pub fn filters() {
    for kind in ["clsact", "ingress"] {
        let world = World::new();
        run("tc", &format!("qdisc add dev guest0 {kind}"));
        run(
            "tc",
            "filter add dev guest0 ingress protocol ip u32 match u32 0 0 action mirred egress mirror dev client0",
        );
        let filters = || run("tc", "filter show dev guest0 ingress");
        let before = (listing(), filters());
        let gate = world.gate();
        let text = gate.hold().unwrap_err().to_string();
        assert!(text.contains("somebody else"), "{text}");
        gate.detach().unwrap();
        drop(gate);
        expect_as_before(&before.0);
        assert_eq!(filters(), before.1);
        world.send(1);
        world.expect([1]);
    }
}
