//! The bytes of the tcp fabric, and nothing else: encoding, and decoding that trusts nothing.
//!
//! All integers are little-endian, all reserved bytes zero. Prefaces and the control connection are
//! described in [`crate::stream::wire`]; the magic is `ROM-TCP` and a zero byte.
//!
//! A data connection (kind 2, with the token of the handshake's answer) carries frames from the
//! initiator only, each a header of [`DATA_HEADER_BYTES`]:
//!
//! ```text
//! 0      1          2       4          8          16
//! | kind | reserved | count | reserved | value    |  kind 1: writes, 2: marker
//! ```
//!
//! For a marker, `count` is 0 and `value` its number. For writes, `count` descriptors of
//! [`DESCRIPTOR_BYTES`] follow, then all their payload back to back, `value` bytes in total:
//!
//! ```text
//! 0                        8             12         16
//! | offset in the arena    | length      | reserved |
//! ```

use crate::stream::wire as shared;
pub use crate::stream::wire::{
    CONTROL_HEADER_BYTES, ControlHeader, ControlKind, MAX_CHUNKS, MAX_STREAMS, PREFACE_BYTES, Preface,
    TOKEN_BYTES, Token, VERSION, WireError, decode_control_header, encode_control_header,
};
use crate::stream::wire::{Fields, Magic, field};

/// Length of a data frame's header in bytes.
pub const DATA_HEADER_BYTES: usize = 16;
/// Length of the descriptor of one write in bytes.
pub const DESCRIPTOR_BYTES: usize = 16;
/// Most descriptors in one frame of writes.
pub const MAX_DESCRIPTORS: usize = 1000;
/// What every connection of this fabric begins with.
pub const MAGIC: Magic = *b"ROM-TCP\0";

const OFFER_BYTES: usize = 8;
const ANSWER_HEADER_BYTES: usize = 28;

/// Encodes a preface.
pub fn encode_preface(preface: &Preface) -> [u8; PREFACE_BYTES] {
    shared::encode_preface(MAGIC, preface)
}

/// Decodes a preface; exactly [`PREFACE_BYTES`].
pub fn decode_preface(bytes: &[u8]) -> Result<Preface, WireError> {
    shared::decode_preface(MAGIC, bytes)
}

/// The header of a data frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataHeader {
    /// Descriptors and payload follow.
    Writes {
        /// How many descriptors; 1 to [`MAX_DESCRIPTORS`].
        count: usize,
        /// How many bytes of payload in all; at least 1.
        payload_bytes: u64,
    },
    /// The fence of everything before it.
    Marker {
        /// Its number.
        marker: u64,
    },
}

/// Encodes the header of a data frame.
pub fn encode_data_header(header: &DataHeader) -> [u8; DATA_HEADER_BYTES] {
    let mut bytes = [0; DATA_HEADER_BYTES];
    let (kind, count, value) = match *header {
        DataHeader::Writes { count, payload_bytes } => (1, count as u16, payload_bytes),
        DataHeader::Marker { marker } => (2, 0, marker),
    };
    bytes[0] = kind;
    bytes[2..4].copy_from_slice(&count.to_le_bytes());
    bytes[8..].copy_from_slice(&value.to_le_bytes());
    bytes
}

/// Decodes the header of a data frame.
pub fn decode_data_header(bytes: &[u8]) -> Result<DataHeader, WireError> {
    let mut fields = Fields::new("data header", bytes, DATA_HEADER_BYTES)?;
    let kind = fields.u8();
    fields.reserved::<1>("a reserved byte of a data frame")?;
    let count = fields.u16();
    fields.reserved::<4>("a reserved byte of a data frame")?;
    let value = fields.u64();
    match kind {
        1 if count == 0 || usize::from(count) > MAX_DESCRIPTORS => Err(field("the number of writes", count)),
        1 if value == 0 => Err(field("the payload of a frame of writes", value)),
        1 => Ok(DataHeader::Writes { count: count.into(), payload_bytes: value }),
        2 if count != 0 => Err(field("the count of a marker", count)),
        2 if value == 0 || value == u64::MAX => Err(field("the number of a marker", value)),
        2 => Ok(DataHeader::Marker { marker: value }),
        other => Err(field("the data frame's kind", other)),
    }
}

