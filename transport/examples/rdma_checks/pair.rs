//! Two connected endpoints in this process, with a say in what the handshake carries.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use romulus_transport::rdma::wire::{Answer, decode_answer, encode_answer};
use romulus_transport::rdma::{RdmaConfig, RdmaFabric};
use romulus_transport::{
    Arena, CloseReason, Endpoint, Event, Fabric, Memory, MessageBuffer, RegionId, TransportError, Write,
};

pub const PATIENCE: Duration = Duration::from_secs(120);
pub const ARENA_BYTES: usize = 64 * 1024;

/// Where the checks run.
pub struct Place {
    pub address: IpAddr,
    pub interface: Option<String>,
}

impl Place {
    pub fn socket(&self) -> SocketAddr {
        (self.address, 0).into()
    }
}

/// Far from taking a busy machine for a dead peer.
pub fn patient() -> RdmaConfig {
    RdmaConfig { silent_after: Duration::from_secs(60), ..RdmaConfig::default() }
}

/// A pair whose arena is full of sevens.
pub struct Pair {
    pub initiator: Arc<dyn Endpoint>,
    pub responder: Arc<dyn Endpoint>,
    pub region: RegionId,
    pub target: Memory,
}

impl Pair {
    pub fn new(place: &Place) -> Self {
        Self::of(place.socket(), patient(), patient(), |_| {}).expect("a connection")
    }

    /// With these options, and an answer that was tampered with on its way.
    pub fn of(
        address: SocketAddr,
        connecting: RdmaConfig,
        listening: RdmaConfig,
        tamper: impl FnOnce(&mut Answer),
    ) -> Result<Self, TransportError> {
        Self::through(address, None, connecting, listening, tamper)
    }

    /// The initiator connects to `proxy`, if there is one, given the listener's address.
    pub fn through(
        address: SocketAddr,
        proxy: Option<&dyn Fn(SocketAddr) -> SocketAddr>,
        connecting: RdmaConfig,
        listening: RdmaConfig,
        tamper: impl FnOnce(&mut Answer),
    ) -> Result<Self, TransportError> {
        let mut listener = RdmaFabric::new(listening).listen(address)?;
        let listened = listener.local_address();
        let peer = proxy.map_or(listened, |proxy| proxy(listened));
        let mut initiator = RdmaFabric::new(connecting).connect(peer, PATIENCE)?;
        let mut responder = listener.accept(PATIENCE)?.expect("a channel in time");
        let target = Memory::anonymous(ARENA_BYTES);
        target.write(0, &[7; ARENA_BYTES]);
        let answer = responder.answer(&initiator.offer()?, Arena::new([target.clone()]))?;
        let mut answer = decode_answer(&answer).expect("an answer");
        tamper(&mut answer);
        let accepting = std::thread::spawn(move || responder.establish(None, PATIENCE));
        let initiator = initiator.establish(Some(&encode_answer(&answer)), PATIENCE)?;
        let responder = accepting.join().expect("the accepting thread")?;
        let source = Memory::anonymous(2 * ARENA_BYTES);
        source.write(0, &[9; 2 * ARENA_BYTES]);
        let region = initiator.register(source)?;
        Ok(Pair { initiator, responder, region, target })
    }

    pub fn write(&self, remote_offset: u64, len_bytes: u64) -> Write {
        Write { region: self.region, local_offset: 0, remote_offset, len_bytes }
    }

    pub fn target_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; ARENA_BYTES];
        self.target.read(0, &mut bytes);
        bytes
    }

    /// An epoch goes through, and a message each way.
    pub fn works(&self) {
        let mut message = MessageBuffer::default();
        self.initiator.write(&[self.write(100, 5000)]).expect("writing");
        self.initiator.mark(1).expect("marking");
        assert_eq!(expect_event(&*self.responder, &mut message), Event::Fenced { marker: 1 });
        let bytes = self.target_bytes();
        let expected = |at: usize| if (100..5100).contains(&at) { 9 } else { 7 };
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
        for (from, to) in [(&self.initiator, &self.responder), (&self.responder, &self.initiator)] {
            from.send(b"hello").expect("sending");
            assert_eq!(expect_event(&**to, &mut message), Event::Message);
            assert_eq!(message.message(), b"hello");
        }
    }
}

/// The next event that is not `Idle`.
pub fn expect_event(endpoint: &dyn Endpoint, message: &mut MessageBuffer) -> Event {
    let start = Instant::now();
    loop {
        match endpoint.next_event(message, PATIENCE).expect("an event") {
            Event::Idle => assert!(start.elapsed() < PATIENCE, "nothing happened within {PATIENCE:?}"),
            event => return event,
        }
    }
}

/// Why the connection ended.
pub fn expect_end(endpoint: &dyn Endpoint) -> CloseReason {
    loop {
        if let Event::Closed(reason) = expect_event(endpoint, &mut MessageBuffer::default()) {
            return reason;
        }
    }
}

/// The text contains all the parts.
pub fn expect_parts(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
}
