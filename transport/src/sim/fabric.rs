//! Connecting, listening and shaking hands over a simulated network.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::connection::{Arrived, Connection};
use super::endpoint::SimEndpoint;
use super::state::State;
use super::{ConnectionId, Side, SimNetwork};
use crate::arena::Arena;
use crate::error::TransportError;
use crate::fabric::{Channel, Endpoint, Fabric, Listener, MAX_HANDSHAKE_BYTES};

const OFFER: &[u8; 8] = b"sim offr";
const ANSWER: &[u8; 8] = b"sim answ";

/// Connects over a [`SimNetwork`].
#[derive(Clone, Debug)]
pub struct SimFabric {
    network: SimNetwork,
}

impl SimFabric {
    pub(super) fn new(network: SimNetwork) -> Self {
        Self { network }
    }
}

fn refused(what: String, kind: std::io::ErrorKind) -> TransportError {
    TransportError::Io { what, source: kind.into() }
}

impl State {
    fn unused_port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(49152);
        self.next_port
    }
}

impl Fabric for SimFabric {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn connect(&self, peer: SocketAddr, _timeout: Duration) -> Result<Box<dyn Channel>, TransportError> {
        let connected = self.network.change(|state| {
            if state.refuse_connections {
                return None;
            }
            let id = ConnectionId(state.next_connection);
            state.listeners.get_mut(&peer)?.push_back(id);
            state.next_connection += 1;
            let streams = state.config.streams;
            state.connections.insert(id, Connection::new(streams));
            Some(id)
        });
        let Some(id) = connected else {
            return Err(refused(format!("connecting to {peer}"), std::io::ErrorKind::ConnectionRefused));
        };
        Ok(Box::new(SimChannel::new(&self.network, id, Side::Initiator, peer)))
    }

    fn listen(&self, mut address: SocketAddr) -> Result<Box<dyn Listener>, TransportError> {
        self.network.change(|state| {
            if address.port() == 0 {
                let is_free = |address: &SocketAddr| !state.listeners.contains_key(address);
                let ports = (49152..=u16::MAX).map(|port| SocketAddr::new(address.ip(), port));
                let Some(free) = ports.into_iter().find(is_free) else {
                    return Err(refused(format!("listening on {address}"), std::io::ErrorKind::AddrInUse));
                };
                address = free;
            }
            if state.listeners.contains_key(&address) {
                return Err(refused(format!("listening on {address}"), std::io::ErrorKind::AddrInUse));
            }
            state.listeners.insert(address, VecDeque::new());
            Ok(())
        })?;
        Ok(Box::new(SimListener { network: self.network.clone(), address }))
    }
}

struct SimListener {
    network: SimNetwork,
    address: SocketAddr,
}

impl Listener for SimListener {
    fn accept(&mut self, timeout: Duration) -> Result<Option<Box<dyn Channel>>, TransportError> {
        let accepted = self.network.wait(timeout, |state| {
            let id = state.listeners.get_mut(&self.address)?.pop_front()?;
            Some((id, state.unused_port()))
        });
        let channel = |(id, port)| {
            let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            Box::new(SimChannel::new(&self.network, id, Side::Responder, peer)) as Box<dyn Channel>
        };
        Ok(accepted.map(channel))
    }

    fn local_address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.network.change(|state| {
            for id in state.listeners.remove(&self.address).unwrap_or_default() {
                state.release(id, Side::Responder);
            }
        });
    }
}

/// The handle of one side; when the last clone of a side goes, the side closes.
pub(super) struct Handle {
    pub network: SimNetwork,
    pub id: ConnectionId,
    pub side: Side,
}

