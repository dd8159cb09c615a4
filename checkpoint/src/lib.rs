//! Checkpoint replication of a virtual machine: epochs, placement, the primary's and the
//! backup's protocol machines, output commit, and who may run the guest.
//!
//! The machines ([`primary::Primary`], [`backup::Backup`]) are sans-I/O: no sockets, threads or
//! clocks inside. [`driver`] runs them over a real fabric, guest and standby; the simulator in
//! `tests/` runs the same machines with faults at every step. The normative text of the protocol
//! is `docs/protocol.md`.

pub mod arbiter;
pub mod backup;
pub mod driver;
pub mod extent;
pub mod gate;
pub mod guest;
pub mod ids;
pub mod layout;
pub mod metrics;
pub mod nonce;
pub mod pause_detail;
pub mod placement;
pub mod primary;
pub mod release;
pub mod standby;
pub mod synthetic;
pub mod wire;

pub use extent::{Extent, Transfer};
pub use ids::{
    ConnectionNumber, Epoch, FrameIndex, GateMark, Generation, HomingSequence, Identity, Incarnation,
    PageIndex, SessionId, Time,
};
pub use layout::{ArenaShape, GuestLayout, Region};

/// Bytes in a page and in a frame.
pub const PAGE_BYTES: u64 = 4096;
