//! The bytes that the fabrics with a control connection share: prefaces and control frames.
//!
//! All integers are little-endian, all reserved bytes zero. Every connection starts with a
//! preface of [`PREFACE_BYTES`], whose magic names the fabric:
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

/// Length of the preface in bytes.
pub const PREFACE_BYTES: usize = 32;
/// Length of a control frame's header in bytes.
pub const CONTROL_HEADER_BYTES: usize = 8;
/// Most data streams of a connection.
pub const MAX_STREAMS: usize = 16;
/// Most chunks of an arena.
pub const MAX_CHUNKS: usize = 1024;
/// The one version spoken.
pub const VERSION: u16 = 1;
/// Length of a connection's token in bytes.
pub const TOKEN_BYTES: usize = 16;

/// What a fabric's connections begin with.
pub type Magic = [u8; 8];

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

pub(crate) fn field(field: &'static str, value: impl Into<u64>) -> WireError {
    WireError::Field { field, value: value.into() }
}

/// Takes fields off a slice whose length was checked.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(item: &'static str, bytes: &'a [u8], expected: usize) -> Result<Self, WireError> {
        if bytes.len() != expected {
            return Err(WireError::Length { item, found: bytes.len(), expected });
        }
        Ok(Fields(bytes))
    }

    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        if let Some((head, rest)) = self.0.split_first_chunk::<N>() {
            bytes = *head;
            self.0 = rest;
        }
        bytes
    }

    pub(crate) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    pub(crate) fn reserved<const N: usize>(&mut self, what: &'static str) -> Result<(), WireError> {
        match self.take::<N>().iter().find(|byte| **byte != 0) {
            Some(byte) => Err(field(what, *byte)),
            None => Ok(()),
        }
    }

    pub(crate) fn version(&mut self) -> Result<(), WireError> {
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
pub fn encode_preface(magic: Magic, preface: &Preface) -> [u8; PREFACE_BYTES] {
    let mut bytes = [0; PREFACE_BYTES];
    bytes[..8].copy_from_slice(&magic);
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
pub fn decode_preface(magic: Magic, bytes: &[u8]) -> Result<Preface, WireError> {
    let mut fields = Fields::new("preface", bytes, PREFACE_BYTES)?;
    if fields.take() != magic {
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
