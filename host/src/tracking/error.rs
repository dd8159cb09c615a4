//! Why memory cannot be tracked.

use std::io;

/// Tracking failed. Each variant says what to do, or whom it concerns.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackingError {
    /// The tracked process has ended (or replaced itself by another program).
    #[error("process {pid} is gone")]
    Gone {
        /// Its id.
        pid: u32,
    },
    /// The system or the process does not allow it; says why and how to mend it.
    #[error("{0}")]
    Refused(String),
    /// This process lacks a privilege; says which and how to get it.
    #[error("{0}")]
    Privilege(String),
    /// The kernel has neither way of tracking.
    #[error(
        "this kernel cannot track another process's writes: write protection by userfaultfd and \
         PAGEMAP_SCAN (Linux 6.7 or later with CONFIG_USERFAULTFD): {write_protect}; soft-dirty bits \
         (CONFIG_MEM_SOFT_DIRTY): {soft_dirty}"
    )]
    Unsupported {
        /// Why not by write protection.
        write_protect: String,
        /// Why not by soft-dirty bits.
        soft_dirty: String,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's word.
        source: io::Error,
    },
}

impl TrackingError {
    pub(crate) fn system(what: impl Into<String>, source: io::Error) -> Self {
        Self::System { what: what.into(), source }
    }
}
