//! A guest's network cards and what is behind them.

use std::collections::BTreeSet;

use romulus_host::gate::{Mac, NicSpec};

use crate::discover::{Inventory, NetworkClient};

/// A network card that is connected to a back end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its name: the id of its device, or QEMU's own name.
    pub nic: String,
    /// The back end's id.
    pub netdev: String,
    /// The back end's kind: `tap`, `user`, `socket`, ...
    pub kind: String,
    /// The card's address.
    pub mac: Option<Mac>,
    /// The kernel interface of a tap.
    pub tap: Option<String>,
    /// Pairs of queues.
    pub queues: usize,
    /// Whether the kernel moves its packets past QEMU.
    pub vhost: bool,
}

impl Card {
    /// As a gate on its kernel interface knows it, if it has one.
    pub fn on_tap(&self) -> Option<NicSpec> {
        Some(NicSpec { nic: self.nic.clone(), tap: self.tap.clone()?, mac: self.mac? })
    }
}

/// The cards of a guest; `interface_of` tells the interface behind a descriptor of QEMU's, and
/// `interfaces` gives all that QEMU has open.
pub fn cards(inventory: &Inventory, interfaces: &[(u32, String)], has_vhost: bool) -> Vec<Card> {
    let network = &inventory.network;
    let first_queue = |client: &&NetworkClient| {
        client.kind == "nic"
            && client.peer.is_some()
            && client.field("index").is_none_or(|index| index == "0")
    };
    let mut cards: Vec<Card> = Vec::new();
    for client in network.iter().filter(first_queue) {
        let netdev = client.peer.clone().unwrap_or_default();
        let backs: Vec<&NetworkClient> =
            network.iter().filter(|back| back.name == netdev && back.kind != "nic").collect();
        let Some(back) = backs.first() else { continue };
        let is_tap = back.kind == "tap";
        cards.push(Card {
            nic: client.name.clone(),
            kind: back.kind.clone(),
            mac: client.field("macaddr").and_then(parse_mac),
            tap: if is_tap { interface(back, interfaces) } else { None },
            queues: backs.len(),
            vhost: is_tap && has_vhost,
            netdev,
        });
    }
    name_last_tap(&mut cards, interfaces);
    cards
}

/// The interface that a tap's description names, by itself or by its descriptor.
fn interface(back: &NetworkClient, interfaces: &[(u32, String)]) -> Option<String> {
    if let Some(name) = back.field("ifname") {
        return Some(name.to_owned());
    }
    let fd: u32 = back.field("fd")?.parse().ok()?;
    interfaces.iter().find(|(number, _)| *number == fd).map(|(_, name)| name.clone())
}

/// A tap whose description says nothing of its interface (one that a helper made) has the only
/// interface that is left.
fn name_last_tap(cards: &mut [Card], interfaces: &[(u32, String)]) {
    let named: BTreeSet<String> = cards.iter().filter_map(|card| card.tap.clone()).collect();
    let left: BTreeSet<&String> =
        interfaces.iter().map(|(_, name)| name).filter(|name| !named.contains(*name)).collect();
    let mut open: Vec<&mut Card> =
        cards.iter_mut().filter(|card| card.kind == "tap" && card.tap.is_none()).collect();
    if let ([card], 1) = (&mut open[..], left.len()) {
        card.tap = left.first().map(|name| (*name).clone());
    }
}

fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::parse_network;

    fn found(text: &str, interfaces: &[(u32, &str)]) -> Vec<Card> {
        let inventory = Inventory { network: parse_network(text), ..Inventory::default() };
        let interfaces: Vec<_> = interfaces.iter().map(|(fd, name)| (*fd, name.to_string())).collect();
        cards(&inventory, &interfaces, false)
    }

    #[test]
    fn several_queues_are_one_card() {
        let text = "net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\n \
                    \\ n0: index=0,type=tap,ifname=tap7,script=no,downscript=no\n\
                    net0: index=1,type=nic,\n \\ n0: index=1,type=tap,ifname=tap7,script=no,downscript=no\n\
                    net1: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:57\n\
                    net2: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:58\n \
                    \\ n2: index=0,type=user,net=10.0.2.0,restrict=off\n";
        let cards = found(text, &[]);
        assert_eq!(cards.len(), 2, "a card without a back end sends nothing");
        assert_eq!((cards[0].queues, cards[0].tap.as_deref()), (2, Some("tap7")));
        assert_eq!(cards[0].mac, Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        assert_eq!(
            (cards[1].nic.as_str(), cards[1].kind.as_str(), cards[1].tap.as_deref()),
            ("net2", "user", None)
        );
    }

    #[test]
    fn a_card_and_a_back_end_alone_on_a_hub_are_one_card() {
        let text = "hub 0\n \\ hub0port1: net0: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:56\n \
                    \\ hub0port0: #net012: index=0,type=tap,ifname=tap7,script=no\n";
        let cards = found(text, &[]);
        assert_eq!(cards.len(), 1);
        assert_eq!((cards[0].nic.as_str(), cards[0].netdev.as_str()), ("net0", "#net012"));
        assert_eq!(cards[0].tap.as_deref(), Some("tap7"));
    }

    #[test]
    fn interfaces_behind_descriptors_and_helpers() {
        let text = "a: index=0,type=nic,model=x,macaddr=52:54:00:00:00:01\n \\ na: index=0,type=tap,fd=23\n\
                    b: index=0,type=nic,model=x,macaddr=52:54:00:00:00:02\n \\ nb: index=0,type=tap,helper=/h,br=br0\n";
        let cards = found(text, &[(23, "vnet0"), (30, "vnet1")]);
        assert_eq!((cards[0].tap.as_deref(), cards[1].tap.as_deref()), (Some("vnet0"), Some("vnet1")));
        let cards = found(text, &[(23, "vnet0"), (30, "vnet1"), (31, "vnet2")]);
        assert_eq!(cards[1].tap, None, "two are left: nobody knows which");
    }

    #[test]
    fn addresses() {
        assert_eq!(parse_mac("02:00:00:00:00:ff"), Some([2, 0, 0, 0, 0, 255]));
        for wrong in ["", "02:00", "02:00:00:00:00:00:00", "xx:00:00:00:00:00"] {
            assert_eq!(parse_mac(wrong), None);
        }
    }
}
