//! Commit slots: what an epoch is, written one-sidedly beside its data.
//!
//! A slot holds a header, the placement extents and the guest's CPU and device state, in this
//! order; the state begins at a multiple of 64 bytes.

use romulus_transport::Memory;

use crate::extent::Transfer;
use crate::ids::{Epoch, Identity};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 128;
/// Bytes of one encoded extent.
pub const EXTENT_BYTES: usize = 24;

/// A slot that cannot be committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Wrong magic, version, checksum, length, reserved bytes.
    #[error("malformed commit slot: {0}")]
    Malformed(String),
    /// Belongs to another epoch, session, generation, incarnation or connection.
    #[error("commit slot of {found}, expected {expected}")]
    Mismatch {
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
}

/// The most transfers that fit a slot beside a state of `state_bytes`.
pub fn max_transfers(_slot_bytes: u64, _state_bytes: u64) -> u64 {
    todo!("wire")
}

/// Where the state begins in a slot of this many transfers.
pub fn state_offset_bytes(_transfers: u64) -> u64 {
    todo!("wire")
}

/// Writes header and extents into `slot` around a state of `state_bytes` that is (or will be)
/// at [`state_offset_bytes`]. `state_checksum` is the CRC-32 of the state. Returns the length
/// used. Does not allocate.
pub fn encode(
    _identity: &Identity,
    _epoch: Epoch,
    _transfers: &[Transfer],
    _state_bytes: u64,
    _state_checksum: u32,
    _slot: &Memory,
) -> Result<u64, SlotError> {
    todo!("wire")
}

/// A slot read and checked: identity and epoch as expected, checksums right (state included),
/// lengths within the slot. The transfers are not yet checked against the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotHeader {
    /// The epoch.
    pub epoch: Epoch,
    /// Number of transfers.
    pub transfers: u64,
    /// Length of the state.
    pub state_bytes: u64,
    /// Where the state begins.
    pub state_offset_bytes: u64,
}

/// Reads a slot **once** (the peer could still write it): transfers are copied into `transfers`
/// (cleared first; does not allocate when it has room), everything is checked on the copy.
pub fn decode(
    _slot: &Memory,
    _expected: &Identity,
    _epoch: Epoch,
    _transfers: &mut Vec<Transfer>,
) -> Result<SlotHeader, SlotError> {
    todo!("wire")
}
