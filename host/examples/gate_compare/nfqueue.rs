//! `nfqueue`: the kernel holds the packets in a queue of the netfilter's, and tells a program of each; one
//! verdict on a packet's number lets go of it and all before it.
//!
//! Messages, attributes and their meaning: include/uapi/linux/netfilter/nfnetlink_queue.h.

use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use netlink_packet_core::{
    DefaultNla, Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlaBuffer, NlasIterator,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::gate_lab::{run, try_run};
use crate::netlink;
use crate::way::Way;

const QUEUE: u16 = 7;
/// Packets that the kernel holds before it drops.
const MOST_PACKETS: u32 = 200_000;
/// For what it tells of packets until the program reads it; full, it drops the packet.
const RECEIVE_BUFFER_BYTES: usize = 64 << 20;
const BATCH: usize = 64;
/// Of a message about a packet without its bytes, which takes some 150.
const MESSAGE_BYTES: usize = 512;
/// In front of the attributes: the netlink header, and family, version and number of the queue.
const HEADERS_BYTES: usize = 16 + 4;

pub struct Nfqueue {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

struct Shared {
    socket: Socket,
    over: AtomicBool,
    taken: AtomicU64,
    /// The last packet it was told of, while nobody reads.
    last: Mutex<Option<u32>>,
    marks: Mutex<Marks>,
}

#[derive(Default)]
struct Marks {
    /// Each mark with the last packet before it.
    unreleased: Vec<(u64, Option<u32>)>,
    released: Option<u32>,
}

impl Nfqueue {
    pub fn new() -> Result<Self, String> {
        let socket = open_queue()
            .map_err(|error| format!("no queue for a program (CONFIG_NETFILTER_NETLINK_QUEUE): {error}"))?;
        let shared = Arc::new(Shared {
            socket,
            over: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            last: Mutex::default(),
            marks: Mutex::default(),
        });
        let reader = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.read_until_over()
        });
        let nfqueue = Self { shared, reader: Some(reader) };
        let missing =
            |error| format!("no bridge with a queue (CONFIG_NF_TABLES_BRIDGE, CONFIG_NFT_QUEUE): {error}");
        try_run("nft", "add table bridge romulus").map_err(missing)?;
        let hook = "{ type filter hook prerouting priority -300 ; }";
        let rule = format!("iifname guest0 queue num {QUEUE}");
        try_run("nft", &format!("add chain bridge romulus held {hook}"))
            .and_then(|_| try_run("nft", &format!("add rule bridge romulus held {rule}")))
            .map_err(missing)?;
        Ok(nfqueue)
    }
}

/// A queue that tells of packets without their bytes, large segments in one piece.
fn open_queue() -> io::Result<Socket> {
    let socket = netlink::open(NETLINK_NETFILTER)?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES)?;
    let configure =
        |attributes| netlink::change(&socket, Message::new(libc::NFQNL_MSG_CONFIG, attributes), 0);
    configure(vec![attribute(libc::NFQA_CFG_CMD, [libc::NFQNL_CFG_CMD_BIND as u8, 0, 0, 0])])?;
    let gso = (libc::NFQA_CFG_F_GSO as u32).to_be_bytes();
    configure(vec![
        // A range of bytes to copy, none, and the mode.
        attribute(libc::NFQA_CFG_PARAMS, [0, 0, 0, 0, libc::NFQNL_COPY_META as u8]),
        attribute(libc::NFQA_CFG_QUEUE_MAXLEN, MOST_PACKETS.to_be_bytes()),
        attribute(libc::NFQA_CFG_FLAGS, gso),
        attribute(libc::NFQA_CFG_MASK, gso),
    ])?;
    Ok(socket)
}

impl Way for Nfqueue {
    fn taken(&self, _sent: u64) -> u64 {
        self.shared.taken.load(Ordering::Relaxed)
    }

    fn mark(&self, mark: u64) {
        // The kernel told of each packet within the guest's write: what is there is everything.
        let mut last = self.shared.last.lock().expect("no thread panics");
        while self.shared.read_batch(&mut last) > 0 {}
        self.shared.marks.lock().expect("no thread panics").unreleased.push((mark, *last));
    }

