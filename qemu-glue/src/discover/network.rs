//! QEMU's network clients, which it only gives as text.

/// A network card or a back end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkClient {
    /// Its name.
    pub name: String,
    /// `nic`, `tap`, `vhost-user`, ...
    pub kind: String,
    /// Whether it is connected to a peer.
    pub has_peer: bool,
}

/// Parses `info network`: `name: index=0,type=nic,...`, a peer on the next line behind ` \ `.
pub(super) fn parse(text: &str) -> Vec<NetworkClient> {
    let mut clients: Vec<NetworkClient> = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim_start();
        let is_peer = trimmed.starts_with('\\');
        let trimmed = trimmed.trim_start_matches(['\\', ' ']);
        let Some((name, rest)) = trimmed.split_once(": ") else { continue };
        let Some(kind) = rest.split(',').find_map(|field| field.strip_prefix("type=")) else { continue };
        if let (true, Some(last)) = (is_peer, clients.last_mut()) {
            last.has_peer = true;
        }
        clients.push(NetworkClient { name: name.into(), kind: kind.into(), has_peer: is_peer });
    }
    clients
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
        assert!(!clients[2].has_peer);
    }
}
