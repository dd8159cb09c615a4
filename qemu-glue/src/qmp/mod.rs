//! A small synchronous QMP client: one unix socket, replies matched by id, events queued,
//! nothing allocated for the commands of an epoch.

mod client;
mod error;
mod line;

pub use client::{Client, Prepared, Ticket};
pub use error::QmpError;
pub use line::{Event, Line, MigrationStatus, Reply, parse};

/// Longest line accepted from QEMU, in bytes. The longest answers asked for (QOM lists) stay
/// below a megabyte.
pub const MAX_LINE_BYTES: usize = 32 * 1024 * 1024;
