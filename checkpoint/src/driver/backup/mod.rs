//! Runs the backup's machine over a real standby, arena, arbiter and fabric.

mod arena;
mod committer;
mod handle;
mod handshake;
mod homes;
mod homing;
mod options;
mod shared;
mod start;
mod status;
mod takeover;
mod watch;

pub use arena::{ArenaError, ArenaProvider, BackupArena, InProcessArenas};
pub use handle::BackupHandle;
pub use options::{BackupOptions, BackupParts};
pub use start::BackupDriver;
pub use status::{BackupOutcome, BackupStatus, TakeoverStatus};
