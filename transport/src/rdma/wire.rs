//! The bytes of the rdma fabric, and nothing else: encoding, and decoding that trusts nothing.
//!
//! All integers are little-endian, all reserved bytes zero. Prefaces and the control connection
//! are described in [`crate::stream::wire`]; the magic is `ROM-RDMA`. The layer above carries the
//! offer to the responder and the answer back. Both begin with
//!
//! ```text
//! 0         2         3            4                    8     10    11         12         14
//! | version | streams | link layer | heartbeat interval | LID | MTU | reserved | receives | rsv |
//! 16                       32                36           40
//! | GID                    | message pair    | its PSN    | data pair, its PSN (8 each) ...
//! ```
//!
//! and the answer goes on with
//!
//! ```text
//! 0         2          4       8
//! | markers | reserved | spans | spans (24 each): length (8), address (8), key (4), flags (4)
//! ```
//!
//! On the control connection frames of kind 1 then carry notes of [`NOTE_BYTES`]:
//!
//! ```text
//! 0      1          8                     16                     24
//! | kind | reserved | markers released    | messages released    |  kind 1: credits
//! ```

use crate::stream::wire as shared;
use crate::stream::wire::{Fields, Magic, field};
pub use crate::stream::wire::{
    MAX_CHUNKS, MAX_STREAMS, PREFACE_BYTES, Preface, VERSION, WireError, decode_control_header,
    encode_control_header,
};

/// What every connection of this fabric begins with.
pub const MAGIC: Magic = *b"ROM-RDMA";
/// Most spans of an arena: its chunks, each cut where its memory regions end.
pub const MAX_SPANS: usize = 1024;
/// Most receives that a side keeps for messages.
pub const MAX_MESSAGE_RECEIVES: u16 = 1024;
/// Most markers on their way.
pub const MAX_MARKERS: u16 = 256;
/// Length of a marker in bytes: its number.
pub const MARKER_BYTES: usize = 8;
/// Length of a note on the control connection in bytes.
pub const NOTE_BYTES: usize = 24;
/// Greatest number of a queue pair, and greatest packet number.
pub const MAX_NUMBER: u32 = 0xff_ffff;

const COMMON_BYTES: usize = 40;
const PAIR_BYTES: usize = 8;
const ANSWER_HEADER_BYTES: usize = 8;
const SPAN_BYTES: usize = 24;
const BEGINS_CHUNK: u32 = 1;

/// Encodes the preface of a control connection.
pub fn encode_preface(preface: &Preface) -> [u8; PREFACE_BYTES] {
    shared::encode_preface(MAGIC, preface)
}

/// Decodes a preface; exactly [`PREFACE_BYTES`].
pub fn decode_preface(bytes: &[u8]) -> Result<Preface, WireError> {
    shared::decode_preface(MAGIC, bytes)
}

/// What a port's link is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Reached by LID.
    InfiniBand,
    /// RoCE: reached by GID.
    Ethernet,
}

/// A queue pair as the peer must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Its number, 24 bits.
    pub number: u32,
    /// The first packet number that it sends, 24 bits, random.
    pub psn: u32,
}

/// What both sides say of themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    /// How often this side will say on the control connection that it lives, in microseconds.
    pub heartbeat_every_us: u32,
    /// The port's link.
    pub link: Link,
    /// The port's local identifier; 0 on Ethernet.
    pub lid: u16,
    /// Largest packet payload of this side in bytes: 256, 512, 1024, 2048 or 4096.
    pub mtu_bytes: u32,
    /// The port's GID; zero where there is none.
    pub gid: [u8; 16],
    /// How many messages the peer may send beyond those that were released.
    pub message_receives: u16,
    /// The queue pair of messages.
    pub messages: Pair,
    /// The data queue pairs, 1 to [`MAX_STREAMS`].
    pub data: Vec<Pair>,
}

/// A part of the arena under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Length in bytes, at least 1.
    pub len_bytes: u64,
    /// Address of its first byte, as writes name it.
    pub address: u64,
    /// The key that writes show.
    pub key: u32,
    /// It is the first of a chunk of the arena; otherwise it continues the chunk before it.
    pub begins_chunk: bool,
}

/// What the responder grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The responder itself; as many data queue pairs as were offered.
    pub common: Common,
    /// How many markers may be on their way, 1 to [`MAX_MARKERS`].
    pub markers: u16,
    /// The arena, in order.
    pub spans: Vec<Span>,
}

/// Encodes an offer, or the beginning of an answer.
pub fn encode_offer(common: &Common) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(COMMON_BYTES + common.data.len() * PAIR_BYTES);
    bytes.extend(VERSION.to_le_bytes());
    bytes.push(common.data.len() as u8);
    bytes.push(match common.link {
        Link::InfiniBand => 1,
        Link::Ethernet => 2,
    });
    bytes.extend(common.heartbeat_every_us.to_le_bytes());
    bytes.extend(common.lid.to_le_bytes());
    bytes.extend([common.mtu_bytes.trailing_zeros().saturating_sub(7) as u8, 0]);
    bytes.extend(common.message_receives.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(common.gid);
    for pair in [&common.messages].into_iter().chain(&common.data) {
        bytes.extend(pair.number.to_le_bytes());
        bytes.extend(pair.psn.to_le_bytes());
    }
    bytes
}

/// Decodes an offer.
pub fn decode_offer(bytes: &[u8]) -> Result<Common, WireError> {
    let (common, rest) = decode_common("offer", bytes)?;
    Fields::new("end of the offer", rest, 0)?;
    Ok(common)
}

