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
    /// The other fields: `ifname=tap0`, `macaddr=52:54:00:12:34:56`, `fd=23`, ...
    pub fields: Vec<String>,
}

impl NetworkClient {
    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Parses `info network`: `name: index=0,type=nic,...`, a peer on the next line behind ` \ `.
pub(crate) fn parse(text: &str) -> Vec<NetworkClient> {
    let mut clients: Vec<NetworkClient> = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim_start();
        let is_peer = trimmed.starts_with('\\');
        let trimmed = trimmed.trim_start_matches(['\\', ' ']);
        let Some((name, rest)) = trimmed.split_once(": ") else { continue };
        let Some(kind) = rest.split(',').find_map(|field| field.strip_prefix("type=")) else { continue };
        let mut peer = None;
        if let (true, Some(last)) = (is_peer, clients.last_mut()) {
            last.has_peer = true;
            last.peer.get_or_insert_with(|| name.to_owned());
            peer = Some(last.name.clone());
        }
        let fields = rest.split(',').map(str::to_owned).collect();
        clients.push(NetworkClient { name: name.into(), kind: kind.into(), has_peer: is_peer, peer, fields });
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
        assert_eq!(clients[0].peer.as_deref(), Some("n0"));
        assert_eq!(clients[0].field("macaddr"), Some("52:54:00:12:34:56"));
        assert_eq!((clients[1].field("ifname"), clients[1].field("fd")), (Some("tap0"), None));
        assert!(!clients[2].has_peer);
    }
}
