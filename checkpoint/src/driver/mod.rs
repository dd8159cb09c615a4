//! Runs the machines over a real fabric, guest and standby, with named and pinnable threads.
//!
//! [`primary::PrimaryDriver`] protects a guest, [`backup::BackupDriver`] stands ready for it. Both
//! are thin: what to do next is decided by the machines, the drivers only carry it out. A machine
//! sits behind a mutex that is never held across I/O, guest operations or arbiter calls; the
//! actions it asks for are queued while it is locked and carried out afterwards, in that order.

pub mod backup;
pub mod mapping;
pub mod primary;
pub mod threads;

mod arbitrate;
mod borders;
mod clock;
mod journal;
pub(crate) mod signal;
mod zero;

pub use clock::Clock;
pub use mapping::{anonymous_mapping, shared_mapping};
pub use threads::{NoThreadSetup, ThreadSetup};

/// A driver could not start. Nothing was changed: the guest runs unprotected, nothing listens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The options contradict each other or the guest.
    #[error("{0}")]
    Options(String),
    /// The arbiter could not be asked, or its record forbids it.
    #[error("{0}")]
    Ownership(String),
    /// The fabric could not listen.
    #[error(transparent)]
    Transport(#[from] romulus_transport::TransportError),
    /// Memory or threads could not be had.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's word.
        source: std::io::Error,
    },
}
