//! Which device, port and GID to use: from the options, and by itself where they say nothing.

use std::net::{IpAddr, Ipv6Addr};

use super::RdmaConfig;
use super::devices::{DeviceInfo, GidInfo, GidKind, LinkKind, PortInfo, PortState};
use crate::error::TransportError;

/// What a connection uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub device: String,
    pub is_software: bool,
    pub port: u8,
    pub link: LinkKind,
    pub lid: u16,
    /// The GID and its index; RoCE always has one.
    pub gid: Option<(Ipv6Addr, u8)>,
    /// Largest packet payload of this side.
    pub mtu_bytes: u32,
}

fn invalid<T>(what: String) -> Result<T, TransportError> {
    Err(TransportError::Invalid(what))
}

/// Chooses among `devices` for a control connection whose address on this host is `local`.
/// `peer_gid` is the peer's, where it is known: the own one should be of the same kind.
pub(super) fn choose(
    devices: &[DeviceInfo],
    config: &RdmaConfig,
    local: IpAddr,
    peer_gid: Option<Ipv6Addr>,
) -> Result<Choice, TransportError> {
    let named: Vec<&DeviceInfo> = match &config.device {
        None => devices.iter().collect(),
        Some(name) => devices.iter().filter(|device| device.name == *name).collect(),
    };
    if let (Some(name), true) = (&config.device, named.is_empty()) {
        let present: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        return invalid(format!("there is no RDMA device {name:?} here, only: {}", present.join(", ")));
    }
    let ports = usable_ports(&named, config.port)?;
    let mut best: Option<(u32, Choice)> = None;
    let mut complaint = None;
    for (device, port) in ports {
        // A port that does not fit the wishes is passed over for one that does.
        let fitting = choose_mtu(device, port, config.mtu_bytes).and_then(|mtu_bytes| {
            check_class(device, port, config)?;
            let (rank, gid) = choose_gid(device, port, config.gid_index, local, peer_gid)?;
            Ok((rank, gid, mtu_bytes))
        });
        match fitting {
            Ok((rank, gid, mtu_bytes)) => {
                if best.as_ref().is_none_or(|(best_rank, _)| rank < *best_rank) {
                    let choice = Choice {
                        device: device.name.clone(),
                        is_software: device.is_software,
                        port: port.number,
                        link: port.link,
                        lid: port.lid,
                        gid,
                        mtu_bytes,
                    };
                    best = Some((rank, choice));
                }
            }
            Err(error) => complaint = complaint.or(Some(error)),
        }
    }
    match (best, complaint) {
        (Some((_, choice)), _) => Ok(choice),
        (None, Some(error)) => Err(error),
        (None, None) => Err(TransportError::NoDevice("no device has a port".into())),
    }
}

/// The active ports, of the number asked for if one is.
fn usable_ports<'a>(
    devices: &[&'a DeviceInfo],
    number: Option<u8>,
) -> Result<Vec<(&'a DeviceInfo, &'a PortInfo)>, TransportError> {
    let all = devices.iter().flat_map(|device| device.ports.iter().map(move |port| (*device, port)));
    let all: Vec<_> = all.collect();
    let names = || {
        let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        names.join(", ")
    };
    let asked: Vec<_> =
        all.iter().copied().filter(|(_, port)| number.is_none_or(|number| port.number == number)).collect();
    if let (Some(number), true) = (number, asked.is_empty()) {
        let most = all.iter().map(|(_, port)| port.number).max().unwrap_or(0);
        return invalid(format!("port {number} of {} does not exist; ports count from 1 to {most}", names()));
    }
    let active: Vec<_> = asked.iter().copied().filter(|(_, port)| port.state == PortState::Active).collect();
    if active.is_empty() {
        let mut states: Vec<String> = asked
            .iter()
            .map(|(device, port)| format!("port {} of {} is {}", port.number, device.name, port.state))
            .collect();
        let problems = devices.iter().filter_map(|device| {
            device.problem.as_ref().map(|problem| format!("{}: {problem}", device.name))
        });
        states.extend(problems);
        let mend = "bring its network interface up (`ip link set NAME up`) and check cable and switch; \
                    InfiniBand also needs a running subnet manager";
        return Err(TransportError::NoDevice(format!("no port is active ({}); {mend}", states.join(", "))));
    }
    Ok(active)
}

