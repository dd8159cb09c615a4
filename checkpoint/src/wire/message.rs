//! Control messages.

use arrayvec::ArrayVec;

use super::AckProof;
pub use super::decode::decode;
pub use super::encode::encode;
pub use super::header::{answerable, is_error};
use crate::ids::{Epoch, FrameIndex, HomingSequence, Identity, PageIndex};
use crate::layout::{ArenaShape, GuestLayout};

/// The protocol version this build speaks.
pub const VERSION: u16 = 1;
/// Most homings in one message.
pub const MAX_HOMINGS: usize = 128;
/// The marker that ends synchronization round `round` on every stream is `ROUND_MARKER | round`;
/// an epoch's marker is its number.
pub const ROUND_MARKER: u64 = 1 << 63;
/// A marker with this bit and without that of [`ROUND_MARKER`] ends only a part of a round or epoch:
/// it tells the sender that its memory is free, and means nothing to the receiver.
pub const PART_MARKER: u64 = 1 << 62;

/// Whether a marker means nothing to its receiver.
pub fn is_part(marker: u64) -> bool {
    marker & ROUND_MARKER == 0 && marker & PART_MARKER != 0
}

/// What must be equal on both hosts for a guest's state to load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineIdentity {
    /// Hypervisor and version: `QEMU 7.2.17`.
    pub hypervisor: String,
    /// The machine's configuration, line by line in a canonical order, so that a difference can
    /// be named.
    pub configuration: Vec<String>,
}

/// The primary's first message on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest and highest protocol version spoken.
    pub versions: (u16, u16),
    /// Session, generation, the arena's incarnation if known (else 0), connection number.
    pub identity: Identity,
    /// The primary host's name in the record.
    pub primary: String,
    /// The guest's name: the key of its record.
    pub guest: String,
    /// Shape of guest memory.
    pub layout: GuestLayout,
    /// Shape of the arena wanted.
    pub arena: ArenaShape,
    /// D, captured but unacked epochs at most.
    pub depth: u64,
    /// The machine, to be compared with the standby's.
    pub machine: MachineIdentity,
    /// Suspicion timer of the primary in milliseconds; the backup's must be longer.
    pub suspect_after_ms: u32,
    /// The fabric's own parameters.
    pub fabric_offer: Vec<u8>,
}

/// The backup's answer to a Hello it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version chosen.
    pub version: u16,
    /// Session and generation as in the Hello, the arena's incarnation, the connection.
    pub identity: Identity,
    /// Name of the backup host in the record.
    pub backup: String,
    /// C, the last committed epoch of this incarnation; 0 if none.
    pub committed: Epoch,
    /// No homing up to this one touches memory any more, and their effect is in the map.
    pub homed_through: HomingSequence,
    /// The fabric's own parameters.
    pub fabric_answer: Vec<u8>,
    /// Covers the epochs up to `committed`, if the message was decoded; [`AckProof::outgoing`]
    /// in one that is made to be sent.
    pub proof: AckProof,
}

/// One homing: copy a page from the spare frame that holds it to its home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Homing {
    /// The page.
    pub page: PageIndex,
    /// The spare frame that holds it.
    pub source: FrameIndex,
}

/// Why a side says good-bye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByeReason {
    /// The guest powered off after the last committed epoch; it must never be resumed.
    GuestEnded,
    /// The operator ends protection; the guest runs on at the primary (which has the solo grant).
    Detached,
    /// Planned failover: the guest is paused at the last committed epoch, take over.
    Failover,
    /// The guest's process died at the primary: take over from the last committed epoch.
    GuestDied,
    /// The backup shuts down.
    BackupLeaves,
}

/// Why a peer's message or request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// No common protocol version.
    Version,
    /// The bytes make no sense.
    Malformed,
    /// Another session, generation, incarnation or connection.
    Stale,
    /// Out of order, out of range, or not allowed in this state.
    Violation,
    /// The machines differ.
    MachineMismatch,
    /// The arena does not fit the backup's memory or limits.
    NoRoom,
    /// The backup serves another guest or session.
    Busy,
    /// The standby could not be prepared.
    StandbyFailed,
    /// The arbiter's record forbids it.
    NotGranted,
}

/// A control message. The identity in front of each is checked before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // moved once on its way to the codec; boxing would allocate
pub enum Message {
    /// First message of a connection.
    Hello(Hello),
    /// The answer.
    Welcome(Welcome),
    /// Primary: the writes and markers of a synchronization round are posted.
    RoundEnd {
        /// Counts from 1 in an incarnation.
        round: u64,
    },
    /// Backup: all writes of the round are placed.
    RoundAck {
        /// The round.
        round: u64,
    },
    /// Primary: epoch complete once its markers are in.
    Commit {
        /// The epoch, C + 1.
        epoch: Epoch,
    },
    /// Backup: `committed` is the state to resume; no homing up to `homed_through` touches memory.
    Ack {
        /// C.
        committed: Epoch,
        /// h.
        homed_through: HomingSequence,
        /// As in [`Welcome::proof`].
        proof: AckProof,
    },
    /// Primary: home these pages, numbered from `first_sequence` on.
    Home {
        /// Sequence of the first.
        first_sequence: HomingSequence,
        /// The homings.
        homings: ArrayVec<Homing, MAX_HOMINGS>,
    },
    /// Primary: forget the image; asks for the promise not to take over from it.
    Invalidate,
    /// Backup: the promise. `incarnation` is the arena's next.
    Invalidated {
        /// The arena's incarnation from now on.
        incarnation: crate::Incarnation,
    },
    /// The sender's process lives, and its engine has made this much progress.
    Heartbeat {
        /// Counts heartbeats of a connection.
        sequence: u64,
        /// Any number that grows while the engine works.
        progress: u64,
    },
    /// The sender leaves.
    Bye {
        /// Why.
        reason: ByeReason,
    },
    /// The Bye was understood and is final.
    ByeAck {
        /// The reason acknowledged.
        reason: ByeReason,
    },
    /// Refusal; the sender closes the connection after it.
    Error {
        /// What kind.
        code: ErrorCode,
        /// For people; at most 1,024 bytes.
        text: String,
    },
}

/// A message that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Wrong length, magic, checksum, reserved bytes, value out of its limit.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// Written by another protocol version.
    #[error("protocol version {theirs} is not spoken here ({VERSION})")]
    Version {
        /// The version found.
        theirs: u16,
    },
}

impl DecodeError {
    /// What the sender is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            DecodeError::Malformed(_) => ErrorCode::Malformed,
            DecodeError::Version { .. } => ErrorCode::Version,
        }
    }
}
