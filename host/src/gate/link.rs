//! Interfaces and bridge ports, asked and set by netlink.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeMulticastRouterType, BridgePortState, In6AddrGenMode, InfoBridge,
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::Netlink;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What the gate asks of an interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Option<Mac>,
    pub(super) mtu: u32,
    /// The bridge, or whatever else it belongs to.
    pub(super) master: Option<u32>,
    pub(super) kind: Option<InfoKind>,
    /// Packets that its transmit queue had no room for.
    pub(super) dropped: u64,
    /// Settings as a bridge's port.
    pub(super) port: Vec<InfoBridgePort>,
    /// Settings as a bridge.
    pub(super) bridge: Vec<InfoBridge>,
}

impl Facts {
    fn of(message: LinkMessage) -> Self {
        let mut facts = Self { index: message.header.index, ..Self::default() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => facts.name = name,
                LinkAttribute::Address(address) => facts.mac = address.try_into().ok(),
                LinkAttribute::Mtu(mtu) => facts.mtu = mtu,
                LinkAttribute::Controller(master) => facts.master = Some(master),
                LinkAttribute::Stats64(stats) => facts.dropped = stats.tx_dropped,
                LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| facts.take_info(info)),
                _ => {}
            }
        }
        facts
    }

    fn take_info(&mut self, info: LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind),
            LinkInfo::Data(InfoData::Bridge(settings)) => self.bridge = settings,
            LinkInfo::PortData(InfoPortData::BridgePort(settings)) => self.port = settings,
            _ => {}
        }
    }

    pub(super) fn forwards(&self) -> bool {
        self.port.contains(&InfoBridgePort::State(BridgePortState::Forwarding))
    }

    pub(super) fn is_isolated(&self) -> bool {
        self.port.contains(&InfoBridgePort::Isolated(true))
    }

    /// To whom the port counts as a multicast router, as the kernel's number.
    pub(super) fn multicast_router(&self) -> u8 {
        let setting = self.port.iter().find_map(|setting| match setting {
            InfoBridgePort::MulticastRouter(kind) => Some(u8::from(*kind)),
            _ => None,
        });
        setting.unwrap_or_else(|| BridgeMulticastRouterType::TempQuery.into())
    }
}

/// The interface of this name, or `None`.
pub(super) fn find(netlink: &Netlink, name: &str) -> io::Result<Option<Facts>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    ask(netlink, message)
}

/// The interface of this index, or `None`.
pub(super) fn find_index(netlink: &Netlink, index: u32) -> io::Result<Option<Facts>> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    ask(netlink, message)
}

fn ask(netlink: &Netlink, message: LinkMessage) -> io::Result<Option<Facts>> {
    match netlink.get(RouteNetlinkMessage::GetLink(message)) {
        Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(Facts::of(message)),
            _ => None,
        })),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn set(netlink: &Netlink, index: u32, attributes: Vec<LinkAttribute>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Prepares an interface that is down: its length of queue, MTU and address, a name for people,
/// and no addresses of its own.
pub(super) fn prepare(
    netlink: &Netlink,
    index: u32,
    queue: u32,
    mtu: u32,
    mac: Mac,
    alias: String,
) -> io::Result<()> {
    let attributes = vec![
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::TxQueueLen(queue),
        LinkAttribute::IfAlias(alias),
    ];
    set(netlink, index, attributes)?;
    let no_addresses = vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])];
    match set(netlink, index, vec![LinkAttribute::AfSpecUnspec(no_addresses)]) {
        // A kernel without IPv6 gives no addresses either.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => Ok(()),
        outcome => outcome,
    }
}

