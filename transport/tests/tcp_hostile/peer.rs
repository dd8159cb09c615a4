//! A real endpoint, and a peer that speaks raw bytes to it.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use romulus_transport::tcp::wire::*;
use romulus_transport::tcp::{TcpConfig, TcpFabric};
use romulus_transport::{
    Arena, Channel, CloseReason, Endpoint, Event, Fabric, Listener, Memory, MessageBuffer,
};

pub const PATIENCE: Duration = Duration::from_secs(120);
pub const ARENA_BYTES: usize = 8192;

/// Far from taking a busy machine for a dead peer.
pub fn patient() -> TcpConfig {
    TcpConfig { silent_after: Duration::from_secs(60), ..TcpConfig::default() }
}

pub fn listen(config: TcpConfig) -> Box<dyn Listener> {
    TcpFabric::new(config).listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

pub fn accept(listener: &mut dyn Listener) -> Box<dyn Channel> {
    listener.accept(PATIENCE).unwrap().expect("a channel")
}

/// Opens a raw connection with a preface.
pub fn open(address: SocketAddr, preface: &Preface) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.write_all(&encode_preface(preface)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A responder in good faith, and the raw sockets of its initiator.
pub struct RawInitiator {
    pub responder: Arc<dyn Endpoint>,
    pub target: [Memory; 2],
    pub control: TcpStream,
    pub data: Vec<TcpStream>,
}

impl RawInitiator {
    /// The arena is two chunks of half of `ARENA_BYTES`, full of sevens.
    pub fn new(config: TcpConfig, streams: usize) -> Self {
        let heartbeat_every_us = 1000;
        let mut listener = listen(config);
        let address = listener.local_address();
        let control = open(address, &Preface::Control);
        let mut channel = accept(&mut *listener);
        let target = [Memory::anonymous(ARENA_BYTES / 2), Memory::anonymous(ARENA_BYTES / 2)];
        target.iter().for_each(|chunk| chunk.write(0, &[7; ARENA_BYTES / 2]));
        let offer = encode_offer(&Offer { streams, heartbeat_every_us });
        let answer = channel.answer(&offer, Arena::new(target.clone())).unwrap();
        let token = decode_answer(&answer).unwrap().token;
        let data = (0..streams)
            .map(|stream| open(address, &Preface::Data { stream: stream as u8, token }))
            .collect();
        let responder = channel.establish(None, PATIENCE).unwrap();
        RawInitiator { responder, target, control, data }
    }

    pub fn target_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; ARENA_BYTES];
        let (left, right) = bytes.split_at_mut(ARENA_BYTES / 2);
        self.target[0].read(0, left);
        self.target[1].read(0, right);
        bytes
    }
}

/// An initiator in good faith, and the raw sockets of its responder, which names an arena of
/// `arena_bytes` but has none.
pub struct RawResponder {
    pub initiator: Arc<dyn Endpoint>,
    pub control: TcpStream,
    pub data: Vec<TcpStream>,
}

impl RawResponder {
    pub fn new(config: TcpConfig, arena_bytes: u64) -> Self {
        let streams = config.streams;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let channel = TcpFabric::new(config).connect(address, PATIENCE).unwrap();
        let control = listener.accept().unwrap().0;
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let answer = Answer {
            streams,
            heartbeat_every_us: 1000,
            token: [3; TOKEN_BYTES],
            chunks_bytes: vec![arena_bytes],
        };
        let initiator = channel.establish(Some(&encode_answer(&answer)), PATIENCE).unwrap();
        let data = (0..streams).map(|_| listener.accept().unwrap().0).collect();
        RawResponder { initiator, control, data }
    }
}

/// The end of the connection, and how many fences came before it.
pub fn expect_end(endpoint: &dyn Endpoint) -> (CloseReason, usize) {
    let start = Instant::now();
    let mut message = MessageBuffer::default();
    let mut fences = 0;
    loop {
        match endpoint.next_event(&mut message, PATIENCE).unwrap() {
            Event::Closed(reason) => return (reason, fences),
            Event::Fenced { .. } => fences += 1,
            Event::Message | Event::Idle => {}
        }
        assert!(start.elapsed() < PATIENCE, "no end");
    }
}

pub fn expect_violation(endpoint: &dyn Endpoint, what: &str) {
    let (reason, _) = expect_end(endpoint);
    assert!(matches!(reason, CloseReason::Violation(_)), "{what}: {reason:?}");
}

/// A frame of writes; says `payload_bytes`, whatever it carries.
pub fn writes(descriptors: &[(u64, u32)], payload_bytes: u64, payload: &[u8]) -> Vec<u8> {
    let header = DataHeader::Writes { count: descriptors.len(), payload_bytes };
    let mut bytes = encode_data_header(&header).to_vec();
    for &(offset, len_bytes) in descriptors {
        bytes.extend(encode_descriptor(&Descriptor { offset, len_bytes }));
    }
    bytes.extend(payload);
    bytes
}

pub fn marker(marker: u64) -> Vec<u8> {
    encode_data_header(&DataHeader::Marker { marker }).to_vec()
}

pub fn message(body: &[u8]) -> Vec<u8> {
    let header = ControlHeader { kind: ControlKind::Message, len_bytes: body.len() };
    [&encode_control_header(&header), body].concat()
}
