//! The crate's error and its translation to the seams' errors.

use romulus_checkpoint::guest::GuestError;
use romulus_checkpoint::standby::StandbyError;

/// An operation on a Xen domain failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum XenError {
    /// This machine, or this build, has no Xen that Romulus can use; says what was found and what to do.
    #[error("{0}")]
    NoXen(String),
    /// The domain is gone.
    #[error("domain {domid} is gone")]
    Gone {
        /// Its number.
        domid: u32,
    },
    /// The domain or standby cannot be used as it is; says what to change.
    #[error("{0}")]
    Refused(String),
    /// Records that are not as expected.
    #[error(transparent)]
    Records(#[from] crate::records::RecordError),
    /// Anything else, with what was tried.
    #[error("{what}: {why}")]
    Failed {
        /// What was tried.
        what: String,
        /// What came of it.
        why: String,
    },
}

impl XenError {
    /// What was tried, and what came of it.
    pub fn failed(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Failed { what: what.into(), why: why.to_string() }
    }

    /// As the error of a guest operation.
    pub fn guest(self, what: &str) -> GuestError {
        match self {
            Self::Gone { .. } => GuestError::Gone(self.to_string()),
            Self::Refused(text) => GuestError::Refused(text),
            other => GuestError::Failed { what: what.into(), why: other.to_string() },
        }
    }

    /// As the error of a standby operation.
    pub fn standby(self, what: &str) -> StandbyError {
        StandbyError { what: what.into(), why: self.to_string() }
    }
}