impl Handle {
    /// Works on the connection; it exists as long as the handle does.
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&mut Connection, &mut super::random::Random) -> Result<T, TransportError>,
    ) -> Result<T, TransportError> {
        self.network.change(|state| {
            let Some(connection) = state.connections.get_mut(&self.id) else {
                return Err(TransportError::Closed(crate::error::CloseReason::Local));
            };
            work(connection, &mut state.random)
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.network.change(|state| state.release(self.id, self.side));
    }
}

struct SimChannel {
    handle: Handle,
    peer: SocketAddr,
}

impl SimChannel {
    fn new(network: &SimNetwork, id: ConnectionId, side: Side, peer: SocketAddr) -> Self {
        SimChannel { handle: Handle { network: network.clone(), id, side }, peer }
    }

    fn expect_side(&self, side: Side, what: &str) -> Result<(), TransportError> {
        if self.handle.side == side {
            return Ok(());
        }
        Err(TransportError::Invalid(format!("{what} is for the {side:?} only")))
    }
}

impl Channel for SimChannel {
    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn send(&mut self, message: &[u8]) -> Result<(), TransportError> {
        if message.len() > MAX_HANDSHAKE_BYTES {
            return Err(TransportError::Invalid(format!("a message of {} bytes", message.len())));
        }
        let side = self.handle.side;
        self.handle.with(|connection, _| {
            let end = connection.end_mut(side);
            if let Some(reason) = &end.ended {
                return Err(reason.clone().into());
            }
            if !end.dead {
                end.messages.queue.push_back(message.to_vec());
            }
            Ok(())
        })
    }

    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, TransportError> {
        let (id, side) = (self.handle.id, self.handle.side);
        let received = self.handle.network.wait(timeout, |state| {
            let end = state.connections.get_mut(&id)?.end_mut(side);
            let first_message = end.arrived.iter().position(|event| matches!(event, Arrived::Message(_)));
            match first_message.and_then(|index| end.arrived.remove(index)) {
                Some(Arrived::Message(message)) => Some(Ok(message)),
                _ => end.ended.clone().map(|reason| Err(reason.into())),
            }
        });
        let what = || format!("receiving a message from {}", self.peer);
        received.unwrap_or_else(|| Err(TransportError::TimedOut { what: what(), limit: timeout }))
    }

    fn offer(&mut self) -> Result<Vec<u8>, TransportError> {
        self.expect_side(Side::Initiator, "an offer")?;
        Ok(with_id(OFFER, self.handle.id))
    }

    fn answer(&mut self, offer: &[u8], arena: Arena) -> Result<Vec<u8>, TransportError> {
        self.expect_side(Side::Responder, "an answer")?;
        if offer != with_id(OFFER, self.handle.id) {
            return Err(TransportError::Handshake("not this connection's offer".into()));
        }
        self.handle.with(|connection, _| {
            if let Some(reason) = &connection.end(Side::Responder).ended {
                return Err(reason.clone().into());
            }
            let shape = |(base, memory): &(u64, crate::Memory)| (*base, memory.len_bytes() as u64);
            connection.chunks = Some(arena.chunks().iter().map(shape).collect());
            connection.arena = Some(arena);
            Ok(())
        })?;
        Ok(with_id(ANSWER, self.handle.id))
    }

    fn establish(
        self: Box<Self>,
        answer: Option<&[u8]>,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, TransportError> {
        let side = self.handle.side;
        match (side, answer) {
            (Side::Initiator, Some(answer)) if answer == with_id(ANSWER, self.handle.id) => {}
            (Side::Initiator, Some(_)) => {
                return Err(TransportError::Handshake("not this connection's answer".into()));
            }
            (Side::Responder, None) => {}
            _ => return Err(TransportError::Invalid("only the initiator passes an answer".into())),
        }
        if side == Side::Initiator {
            self.handle.with(|connection, _| {
                connection.established = true;
                match &connection.end(side).ended {
                    Some(reason) => Err(reason.clone().into()),
                    None => Ok(()),
                }
            })?;
        } else if self.handle.network.inner.auto {
            self.wait_for_initiator(timeout)?;
        }
        Ok(Arc::new(SimEndpoint::new(self.handle)))
    }
}

impl SimChannel {
    fn wait_for_initiator(&self, timeout: Duration) -> Result<(), TransportError> {
        let id = self.handle.id;
        let established = self.handle.network.wait(timeout, |state| {
            let connection = state.connections.get(&id)?;
            match &connection.end(Side::Responder).ended {
                _ if connection.established => Some(Ok(())),
                Some(reason) => Some(Err(reason.clone().into())),
                None => None,
            }
        });
        let what = || format!("establishing with {}", self.peer);
        established.unwrap_or_else(|| Err(TransportError::TimedOut { what: what(), limit: timeout }))
    }
}

fn with_id(kind: &[u8; 8], id: ConnectionId) -> Vec<u8> {
    [kind.as_slice(), &id.0.to_le_bytes()].concat()
}
