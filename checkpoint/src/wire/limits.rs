//! What a peer may ask for at most. Everything read is held against these before it is used or
//! sizes an allocation; `docs/protocol.md` lists them for other implementations.

/// Longest name of a host, guest, hypervisor or region, in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// Most regions of guest memory.
pub const MAX_REGIONS: usize = 512;
/// Most lines of a machine's configuration.
pub const MAX_CONFIGURATION_LINES: usize = 1024;
/// Longest line of a machine's configuration, in bytes.
pub const MAX_LINE_BYTES: usize = 1024;
/// Longest text of an Error, in bytes.
pub const MAX_TEXT_BYTES: usize = 1024;
/// Most bytes of a fabric's own parameters.
pub const MAX_FABRIC_BYTES: usize = 32 * 1024;

/// P at most, and S at most: 8 TiB each.
pub const MAX_PAGES: u64 = 1 << 31;
/// P + S at most.
pub const MAX_FRAMES: u64 = u32::MAX as u64;
/// D at most.
pub const MAX_DEPTH: u64 = 255;
/// K at most.
pub const MAX_SLOTS: u64 = 256;
/// Longest commit slot, in bytes.
pub const MAX_SLOT_BYTES: u64 = 1 << 30;
/// Longest CPU and device state, in bytes.
pub const MAX_STATE_BYTES: u64 = 256 << 20;
/// Most transfers of one epoch.
pub const MAX_TRANSFERS: u64 = 1 << 24;
/// Epochs, rounds, homing sequences, generations, incarnations, connections and counters stay
/// below this, so that the next one can always be formed.
pub const MAX_NUMBER: u64 = (1 << 63) - 1;
/// Contents of an arena that are begun on one connection, at most.
pub const INCARNATIONS_A_CONNECTION: u64 = 256;
