//! The bytes of the tcp fabric, and nothing else: encoding, and decoding that trusts nothing.
//!
//! All integers are little-endian, all reserved bytes zero. Every connection starts with a
//! preface of [`PREFACE_BYTES`]:
//!
//! ```text
//! 0        8         10     11       12         16               32
//! | magic  | version | kind | stream | reserved | token          |
//! ```
//!
//! A control connection (kind 1, stream and token zero) then carries frames in both directions,
//! each a header of [`CONTROL_HEADER_BYTES`] and as many bytes as it says:
//!
//! ```text
//! 0             4      5          8
//! | length      | kind | reserved |  kind 1: message, 2: heartbeat, 3: goodbye (both empty)
//! ```
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

/// Length of the preface in bytes.
pub const PREFACE_BYTES: usize = 32;
/// Length of a control frame's header in bytes.
pub const CONTROL_HEADER_BYTES: usize = 8;
/// Length of a data frame's header in bytes.
pub const DATA_HEADER_BYTES: usize = 16;
/// Length of the descriptor of one write in bytes.
pub const DESCRIPTOR_BYTES: usize = 16;
/// Most descriptors in one frame of writes.
pub const MAX_DESCRIPTORS: usize = 1000;
/// Most data streams of a connection.
pub const MAX_STREAMS: usize = 16;
/// Most chunks of an arena.
pub const MAX_CHUNKS: usize = 1024;
/// The one version spoken.
pub const VERSION: u16 = 1;
/// Length of a connection's token in bytes.
pub const TOKEN_BYTES: usize = 16;

const MAGIC: [u8; 8] = *b"ROM-TCP\0";
const OFFER_BYTES: usize = 8;
const ANSWER_HEADER_BYTES: usize = 28;

/// Names a connection to which data streams belong; random, told to the initiator only.
pub type Token = [u8; TOKEN_BYTES];

/// Bytes of a peer that make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Fewer or more bytes than the item has.
    #[error("{item} of {found} bytes instead of {expected}")]
    Length {
        /// The item.
        item: &'static str,
        /// The bytes found.
        found: usize,
        /// The bytes it has.
        expected: usize,
    },
    /// The preface does not start with the magic bytes.
    #[error("not this protocol")]
    Magic,
    /// Another version of the protocol.
    #[error("version {0} is not spoken here, only {VERSION}")]
    Version(u16),
    /// A field has a value that it cannot have.
    #[error("{field} is {value}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

fn field(field: &'static str, value: impl Into<u64>) -> WireError {
    WireError::Field { field, value: value.into() }
}

/// Takes fields off a slice whose length was checked.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn new(item: &'static str, bytes: &'a [u8], expected: usize) -> Result<Self, WireError> {
        if bytes.len() != expected {
            return Err(WireError::Length { item, found: bytes.len(), expected });
        }
        Ok(Fields(bytes))
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        if let Some((head, rest)) = self.0.split_first_chunk::<N>() {
            bytes = *head;
            self.0 = rest;
        }
        bytes
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn reserved<const N: usize>(&mut self, what: &'static str) -> Result<(), WireError> {
        match self.take::<N>().iter().find(|byte| **byte != 0) {
            Some(byte) => Err(field(what, *byte)),
            None => Ok(()),
        }
    }

    fn version(&mut self) -> Result<(), WireError> {
        match self.u16() {
            VERSION => Ok(()),
            other => Err(WireError::Version(other)),
        }
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preface {
    /// Messages.
    Control,
    /// One-sided writes.
    Data {
        /// Which of the connection's data streams.
        stream: u8,
        /// The connection it belongs to.
        token: Token,
    },
}

/// Encodes a preface.
pub fn encode_preface(preface: &Preface) -> [u8; PREFACE_BYTES] {
    let mut bytes = [0; PREFACE_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    match preface {
        Preface::Control => bytes[10] = 1,
        Preface::Data { stream, token } => {
            bytes[10] = 2;
            bytes[11] = *stream;
            bytes[16..].copy_from_slice(token);
        }
    }
    bytes
}

/// Decodes a preface; exactly [`PREFACE_BYTES`].
pub fn decode_preface(bytes: &[u8]) -> Result<Preface, WireError> {
    let mut fields = Fields::new("preface", bytes, PREFACE_BYTES)?;
    if fields.take() != MAGIC {
        return Err(WireError::Magic);
    }
    fields.version()?;
    let (kind, stream) = (fields.u8(), fields.u8());
    fields.reserved::<4>("a reserved byte of the preface")?;
    match kind {
        1 if stream != 0 => Err(field("the stream of a control connection", stream)),
        1 => {
            fields.reserved::<TOKEN_BYTES>("the token of a control connection")?;
            Ok(Preface::Control)
        }
        2 if usize::from(stream) >= MAX_STREAMS => Err(field("the data stream", stream)),
        2 => Ok(Preface::Data { stream, token: fields.take() }),
        other => Err(field("the preface's kind", other)),
    }
}

/// What a control frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlKind {
    /// A message of the layer above.
    Message,
    /// Says only that the sender lives.
    Heartbeat,
    /// The sender closes on purpose.
    Goodbye,
}

/// The header of a control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlHeader {
    /// What follows.
    pub kind: ControlKind,
    /// How many bytes follow.
    pub len_bytes: usize,
}

/// Encodes the header of a control frame.
pub fn encode_control_header(header: &ControlHeader) -> [u8; CONTROL_HEADER_BYTES] {
    let mut bytes = [0; CONTROL_HEADER_BYTES];
    bytes[..4].copy_from_slice(&(header.len_bytes as u32).to_le_bytes());
    bytes[4] = match header.kind {
        ControlKind::Message => 1,
        ControlKind::Heartbeat => 2,
        ControlKind::Goodbye => 3,
    };
    bytes
}

/// Decodes the header of a control frame; refuses messages longer than `limit_bytes`.
pub fn decode_control_header(bytes: &[u8], limit_bytes: usize) -> Result<ControlHeader, WireError> {
    let mut fields = Fields::new("control header", bytes, CONTROL_HEADER_BYTES)?;
    let len_bytes = fields.u32();
    let kind = match fields.u8() {
        1 => ControlKind::Message,
        2 => ControlKind::Heartbeat,
        3 => ControlKind::Goodbye,
        other => return Err(field("the control frame's kind", other)),
    };
    fields.reserved::<3>("a reserved byte of a control frame")?;
    let limit_bytes = if kind == ControlKind::Message { limit_bytes } else { 0 };
    if len_bytes as usize > limit_bytes {
        return Err(field("the length of a control frame", len_bytes));
    }
    Ok(ControlHeader { kind, len_bytes: len_bytes as usize })
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
