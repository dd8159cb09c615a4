//! What the rdma fabric says on this machine, whether it has a device or not.

use std::net::Ipv4Addr;
use std::time::Duration;

use romulus_transport::rdma::{PortState, RdmaConfig, RdmaFabric, devices};
use romulus_transport::{Fabric, TransportError};

/// The messages of a machine without RDMA, each with what to do.
fn is_clear(text: &str) -> bool {
    text.starts_with("no RDMA device: ")
        && ["load", "build with the feature", "ip link set", "run as root"]
            .iter()
            .any(|mend| text.contains(mend))
}

#[test]
fn without_a_device_every_entrance_says_so_and_how_to_mend_it() {
    let fabric = RdmaFabric::new(RdmaConfig::default());
    let is_usable = |error: TransportError| {
        assert!(matches!(error, TransportError::NoDevice(_)), "{error:?}");
        assert!(is_clear(&error.to_string()), "{error}");
    };
    match devices() {
        Err(error) => {
            is_usable(error);
            is_usable(fabric.check().expect_err("no device"));
            let address = (Ipv4Addr::LOCALHOST, 0).into();
            is_usable(fabric.listen(address).err().expect("no listener"));
            let peer = (Ipv4Addr::LOCALHOST, 9).into();
            is_usable(fabric.connect(peer, Duration::from_secs(5)).err().expect("no connection"));
        }
        Ok(found) => {
            assert!(!found.is_empty(), "an empty list is an error");
            let ports = found.iter().flat_map(|device| &device.ports);
            if ports.clone().any(|port| port.state == PortState::Active) {
                fabric.listen((Ipv4Addr::LOCALHOST, 0).into()).expect("a listener");
            }
        }
    }
}

#[test]
fn a_listing_can_be_told_to_machines() {
    let listing = devices().unwrap_or_default();
    let json = serde_json::to_value(&listing).expect("JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(listing.len()));
}
