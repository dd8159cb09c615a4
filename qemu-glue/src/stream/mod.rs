//! QEMU's migration stream, as far as it has to be taken apart.
//!
//! A stream (QEMU's `migration/savevm.c`, `migration/ram.c`) is a header, a configuration
//! section, the sections of RAM, one full section for each device, an end mark and optionally a
//! description. Here it falls into two parts: the *prefix* up to the end of the RAM sections,
//! which under `x-ignore-shared` holds the ROM blocks only and changes with a reset at most; and
//! the *devices*, the full sections with their end mark, which change with every epoch.
//! [`split`] finds the border, [`write_stream`] puts a loadable stream together again.
//!
//! All parsing is bounded by the bytes given and never panics.

mod cursor;
mod prefix;
mod rom;
mod state;

pub use prefix::{Blocks, split, take_prefix};
pub use rom::{ROM_REGION, RomRecord};
pub use state::{STATE_HEADER_BYTES, devices_of_save, open_state, seal_state};

const PAGE_BYTES: usize = romulus_checkpoint::PAGE_BYTES as usize;

/// Why bytes are not the stream expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("migration stream, byte {at}: {why}")]
pub struct StreamError {
    /// Offset in the stream.
    pub at: usize,
    /// What is wrong there.
    pub why: String,
}

/// Magic and version that begin every stream: `QEVM`, 3.
pub(crate) const HEADER: [u8; 8] = *b"QEVM\0\0\0\x03";
/// A section type: the end of the stream.
pub(crate) const SECTION_EOF: u8 = 0x00;
/// A section type: a whole device.
pub(crate) const SECTION_FULL: u8 = 0x04;

/// What follows the end mark in place of QEMU's own description, which is only for tools.
const DESCRIPTION: [u8; 7] = *b"\x06\0\0\0\x02{}";

/// Writes a stream that QEMU can load.
pub fn write_stream(mut into: impl std::io::Write, prefix: &[u8], devices: &[u8]) -> std::io::Result<()> {
    into.write_all(prefix)?;
    into.write_all(devices)?;
    into.write_all(&DESCRIPTION)?;
    into.flush()
}
