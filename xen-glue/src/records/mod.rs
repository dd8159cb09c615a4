//! Records of Xen's migration stream (`docs/specs/libxc-migration-stream.pandoc` in Xen's sources):
//! an 8-byte header (type, length), the body, zeros up to the next multiple of 8. All integers are
//! little-endian.
//!
//! **The state of an epoch** is, in this order: `X86_TSC_INFO`, `HVM_CONTEXT`, `HVM_PARAMS`, `END`;
//! the records that end a checkpoint in Xen's own stream, with the same layouts. A domain with a device
//! model has one more in front of `END`, [`DEVICE_MODEL`], which libxc's stream does not have. See
//! [`EpochState`].
//!
//! **What a standby is built from** travels in the handshake as text (see [`crate::machine`]): the
//! configuration as libxl writes it, and the bodies of `X86_CPUID_POLICY`, `X86_MSR_POLICY` and
//! `HVM_PARAMS`. The records are put together where the standby is built (see [`crate::standby`]).

mod epoch;

pub use epoch::{BesideContext, EpochState, HvmParam, Tsc, params_body, read_params, write_epoch_state};

/// No more records.
pub const END: u32 = 0x0;
/// Pages, or the news that a page exists.
pub const PAGE_DATA: u32 = 0x1;
/// Time stamp counter settings.
pub const X86_TSC_INFO: u32 = 0x8;
/// Processors and emulated devices.
pub const HVM_CONTEXT: u32 = 0x9;
/// Parameters of an HVM domain.
pub const HVM_PARAMS: u32 = 0xa;
/// Behind it nothing comes that does not change.
pub const STATIC_DATA_END: u32 = 0x10;
/// CPUID leaves.
pub const X86_CPUID_POLICY: u32 = 0x11;
/// Model-specific registers.
pub const X86_MSR_POLICY: u32 = 0x12;
/// Romulus's own: what a device model wrote at `xen-save-devices-state`. Xen counts its types from 0.
pub const DEVICE_MODEL: u32 = 0x526f_0001;
/// Set in the type of a record that may be skipped by who does not know it.
pub const OPTIONAL: u32 = 0x8000_0000;

/// Length of a record's header.
pub const HEADER_BYTES: usize = 8;
/// Records begin at multiples of this.
pub const ALIGN_BYTES: usize = 8;
/// Longest body that Xen's own tools accept.
pub const MAX_BODY_BYTES: usize = 128 << 20;

/// Records are not as they must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end inside a record.
    #[error("records end in the middle of one at byte {0}")]
    Short(usize),
    /// A length that no record has.
    #[error("record of type {kind:#x} at byte {at} claims {bytes} bytes")]
    Length {
        /// Its type.
        kind: u32,
        /// Where its header is.
        at: usize,
        /// The length claimed.
        bytes: u64,
    },
    /// A record that must be understood and is not known.
    #[error("record of the unknown type {kind:#x} at byte {at}")]
    Unknown {
        /// Its type.
        kind: u32,
        /// Where its header is.
        at: usize,
    },
    /// A record that is missing, or there twice.
    #[error("record {0} is missing or not the only one")]
    Count(&'static str),
    /// Bytes behind the end.
    #[error("{0} bytes follow the last record")]
    Trailing(usize),
    /// What is written does not fit.
    #[error("{needed} bytes of records do not fit into {room}")]
    Room {
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        room: usize,
    },
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its type.
    pub kind: u32,
    /// Its body, without padding.
    pub body: &'a [u8],
    /// Where its header is.
    pub at: usize,
}

/// Reads records one after another, up to and with `END`.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    ended: bool,
}

impl<'a> Reader<'a> {
    /// Of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, ended: false }
    }

    /// The next record; `None` behind `END`. Bytes behind `END` are an error.
    #[allow(clippy::should_implement_trait)] // an iterator of results would go on behind an error
    pub fn next(&mut self) -> Result<Option<Record<'a>>, RecordError> {
        if self.ended {
            return Ok(None);
        }
        let at = self.at;
        let rest = self.bytes.get(at..).unwrap_or_default();
        let (Some(kind), Some(length)) = (u32_at(rest, 0), u32_at(rest, 4)) else {
            return Err(RecordError::Short(at));
        };
        let length = length as usize;
        if length > MAX_BODY_BYTES || (kind == END && length != 0) {
            return Err(RecordError::Length { kind, at, bytes: length as u64 });
        }
        let padded = length.next_multiple_of(ALIGN_BYTES);
        let Some(body) = rest.get(HEADER_BYTES..HEADER_BYTES + padded) else {
            return Err(RecordError::Short(at));
        };
        self.at = at + HEADER_BYTES + padded;
        if kind == END {
            self.ended = true;
            return match self.bytes.len() - self.at {
                0 => Ok(None),
                more => Err(RecordError::Trailing(more)),
            };
        }
        Ok(Some(Record { kind, body: &body[..length], at }))
    }
}

/// Appends a record.
pub fn append(into: &mut Vec<u8>, kind: u32, body: &[u8]) {
    into.extend_from_slice(&header(kind, body.len()));
    into.extend_from_slice(body);
    into.resize(into.len().next_multiple_of(ALIGN_BYTES), 0);
}

/// The header of a record with a body of this length.
pub fn header(kind: u32, body_bytes: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[4..].copy_from_slice(&u32::try_from(body_bytes).unwrap_or(u32::MAX).to_le_bytes());
    header
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, RecordError> {
        let mut reader = Reader::new(bytes);
        let mut records = Vec::new();
        while let Some(record) = reader.next()? {
            records.push((record.kind, record.body.to_vec()));
        }
        Ok(records)
    }

    proptest! {
        #[test]
        fn what_is_appended_is_read(bodies in prop::collection::vec((1u32..100, prop::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let mut bytes = Vec::new();
            for (kind, body) in &bodies {
                append(&mut bytes, *kind, body);
            }
            append(&mut bytes, END, &[]);
            prop_assert_eq!(bytes.len() % ALIGN_BYTES, 0);
            prop_assert_eq!(all(&bytes).unwrap(), bodies);
            for end in 0..bytes.len() {
                prop_assert!(all(&bytes[..end]).is_err(), "cut at {}", end);
            }
            bytes.push(0);
            prop_assert_eq!(all(&bytes), Err(RecordError::Trailing(1)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = all(&bytes);
        }
    }

    #[test]
    fn a_length_beyond_reason_is_refused() {
        let bytes = header(PAGE_DATA, MAX_BODY_BYTES + 1);
        assert!(matches!(all(&bytes), Err(RecordError::Length { kind: PAGE_DATA, at: 0, .. })));
        assert!(matches!(all(&header(END, 8)), Err(RecordError::Length { kind: END, .. })));
    }
}
