//! The bytes between the hosts: control messages and commit slots. `docs/protocol.md` is the
//! normative text; integers are little-endian, reserved bytes zero.

pub mod message;
pub mod slot;

/// Proof that an Ack or Welcome was decoded from a peer's bytes. Only the decoders of this module
/// make it (I1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckProof(());
