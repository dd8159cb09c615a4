//! QEMU's network clients, which it only gives as text.

/// A network card or a back end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkClient {
    /// Its name.
    pub name: String,
    /// `nic`, `tap`, `vhost-user`, ...
    pub kind: String,
    /// Whether it is connected to a peer.
    pub has_peer: bool,
    /// What it is connected to, by name; of several queues the first.
    pub peer: Option<String>,
    /// The hub that joins it to others, if more than one card and one back end are on it: what comes
    /// out of the hub tells nothing of who sent it.
    pub hub: Option<String>,
    /// The other fields: `ifname=tap0`, `macaddr=52:54:00:12:34:56`, `fd=23`, ...
    pub fields: Vec<String>,
}

impl NetworkClient {
    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Parses `info network`: hubs first, with what is on each; then `name: index=0,type=nic,...`, its peer
/// on the next line behind ` \ `.
pub(crate) fn parse(text: &str) -> Vec<NetworkClient> {
    let mut clients: Vec<NetworkClient> = Vec::new();
    let mut hub: Option<(&str, usize)> = None;
    for line in text.lines() {
        if line.starts_with("hub ") {
            close_hub(hub.replace((line, clients.len())), &mut clients);
            continue;
        }
        let behind = line.trim_start().strip_prefix("\\ ");
        if behind.is_none() && hub.is_some() && !is_of_a_filter(line) {
            close_hub(hub.take(), &mut clients);
        }
        let name_and_rest = match (behind, hub) {
            // Behind the name of the hub's port.
            (Some(behind), Some(_)) => behind.split_once(": ").map(|(_, client)| client),
            (Some(behind), None) => Some(behind),
            (None, _) if is_of_a_filter(line) => None,
            (None, _) => Some(line.trim_start()),
        };
        let Some((name, rest)) = name_and_rest.and_then(|text| text.split_once(": ")) else { continue };
        let Some(kind) = rest.split(',').find_map(|field| field.strip_prefix("type=")) else { continue };
        let mut client = NetworkClient {
            name: name.into(),
            kind: kind.into(),
            has_peer: behind.is_some(),
            fields: rest.split(',').map(str::to_owned).collect(),
            ..NetworkClient::default()
        };
        if let (Some(_), None, Some(last)) = (behind, hub, clients.last_mut()) {
            last.has_peer = true;
            last.peer.get_or_insert_with(|| name.to_owned());
            client.peer = Some(last.name.clone());
        }
        clients.push(client);
    }
    close_hub(hub, &mut clients);
    clients
}

/// Filters are listed below the back end that they are in front of.
fn is_of_a_filter(line: &str) -> bool {
    line.trim_end() == "filters:" || line.trim_start().starts_with("- ")
}

/// All that is on a hub is known: a card and a back end alone are joined as by a cable.
fn close_hub(hub: Option<(&str, usize)>, clients: &mut [NetworkClient]) {
    let Some((name, first)) = hub else { return };
    match &mut clients[first..] {
        [] | [_] => {}
        [one, other] if (one.kind == "nic") != (other.kind == "nic") => {
            one.peer = Some(other.name.clone());
            other.peer = Some(one.name.clone());
        }
        several => several.iter_mut().for_each(|client| client.hub = Some(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_and_its_peer() {
        let text = "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\n \
                    \\ n0: index=0,type=tap,ifname=tap0,script=no\nalone: index=0,type=nic,model=e1000\n";
        let clients = parse(text);
        assert_eq!(clients.len(), 3);
        assert!(clients[0].has_peer && clients[0].kind == "nic");
        assert_eq!((clients[1].name.as_str(), clients[1].kind.as_str()), ("n0", "tap"));
        assert_eq!(clients[0].peer.as_deref(), Some("n0"));
        assert_eq!(clients[0].field("macaddr"), Some("52:54:00:12:34:56"));
        assert_eq!((clients[1].field("ifname"), clients[1].field("fd")), (Some("tap0"), None));
        assert!(!clients[2].has_peer);
    }

    /// As QEMU prints it: the newest first.
    const CARD: &str = "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\n";
    const TAP: &str = "#net012: index=0,type=tap,ifname=tap0,script=no\n";

    #[test]
    fn a_hub_with_a_card_and_a_back_end_is_a_cable() {
        let filter = "filters:\n  - f0: type=filter-buffer,netdev=#net012,status=on\n";
        let alone = "filters: index=0,type=nic,model=e1000\n";
        let clients =
            parse(&format!("hub 0\n \\ hub0port1: {CARD} \\ hub0port0: {TAP}{filter}{alone} \\ {TAP}"));
        let names: Vec<_> = clients.iter().map(|client| client.name.as_str()).collect();
        assert_eq!(names, ["virtio-net-pci.0", "#net012", "filters", "#net012"]);
        assert_eq!(clients[0].peer.as_deref(), Some("#net012"));
        assert_eq!(clients[1].peer.as_deref(), Some("virtio-net-pci.0"));
        assert_eq!(clients[1].field("ifname"), Some("tap0"));
        assert!(clients.iter().all(|client| client.hub.is_none()));
    }

    #[test]
    fn who_shares_a_hub_has_no_peer() {
        let other = CARD.replace("pci.0", "pci.1");
        for (on_hub, count) in
            [(vec![CARD, &other, TAP], 3), (vec![CARD, TAP, TAP], 3), (vec![CARD, &other], 2)]
        {
            let ports: String = on_hub.iter().map(|client| format!(" \\ hub7port0: {client}")).collect();
            let clients = parse(&format!("hub 7\n{ports}hub 8\n \\ hub8port0: {CARD} \\ hub8port1\n"));
            assert_eq!(clients.len(), count + 1);
            let (alone, sharing) = clients.split_last().unwrap();
            assert!(
                sharing.iter().all(|client| client.peer.is_none() && client.hub.as_deref() == Some("hub 7"))
            );
            assert!(alone.peer.is_none() && alone.hub.is_none() && alone.has_peer);
        }
    }
}
