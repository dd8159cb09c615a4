//! Shared by the fuzz targets: puts right checksums around arbitrary bytes, so that fuzzing
//! reaches what lies behind them, as a hostile peer would; and writes seeds.

pub mod seeds;

use romulus_checkpoint::{ConnectionNumber, Epoch, Generation, Identity, Incarnation, SessionId};

/// The identity and epoch under which slots are read.
pub fn slot_identity() -> (Identity, Epoch) {
    let identity = Identity {
        session: SessionId(1),
        generation: Generation(1),
        incarnation: Incarnation(1),
        connection: ConnectionNumber(1),
    };
    (identity, Epoch(1))
}

fn put_checksum(bytes: &mut [u8], at: usize, of: std::ops::Range<usize>) {
    let checksum = crc32fast::hash(&bytes[of]);
    bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// Makes magic, version, length and checksums of a message right. False: too short for a header.
pub fn seal_message(bytes: &mut [u8]) -> bool {
    let len = bytes.len();
    if len < 64 {
        return false;
    }
    bytes[..6].copy_from_slice(b"RMLM\x01\x00");
    bytes[8..12].copy_from_slice(&(len as u32).to_le_bytes());
    bytes[12..16].fill(0);
    put_checksum(bytes, 56, 64..len);
    put_checksum(bytes, 60, 0..60);
    true
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put_number(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Makes checksums and identity of a slot right, as far as its lengths allow.
pub fn seal_slot(bytes: &mut [u8]) {
    if bytes.len() < 128 {
        return;
    }
    bytes[..16].copy_from_slice(b"RMLS\x01\x00\0\0\0\0\0\0\0\0\0\0");
    let (identity, epoch) = slot_identity();
    bytes[16..32].copy_from_slice(&identity.session.0.to_le_bytes());
    for (at, value) in [(32, 1), (40, 1), (48, 1), (56, epoch.0)] {
        put_number(bytes, at, value);
    }
    let offset = number(bytes, 88).min(bytes.len() as u64) as usize;
    let state_bytes = number(bytes, 80).min((bytes.len() - offset) as u64) as usize;
    if offset >= 128 {
        put_checksum(bytes, 96, 128..offset);
    }
    put_checksum(bytes, 100, offset..offset + state_bytes);
    put_checksum(bytes, 124, 0..124);
}

/// Makes counts, lengths and sums of a slot agree as well: what is left is in the extents.
pub fn fit_slot(bytes: &mut [u8]) {
    let Some(room) = bytes.len().checked_sub(128) else { return };
    let most = romulus_checkpoint::wire::slot::max_transfers(room as u64 + 128, 0);
    let transfers = number(bytes, 64).min(most) as usize;
    let offset = romulus_checkpoint::wire::slot::state_offset_bytes(transfers as u64) as usize;
    let extents = bytes[128..128 + 24 * transfers].chunks_exact(24);
    let pages = extents.map(|extent| u64::from(number(extent, 16) as u32)).sum();
    let state_bytes = number(bytes, 80).min((bytes.len() - offset) as u64);
    bytes[128 + 24 * transfers..offset].fill(0);
    bytes[104..124].fill(0);
    for (at, value) in [(64, transfers as u64), (72, pages), (80, state_bytes), (88, offset as u64)] {
        put_number(bytes, at, value);
    }
    seal_slot(bytes);
}

/// Makes the checksums of a recording right, as far as its records can be followed.
pub fn seal_recording(bytes: &mut [u8]) {
    if bytes.len() < 16 {
        return;
    }
    bytes[..6].copy_from_slice(b"RMLR\x01\x00");
    put_checksum(bytes, 12, 0..12);
    let mut at = 16;
    while at + 24 <= bytes.len() {
        let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().expect("four bytes")) as usize;
        let end = (at + 24).saturating_add(len).min(bytes.len());
        put_checksum(bytes, at + 16, at + 24..end);
        put_checksum(bytes, at + 20, at..at + 20);
        at = end;
    }
}
