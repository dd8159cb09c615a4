//! Commit slots: what an epoch is, written one-sidedly beside its data.
//!
//! A slot holds a header, the placement extents and the guest's CPU and device state, in this
//! order; the state begins at a multiple of 64 bytes.

use std::mem::{offset_of, size_of};

use romulus_transport::Memory;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::header::IdentityBytes;
use super::limits::{MAX_FRAMES, MAX_NUMBER, MAX_PAGES, MAX_STATE_BYTES, MAX_TRANSFERS};
use super::message::VERSION;
use crate::extent::Transfer;
use crate::ids::{Epoch, FrameIndex, Identity, PageIndex};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 128;
/// Bytes of one encoded extent.
pub const EXTENT_BYTES: usize = 24;
/// First bytes of every slot.
const MAGIC: [u8; 4] = *b"RMLS";
/// The state begins at a multiple of this.
const STATE_ALIGN_BYTES: u64 = 64;
/// Extents whose pages are written as data. Kind 2, pages that read as zero and are not sent, is
/// reserved for a later version.
const KIND_DATA: u16 = 1;
/// Extents moved at a time between memory and stack.
const BATCH: usize = 128;

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

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeaderBytes {
    magic: [u8; 4],
    version: U16,
    reserved: [u8; 10],
    identity: IdentityBytes,
    epoch: U64,
    transfers: U64,
    pages: U64,
    state_bytes: U64,
    state_offset_bytes: U64,
    extents_checksum: U32,
    state_checksum: U32,
    reserved_end: [u8; 20],
    header_checksum: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtentBytes {
    first_page: U64,
    first_frame: U64,
    pages: U32,
    kind: U16,
    reserved: [u8; 2],
}

const _: () = {
    assert!(size_of::<HeaderBytes>() == HEADER_BYTES);
    assert!(offset_of!(HeaderBytes, identity) == 16);
    assert!(offset_of!(HeaderBytes, epoch) == 56);
    assert!(offset_of!(HeaderBytes, extents_checksum) == 96);
    assert!(offset_of!(HeaderBytes, header_checksum) == 124);
    assert!(size_of::<ExtentBytes>() == EXTENT_BYTES);
    assert!((HEADER_BYTES as u64).is_multiple_of(STATE_ALIGN_BYTES));
};

/// The most transfers that fit a slot beside a state of `state_bytes`.
pub fn max_transfers(slot_bytes: u64, state_bytes: u64) -> u64 {
    let Some(before_state) = slot_bytes.checked_sub(state_bytes) else { return 0 };
    let before_state = before_state - before_state % STATE_ALIGN_BYTES;
    let room = before_state.saturating_sub(HEADER_BYTES as u64);
    (room / EXTENT_BYTES as u64).min(MAX_TRANSFERS)
}

/// Where the state begins in a slot of this many transfers.
pub fn state_offset_bytes(transfers: u64) -> u64 {
    let extents = transfers.saturating_mul(EXTENT_BYTES as u64);
    extents
        .saturating_add(HEADER_BYTES as u64)
        .checked_next_multiple_of(STATE_ALIGN_BYTES)
        .unwrap_or(u64::MAX)
}

/// CRC-32 of memory that others may change meanwhile.
///
/// # Panics
/// If the range exceeds the memory.
pub fn checksum(memory: &Memory, offset_bytes: usize, len_bytes: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = [0u8; 4096];
    let mut done = 0;
    while done < len_bytes {
        let part = &mut buffer[..(len_bytes - done).min(4096)];
        memory.read(offset_bytes + done, part);
        hasher.update(part);
        done += part.len();
    }
    hasher.finalize()
}

/// Where an unchecked header says that the state begins and how long it is, for recordings.
pub(super) fn claimed_state(header: &[u8]) -> Option<(u64, u64)> {
    let (header, _) = HeaderBytes::ref_from_prefix(header).ok()?;
    let (offset, state) = (header.state_offset_bytes.get(), header.state_bytes.get());
    let plausible = header.magic == MAGIC
        && header.transfers.get() <= MAX_TRANSFERS
        && offset == state_offset_bytes(header.transfers.get())
        && state <= MAX_STATE_BYTES;
    plausible.then_some((offset, state))
}

/// Writes header and extents into `slot` around a state of `state_bytes` that is (or will be)
/// at [`state_offset_bytes`]. `state_checksum` is the CRC-32 of the state. Returns the length
/// used. Does not allocate. On failure nothing was written.
pub fn encode(
    identity: &Identity,
    epoch: Epoch,
    transfers: &[Transfer],
    state_bytes: u64,
    state_checksum: u32,
    slot: &Memory,
) -> Result<u64, SlotError> {
    let count = transfers.len() as u64;
    let state_offset_bytes = state_offset_bytes(count);
    check_extent_of_slot(count, state_bytes, state_offset_bytes, slot)?;
    let mut pages = 0;
    for transfer in transfers {
        check_transfer(transfer)?;
        pages += transfer.pages;
    }
    let mut header = HeaderBytes::new_zeroed();
    header.magic = MAGIC;
    header.version = VERSION.into();
    header.identity = IdentityBytes::new(identity);
    header.epoch = epoch.0.into();
    header.transfers = count.into();
    header.pages = pages.into();
    header.state_bytes = state_bytes.into();
    header.state_offset_bytes = state_offset_bytes.into();
    header.extents_checksum = write_extents(transfers, state_offset_bytes as usize, slot).into();
    header.state_checksum = state_checksum.into();
    header.header_checksum = crc32fast::hash(&header.as_bytes()[..HEADER_BYTES - 4]).into();
    slot.write(0, header.as_bytes());
    Ok(state_offset_bytes + state_bytes)
}

/// Writes the extents and the zeros up to the state; returns their checksum.
fn write_extents(transfers: &[Transfer], end: usize, slot: &Memory) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let mut batch = [ExtentBytes::new_zeroed(); BATCH];
    let mut at = HEADER_BYTES;
    for part in transfers.chunks(BATCH) {
        for (extent, transfer) in batch.iter_mut().zip(part) {
            *extent = ExtentBytes {
                first_page: transfer.first_page.0.into(),
                first_frame: transfer.first_frame.0.into(),
                pages: (transfer.pages as u32).into(),
                kind: KIND_DATA.into(),
                reserved: [0; 2],
            };
        }
        let bytes = batch[..part.len()].as_bytes();
        hasher.update(bytes);
        slot.write(at, bytes);
        at += bytes.len();
    }
    let padding = &[0; STATE_ALIGN_BYTES as usize][..end - at];
    hasher.update(padding);
    slot.write(at, padding);
    hasher.finalize()
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
    /// Its CRC-32.
    pub state_checksum: u32,
}

