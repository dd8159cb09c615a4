//! The crate's error and its translation to the seams' errors.

use romulus_checkpoint::guest::GuestError;
use romulus_checkpoint::standby::StandbyError;

use crate::qmp::QmpError;
use crate::stream::StreamError;

/// An operation on a QEMU process failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QemuError {
    /// The monitor.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The process is gone.
    #[error("QEMU's process {pid} is gone")]
    Gone {
        /// Its process id.
        pid: i32,
    },
    /// The guest or standby cannot be used as it is; says what to change.
    #[error("{0}")]
    Refused(String),
    /// This machine lacks a privilege or a kernel feature; says which and how to get it.
    #[error("{0}")]
    Machine(String),
    /// A migration stream that is not as expected.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Anything else, with what was tried.
    #[error("{what}: {why}")]
    Failed {
        /// What was tried.
        what: String,
        /// What came of it.
        why: String,
    },
}

impl QemuError {
    pub(crate) fn failed(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Failed { what: what.into(), why: why.to_string() }
    }

    /// A failed look at process `pid` through this file of its own.
    pub(crate) fn of_process(pid: i32, path: &str, error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => Self::Machine(format!(
                "{path}: {error}: romulus may not look into QEMU's process {pid}; run it as root (or as QEMU's user \
                 with CAP_SYS_PTRACE, and CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN to map the guest's memory)"
            )),
            _ => Self::failed(path, error),
        }
    }

    /// As the error of a guest operation.
    pub(crate) fn guest(self, what: &str) -> GuestError {
        match self {
            Self::Gone { .. } => GuestError::Gone(self.to_string()),
            Self::Refused(text) | Self::Machine(text) => GuestError::Refused(text),
            other => GuestError::Failed { what: what.into(), why: other.to_string() },
        }
    }

    /// As the error of a standby operation.
    pub(crate) fn standby(self, what: &str) -> StandbyError {
        StandbyError { what: what.into(), why: self.to_string() }
    }
}
