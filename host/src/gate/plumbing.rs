//! What a gate sets up around a guest's tap, and how it is taken away again.
//!
//! ```text
//!            guest                          to the guest: untouched
//!              |                                   ^
//!   tap  [ ingress filter: all to the inlet ]      |
//!              |                                 bridge
//!            inlet  ->  gate  ->  outlet  -------> |  (a port that learns and is flooded nothing)
//! ```

use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use netlink_packet_route::link::{InfoBridge, InfoKind};
use romulus_checkpoint::gate::GateError;

use super::filter::{self, Found, Restore};
use super::link::{self, Facts, Mac};
use super::lock;
use super::netlink::Netlink;
use super::tap::Tap;

/// Packets that wait in the kernel while the gate is busy or stopped; beyond, the kernel drops.
/// With large segments that is up to 1 GiB of the kernel's memory.
pub const INLET_QUEUE_PACKETS: u32 = 16_384;
/// Nothing is to be sent to the outlet but what is thrown away.
const OUTLET_QUEUE_PACKETS: u32 = 8;
/// How long a bridge that runs the spanning tree protocol may take to let a new port forward.
const FORWARDING_LIMIT: Duration = Duration::from_secs(60);
const FORWARDING_POLL: Duration = Duration::from_millis(50);
/// First byte of the outlet's address: a bridge without an address of its own takes the lowest of
/// its ports, and that must not become the outlet's.
const HIGH_ADDRESS: u8 = 0xfe;

/// A network card whose output is to be held.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NicSpec {
    /// What people call the card.
    pub nic: String,
    /// The kernel interface at the other end: a tap.
    pub tap: String,
    /// The card's address.
    pub mac: Mac,
}

/// The interfaces of one card's gate. The taps vanish with it.
pub(super) struct Plumbing {
    pub(super) spec: NicSpec,
    /// Gives what the guest sends.
    pub(super) inlet: Tap,
    /// Takes what is released.
    pub(super) outlet: Tap,
    pub(super) inlet_mac: Mac,
    inlet_index: u32,
    outlet_index: u32,
    tap_index: u32,
    /// What the settings beside the filter were before it was set.
    before: Mutex<Option<Restore>>,
}

/// What is left of a gate's settings around its tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// All of them.
    All,
    /// The filter that holds, and not all that belongs to it.
    Holding,
    /// Nothing that holds.
    Open,
}

/// An error with what was tried.
pub(super) fn failed(spec: &NicSpec, what: &str) -> impl FnOnce(io::Error) -> GateError {
    let (nic, tap, what) = (spec.nic.clone(), spec.tap.clone(), what.to_owned());
    move |error| {
        let hint = match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => "; romulus needs CAP_NET_ADMIN for this: run it as root",
            _ => "",
        };
        GateError(format!("card {nic} on {tap}: {what}: {error}{hint}"))
    }
}

fn refused(spec: &NicSpec, why: &str) -> GateError {
    GateError(format!("card {} on {}: {why}", spec.nic, spec.tap))
}

/// The tap and its bridge if this kind of gate can serve the card, else why not and what to do.
pub(super) fn check(netlink: &Netlink, spec: &NicSpec) -> Result<(Facts, Facts), GateError> {
    let tap = link::find(netlink, &spec.tap).map_err(failed(spec, "looking for the interface"))?;
    let tap = tap.ok_or_else(|| {
        refused(spec, "there is no such interface here; run romulus in the network namespace of QEMU")
    })?;
    let Some(master) = tap.master else {
        return Err(refused(
            spec,
            "the tap is in no bridge, so that released packets have no way to go on; put it into one (ip link add \
             br0 type bridge; ip link set TAP master br0) and give the tap's addresses to the bridge",
        ));
    };
    let bridge = link::find_index(netlink, master).map_err(failed(spec, "looking for its bridge"))?;
    let bridge = bridge.ok_or_else(|| refused(spec, "its bridge is not to be seen from here"))?;
    if bridge.kind != Some(InfoKind::Bridge) {
        let what = format!("it belongs to {}, which is no Linux bridge; put the tap into one", bridge.name);
        return Err(refused(spec, &what));
    }
    if bridge.bridge.contains(&InfoBridge::VlanFiltering(true)) {
        let what = format!(
            "bridge {} filters VLANs, which the gate does not carry over; use a bridge for each VLAN",
            bridge.name
        );
        return Err(refused(spec, &what));
    }
    if steers_packets(&spec.tap) {
        return Err(refused(
            spec,
            "receive packet steering is on for the tap, so that packets could pass the gate's marks; turn it off \
             (echo 0 into each /sys/class/net/TAP/queues/rx-*/rps_cpus)",
        ));
    }
    Ok((tap, bridge))
}

