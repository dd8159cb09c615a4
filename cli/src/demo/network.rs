//! The network of the demonstration: two hosts and the world, each a network namespace, and the
//! only place that calls the programs of iproute2.
//!
//! ```text
//!  host a                       world                        host b
//!  guest0 (tap of its QEMU)                                  guest0 (tap of its QEMU)
//!     |                                                         |
//!  bridge0 --uplink0 ======== a0 -- bridge0 -- b0 ======== uplink0-- bridge0
//!                                  10.77.0.1: the client
//!  peer0 10.78.0.1 ============================================= peer0 10.78.0.2
//!                  replication, on a wire of its own
//! ```
//!
//! The guest is 10.77.0.10 wherever it runs. Addresses and names are fixed: each run has
//! namespaces of its own, which no other process sees.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use super::netns::NetNs;
use crate::exit::{Code, Failure};

/// The tap that a host's bridge has for its QEMU.
pub const TAP: &str = "guest0";
/// The guest's hardware address.
pub const GUEST_MAC: &str = "52:54:00:77:00:10";
/// The guest's address and prefix length.
pub const GUEST_ADDRESS: &str = "10.77.0.10/24";
/// The guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
/// The port that the guest's workload serves.
const GUEST_PORT: u16 = 7;

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that runs the guest at first.
    A,
    /// The other one.
    B,
}

impl Side {
    /// The other host.
    pub fn other(self) -> Self {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }

    /// What Romulus calls it.
    pub fn name(self) -> &'static str {
        match self {
            Side::A => "primary",
            Side::B => "backup",
        }
    }

    /// Its address on the wire for replication, with port 0.
    pub fn replication(self) -> &'static str {
        match self {
            Side::A => "10.78.0.1:0",
            Side::B => "10.78.0.2:0",
        }
    }
}

/// Where the guest's workload answers clients.
pub fn guest_server() -> SocketAddr {
    SocketAddr::from((GUEST, GUEST_PORT))
}

/// Two hosts and the world.
#[derive(Debug)]
pub struct Network {
    a: NetNs,
    b: NetNs,
    world: NetNs,
}

impl Network {
    /// Makes it; everything is up.
    pub fn create() -> Result<Self, Failure> {
        let network = Self { a: NetNs::create()?, b: NetNs::create()?, world: NetNs::create()? };
        network.world.run(|| {
            bridge()?;
            ip("address add 10.77.0.1/24 dev bridge0")
        })??;
        for (side, port) in [(Side::A, "a0"), (Side::B, "b0")] {
            let world = network.world.path();
            network.host(side).run(|| {
                bridge()?;
                tap()?;
                ip(&format!("link add uplink0 type veth peer name {port} netns {}", world.display()))?;
                join("uplink0")
            })??;
            network.world.run(|| join(port))??;
        }
        let b = network.b.path();
        network
            .a
            .run(|| ip(&format!("link add peer0 type veth peer name peer0 netns {}", b.display())))??;
        for (side, address) in [(Side::A, "10.78.0.1/30"), (Side::B, "10.78.0.2/30")] {
            network.host(side).run(|| {
                ip(&format!("address add {address} dev peer0"))?;
                ip("link set peer0 up")
            })??;
        }
        Ok(network)
    }

    /// A host's namespace.
    pub fn host(&self, side: Side) -> &NetNs {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    /// The namespace that clients are in.
    pub fn world(&self) -> &NetNs {
        &self.world
    }

    /// Takes a host's wires away or puts them back, both.
    pub fn set_wires(&self, side: Side, up: bool) -> Result<(), Failure> {
        let state = if up { "up" } else { "down" };
        self.host(side).run(|| {
            ip(&format!("link set uplink0 {state}"))?;
            ip(&format!("link set peer0 {state}"))
        })?
    }

    /// A host that had died is there again, as after booting: with its wires, and with a tap that
    /// nothing is left on. Call when nothing runs on it any more.
    pub fn boot(&self, side: Side) -> Result<(), Failure> {
        self.host(side).run(|| {
            ip(&format!("link delete {TAP}"))?;
            tap()
        })??;
        self.set_wires(side, true)
    }

    /// What a host's network has beside what it was made with: interfaces by name, and on the
    /// guest's tap traffic control, an address that the bridge holds to be there for ever, and all
    /// multicast. Empty is as it should be.
    pub fn leftovers(&self, side: Side) -> Result<Vec<String>, Failure> {
        self.host(side).run(|| {
            let mut found = Vec::new();
            let dev = std::fs::read_to_string("/proc/thread-self/net/dev")
                .map_err(|e| Failure::failed(format!("reading a namespace's interfaces: {e}")))?;
            for name in dev.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()) {
                if !["lo", "bridge0", TAP, "uplink0", "peer0"].contains(&name) {
                    found.push(format!("interface {name}"));
                }
            }
            let qdiscs = output("tc", &["qdisc", "show", "dev", TAP])?;
            let special = qdiscs.lines().filter(|line| line.contains("clsact") || line.contains("ingress"));
            found.extend(special.map(|line| format!("qdisc {}", line.trim())));
            let addresses = output("bridge", &["fdb", "show", "dev", TAP])?;
            let pinned =
                addresses.lines().filter(|line| line.starts_with(GUEST_MAC) && line.contains("static"));
            found.extend(pinned.map(|line| format!("address {}", line.trim())));
            if output("ip", &["-d", "link", "show", "dev", TAP])?.contains("mcast_router 2") {
                found.push(format!("all multicast goes to {TAP}"));
            }
            Ok(found)
        })?
    }
}

/// A bridge that forwards at once, and loopback.
fn bridge() -> Result<(), Failure> {
    ip("link set lo up")?;
    ip("link add bridge0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
    ip("link set bridge0 up")
}

/// A tap for the host's QEMU, in the bridge.
fn tap() -> Result<(), Failure> {
    ip(&format!("tuntap add dev {TAP} mode tap vnet_hdr"))?;
    join(TAP)
}

fn join(interface: &str) -> Result<(), Failure> {
    ip(&format!("link set {interface} master bridge0"))?;
    ip(&format!("link set {interface} up"))
}

/// Runs `ip` with these words in the calling thread's namespace.
fn ip(words: &str) -> Result<(), Failure> {
    output("ip", &words.split(' ').collect::<Vec<_>>()).map(drop)
}

fn output(program: &str, words: &[&str]) -> Result<String, Failure> {
    let output = Command::new(program).args(words).output().map_err(|e| {
        Failure::new(Code::Machine, format!("running {program}: {e}; as root: apt-get install iproute2"))
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(
        Code::Machine,
        format!("{program} {}: {}; root and /dev/net/tun are needed", words.join(" "), why.trim()),
    ))
}
