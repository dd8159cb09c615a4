//! What can go wrong between two hosts, and why a connection ended.

use std::time::Duration;

/// Why a connection ended. Any part of it failing ends all of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The local side closed it.
    #[error("closed by this side")]
    Local,
    /// The peer closed it or its process ended.
    #[error("closed by the peer ({0})")]
    Peer(String),
    /// Nothing was heard from the peer for too long.
    #[error("the peer was silent for {0:?}")]
    Silent(Duration),
    /// The peer broke the rules of the fabric; nothing of the offending item was placed.
    #[error("the peer broke the fabric's rules: {0}")]
    Violation(String),
    /// The network or the device failed.
    #[error("the connection failed: {0}")]
    Failed(String),
}

/// Errors of a fabric. Each says what was tried on what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The connection has ended; all further calls give the same.
    #[error("connection ended: {0}")]
    Closed(#[from] CloseReason),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with its address or path.
        what: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The caller asked for something impossible (range, size, unregistered memory).
    #[error("invalid request: {0}")]
    Invalid(String),
    /// There is no RDMA device to use; why, and how to mend it.
    #[error("no RDMA device: {0}")]
    NoDevice(String),
    /// Memory could not be registered with the device; why, and how to mend it.
    #[error("memory cannot be registered: {0}")]
    Registration(String),
    /// The peer's handshake bytes make no sense.
    #[error("handshake refused: {0}")]
    Handshake(String),
    /// The step did not finish in time.
    #[error("{what} did not finish within {limit:?}")]
    TimedOut {
        /// The step.
        what: String,
        /// The limit.
        limit: Duration,
    },
}
