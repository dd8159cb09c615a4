//! Runs the backup's machine over a real standby, arena, arbiter and fabric.

mod arena;
mod options;
mod status;

pub use arena::{ArenaError, ArenaProvider, BackupArena, InProcessArenas};
pub use options::{BackupOptions, BackupParts};
pub use status::{BackupOutcome, BackupStatus, TakeoverStatus};

use std::net::SocketAddr;
use std::time::Duration;

use super::StartError;

/// Starts a backup.
#[derive(Debug)]
pub struct BackupDriver;

impl BackupDriver {
    /// Listens and starts the threads. Allocates nothing before a primary's Hello was admitted.
    pub fn spawn(options: BackupOptions, parts: BackupParts) -> Result<BackupHandle, StartError> {
        let _ = (options, parts);
        todo!("driver")
    }
}

/// Looks after a running driver; clones are the same driver. The arena lives as long as a handle.
#[derive(Clone, Debug)]
pub struct BackupHandle {}

impl BackupHandle {
    /// The address it listens on, with the real port where 0 was asked.
    pub fn local_address(&self) -> SocketAddr {
        todo!("driver")
    }

    /// A snapshot.
    pub fn status(&self) -> BackupStatus {
        todo!("driver")
    }

    /// The operator says: take over now from the last committed epoch (`force`: the primary is
    /// dead, whatever the record of arbiter `none` says). Refused with the reason where there is
    /// nothing to resume. [`wait`](Self::wait) then tells what became of it.
    pub fn request_takeover(&self, force: bool) -> Result<(), String> {
        let _ = force;
        todo!("driver")
    }

    /// Asks for the end: the image is dropped, the primary goes on alone. Idempotent; returns at
    /// once.
    pub fn request_stop(&self) {
        todo!("driver")
    }

    /// Waits for the end of the driver and of all its threads. A guest that ended or detached is
    /// no end: the backup stands ready for the next.
    pub fn wait(&self) -> BackupOutcome {
        todo!("driver")
    }

    /// As [`wait`](Self::wait), for at most `timeout`; `None`: it goes on.
    pub fn wait_for(&self, timeout: Duration) -> Option<BackupOutcome> {
        let _ = timeout;
        todo!("driver")
    }
}