    fn release(&self, mark: u64) {
        let mut marks = self.shared.marks.lock().expect("no thread panics");
        let covered = marks.unreleased.iter().take_while(|(number, _)| *number <= mark).count();
        let Some((_, last)) = marks.unreleased.drain(..covered).next_back() else { return };
        // The kernel has nothing to let go twice.
        if last.is_none() || last == marks.released {
            return;
        }
        marks.released = last;
        let verdict =
            [(libc::NF_ACCEPT as u32).to_be_bytes(), last.unwrap_or_default().to_be_bytes()].concat();
        let attributes = vec![attribute(libc::NFQA_VERDICT_HDR, verdict)];
        // Without an answer, unless it fails: the reader would get it.
        let request = netlink::request(Message::new(libc::NFQNL_MSG_VERDICT_BATCH, attributes), 0);
        self.shared.socket.send(&request, 0).expect("a verdict");
    }
}

impl Drop for Nfqueue {
    fn drop(&mut self) {
        // What is held when the queue goes is dropped, and what comes after it as well: closed until now.
        self.shared.over.store(true, Ordering::SeqCst);
        if self.reader.take().is_some_and(|reader| reader.join().is_err()) {
            eprintln!("the reader of the queue panicked");
        }
        if try_run("nft", "list table bridge romulus").is_ok() {
            run("nft", "delete table bridge romulus");
        }
    }
}

impl Shared {
    fn read_until_over(&self) {
        let look_again = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        while !self.over.load(Ordering::SeqCst) {
            let read = self.read_batch(&mut self.last.lock().expect("no thread panics"));
            if read < BATCH {
                let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
                let _ = rustix::event::poll(&mut polled, Some(&look_again));
            }
        }
    }

    /// Reads up to [`BATCH`] messages; how many there were.
    fn read_batch(&self, last: &mut Option<u32>) -> usize {
        let mut bytes = [[0_u8; MESSAGE_BYTES]; BATCH];
        // SAFETY: C structs of integers and pointers, for which all zero is a value.
        let (mut parts, mut messages) =
            unsafe { (zeroed::<[libc::iovec; BATCH]>(), zeroed::<[libc::mmsghdr; BATCH]>()) };
        for ((part, message), bytes) in parts.iter_mut().zip(&mut messages).zip(&mut bytes) {
            *part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: MESSAGE_BYTES };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: the headers, parts and buffers above are as long as they say, and live through the call.
        let read = unsafe {
            let (socket, count) = (self.socket.as_raw_fd(), BATCH as libc::c_uint);
            libc::recvmmsg(socket, messages.as_mut_ptr(), count, libc::MSG_DONTWAIT, std::ptr::null_mut())
        };
        let Ok(read) = usize::try_from(read) else {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "reading the queue: {error}");
            return 0;
        };
        for (bytes, message) in bytes.iter().zip(&messages).take(read) {
            *last = Some(packet_number(&bytes[..message.msg_len as usize]));
        }
        self.taken.fetch_add(read as u64, Ordering::Relaxed);
        read
    }
}

/// The number that the kernel gave a packet.
fn packet_number(message: &[u8]) -> u32 {
    assert!(message.len() > HEADERS_BYTES, "a short message about a packet: {message:?}");
    let kind = u16::from_ne_bytes([message[4], message[5]]);
    assert_eq!(kind, kind_of(libc::NFQNL_MSG_PACKET), "a message about no packet, or an error: {message:?}");
    let mut attributes = NlasIterator::new(&message[HEADERS_BYTES..]).map_while(Result::ok);
    let header =
        attributes.find(|attribute: &NlaBuffer<&[u8]>| i32::from(attribute.kind()) == libc::NFQA_PACKET_HDR);
    let header = header.expect("the packet's header");
    u32::from_be_bytes(header.value()[..4].try_into().expect("four bytes"))
}

fn attribute(kind: libc::c_int, value: impl Into<Vec<u8>>) -> DefaultNla {
    DefaultNla::new(kind as u16, value.into())
}

fn kind_of(message: libc::c_int) -> u16 {
    ((libc::NFNL_SUBSYS_QUEUE << 8) | message) as u16
}

/// A message to or from the queue: number of the queue, and attributes.
struct Message {
    kind: u16,
    body: Vec<u8>,
}

impl Message {
    fn new(kind: libc::c_int, attributes: Vec<DefaultNla>) -> Self {
        // struct nfgenmsg: no family, version 0, the queue's number in network order.
        let mut body = vec![0, 0];
        body.extend(QUEUE.to_be_bytes());
        let headers = body.len();
        body.resize(headers + attributes.as_slice().buffer_len(), 0);
        attributes.as_slice().emit(&mut body[headers..]);
        Self { kind: kind_of(kind), body }
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Message {
    type Error = io::Error;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, io::Error> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

impl From<Message> for netlink_packet_core::NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        Self::InnerMessage(message)
    }
}
