//! Runs the primary's machine over a real guest, gate, arbiter and fabric.

mod capture;
mod checkpoint;
mod connect;
mod control;
mod copy;
mod handle;
mod jobs;
mod link;
mod options;
mod part;
mod pause;
mod plan;
mod round;
mod sender;
mod shared;
mod staging;
mod start;
mod status;

pub use handle::PrimaryHandle;
pub use options::{CaptureMode, PrimaryOptions, PrimaryParts, Watermark};
pub use start::PrimaryDriver;
pub use status::{Percentiles, PhaseStatus, PrimaryOutcome, PrimaryStatus, Refusal, SyncProgress};