/// Whether packets that come in on it are handed to other CPUs, and so processed later.
fn steers_packets(tap: &str) -> bool {
    let queues = Path::new("/sys/class/net").join(tap).join("queues");
    let masks = std::fs::read_dir(queues)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|queue| std::fs::read_to_string(queue.path().join("rps_cpus")).ok());
    masks.into_iter().any(|mask| mask.chars().any(|digit| !matches!(digit, '0' | ',' | '\n')))
}

impl Plumbing {
    /// Makes inlet and outlet. The guest's packets are not touched yet.
    pub(super) fn open(netlink: &Netlink, spec: &NicSpec) -> Result<Self, GateError> {
        let (tap, bridge) = check(netlink, spec)?;
        let make = |what: &str| Tap::create("rgate%d").map_err(failed(spec, what));
        let (inlet, outlet) = (make("making the gate's inlet")?, make("making the gate's outlet")?);
        let facts = |made: &Tap| {
            let found =
                link::find(netlink, made.name()).map_err(failed(spec, "looking at the gate's taps"))?;
            found.ok_or_else(|| refused(spec, "the gate's tap has vanished"))
        };
        let (inlet_facts, outlet_facts) = (facts(&inlet)?, facts(&outlet)?);
        let (Some(inlet_mac), Some(mut outlet_mac)) = (inlet_facts.mac, outlet_facts.mac) else {
            return Err(refused(spec, "the gate's taps have no address"));
        };
        outlet_mac[0] = HIGH_ADDRESS;
        let (inlet_index, outlet_index) = (inlet_facts.index, outlet_facts.index);
        let alias = |side: &str| format!("romulus gate of {}, {side}", spec.tap);
        let mtu = tap.mtu;
        link::prepare(netlink, inlet_index, INLET_QUEUE_PACKETS, mtu, inlet_mac, alias("inlet"))
            .and_then(|()| link::set_no_queueing(netlink, inlet_index))
            .and_then(|()| link::bring_up(netlink, inlet_index))
            .map_err(failed(spec, "setting up the gate's inlet"))?;
        link::prepare(netlink, outlet_index, OUTLET_QUEUE_PACKETS, mtu, outlet_mac, alias("outlet"))
            .and_then(|()| link::set_no_queueing(netlink, outlet_index))
            .and_then(|()| link::join(netlink, outlet_index, bridge.index))
            .and_then(|()| link::set_port(netlink, outlet_index, link::outlet_settings(tap.is_isolated())))
            .and_then(|()| link::bring_up(netlink, outlet_index))
            .map_err(failed(spec, "putting the gate's outlet into the bridge"))?;
        let plumbing = Self {
            spec: spec.clone(),
            inlet,
            outlet,
            inlet_mac,
            inlet_index,
            outlet_index,
            tap_index: tap.index,
            before: Mutex::default(),
        };
        plumbing.wait_forwarding(netlink)?;
        Ok(plumbing)
    }

