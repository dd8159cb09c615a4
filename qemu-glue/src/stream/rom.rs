//! The ROM blocks as a region of guest memory.
//!
//! A state saved by `xen-save-devices-state` has no ROM blocks, and a standby that is started for
//! an incoming migration leaves its own ROMs empty: without them a reboot after takeover would
//! fetch its reset vector from zeros. So the prefix of one full stream, which holds them, is a
//! region of the guest's memory of its own: copied once, kept consistent with the epochs like
//! any page, sent again only when it changed.

use romulus_transport::Memory;

use super::prefix::take_prefix;
use super::{PAGE_BYTES, StreamError};

/// The region's name in the guest's layout.
pub const ROM_REGION: &str = "romulus.rom";

/// Magic and version of the record that begins the region; the length in bytes follows,
/// little-endian, then the prefix.
const MAGIC: [u8; 8] = *b"RQROM\0\0\x01";
const HEADER_BYTES: usize = 16;

/// The region on the primary.
#[derive(Debug)]
pub struct RomRecord {
    memory: Memory,
    used_bytes: usize,
}

impl RomRecord {
    /// Room for a prefix with ROM blocks of up to `rom_bytes` in all.
    pub fn with_room_for(rom_bytes: u64) -> Self {
        // Each page costs up to 8 bytes of address and 256 of name; most cost 8.
        let bytes = usize::try_from(rom_bytes).unwrap_or(usize::MAX / 4);
        let room = (bytes + bytes / 64 + 64 * 1024 + HEADER_BYTES).next_multiple_of(PAGE_BYTES);
        Self { memory: Memory::anonymous(room), used_bytes: 0 }
    }

    /// The region's memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Stores a prefix. Returns the number of pages from the region's begin that have to be sent,
    /// 0 when it is there already.
    pub fn store(&mut self, prefix: &[u8]) -> Result<u64, StreamError> {
        let used = HEADER_BYTES + prefix.len();
        if used > self.memory.len_bytes() {
            let why = format!(
                "{} bytes of ROM where {} were expected",
                prefix.len(),
                self.memory.len_bytes() - HEADER_BYTES
            );
            return Err(StreamError { at: 0, why });
        }
        if self.holds(prefix) {
            return Ok(0);
        }
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..].copy_from_slice(&(prefix.len() as u64).to_le_bytes());
        self.memory.write(0, &header);
        self.memory.write(HEADER_BYTES, prefix);
        self.used_bytes = used;
        Ok((used.div_ceil(PAGE_BYTES)) as u64)
    }

    fn holds(&self, prefix: &[u8]) -> bool {
        if self.used_bytes != HEADER_BYTES + prefix.len() {
            return false;
        }
        let mut page = [0; PAGE_BYTES];
        prefix.chunks(PAGE_BYTES).enumerate().all(|(index, chunk)| {
            let page = &mut page[..chunk.len()];
            self.memory.read(HEADER_BYTES + index * PAGE_BYTES, page);
            page == chunk
        })
    }

    /// The prefix out of a region on the backup, checked.
    pub fn load(region: &Memory) -> Result<Vec<u8>, StreamError> {
        let fail = |why: &str| StreamError { at: 0, why: format!("region {ROM_REGION}: {why}") };
        if region.len_bytes() < HEADER_BYTES {
            return Err(fail("too short"));
        }
        let mut header = [0; HEADER_BYTES];
        region.read(0, &mut header);
        if header[..8] != MAGIC {
            return Err(fail("holds no ROM record"));
        }
        let mut length = [0; 8];
        length.copy_from_slice(&header[8..]);
        let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > region.len_bytes() - HEADER_BYTES {
            return Err(fail("is cut off"));
        }
        let mut prefix = vec![0; length];
        region.read(HEADER_BYTES, &mut prefix);
        let (used, _) = take_prefix(&prefix)?;
        if used != length {
            return Err(fail("has bytes after the RAM sections"));
        }
        Ok(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(fill: u8) -> Vec<u8> {
        let mut prefix = b"QEVM\0\0\0\x03\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04".to_vec();
        prefix.extend((4096u64 | 4).to_be_bytes());
        prefix.extend(b"\x01r");
        prefix.extend(4096u64.to_be_bytes());
        prefix.extend(0u64.to_be_bytes());
        prefix.extend(16u64.to_be_bytes());
        prefix.extend(b"\x03\0\0\0\x02");
        prefix.extend(8u64.to_be_bytes());
        prefix.extend(b"\x01r");
        prefix.extend([fill; 4096]);
        prefix.extend(16u64.to_be_bytes());
        prefix
    }

    #[test]
    fn what_is_stored_is_loaded_and_sent_only_when_changed() {
        let mut record = RomRecord::with_room_for(4096);
        assert_eq!(record.store(&prefix(1)).unwrap(), 2);
        assert_eq!(record.store(&prefix(1)).unwrap(), 0);
        assert_eq!(record.store(&prefix(2)).unwrap(), 2);
        assert_eq!(RomRecord::load(record.memory()).unwrap(), prefix(2));
    }

    #[test]
    fn refuses_too_much_and_garbage() {
        let mut record = RomRecord::with_room_for(0);
        assert!(record.store(&vec![0; record.memory().len_bytes()]).is_err());
        assert!(RomRecord::load(record.memory()).is_err());
        record.store(&prefix(1)).unwrap();
        record.memory().write(8, &u64::MAX.to_le_bytes());
        assert!(RomRecord::load(record.memory()).is_err());
    }
}