/// Sends from it at once, without a queue in front of the tap's own.
pub(super) fn set_no_queueing(netlink: &Netlink, index: u32) -> io::Result<()> {
    let mut message = TcMessage::with_index(index as i32);
    message.header.parent = TcHandle::ROOT;
    message.attributes.push(TcAttribute::Kind("noqueue".into()));
    netlink.change(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Brings it up, without address resolution.
pub(super) fn bring_up(netlink: &Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Puts it into a bridge.
pub(super) fn join(netlink: &Netlink, index: u32, bridge: u32) -> io::Result<()> {
    set(netlink, index, vec![LinkAttribute::Controller(bridge)])
}

/// Sets it as a bridge's port.
pub(super) fn set_port(netlink: &Netlink, index: u32, settings: Vec<InfoBridgePort>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(settings)),
    ]));
    netlink.change(RouteNetlinkMessage::NewLink(message), 0)
}

/// Sets whether multicast goes to the port whatever the bridge has learned of groups.
pub(super) fn set_multicast_router(netlink: &Netlink, index: u32, kind: u8) -> io::Result<()> {
    set_port(netlink, index, vec![InfoBridgePort::MulticastRouter(BridgeMulticastRouterType::from(kind))])
}

/// The setting that sends all multicast to a port.
pub(super) fn all_multicast() -> u8 {
    BridgeMulticastRouterType::Permanent.into()
}

/// A settings list for the port through which released frames enter the bridge: it learns nothing
/// and nothing is flooded to it.
pub(super) fn outlet_settings(isolated: bool) -> Vec<InfoBridgePort> {
    vec![
        InfoBridgePort::Learning(false),
        InfoBridgePort::UnicastFlood(false),
        InfoBridgePort::MulticastFlood(false),
        InfoBridgePort::BroadcastFlood(false),
        InfoBridgePort::MulticastRouter(BridgeMulticastRouterType::Disabled),
        InfoBridgePort::Isolated(isolated),
    ]
}

fn address_at(index: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Controller;
    message.header.state = NeighbourState::Noarp;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    message
}

/// Lets the bridge know for certain that this address is at this port.
pub(super) fn pin_address(netlink: &Netlink, index: u32, mac: Mac) -> io::Result<()> {
    let message = RouteNetlinkMessage::NewNeighbour(address_at(index, mac));
    netlink.change(message, NLM_F_CREATE | NLM_F_REPLACE)
}

/// Takes that back; ok if the address is not, or no more, at this port.
pub(super) fn unpin_address(netlink: &Netlink, index: u32, mac: Mac) -> io::Result<()> {
    match netlink.change(RouteNetlinkMessage::DelNeighbour(address_at(index, mac)), 0) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)) => {
            Ok(())
        }
        outcome => outcome,
    }
}

/// Whether somebody has pinned this address to this port.
pub(super) fn is_pinned(netlink: &Netlink, index: u32, mac: Mac) -> io::Result<bool> {
    let mut question = NeighbourMessage::default();
    question.header.family = AddressFamily::Bridge;
    let answers = netlink.dump(RouteNetlinkMessage::GetNeighbour(question))?;
    Ok(answers.into_iter().any(|answer| {
        let RouteNetlinkMessage::NewNeighbour(entry) = answer else { return false };
        let fixed = matches!(entry.header.state, NeighbourState::Noarp | NeighbourState::Permanent);
        let here = entry.attributes.contains(&NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        entry.header.ifindex == index && fixed && here
    }))
}

/// Makes the queue that filters hang on. `false`: the interface has one already.
pub(super) fn add_clsact(netlink: &Netlink, index: u32) -> io::Result<bool> {
    match netlink.change(RouteNetlinkMessage::NewQueueDiscipline(clsact(index)), NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes it away with all its filters; ok if it is gone.
pub(super) fn remove_clsact(netlink: &Netlink, index: u32) -> io::Result<()> {
    match netlink.change(RouteNetlinkMessage::DelQueueDiscipline(clsact(index)), 0) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)) => {
            Ok(())
        }
        outcome => outcome,
    }
}

fn clsact(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index as i32);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.attributes.push(TcAttribute::Kind("clsact".into()));
    message
}