/// Copies the state of a slot that was decoded before, and checks the copy: between the two the
/// peer could still write.
pub fn read_state(slot: &Memory, header: &SlotHeader) -> Result<Vec<u8>, SlotError> {
    check_extent_of_slot(header.transfers, header.state_bytes, header.state_offset_bytes, slot)?;
    let mut state = vec![0; header.state_bytes as usize];
    slot.read(header.state_offset_bytes as usize, &mut state);
    same_checksum("state", header.state_checksum, crc32fast::hash(&state))?;
    Ok(state)
}

/// Reads a slot **once** (the peer could still write it): transfers are copied into `transfers`
/// (cleared first; does not allocate when it has room), everything is checked on the copy. The
/// state stays where it is; its checksum is that of the memory at this moment. After an error
/// `transfers` is empty.
pub fn decode(
    slot: &Memory,
    expected: &Identity,
    epoch: Epoch,
    transfers: &mut Vec<Transfer>,
) -> Result<SlotHeader, SlotError> {
    transfers.clear();
    let header = read_header(slot)?;
    check_belongs(&header, expected, epoch)?;
    let found = SlotHeader {
        epoch,
        transfers: header.transfers.get(),
        state_bytes: header.state_bytes.get(),
        state_offset_bytes: header.state_offset_bytes.get(),
        state_checksum: header.state_checksum.get(),
    };
    check_extent_of_slot(found.transfers, found.state_bytes, found.state_offset_bytes, slot)?;
    let outcome = read_extents(slot, &found, header.extents_checksum.get(), header.pages.get(), transfers)
        .and_then(|()| {
            let start = found.state_offset_bytes as usize;
            let computed = checksum(slot, start, found.state_bytes as usize);
            same_checksum("state", found.state_checksum, computed)
        });
    if outcome.is_err() {
        transfers.clear();
    }
    outcome.map(|()| found)
}

/// Copies the header out and checks what needs no knowledge of what is expected.
fn read_header(slot: &Memory) -> Result<HeaderBytes, SlotError> {
    if slot.len_bytes() < HEADER_BYTES {
        return malformed(format!("{} bytes are shorter than a header", slot.len_bytes()));
    }
    let mut header = HeaderBytes::new_zeroed();
    slot.read(0, header.as_mut_bytes());
    if header.magic != MAGIC {
        return malformed(format!("magic is {:02x?}, not {MAGIC:02x?}", header.magic));
    }
    let computed = crc32fast::hash(&header.as_bytes()[..HEADER_BYTES - 4]);
    same_checksum("header", header.header_checksum.get(), computed)?;
    if header.version.get() != VERSION {
        return malformed(format!("version {} is not spoken here ({VERSION})", header.version.get()));
    }
    if header.reserved != [0; 10] || header.reserved_end != [0; 20] {
        return malformed("reserved bytes of the header are not zero".into());
    }
    Ok(header)
}