fn decode_common<'a>(item: &'static str, bytes: &'a [u8]) -> Result<(Common, &'a [u8]), WireError> {
    let (head, rest) = bytes.split_at_checked(COMMON_BYTES).unwrap_or((bytes, &[]));
    let mut fields = Fields::new(item, head, COMMON_BYTES)?;
    fields.version()?;
    let streams = fields.u8();
    if streams == 0 || usize::from(streams) > MAX_STREAMS {
        return Err(field("the number of data queue pairs", streams));
    }
    let link = match fields.u8() {
        1 => Link::InfiniBand,
        2 => Link::Ethernet,
        other => return Err(field("the link layer", other)),
    };
    let (heartbeat_every_us, lid) = (fields.u32(), fields.u16());
    let mtu = fields.u8();
    if !(1..=5).contains(&mtu) {
        return Err(field("the MTU", mtu));
    }
    fields.reserved::<1>("a reserved byte of the handshake")?;
    let message_receives = fields.u16();
    if message_receives == 0 || message_receives > MAX_MESSAGE_RECEIVES {
        return Err(field("the number of message receives", message_receives));
    }
    fields.reserved::<2>("a reserved byte of the handshake")?;
    let gid = fields.take();
    let messages = decode_pair(&mut fields)?;
    let pairs_bytes = usize::from(streams) * PAIR_BYTES;
    let (pairs, rest) = rest.split_at_checked(pairs_bytes).unwrap_or((rest, &[]));
    let mut fields = Fields::new("list of data queue pairs", pairs, pairs_bytes)?;
    let data = (0..streams).map(|_| decode_pair(&mut fields)).collect::<Result<_, _>>()?;
    let mtu_bytes = 128 << mtu;
    Ok((Common { heartbeat_every_us, link, lid, mtu_bytes, gid, message_receives, messages, data }, rest))
}

fn decode_pair(fields: &mut Fields<'_>) -> Result<Pair, WireError> {
    let (number, psn) = (fields.u32(), fields.u32());
    if number > MAX_NUMBER {
        return Err(field("the number of a queue pair", number));
    }
    if psn > MAX_NUMBER {
        return Err(field("a packet number", psn));
    }
    Ok(Pair { number, psn })
}

/// Encodes an answer.
pub fn encode_answer(answer: &Answer) -> Vec<u8> {
    let mut bytes = encode_offer(&answer.common);
    bytes.extend(answer.markers.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend((answer.spans.len() as u32).to_le_bytes());
    for span in &answer.spans {
        bytes.extend(span.len_bytes.to_le_bytes());
        bytes.extend(span.address.to_le_bytes());
        bytes.extend(span.key.to_le_bytes());
        bytes.extend(if span.begins_chunk { BEGINS_CHUNK } else { 0 }.to_le_bytes());
    }
    bytes
}

/// Decodes an answer of at most [`MAX_SPANS`] spans.
pub fn decode_answer(bytes: &[u8]) -> Result<Answer, WireError> {
    let (common, rest) = decode_common("answer", bytes)?;
    let (head, table) = rest.split_at_checked(ANSWER_HEADER_BYTES).unwrap_or((rest, &[]));
    let mut fields = Fields::new("answer's arena", head, ANSWER_HEADER_BYTES)?;
    let markers = fields.u16();
    if markers == 0 || markers > MAX_MARKERS {
        return Err(field("the number of markers", markers));
    }
    fields.reserved::<2>("a reserved byte of the answer")?;
    let count = fields.u32() as usize;
    if count > MAX_SPANS {
        return Err(field("the number of spans", count as u64));
    }
    let mut fields = Fields::new("table of spans", table, count * SPAN_BYTES)?;
    let mut spans = Vec::with_capacity(count);
    let mut total_bytes = 0u64;
    for index in 0..count {
        let (len_bytes, address) = (fields.u64(), fields.u64());
        let (key, flags) = (fields.u32(), fields.u32());
        if len_bytes == 0 || address.checked_add(len_bytes).is_none() {
            return Err(field("the length of a span", len_bytes));
        }
        total_bytes = total_bytes.checked_add(len_bytes).ok_or(field("the length of a span", len_bytes))?;
        if flags > BEGINS_CHUNK || (index == 0 && flags != BEGINS_CHUNK) {
            return Err(field("the flags of a span", flags));
        }
        spans.push(Span { len_bytes, address, key, begins_chunk: flags == BEGINS_CHUNK });
    }
    Ok(Answer { common, markers, spans })
}

/// What a side has released since the connection was established: the peer may have so many
/// more on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credits {
    /// Markers whose fence was taken. The initiator releases none.
    pub markers: u64,
    /// Messages that were taken.
    pub messages: u64,
}

/// Encodes a note of credits.
pub fn encode_credits(credits: &Credits) -> [u8; NOTE_BYTES] {
    let mut bytes = [0; NOTE_BYTES];
    bytes[0] = 1;
    bytes[8..16].copy_from_slice(&credits.markers.to_le_bytes());
    bytes[16..].copy_from_slice(&credits.messages.to_le_bytes());
    bytes
}

/// Decodes a note of credits.
pub fn decode_credits(bytes: &[u8]) -> Result<Credits, WireError> {
    let mut fields = Fields::new("note", bytes, NOTE_BYTES)?;
    match fields.u8() {
        1 => {}
        other => return Err(field("the kind of a note", other)),
    }
    fields.reserved::<7>("a reserved byte of a note")?;
    Ok(Credits { markers: fields.u64(), messages: fields.u64() })
}
