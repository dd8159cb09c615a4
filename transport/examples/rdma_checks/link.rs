//! The network interface goes down.

use std::process::Command;
use std::time::Duration;

use romulus_transport::rdma::{PortState, RdmaConfig, RdmaFabric, devices};
use romulus_transport::{CloseReason, Fabric, TransportError};

use super::pair::{PATIENCE, Pair, Place, expect_end, expect_parts, patient};

/// Brings the interface up again, also when a check fails.
struct Up<'a>(&'a str);

impl Drop for Up<'_> {
    fn drop(&mut self) {
        set_link(self.0, "up");
    }
}

fn set_link(interface: &str, state: &str) {
    let status = Command::new("ip").args(["link", "set", interface, state]).status().expect("ip");
    assert!(status.success(), "ip link set {interface} {state}");
}

fn states() -> Vec<PortState> {
    let all = devices().expect("devices");
    all.iter().flat_map(|device| device.ports.iter().map(|port| port.state)).collect()
}

pub fn a_link_that_goes_down_is_noticed(place: &Place) {
    let interface = place.interface.as_deref().expect("the option --interface");
    let silent_after = Duration::from_millis(500);
    let config = || RdmaConfig { silent_after, ..RdmaConfig::default() };
    let pair = Pair::of(place.socket(), config(), config(), |_| {}).expect("a connection");
    pair.works();
    {
        let _up = Up(interface);
        set_link(interface, "down");
        for endpoint in [&pair.initiator, &pair.responder] {
            let reason = expect_end(&**endpoint);
            // By the port's event, or because the control connection fell silent with it.
            let is_named =
                matches!(reason, CloseReason::Failed(_) | CloseReason::Silent(_) | CloseReason::Peer(_));
            assert!(is_named, "{reason:?}");
            println!("    the connection ended: {reason}");
        }
        assert!(states().contains(&PortState::Down), "{:?}", states());
        let refused = RdmaFabric::new(patient()).listen(place.socket()).err();
        let Some(TransportError::NoDevice(why)) = refused else { panic!("{refused:?}") };
        expect_parts(&why, &["no port is active", "is down", "ip link set"]);
        let refused = RdmaFabric::new(patient()).connect((place.address, 9).into(), PATIENCE).err();
        assert!(matches!(refused, Some(TransportError::NoDevice(_))), "{refused:?}");
    }
    let start = std::time::Instant::now();
    while !states().contains(&PortState::Active) {
        assert!(start.elapsed() < PATIENCE, "the port does not come back: {:?}", states());
        std::thread::yield_now();
    }
    Pair::new(place).works();
}
