//! The bytes between the hosts: control messages and commit slots. `docs/protocol.md` is the
//! normative text; integers are little-endian, reserved bytes zero.

mod bytes;
mod decode;
mod encode;
mod header;
pub mod limits;
pub mod message;
pub mod record;
pub mod recorded;
pub mod slot;

pub(crate) use bytes::printable;

/// Proof that an Ack or Welcome was decoded from a peer's bytes. Only the decoders of this module
/// make one that [`is_decoded`](Self::is_decoded) (I1); a message made to be sent carries
/// [`AckProof::outgoing`], which proves nothing.
///
/// All proofs compare equal, so that messages compare by what they say.
#[derive(Clone, Copy, Debug)]
pub struct AckProof {
    decoded: bool,
}

impl AckProof {
    /// For a message that is made here to be sent: no proof of anything.
    pub fn outgoing() -> Self {
        Self { decoded: false }
    }

    /// Whether it came out of a peer's bytes.
    pub fn is_decoded(&self) -> bool {
        self.decoded
    }

    /// For the decoders alone.
    fn from_peer() -> Self {
        Self { decoded: true }
    }
}

impl PartialEq for AckProof {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for AckProof {}
