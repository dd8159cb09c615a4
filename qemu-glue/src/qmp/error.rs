//! What can go wrong between this process and QEMU's monitor.

use std::time::Duration;

/// A QMP exchange failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// The connection has ended: QEMU is gone or closed its monitor.
    #[error("QEMU closed its QMP connection")]
    Closed,
    /// No answer in time.
    #[error("no answer to {what} within {waited:?}")]
    Timeout {
        /// The command, or the greeting.
        what: String,
        /// How long was waited.
        waited: Duration,
    },
    /// QEMU answered with an error.
    #[error("QEMU refuses {command}: {text}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class (`GenericError`, `CommandNotFound`, ...).
        class: String,
        /// QEMU's text.
        text: String,
    },
    /// What came is not QMP.
    #[error("not QMP: {0}")]
    Protocol(String),
    /// The socket failed.
    #[error("QMP socket: {0}")]
    Io(#[from] std::io::Error),
}

impl From<rustix::io::Errno> for QmpError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}