/// Where the bytes of one write go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// First byte in the arena.
    pub offset: u64,
    /// How many; at least 1.
    pub len_bytes: u32,
}

/// Encodes a descriptor.
pub fn encode_descriptor(descriptor: &Descriptor) -> [u8; DESCRIPTOR_BYTES] {
    let mut bytes = [0; DESCRIPTOR_BYTES];
    bytes[..8].copy_from_slice(&descriptor.offset.to_le_bytes());
    bytes[8..12].copy_from_slice(&descriptor.len_bytes.to_le_bytes());
    bytes
}

/// Decodes a descriptor. Whether it lies in the arena is for the arena to say.
pub fn decode_descriptor(bytes: &[u8]) -> Result<Descriptor, WireError> {
    let mut fields = Fields::new("descriptor", bytes, DESCRIPTOR_BYTES)?;
    let (offset, len_bytes) = (fields.u64(), fields.u32());
    fields.reserved::<4>("a reserved byte of a descriptor")?;
    if len_bytes == 0 {
        return Err(field("the length of a write", len_bytes));
    }
    Ok(Descriptor { offset, len_bytes })
}

/// What the initiator proposes: travels in the first message of the layer above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Data streams wanted.
    pub streams: usize,
    /// How often the initiator will say that it lives, in microseconds.
    pub heartbeat_every_us: u32,
}

/// Encodes an offer.
pub fn encode_offer(offer: &Offer) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    bytes.extend([offer.streams as u8, 0]);
    bytes.extend(offer.heartbeat_every_us.to_le_bytes());
    bytes
}

/// Decodes an offer.
pub fn decode_offer(bytes: &[u8]) -> Result<Offer, WireError> {
    let mut fields = Fields::new("offer", bytes, OFFER_BYTES)?;
    let (streams, heartbeat_every_us) = decode_common(&mut fields)?;
    Ok(Offer { streams, heartbeat_every_us })
}

fn decode_common(fields: &mut Fields<'_>) -> Result<(usize, u32), WireError> {
    fields.version()?;
    let streams = fields.u8();
    if streams == 0 || usize::from(streams) > MAX_STREAMS {
        return Err(field("the number of data streams", streams));
    }
    fields.reserved::<1>("a reserved byte of the handshake")?;
    Ok((streams.into(), fields.u32()))
}

/// What the responder grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Data streams to open.
    pub streams: usize,
    /// How often the responder will say that it lives, in microseconds.
    pub heartbeat_every_us: u32,
    /// What each data stream must show.
    pub token: Token,
    /// Lengths of the arena's chunks in order.
    pub chunks_bytes: Vec<u64>,
}

/// Encodes an answer.
pub fn encode_answer(answer: &Answer) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    bytes.extend([answer.streams as u8, 0]);
    bytes.extend(answer.heartbeat_every_us.to_le_bytes());
    bytes.extend(answer.token);
    bytes.extend((answer.chunks_bytes.len() as u32).to_le_bytes());
    bytes.extend(answer.chunks_bytes.iter().flat_map(|len_bytes| len_bytes.to_le_bytes()));
    bytes
}

/// Decodes an answer of at most [`MAX_CHUNKS`] chunks.
pub fn decode_answer(bytes: &[u8]) -> Result<Answer, WireError> {
    let (header, table) = bytes.split_at_checked(ANSWER_HEADER_BYTES).unwrap_or((bytes, &[]));
    let mut fields = Fields::new("answer", header, ANSWER_HEADER_BYTES)?;
    let (streams, heartbeat_every_us) = decode_common(&mut fields)?;
    let token = fields.take();
    let chunks = fields.u32() as usize;
    if chunks > MAX_CHUNKS {
        return Err(field("the number of chunks", chunks as u64));
    }
    let mut fields = Fields::new("table of chunks", table, chunks * 8)?;
    let mut total_bytes = 0u64;
    let mut chunks_bytes = Vec::with_capacity(chunks);
    for _ in 0..chunks {
        let len_bytes = fields.u64();
        total_bytes = total_bytes.checked_add(len_bytes).ok_or(field("the length of a chunk", len_bytes))?;
        chunks_bytes.push(len_bytes);
    }
    Ok(Answer { streams, heartbeat_every_us, token, chunks_bytes })
}
