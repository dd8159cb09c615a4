//! Choosing among devices made up for the purpose.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::RdmaConfig;
use super::choice::{Choice, choose};
use super::devices::{DeviceInfo, GidInfo, GidKind, LinkKind, PortInfo, PortState};
use crate::error::TransportError;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn gid(index: u32, gid: &str, kind: GidKind) -> GidInfo {
    GidInfo { index, gid: gid.parse().expect("an address"), kind, network_device: Some("eth0".into()) }
}

fn ethernet(number: u8, gids: Vec<GidInfo>) -> PortInfo {
    PortInfo {
        number,
        state: PortState::Active,
        link: LinkKind::Ethernet,
        active_mtu_bytes: 1024,
        max_mtu_bytes: 4096,
        lid: 0,
        gids,
    }
}

/// As a card with both versions of RoCE lists its GIDs.
fn both_versions(address: &str) -> Vec<GidInfo> {
    use GidKind::{RoceV1, RoceV2};
    let mapped = format!("::ffff:{address}");
    vec![
        gid(0, "fe80::1", RoceV1),
        gid(1, "fe80::1", RoceV2),
        gid(2, &mapped, RoceV1),
        gid(3, &mapped, RoceV2),
        gid(4, "fd00::1", RoceV1),
        gid(5, "fd00::1", RoceV2),
    ]
}

fn device(name: &str, ports: Vec<PortInfo>) -> DeviceInfo {
    DeviceInfo {
        name: name.into(),
        guid: "0011223344556677".into(),
        driver: "mlx5_core".into(),
        firmware: "1.0".into(),
        is_software: false,
        ports,
        problem: None,
    }
}

fn infiniband() -> DeviceInfo {
    let port = PortInfo {
        link: LinkKind::InfiniBand,
        lid: 12,
        active_mtu_bytes: 4096,
        ..ethernet(1, vec![gid(0, "fe80::2:c903:0:1", GidKind::InfiniBand)])
    };
    device("ib0", vec![port])
}

fn chosen(devices: &[DeviceInfo], config: &RdmaConfig, local: IpAddr) -> Choice {
    choose(devices, config, local, None).expect("a choice")
}

fn index(choice: &Choice) -> Option<u8> {
    choice.gid.map(|(_, index)| index)
}

fn refused(devices: &[DeviceInfo], config: &RdmaConfig, parts: &[&str]) {
    let error = choose(devices, config, HERE, None).expect_err("a refusal").to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is missing in {error:?}");
    }
}

#[test]
fn roce_v2_with_the_address_of_the_control_connection_is_best() {
    let devices = [
        device("a", vec![ethernet(1, both_versions("10.9.0.1"))]),
        device("b", vec![ethernet(1, both_versions("10.8.0.1")), ethernet(2, both_versions("10.0.0.1"))]),
    ];
    let choice = chosen(&devices, &RdmaConfig::default(), HERE);
    assert_eq!((choice.device.as_str(), choice.port, index(&choice)), ("b", 2, Some(3)));
    let local = "fd00::1".parse().expect("an address");
    let choice = chosen(&devices, &RdmaConfig::default(), local);
    assert_eq!((choice.device.as_str(), index(&choice)), ("a", Some(5)));
}

#[test]
fn without_a_matching_address_ipv4_comes_before_ipv6_and_version_2_before_1() {
    let mut gids = both_versions("10.9.0.1");
    let mut take_best = |expected: u8| {
        let devices = [device("a", vec![ethernet(1, gids.clone())])];
        assert_eq!(index(&chosen(&devices, &RdmaConfig::default(), LOOPBACK)), Some(expected));
        gids.retain(|gid| gid.index != u32::from(expected));
    };
    [3, 5, 1, 2, 4, 0].into_iter().for_each(&mut take_best);
    let devices = [device("a", vec![ethernet(1, Vec::new())])];
    refused(&devices, &RdmaConfig::default(), &["port 1 of a has no GID", "address"]);
}

#[test]
fn the_peer_s_kind_of_gid_is_answered_with_the_same() {
    let devices = [device("a", vec![ethernet(1, both_versions("10.9.0.1"))])];
    for (peer, expected) in [("::ffff:10.9.0.2", 3), ("fd00::2", 5), ("fe80::2", 1)] {
        let peer: Ipv6Addr = peer.parse().expect("an address");
        let choice = choose(&devices, &RdmaConfig::default(), LOOPBACK, Some(peer)).expect("a choice");
        assert_eq!(index(&choice), Some(expected), "{peer}");
    }
}

