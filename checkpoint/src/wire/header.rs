//! The fixed header in front of every control message, read and checked before anything else.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::limits::MAX_NUMBER;
use super::message::{DecodeError, VERSION};
use crate::ids::{ConnectionNumber, Generation, Identity, Incarnation, SessionId};
use romulus_transport::fabric::{MAX_HANDSHAKE_BYTES, MAX_MESSAGE_BYTES};

/// First bytes of every message.
pub(super) const MAGIC: [u8; 4] = *b"RMLM";

/// Identity as it stands in headers of messages and slots.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct IdentityBytes {
    session: U128,
    generation: U64,
    incarnation: U64,
    connection: U64,
}

impl IdentityBytes {
    pub(super) fn new(identity: &Identity) -> Self {
        Self {
            session: identity.session.0.into(),
            generation: identity.generation.0.into(),
            incarnation: identity.incarnation.0.into(),
            connection: identity.connection.0.into(),
        }
    }

    /// The identity, or which number is out of its limit.
    pub(super) fn read(&self) -> Result<Identity, String> {
        let number = |name: &str, value: U64| match value.get() {
            value if value <= MAX_NUMBER => Ok(value),
            value => Err(format!("{name} {value} exceeds {MAX_NUMBER}")),
        };
        Ok(Identity {
            session: SessionId(self.session.get()),
            generation: Generation(number("generation", self.generation)?),
            incarnation: Incarnation(number("incarnation", self.incarnation)?),
            connection: ConnectionNumber(number("connection", self.connection)?),
        })
    }
}

/// Header of a message. Magic, version, kind, length and both checksums stand at these places in
/// every version of the protocol.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct HeaderBytes {
    magic: [u8; 4],
    version: U16,
    kind: U16,
    len_bytes: U32,
    reserved: [u8; 4],
    identity: IdentityBytes,
    body_checksum: U32,
    header_checksum: U32,
}

/// Length of the header.
pub(super) const HEADER_BYTES: usize = 64;

const _: () = {
    assert!(size_of::<IdentityBytes>() == 40);
    assert!(size_of::<HeaderBytes>() == HEADER_BYTES);
    assert!(offset_of!(HeaderBytes, version) == 4);
    assert!(offset_of!(HeaderBytes, kind) == 6);
    assert!(offset_of!(HeaderBytes, len_bytes) == 8);
    assert!(offset_of!(HeaderBytes, identity) == 16);
    assert!(offset_of!(HeaderBytes, body_checksum) == 56);
    assert!(offset_of!(HeaderBytes, header_checksum) == 60);
};

/// Kinds of message, by number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Hello = 1,
    Welcome = 2,
    RoundEnd = 3,
    RoundAck = 4,
    Commit = 5,
    Ack = 6,
    Home = 7,
    Invalidate = 8,
    Invalidated = 9,
    Heartbeat = 10,
    Bye = 11,
    ByeAck = 12,
    Error = 13,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::Hello,
        Kind::Welcome,
        Kind::RoundEnd,
        Kind::RoundAck,
        Kind::Commit,
        Kind::Ack,
        Kind::Home,
        Kind::Invalidate,
        Kind::Invalidated,
        Kind::Heartbeat,
        Kind::Bye,
        Kind::ByeAck,
        Kind::Error,
    ];

    fn from_number(number: u16) -> Option<Kind> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == number)
    }

    /// Longest message of this kind, header included.
    fn max_bytes(self) -> usize {
        match self {
            Kind::Hello | Kind::Welcome => MAX_HANDSHAKE_BYTES,
            _ => MAX_MESSAGE_BYTES,
        }
    }
}

/// Writes the header of the message `out[start..]`, whose body is complete behind the room left
/// for it.
pub(super) fn seal(out: &mut [u8], kind: Kind, identity: &Identity) {
    let len_bytes = u32::try_from(out.len()).unwrap_or(u32::MAX);
    let (head, body) = out.split_at_mut(HEADER_BYTES);
    let mut header = HeaderBytes {
        magic: MAGIC,
        version: VERSION.into(),
        kind: (kind as u16).into(),
        len_bytes: len_bytes.into(),
        reserved: [0; 4],
        identity: IdentityBytes::new(identity),
        body_checksum: crc32fast::hash(body).into(),
        header_checksum: 0.into(),
    };
    header.header_checksum = crc32fast::hash(&header.as_bytes()[..HEADER_BYTES - 4]).into();
    head.copy_from_slice(header.as_bytes());
}

/// The header of what was written as a message, by magic and checksum, and the rest.
fn read(bytes: &[u8]) -> Result<(&HeaderBytes, &[u8]), DecodeError> {
    let malformed = |why: String| DecodeError::Malformed(why);
    let (header, body) = HeaderBytes::ref_from_prefix(bytes).map_err(|_| {
        malformed(format!("{} bytes are shorter than a header of {HEADER_BYTES}", bytes.len()))
    })?;
    if header.magic != MAGIC {
        return Err(malformed(format!("magic is {:02x?}, not {MAGIC:02x?}", header.magic)));
    }
    let checksum = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
    if header.header_checksum.get() != checksum {
        return Err(malformed(format!(
            "header checksum is {:#010x}, computed {checksum:#010x}",
            header.header_checksum.get()
        )));
    }
    Ok((header, body))
}

/// Under which identity to answer bytes that [`decode`](super::message::decode) refuses. `None`: they
/// have no header, or are an Error, and are not answered.
pub fn answerable(bytes: &[u8]) -> Option<Identity> {
    let (header, _) = read(bytes).ok()?;
    (!is_error(bytes)).then(|| header.identity.read().unwrap_or_default())
}

/// Whether bytes are an Error by their header, whatever else is wrong with them.
pub fn is_error(bytes: &[u8]) -> bool {
    read(bytes).is_ok_and(|(header, _)| header.kind.get() == Kind::Error as u16)
}

/// Checks everything that the header says of `bytes`, and returns kind, identity and body.
pub(super) fn open(bytes: &[u8]) -> Result<(Kind, Identity, &[u8]), DecodeError> {
    let malformed = |why: String| DecodeError::Malformed(why);
    let (header, body) = read(bytes)?;
    let kind = Kind::from_number(header.kind.get());
    // An Error has the same form in every version, so that a refusal can always be read.
    let version = header.version.get();
    if version != VERSION && kind != Some(Kind::Error) {
        return Err(DecodeError::Version { theirs: version });
    }
    let kind = kind.ok_or_else(|| malformed(format!("kind {} is unknown", header.kind.get())))?;
    if header.len_bytes.get() as usize != bytes.len() {
        return Err(malformed(format!("length is {}, received {}", header.len_bytes.get(), bytes.len())));
    }
    if bytes.len() > kind.max_bytes() {
        let most = kind.max_bytes();
        return Err(malformed(format!("{kind:?} of {} bytes exceeds {most}", bytes.len())));
    }
    if header.reserved != [0; 4] {
        return Err(malformed("reserved bytes of the header are not zero".into()));
    }
    let computed = crc32fast::hash(body);
    if header.body_checksum.get() != computed {
        return Err(malformed(format!(
            "body checksum is {:#010x}, computed {computed:#010x}",
            header.body_checksum.get()
        )));
    }
    let identity = header.identity.read().map_err(malformed)?;
    Ok((kind, identity, body))
}