fn check_belongs(header: &HeaderBytes, expected: &Identity, epoch: Epoch) -> Result<(), SlotError> {
    let identity = header.identity.read().map_err(SlotError::Malformed)?;
    let found = Epoch(header.epoch.get());
    if identity == *expected && found == epoch && epoch.0 <= MAX_NUMBER {
        return Ok(());
    }
    let (found, expected) = (format!("epoch {found} of {identity}"), format!("epoch {epoch} of {expected}"));
    Err(SlotError::Mismatch { found, expected })
}

/// Counts and lengths against limits and the room there is.
fn check_extent_of_slot(
    transfers: u64,
    state_bytes: u64,
    state_offset: u64,
    slot: &Memory,
) -> Result<(), SlotError> {
    if transfers > MAX_TRANSFERS {
        return malformed(format!("{transfers} extents exceed {MAX_TRANSFERS}"));
    }
    if state_bytes > MAX_STATE_BYTES {
        return malformed(format!("a state of {state_bytes} bytes exceeds {MAX_STATE_BYTES}"));
    }
    let begins = state_offset_bytes(transfers);
    if state_offset != begins {
        return malformed(format!("the state begins at {state_offset}, not at {begins}"));
    }
    if state_offset + state_bytes > slot.len_bytes() as u64 {
        let room = slot.len_bytes();
        return malformed(format!(
            "{transfers} extents and {state_bytes} bytes of state exceed a slot of {room} bytes"
        ));
    }
    Ok(())
}

/// Copies the extents out and checks each by itself, their checksum and their sum of pages.
fn read_extents(
    slot: &Memory,
    found: &SlotHeader,
    expected_checksum: u32,
    expected_pages: u64,
    transfers: &mut Vec<Transfer>,
) -> Result<(), SlotError> {
    let mut hasher = crc32fast::Hasher::new();
    let mut batch = [ExtentBytes::new_zeroed(); BATCH];
    let mut at = HEADER_BYTES;
    let mut left = found.transfers as usize;
    let mut pages = 0u64;
    let mut fault = None;
    while left > 0 {
        let part = &mut batch[..left.min(BATCH)];
        slot.read(at, part.as_mut_bytes());
        hasher.update(part.as_bytes());
        at += part.len() * EXTENT_BYTES;
        left -= part.len();
        for extent in part {
            match read_extent(extent) {
                Ok(transfer) => {
                    pages += transfer.pages;
                    transfers.push(transfer);
                }
                Err(error) => fault = fault.or(Some(error)),
            }
        }
    }
    let mut padding = [0; STATE_ALIGN_BYTES as usize];
    let padding = &mut padding[..found.state_offset_bytes as usize - at];
    slot.read(at, padding);
    hasher.update(padding);
    // A wrong checksum explains a wrong extent, not the other way round.
    same_checksum("extents", expected_checksum, hasher.finalize())?;
    if let Some(error) = fault {
        return Err(error);
    }
    if padding.iter().any(|byte| *byte != 0) {
        return malformed("bytes between extents and state are not zero".into());
    }
    if pages != expected_pages {
        return malformed(format!("the extents have {pages} pages, the header says {expected_pages}"));
    }
    Ok(())
}

fn read_extent(extent: &ExtentBytes) -> Result<Transfer, SlotError> {
    if extent.kind.get() != KIND_DATA {
        return malformed(format!("extent kind {} is not spoken in version {VERSION}", extent.kind.get()));
    }
    if extent.reserved != [0; 2] {
        return malformed("reserved bytes of an extent are not zero".into());
    }
    let transfer = Transfer {
        first_page: PageIndex(extent.first_page.get()),
        first_frame: FrameIndex(extent.first_frame.get()),
        pages: u64::from(extent.pages.get()),
    };
    check_transfer(&transfer)?;
    Ok(transfer)
}

/// Ends within what any arena has, so that no sum overflows.
fn check_transfer(transfer: &Transfer) -> Result<(), SlotError> {
    let ends_within =
        |first: u64, limit: u64| first.checked_add(transfer.pages).is_some_and(|end| end <= limit);
    if transfer.pages == 0
        || !ends_within(transfer.first_page.0, MAX_PAGES)
        || !ends_within(transfer.first_frame.0, MAX_FRAMES)
    {
        return malformed(format!(
            "extent of {} pages at page {}, frame {} is empty or out of range",
            transfer.pages, transfer.first_page, transfer.first_frame
        ));
    }
    Ok(())
}

fn same_checksum(of: &str, found: u32, computed: u32) -> Result<(), SlotError> {
    if found == computed {
        return Ok(());
    }
    malformed(format!("checksum of the {of} is {found:#010x}, computed {computed:#010x}"))
}

fn malformed<T>(why: String) -> Result<T, SlotError> {
    Err(SlotError::Malformed(why))
}