#[test]
fn infiniband_is_reached_by_lid() {
    let choice = chosen(&[infiniband()], &RdmaConfig::default(), HERE);
    assert_eq!((choice.link, choice.lid, choice.mtu_bytes), (LinkKind::InfiniBand, 12, 4096));
    // A RoCE port with the right address is nearer, one without is not.
    let roce = |address| device("roce", vec![ethernet(1, both_versions(address))]);
    let choice = chosen(&[infiniband(), roce("10.0.0.1")], &RdmaConfig::default(), HERE);
    assert_eq!(choice.device, "roce");
    let choice = chosen(&[infiniband(), roce("10.7.0.1")], &RdmaConfig::default(), HERE);
    assert_eq!(choice.device, "ib0");
}

#[test]
fn options_are_followed() {
    let devices = [
        device("a", vec![ethernet(1, both_versions("10.0.0.1"))]),
        device("b", vec![ethernet(1, both_versions("10.8.0.1")), ethernet(2, both_versions("10.7.0.1"))]),
    ];
    let config = RdmaConfig {
        device: Some("b".into()),
        port: Some(2),
        gid_index: Some(4),
        mtu_bytes: Some(512),
        ..RdmaConfig::default()
    };
    let choice = chosen(&devices, &config, HERE);
    assert_eq!(
        (choice.device.as_str(), choice.port, index(&choice), choice.mtu_bytes),
        ("b", 2, Some(4), 512)
    );
}

#[test]
fn a_port_with_too_small_an_mtu_is_passed_over_for_one_that_fits() {
    let small = PortInfo { active_mtu_bytes: 1024, ..ethernet(1, both_versions("10.9.0.1")) };
    let large = PortInfo { active_mtu_bytes: 4096, ..ethernet(1, both_versions("10.8.0.1")) };
    let devices = [device("a", vec![small]), device("b", vec![large])];
    let wish = RdmaConfig { mtu_bytes: Some(2048), ..RdmaConfig::default() };
    let choice = chosen(&devices, &wish, HERE);
    assert_eq!((choice.device.as_str(), choice.mtu_bytes), ("b", 2048));
}

#[test]
fn options_that_do_not_fit_are_refused_by_name() {
    let down = PortInfo { state: PortState::Down, ..ethernet(2, both_versions("10.8.0.1")) };
    let devices = [
        device("a", vec![ethernet(1, both_versions("10.0.0.1")), down]),
        device("b", vec![ethernet(1, Vec::new())]),
    ];
    let config = || RdmaConfig { device: Some("a".into()), ..RdmaConfig::default() };
    refused(&devices, &RdmaConfig { device: Some("c".into()), ..config() }, &["\"c\"", "only: a, b"]);
    refused(&devices, &RdmaConfig { port: Some(3), ..config() }, &["port 3 of a", "1 to 2"]);
    refused(&devices, &RdmaConfig { port: Some(2), ..config() }, &["port 2 of a is down", "ip link set"]);
    let gid_index = Some(9);
    refused(&devices, &RdmaConfig { gid_index, ..config() }, &["index 9", "0 (fe80::1, RoCE v1)"]);
    refused(&devices, &RdmaConfig { mtu_bytes: Some(9000), ..config() }, &["9000", "4096"]);
    refused(&devices, &RdmaConfig { mtu_bytes: Some(2048), ..config() }, &["2048", "has 1024 now"]);
}

#[test]
fn a_class_of_traffic_that_no_packet_can_have_is_refused() {
    let roce = [device("a", vec![ethernet(1, both_versions("10.0.0.1"))])];
    let config =
        |traffic_class, service_level| RdmaConfig { traffic_class, service_level, ..RdmaConfig::default() };
    chosen(&roce, &config(106, 7), HERE);
    chosen(&roce, &config(254, 0), HERE);
    refused(&roce, &config(107, 0), &["traffic class of 107", "104 or 106"]);
    refused(&roce, &config(0, 8), &["service level of 8", "port 1 of a (RoCE) has 0 to 7"]);
    chosen(&[infiniband()], &config(0, 15), HERE);
    refused(
        &[infiniband()],
        &config(0, 16),
        &["service level of 16", "port 1 of ib0 (InfiniBand) has 0 to 15"],
    );
}

#[test]
fn a_device_that_cannot_be_opened_says_why() {
    let mut broken = device("a", Vec::new());
    broken.problem = Some("it cannot be opened: Permission denied".into());
    let error = choose(&[broken], &RdmaConfig::default(), HERE, None).expect_err("a refusal");
    assert!(matches!(error, TransportError::NoDevice(_)), "{error:?}");
    assert!(error.to_string().contains("a: it cannot be opened: Permission denied"), "{error}");
}
