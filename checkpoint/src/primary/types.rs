//! The settings of a primary, what it asks its driver to do, and what it reports.

use std::time::Duration;

use crate::arbiter::Record;
use crate::ids::{Epoch, Identity, SessionId, Time};
use crate::release::ReleaseToken;
use crate::wire::message::{DecodeError, ErrorCode, Message};

/// Settings of a primary. Durations are policy; safety does not depend on them.
#[derive(Clone, Debug)]
pub struct PrimaryConfig {
    /// This host's name in the record.
    pub host: String,
    /// The guest's name.
    pub guest: String,
    /// The session, random.
    pub session: SessionId,
    /// Length of an epoch, a target.
    pub interval: Duration,
    /// D: captured but unacked epochs at most.
    pub depth: u64,
    /// Heartbeats are sent this often.
    pub heartbeat_every: Duration,
    /// The backup is suspected after so long without a sign of life or without a connection.
    pub suspect_after: Duration,
    /// Synchronization ends with a pause once a round leaves at most this many dirty pages.
    pub sync_target_pages: u64,
    /// ... or after this many rounds.
    pub sync_max_rounds: u64,
    /// Whether to go solo by itself when the backup is lost (arbiter `none` permitting).
    pub solo_automatic: bool,
    /// Back-pressure: how long the guest may stay paused, from the pause on, until there is room
    /// for its epoch. Zero: not at all.
    pub throttle_pause: Duration,
    /// Below this many free spares homings are asked for.
    pub low_water_spares: u64,
    /// Whether the record is shared with the backup. False with arbiter `none`, whose swaps say
    /// nothing about the other side: a planned failover is then only believed to have happened,
    /// or not, on the backup's word.
    pub shared_arbiter: bool,
    /// Seeds the nonces of this machine's records; random for each machine.
    pub nonce_seed: u64,
}

/// Where the primary stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrimaryState {
    /// No backup: the guest runs unprotected, its output free.
    Solo,
    /// The image is being built; output is free until `hold` and then held to the first ack.
    Syncing,
    /// Checkpoints commit; the backup may take over.
    Protected,
    /// The image was invalidated; waits for the backup's promise, then syncs anew.
    Invalid,
    /// Planned failover: the last epoch is on its way, the guest is paused.
    TakingOver,
    /// The backup owns the guest; the local one is to be destroyed.
    Lost,
    /// The guest has ended or protection was stopped.
    Ended,
}

/// What the capture thread is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing until then (or until another thread's call changes it).
    Wait {
        /// When to ask again at the latest.
        until: Option<Time>,
    },
    /// A synchronization round with the guest running: send these pages to their homes. For
    /// `everything`: all pages (tracking has been started and what it collected is dropped
    /// first); otherwise what [`crate::guest::Guest::collect`] reports. With copy-only homes they
    /// are told to [`Primary::round_listed`](super::Primary::round_listed) instead of sent.
    Round {
        /// Its number, from 1.
        round: u64,
        /// All pages, or the dirty ones.
        everything: bool,
    },
    /// With copy-only homes, the guest running: [`Primary::place_part`](super::Primary::place_part),
    /// copy, and send as an epoch without a state.
    Part,
    /// Pause, mark, save, collect, [`Primary::place`](super::Primary::place), copy, resume.
    Checkpoint {
        /// Do not resume after it: planned failover or the guest has ended.
        last: bool,
    },
}

/// A placed epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedEpoch {
    /// Its number.
    pub epoch: Epoch,
    /// What its slot and messages carry.
    pub identity: Identity,
    /// Pages in all.
    pub pages: u64,
}

/// Why a collected epoch was not placed. The machine keeps its pages (I7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// No room yet, and acks and homings under way will make some: keep the guest paused and call
    /// [`Primary::place`](super::Primary::place) again, without further pages, whenever something
    /// was heard from the backup, and at this time.
    Full {
        /// From then on the answer is another one.
        until: Time,
    },
    /// Still no room after [`PrimaryConfig::throttle_pause`]: resume, the next epoch includes the
    /// pages.
    Stalled,
    /// Too large for the spares: resume; the machine invalidates the image and syncs anew.
    Overflow,
    /// The connection or the state changed meanwhile: resume.
    Superseded,
}

/// What the driver is to do, in order.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // lives in a reused list; boxing would allocate
pub enum PrimaryAction {
    /// Send on the control channel under this identity.
    Send(Identity, Message),
    /// Give to the output gate.
    Release(ReleaseToken),
    /// Begin to hold output, then call [`Primary::handle_held`](super::Primary::handle_held): no checkpoint is asked for
    /// before. Carried out in order with [`Release`](Self::Release), across threads too.
    HoldOutput,
    /// Close the connection for good, then call [`Primary::handle_disconnected`](super::Primary::handle_disconnected).
    CloseConnection(String),
    /// Ask the arbiter, then call [`Primary::handle_swap`](super::Primary::handle_swap).
    Swap {
        /// The record expected.
        expected: Option<Record>,
        /// The new record.
        new: Record,
    },
    /// Read the record, then call [`Primary::handle_record`](super::Primary::handle_record).
    ReadRecord,
    /// The backup owns the guest: destroy it here.
    DestroyGuest,
    /// A planned failover came to nothing: the guest, paused by a last checkpoint, runs on here.
    ResumeGuest,
    /// Worth telling people: states, overflows, why.
    Report(PrimaryReport),
}

/// What happened, for logs and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrimaryReport {
    /// A new state and why.
    State(PrimaryState, String),
    /// An epoch was acked.
    Acked {
        /// The epoch.
        epoch: Epoch,
        /// From the pause to the ack.
        commit_latency: Duration,
    },
    /// An epoch that did not fit the spares.
    Overflow {
        /// Its pages.
        pages: u64,
    },
    /// Went on from committed epoch `at` without a full copy.
    Resumed {
        /// C.
        at: Epoch,
        /// Pages merged into the next epoch.
        pages: u64,
    },
    /// The backup refused the connection or gave it up, and said why.
    Refused {
        /// What kind.
        code: ErrorCode,
        /// For people.
        text: String,
    },
}

/// A reused list of actions.
pub type Actions = Vec<PrimaryAction>;

/// What a peer did that ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct PeerFault {
    /// What an established peer is told; `None`: it gave up itself, and an Error is never answered.
    pub code: Option<ErrorCode>,
    /// For people.
    pub text: String,
}

impl PeerFault {
    pub(super) fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code: Some(code), text: text.into() }
    }

    pub(super) fn violation(text: impl Into<String>) -> Self {
        Self::new(ErrorCode::Violation, text)
    }

    /// The peer's own Error.
    pub(super) fn said_by_peer(text: String) -> Self {
        Self { code: None, text }
    }
}

impl From<DecodeError> for PeerFault {
    fn from(error: DecodeError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
