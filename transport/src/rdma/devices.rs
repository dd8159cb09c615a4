//! The RDMA devices of this host, as plain data.

use std::fmt;
use std::net::Ipv6Addr;

use serde::Serialize;

use crate::error::TransportError;

/// An RDMA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// Its name, as options take it: `mlx5_0`, `rxe0`.
    pub name: String,
    /// Its globally unique identifier, in hexadecimal; empty where it has none.
    pub guid: String,
    /// The kernel driver: `mlx5_core`, or `software` for a device without hardware (soft-RoCE).
    pub driver: String,
    /// Its firmware version; empty where there is none.
    pub firmware: String,
    /// It has no hardware of its own: the kernel's CPU time moves the bytes.
    pub is_software: bool,
    /// Its ports, in order.
    pub ports: Vec<PortInfo>,
    /// Why it could not be asked for its ports, if it could not.
    pub problem: Option<String>,
}

/// A port of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortInfo {
    /// Its number, from 1.
    pub number: u8,
    /// Whether it can be used now.
    pub state: PortState,
    /// What its link is made of.
    pub link: LinkKind,
    /// Largest packet payload now, in bytes.
    pub active_mtu_bytes: u32,
    /// Largest packet payload that it could have, in bytes.
    pub max_mtu_bytes: u32,
    /// Its local identifier on an InfiniBand subnet; 0 on Ethernet.
    pub lid: u16,
    /// Its GIDs by index; those that are zero are left out.
    pub gids: Vec<GidInfo>,
}

/// State of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PortState {
    /// No link.
    Down,
    /// The link comes up; InfiniBand waits for its subnet manager.
    Initializing,
    /// Ready but for traffic.
    Armed,
    /// Usable.
    Active,
    /// None of the above.
    Other,
}

/// What a link is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// InfiniBand.
    InfiniBand,
    /// Ethernet: RoCE.
    Ethernet,
}

/// What a GID is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GidKind {
    /// InfiniBand.
    InfiniBand,
    /// RoCE version 1: Ethernet frames, not routed.
    RoceV1,
    /// RoCE version 2: UDP packets.
    RoceV2,
}

/// An entry of a port's GID table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GidInfo {
    /// Its index, as options take it.
    pub index: u32,
    /// The identifier, written as an IPv6 address; IPv4 addresses are mapped.
    pub gid: Ipv6Addr,
    /// What it is good for.
    pub kind: GidKind,
    /// The network device that it belongs to, where there is one.
    pub network_device: Option<String>,
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PortState::Down => "down",
            PortState::Initializing => "initializing",
            PortState::Armed => "armed",
            PortState::Active => "active",
            PortState::Other => "in no known state",
        })
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkKind::InfiniBand => "InfiniBand",
            LinkKind::Ethernet => "Ethernet",
        })
    }
}

impl fmt::Display for GidKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GidKind::InfiniBand => "InfiniBand",
            GidKind::RoceV1 => "RoCE v1",
            GidKind::RoceV2 => "RoCE v2",
        })
    }
}

/// The RDMA devices of this host; at least one.
///
/// # Errors
/// [`TransportError::NoDevice`], with the cause and how to mend it, where there is none, where
/// the kernel has no RDMA, or where Romulus was built without it.
pub fn devices() -> Result<Vec<DeviceInfo>, TransportError> {
    #[cfg(feature = "rdma")]
    return super::discovery::devices();
    #[cfg(not(feature = "rdma"))]
    return Err(super::built_without());
}