/// The GID with the lowest rank, or the one asked for.
fn choose_gid(
    device: &DeviceInfo,
    port: &PortInfo,
    index: Option<u8>,
    local: IpAddr,
    peer_gid: Option<Ipv6Addr>,
) -> Result<(u32, Option<(Ipv6Addr, u8)>), TransportError> {
    let known: Vec<&GidInfo> = port.gids.iter().filter(|gid| gid.index <= 255).collect();
    let place = || format!("port {} of {}", port.number, device.name);
    if let Some(index) = index {
        let Some(gid) = known.iter().find(|gid| gid.index == u32::from(index)) else {
            let list: Vec<String> =
                known.iter().map(|gid| format!("{} ({}, {})", gid.index, gid.gid, gid.kind)).collect();
            let list = if list.is_empty() { "none".to_string() } else { list.join(", ") };
            return invalid(format!("{} has no GID at index {index}; there are: {list}", place()));
        };
        return Ok((rank(gid, local, peer_gid), Some((gid.gid, index))));
    }
    let best = known.iter().min_by_key(|gid| (rank(gid, local, peer_gid), gid.index));
    match (port.link, best) {
        (LinkKind::InfiniBand, best) => Ok((1, best.map(|gid| (gid.gid, gid.index as u8)))),
        (LinkKind::Ethernet, Some(gid)) => Ok((rank(gid, local, peer_gid), Some((gid.gid, gid.index as u8)))),
        (LinkKind::Ethernet, None) => {
            let mend = "give its network interface an address";
            Err(TransportError::NoDevice(format!("{} has no GID; {mend}", place())))
        }
    }
}

/// How little a GID fits: 0 fits best.
fn rank(gid: &GidInfo, local: IpAddr, peer_gid: Option<Ipv6Addr>) -> u32 {
    let mapped = gid.gid.to_ipv4_mapped();
    let is_local = match local {
        IpAddr::V4(local) => mapped == Some(local),
        IpAddr::V6(local) => gid.gid == local || (mapped.is_some() && mapped == local.to_ipv4_mapped()),
    };
    let is_link_local = |gid: &Ipv6Addr| gid.is_unicast_link_local();
    let by_kind = match gid.kind {
        GidKind::RoceV1 => 8,
        GidKind::RoceV2 | GidKind::InfiniBand => 0,
    };
    let by_address = match mapped {
        _ if is_local => 0,
        Some(_) => 1,
        None if is_link_local(&gid.gid) => 3,
        None => 2,
    };
    let other_family = peer_gid.is_some_and(|peer| {
        peer.to_ipv4_mapped().is_some() != mapped.is_some() || is_link_local(&peer) != is_link_local(&gid.gid)
    });
    by_kind + by_address + if other_family { 4 } else { 0 }
}

/// What the packets' headers have room for.
fn check_class(device: &DeviceInfo, port: &PortInfo, config: &RdmaConfig) -> Result<(), TransportError> {
    let RdmaConfig { traffic_class, service_level, .. } = *config;
    if traffic_class & 3 == 3 {
        return invalid(format!(
            "a traffic class of {traffic_class} marks every packet as one that met congestion; it is 4 times the \
             DSCP, plus 2 where congestion may be marked: {} or {}",
            traffic_class - 3,
            traffic_class - 1
        ));
    }
    let (most, link) = match port.link {
        LinkKind::Ethernet => (7, "RoCE"),
        LinkKind::InfiniBand => (15, "InfiniBand"),
    };
    if service_level > most {
        let place = format!("port {} of {} ({link})", port.number, device.name);
        return invalid(format!("a service level of {service_level}; {place} has 0 to {most}"));
    }
    Ok(())
}

fn choose_mtu(device: &DeviceInfo, port: &PortInfo, wish: Option<u32>) -> Result<u32, TransportError> {
    let active = port.active_mtu_bytes;
    match wish {
        None => Ok(active),
        Some(wish) if ![256, 512, 1024, 2048, 4096].contains(&wish) => {
            invalid(format!("an MTU of {wish} bytes; RDMA has 256, 512, 1024, 2048 and 4096"))
        }
        Some(wish) if wish > active => invalid(format!(
            "an MTU of {wish} bytes; port {} of {} has {active} now, raise the MTU of its network \
             interface first",
            port.number, device.name
        )),
        Some(wish) => Ok(wish),
    }
}
