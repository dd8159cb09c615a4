//! The filters on a guest's tap: one takes what the guest sends to the gate, one keeps what the
//! gate releases from coming back to the guest.
//!
//! Both carry a cookie, by which a later process knows them as ours and reads what was set beside them.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterMatchAll, TcFilterMatchAllOption, TcFilterU32, TcFilterU32Option,
    TcHandle, TcHeader, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector,
    TcU32SelectorFlags,
};

use super::link::Mac;
use super::netlink::Netlink;

const MAGIC: [u8; 8] = *b"romulus1";
const PRIORITY: u32 = 1;
/// All protocols, in network order.
const ALL_PROTOCOLS: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;
/// Where the source address lies, seen from behind the Ethernet header.
const SOURCE_OFFSET: i32 = -8;

/// What was set beside the filter and is to be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Restore {
    /// The tap's setting as a multicast router.
    pub(super) multicast_router: u8,
    /// The guest's address was pinned to the tap by somebody else: it stays.
    pub(super) address_stays: bool,
}

impl Restore {
    fn to_cookie(self) -> Vec<u8> {
        let mut cookie = MAGIC.to_vec();
        cookie.extend([self.multicast_router, u8::from(self.address_stays)]);
        cookie
    }

    fn from_cookie(cookie: &[u8]) -> Option<Self> {
        let rest = cookie.strip_prefix(&MAGIC)?;
        Some(Self { multicast_router: *rest.first()?, address_stays: *rest.get(1)? != 0 })
    }
}

/// What hangs on the hook through which an interface receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No filter.
    Nothing,
    /// A gate's.
    Ours(Restore),
    /// Somebody else's alone.
    Foreign,
}

/// Looks at the filters on both hooks: that which holds, and that which diverts.
pub(super) fn look_at_both(netlink: &Netlink, index: u32) -> io::Result<(Found, Found)> {
    Ok((look_at(netlink, index, TcHandle::MIN_INGRESS)?, look_at(netlink, index, TcHandle::MIN_EGRESS)?))
}

fn look_at(netlink: &Netlink, index: u32, hook: u16) -> io::Result<Found> {
    // All priorities and protocols.
    let message = TcMessage::from_parts(TcHeader { info: 0, ..header(index, hook) }, Vec::new());
    let answers = match netlink.dump(RouteNetlinkMessage::GetTrafficFilter(message)) {
        Ok(answers) => answers,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut found = Found::Nothing;
    for answer in answers {
        let RouteNetlinkMessage::NewTrafficFilter(filter) = answer else { continue };
        if let Some(restore) = cookie_of(&filter) {
            return Ok(Found::Ours(restore));
        }
        found = Found::Foreign;
    }
    Ok(found)
}

fn cookie_of(filter: &TcMessage) -> Option<Restore> {
    let options = filter.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let actions = options.iter().find_map(|option| match option {
        TcOption::MatchAll(TcFilterMatchAllOption::Action(actions)) => Some(actions),
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    })?;
    actions.iter().flat_map(|action| &action.attributes).find_map(|attribute| match attribute {
        TcActionAttribute::Cookie(cookie) => Restore::from_cookie(cookie),
        _ => None,
    })
}

/// Sends everything that comes in on `from` to `to` instead. From the call's return on nothing
/// passes; whatever `to` cannot take, or when it is gone, is dropped.
pub(super) fn redirect_all(netlink: &Netlink, from: u32, to: u32, restore: Restore) -> io::Result<()> {
    let actions = vec![redirect_to(to, restore)];
    let options = vec![TcOption::MatchAll(TcFilterMatchAllOption::Action(actions.clone()))];
    match add(netlink, from, TcHandle::MIN_INGRESS, TcFilterMatchAll::KIND, options) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {}
        outcome => return outcome,
    }
    // A kernel without the classifier that matches all: u32 does, without a key to compare.
    add(netlink, from, TcHandle::MIN_INGRESS, TcFilterU32::KIND, u32_options(Vec::new(), actions))
}

/// Sends what goes out on `from` with this source address to `to` instead, where nobody reads.
pub(super) fn divert_source(
    netlink: &Netlink,
    from: u32,
    source: Mac,
    to: u32,
    restore: Restore,
) -> io::Result<()> {
    let [a, b, c, d, e, f] = source;
    let keys = vec![
        key(u32::from_be_bytes([a, b, c, d]), u32::MAX, SOURCE_OFFSET),
        key(u32::from_be_bytes([e, f, 0, 0]), 0xffff_0000, SOURCE_OFFSET + 4),
    ];
    let options = u32_options(keys, vec![redirect_to(to, restore)]);
    add(netlink, from, TcHandle::MIN_EGRESS, TcFilterU32::KIND, options)
}

fn add(netlink: &Netlink, index: u32, hook: u16, kind: &str, options: Vec<TcOption>) -> io::Result<()> {
    let attributes = vec![TcAttribute::Kind(kind.into()), TcAttribute::Options(options)];
    let message = TcMessage::from_parts(header(index, hook), attributes);
    netlink.change(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn header(index: u32, hook: u16) -> TcHeader {
    TcHeader {
        index: index as i32,
        parent: TcHandle { major: u16::MAX, minor: hook },
        info: PRIORITY << 16 | ALL_PROTOCOLS,
        ..TcHeader::default()
    }
}

fn redirect_to(index: u32, restore: Restore) -> TcAction {
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = index;
    let mut action = TcAction::default();
    action.attributes.push(TcActionAttribute::Kind(TcActionMirror::KIND.into()));
    action.attributes.push(TcActionAttribute::Cookie(restore.to_cookie()));
    action
        .attributes
        .push(TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]));
    action
}

fn u32_options(keys: Vec<TcU32Key>, actions: Vec<TcAction>) -> Vec<TcOption> {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = keys.len() as u8;
    selector.keys = keys;
    vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(actions)),
    ]
}

fn key(value: u32, mask: u32, offset: i32) -> TcU32Key {
    let mut key = TcU32Key::default();
    key.val = value;
    key.mask = mask;
    key.off = offset;
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_known_again_and_others_are_not() {
        for restore in [
            Restore { multicast_router: 1, address_stays: false },
            Restore { multicast_router: 2, address_stays: true },
        ] {
            let cookie = restore.to_cookie();
            assert!(cookie.len() <= 16, "the kernel keeps sixteen bytes");
            assert_eq!(Restore::from_cookie(&cookie), Some(restore));
        }
        for other in [&b""[..], b"romulus1", b"romulus2\x01\x00", b"deadbeef"] {
            assert_eq!(Restore::from_cookie(other), None);
        }
    }
}
