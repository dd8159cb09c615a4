//! Runs the primary's machine over a real guest, gate, arbiter and fabric.

mod options;
mod status;

pub use options::{CaptureMode, PrimaryOptions, PrimaryParts, Watermark};
pub use status::{Percentiles, PhaseStatus, PrimaryOutcome, PrimaryStatus, SyncProgress};

use std::time::Duration;

use super::StartError;

/// Starts the protection of a guest.
#[derive(Debug)]
pub struct PrimaryDriver;

impl PrimaryDriver {
    /// Claims the guest's record for this host, allocates staging memory and starts the threads.
    /// Returns at once: that the backup cannot be reached is no error but a status, and tried
    /// again. The guest is not touched before the backup has answered.
    pub fn spawn(options: PrimaryOptions, parts: PrimaryParts) -> Result<PrimaryHandle, StartError> {
        let _ = (options, parts);
        todo!("driver")
    }
}

/// Looks after a running driver; clones are the same driver. Dropping all of them neither stops
/// nor waits.
#[derive(Clone, Debug)]
pub struct PrimaryHandle {}

impl PrimaryHandle {
    /// A snapshot.
    pub fn status(&self) -> PrimaryStatus {
        todo!("driver")
    }

    /// Asks for a planned failover: a last epoch, then the backup goes on. Refused with the reason
    /// when no backup stands ready. [`wait`](Self::wait) then tells what became of it.
    pub fn request_failover(&self) -> Result<(), String> {
        todo!("driver")
    }

    /// Asks for the end of protection: the guest goes on here alone, tracking and gate are taken
    /// away. Idempotent; returns at once.
    pub fn request_stop(&self) {
        todo!("driver")
    }

    /// Waits for the end of the driver and of all its threads.
    pub fn wait(&self) -> PrimaryOutcome {
        todo!("driver")
    }

    /// As [`wait`](Self::wait), for at most `timeout`; `None`: it goes on.
    pub fn wait_for(&self, timeout: Duration) -> Option<PrimaryOutcome> {
        let _ = timeout;
        todo!("driver")
    }
}
