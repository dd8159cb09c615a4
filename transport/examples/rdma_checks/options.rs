//! Devices, and options that do not fit them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use romulus_transport::rdma::{
    DeviceInfo, GidKind, LinkKind, PortInfo, PortState, RdmaConfig, RdmaFabric, devices,
};
use romulus_transport::{Fabric, TransportError};

use super::pair::{Pair, Place, expect_parts, patient};

/// The device and port that carry the place's address.
fn here(place: &Place) -> (DeviceInfo, PortInfo) {
    let wanted = match place.address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let all = devices().expect("devices");
    let found = all.iter().find_map(|device| {
        let port = device.ports.iter().find(|port| port.gids.iter().any(|gid| gid.gid == wanted));
        port.map(|port| (device.clone(), port.clone()))
    });
    found.unwrap_or_else(|| panic!("no port has a GID for {}: {all:#?}", place.address))
}

pub fn devices_are_listed_whole(place: &Place) {
    let (device, port) = here(place);
    assert!(!device.name.is_empty() && !device.driver.is_empty(), "{device:?}");
    assert_eq!(device.problem, None);
    assert_eq!(device.guid.len(), 16, "{device:?}");
    assert_eq!((port.number, port.state, port.link), (1, PortState::Active, LinkKind::Ethernet));
    assert!([256, 512, 1024, 2048, 4096].contains(&port.active_mtu_bytes), "{port:?}");
    assert!(port.max_mtu_bytes >= port.active_mtu_bytes, "{port:?}");
    assert!(port.gids.iter().all(|gid| gid.kind == GidKind::RoceV2 || !device.is_software), "{port:?}");
    assert!(port.gids.iter().any(|gid| gid.network_device.is_some()), "{port:?}");
    if let Some(interface) = &place.interface {
        let all = port.gids.iter().all(|gid| gid.network_device.as_ref() == Some(interface));
        assert!(all, "{port:?}");
    }
}

fn refusal(place: &Place, config: RdmaConfig) -> String {
    let listened =
        RdmaFabric::new(config.clone()).listen(place.socket()).err().map(|error| error.to_string());
    let peer = (place.address, 9).into();
    let connected = RdmaFabric::new(config).connect(peer, super::pair::PATIENCE).err();
    let connected = connected.map(|error| error.to_string());
    assert_eq!(listened, connected, "both sides say the same");
    listened.expect("a refusal")
}

pub fn wrong_device_port_gid_and_mtu_are_named(place: &Place) {
    let (device, port) = here(place);
    let name = device.name.as_str();
    let text = refusal(place, RdmaConfig { device: Some("mlx5_77".into()), ..patient() });
    expect_parts(&text, &["\"mlx5_77\"", "only:", name]);
    let text = refusal(place, RdmaConfig { device: Some(name.into()), port: Some(9), ..patient() });
    expect_parts(&text, &["port 9", name, "1 to"]);
    let gid_index = Some(250);
    let text = refusal(place, RdmaConfig { device: Some(name.into()), gid_index, ..patient() });
    expect_parts(&text, &["index 250", name, "there are: 0 (", "RoCE v2", &port.gids[0].gid.to_string()]);
    let text = refusal(place, RdmaConfig { mtu_bytes: Some(1500), ..patient() });
    expect_parts(&text, &["1500", "256, 512, 1024, 2048 and 4096"]);
    if port.active_mtu_bytes < 4096 {
        let text = refusal(place, RdmaConfig { mtu_bytes: Some(4096), ..patient() });
        expect_parts(&text, &["4096", &port.active_mtu_bytes.to_string(), "raise the MTU"]);
    }
}

pub fn sides_with_different_mtu_agree(place: &Place) {
    let small = || RdmaConfig { mtu_bytes: Some(512), ..patient() };
    for (connecting, listening) in [(small(), patient()), (patient(), small()), (small(), small())] {
        Pair::of(place.socket(), connecting, listening, |_| {}).expect("a connection").works();
    }
}

pub fn each_side_has_its_own_class_of_traffic(place: &Place) {
    let marked = |traffic_class, service_level| RdmaConfig { traffic_class, service_level, ..patient() };
    for (connecting, listening) in [(marked(106, 3), patient()), (marked(104, 0), marked(254, 7))] {
        Pair::of(place.socket(), connecting, listening, |_| {}).expect("a connection").works();
    }
    expect_parts(&refusal(place, marked(3, 0)), &["traffic class of 3", "0 or 2"]);
    expect_parts(&refusal(place, marked(0, 200)), &["service level of 200", "0 to 7"]);
}

pub fn every_usable_gid_works(place: &Place) {
    let (_, port) = here(place);
    let mut worked = 0;
    for gid in port.gids.iter().filter(|gid| gid.kind == GidKind::RoceV2) {
        let config = || RdmaConfig { gid_index: Some(gid.index as u8), ..patient() };
        Pair::of(place.socket(), config(), config(), |_| {}).expect("a connection").works();
        worked += 1;
    }
    assert!(worked > 0, "{port:?}");
}

/// The control connection over one family chooses the GID of the same family.
pub fn an_address_of_the_other_family_works(place: &Place) {
    let (_, port) = here(place);
    let global = |gid: &Ipv6Addr| gid.to_ipv4_mapped().is_none() && !gid.is_unicast_link_local();
    let Some(gid) = port.gids.iter().find(|gid| global(&gid.gid)) else {
        panic!("no global IPv6 address on the port: give it one ({port:?})");
    };
    let address = SocketAddr::from((gid.gid, 0));
    let pair = Pair::of(address, patient(), patient(), |answer| {
        assert_eq!(Ipv6Addr::from(answer.common.gid), gid.gid, "the GID of the control connection's address");
    });
    pair.expect("a connection").works();
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let pair: Result<Pair, TransportError> = Pair::of(loopback, patient(), patient(), |answer| {
        let chosen = Ipv6Addr::from(answer.common.gid);
        assert!(chosen.to_ipv4_mapped().is_some(), "an IPv4 GID for an IPv4 address: {chosen}");
    });
    pair.expect("a connection").works();
}