    fn wait_forwarding(&self, netlink: &Netlink) -> Result<(), GateError> {
        let deadline = Instant::now() + FORWARDING_LIMIT;
        loop {
            let facts = link::find_index(netlink, self.outlet_index)
                .map_err(failed(&self.spec, "waiting for the bridge to forward"))?;
            if facts.is_some_and(|facts| facts.forwards()) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(refused(
                    &self.spec,
                    "its bridge does not let the gate's outlet forward (spanning tree protocol?)",
                ));
            }
            std::thread::sleep(FORWARDING_POLL);
        }
    }

    /// From now on the guest's packets come to the inlet and nowhere else. After failure they go
    /// as before.
    pub(super) fn close(&self, netlink: &Netlink) -> Result<(), GateError> {
        let outcome = self.try_close(netlink, None);
        if outcome.is_err()
            && let Err(error) = remove(netlink, &self.spec)
        {
            tracing::warn!("{error}");
        }
        outcome
    }

    /// What is left of what [`close`](Self::close) set. A tap that is gone needs none of it.
    pub(super) fn look(&self, netlink: &Netlink) -> io::Result<Left> {
        let found = filter::look_at_both(netlink, self.tap_index)?;
        Ok(match found {
            (Found::Ours(_), Found::Ours(_)) => Left::All,
            (Found::Ours(_), _) => Left::Holding,
            _ if link::find_index(netlink, self.tap_index)?.is_some() => Left::Open,
            _ => Left::All,
        })
    }

    /// Sets again what somebody has taken away, or what could not be set before.
    pub(super) fn mend(&self, netlink: &Netlink, left: Left) -> Result<(), GateError> {
        let before = *lock(&self.before);
        match (left, before) {
            (Left::All, _) => Ok(()),
            (Left::Holding, Some(restore)) => self.set_beside(netlink, restore),
            _ => self.try_close(netlink, before),
        }
    }

    /// Sees to it that what [`close`](Self::close) set is there.
    pub(super) fn close_again(&self, netlink: &Netlink) -> Result<(), GateError> {
        let left = self.look(netlink).map_err(failed(&self.spec, "looking at the tap's filters"))?;
        self.mend(netlink, left)
    }

    /// An error about this card.
    pub(super) fn refused(&self, why: &str) -> GateError {
        refused(&self.spec, why)
    }

    /// `before` is known where other settings of the gate still stand.
    fn try_close(&self, netlink: &Netlink, mut before: Option<Restore>) -> Result<(), GateError> {
        let (spec, index, mac) = (&self.spec, self.tap_index, self.spec.mac);
        let tap = link::find_index(netlink, index).map_err(failed(spec, "looking at the tap"))?;
        let tap = tap.ok_or_else(|| refused(spec, "the tap has vanished"))?;
        let add = || link::add_clsact(netlink, index).map_err(failed(spec, "adding a clsact queue"));
        let mut made = add()?;
        if !made {
            let (holding, diverting) =
                filter::look_at_both(netlink, index).map_err(failed(spec, "looking at the tap's filters"))?;
            // An empty one, or a gate's whose filter that holds is gone, is made anew. An empty `ingress`,
            // which could not be taken away again, stays.
            if holding == Found::Nothing && diverting != Found::Foreign {
                link::remove_clsact(netlink, index).map_err(failed(spec, "removing a clsact queue"))?;
                made = add()?;
            }
            if let Found::Ours(restore) = diverting {
                before = before.or(Some(restore));
            }
        }
        if !made {
            return Err(refused(
                spec,
                "the tap has an ingress or clsact queue of somebody else (a bandwidth limit of libvirt?); take it \
                 away: tc qdisc del dev TAP clsact, or ingress",
            ));
        }
        let address_stays =
            link::is_pinned(netlink, index, mac).map_err(failed(spec, "reading the bridge's table"))?;
        let now = Restore { multicast_router: tap.multicast_router(), address_stays };
        let restore = before.unwrap_or(now);
        *lock(&self.before) = Some(restore);
        // First, since its cookie tells a later process what else is to be put back.
        filter::redirect_all(netlink, index, self.inlet_index, restore).map_err(|error| {
            // Without the filter nobody would know it for ours.
            let removed = link::remove_clsact(netlink, index);
            tracing::debug!(?removed, "after a filter that the kernel refused");
            failed(spec, "redirecting the tap's packets")(error)
        })?;
        self.set_beside(netlink, restore)
    }

    /// What else is needed while the filter holds. The bridge learns of the guest no more: what it has to
    /// know is set.
    fn set_beside(&self, netlink: &Netlink, restore: Restore) -> Result<(), GateError> {
        let (spec, index, mac) = (&self.spec, self.tap_index, self.spec.mac);
        if !restore.address_stays {
            link::pin_address(netlink, index, mac).map_err(failed(spec, "pinning the guest's address"))?;
        }
        link::set_multicast_router(netlink, index, link::all_multicast())
            .map_err(failed(spec, "letting all multicast pass to the tap"))?;
        filter::divert_source(netlink, index, mac, self.outlet_index, restore)
            .map_err(failed(spec, "keeping the guest's packets from coming back to it"))
    }

    /// Packets that the inlet's queue had no room for.
    pub(super) fn dropped(&self, netlink: &Netlink) -> u64 {
        link::find_index(netlink, self.inlet_index).ok().flatten().map_or(0, |facts| facts.dropped)
    }
}

/// Takes away what [`Plumbing::close`] set, by this process or one that died: the guest's packets
/// go straight to the bridge again. Ok if nothing was set or the tap is gone.
pub(super) fn remove(netlink: &Netlink, spec: &NicSpec) -> Result<(), GateError> {
    let tap = link::find(netlink, &spec.tap).map_err(failed(spec, "looking for the interface"))?;
    let Some(tap) = tap else { return Ok(()) };
    let found = filter::look_at_both(netlink, tap.index);
    let restore = match found.map_err(failed(spec, "looking at the tap's filters"))? {
        // The second: somebody took away the filter that holds, and that one alone.
        (Found::Ours(restore), _) | (Found::Nothing, Found::Ours(restore)) => restore,
        _ => return Ok(()),
    };
    let unpinned =
        if restore.address_stays { Ok(()) } else { link::unpin_address(netlink, tap.index, spec.mac) };
    let restored = match tap.master {
        Some(_) => link::set_multicast_router(netlink, tap.index, restore.multicast_router),
        None => Ok(()),
    };
    // Last, since until then the cookie tells whoever comes after a death in between what there is to put back.
    link::remove_clsact(netlink, tap.index).map_err(failed(spec, "removing the gate's filters"))?;
    unpinned.and(restored).map_err(failed(spec, "putting the bridge's settings back"))
}
