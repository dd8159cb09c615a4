//! The settings of a backup, what it asks its driver to do, and what it reports.

use std::time::Duration;

use crate::arbiter::Record;
use crate::ids::{Epoch, Identity};
use crate::layout::ArenaShape;
use crate::placement::committed::HomingCopy;
use crate::wire::message::{ErrorCode, Message};

/// Settings of a backup.
#[derive(Clone, Debug)]
pub struct BackupConfig {
    /// This host's name in the record.
    pub host: String,
    /// Heartbeats are sent this often.
    pub heartbeat_every: Duration,
    /// The primary is suspected after so long without a sign of life.
    pub suspect_after: Duration,
    /// Whether to take over by itself on suspicion.
    pub takeover_automatic: bool,
    /// Largest arena this host lends, in bytes.
    pub max_arena_bytes: u64,
    /// Whether the record is shared with the primary. False with arbiter `none`, where a missing
    /// record says nothing; with a shared arbiter it means that the two sides ask different ones.
    pub shared_arbiter: bool,
    /// Seeds the nonces of this machine's records; random for each machine.
    pub nonce_seed: u64,
}

/// Where the backup stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupState {
    /// Nothing here yet, or the primary goes on alone and what is here is not to be resumed.
    Solo,
    /// The image is being built.
    Syncing,
    /// A committed epoch stands ready.
    Protected,
    /// The image was invalidated.
    Invalid,
    /// Fencing, asking for the grant, homing, activating.
    TakingOver,
    /// The guest runs here.
    Active,
    /// The guest has ended and is never resumed.
    Ended,
}

/// What the driver is to do, in order.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // lives in a reused list; boxing would allocate
pub enum BackupAction {
    /// Send on the control channel under this identity.
    Send(Identity, Message),
    /// Read the slot of this epoch ([`crate::wire::slot::decode`]), then call
    /// [`Backup::handle_slot`](super::Backup::handle_slot).
    ReadSlot {
        /// The identity the slot must carry.
        identity: Identity,
        /// The epoch.
        epoch: Epoch,
    },
    /// Homings are due: wake the homing thread ([`Backup::next_homing`](super::Backup::next_homing)).
    WakeHoming,
    /// Close the connection, then call [`Backup::handle_disconnected`](super::Backup::handle_disconnected).
    CloseConnection(String),
    /// Make sure that nothing the primary sends can land any more (destroy the connection, join,
    /// deregister) and that no homing copy runs, then call [`Backup::handle_fenced`](super::Backup::handle_fenced).
    Fence,
    /// Ask the arbiter, then call [`Backup::handle_swap`](super::Backup::handle_swap).
    Swap {
        /// The record expected.
        expected: Option<Record>,
        /// The new record.
        new: Record,
    },
    /// Read the record, then call [`Backup::handle_record`](super::Backup::handle_record).
    ReadRecord,
    /// Make the trial load of the committed state, then call [`Backup::handle_trial`](super::Backup::handle_trial).
    Trial {
        /// Whose slot holds the state.
        epoch: Epoch,
    },
    /// Copy these pages home, then activate the standby with the state in the slot of `epoch`,
    /// then call [`Backup::handle_activated`](super::Backup::handle_activated).
    TakeOver {
        /// C.
        epoch: Epoch,
        /// Copies to make first.
        displaced: Vec<HomingCopy>,
    },
    /// Drop the image and the standby: the guest has ended or lives elsewhere.
    Abandon,
    /// Worth telling people.
    Report(BackupReport),
}

/// What happened, for logs and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupReport {
    /// A new state and why.
    State(BackupState, String),
    /// An epoch was committed.
    Committed {
        /// C.
        epoch: Epoch,
        /// Its pages.
        pages: u64,
    },
    /// A peer's request was refused.
    Refused(ErrorCode, String),
}

/// A reused list of actions.
pub type Actions = Vec<BackupAction>;

/// A peer's request that is answered with an error and the end of the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// What kind.
    pub code: ErrorCode,
    /// For people.
    pub text: String,
}

/// What a Hello asks of the driver before the Welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Goes on with the arena there is: destroy the old connection, quiesce homing, then
    /// [`Backup::welcome`](super::Backup::welcome).
    Resume,
    /// Needs a new arena of this shape and a prepared standby, then [`Backup::welcome`](super::Backup::welcome).
    Prepare(ArenaShape),
    /// The record must be read first: [`Backup::admit_with_record`](super::Backup::admit_with_record).
    NeedsRecord,
}
