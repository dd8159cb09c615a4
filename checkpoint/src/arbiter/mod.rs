//! Who may run the guest (I9): one record a guest, changed only by compare-and-swap. Safety uses
//! no clocks; an arbiter that is down does not disturb protected running.

pub mod claim;
pub mod file;
pub mod none;
pub mod record_file;
pub mod spec;

use crate::ids::Generation;

/// Who has the guest.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ownership {
    /// The primary runs it and the backup stands ready: each needs a swap to act alone.
    Protected {
        /// Name of the host that runs the guest.
        primary: String,
        /// Name of the host that stands ready.
        backup: String,
    },
    /// The primary runs it, unprotected.
    Solo {
        /// Name of the host.
        primary: String,
    },
    /// The backup has taken it over.
    Owned {
        /// Name of the host.
        backup: String,
    },
    /// The guest has ended; nobody may run it from an older state.
    Ended,
}

/// The record of a guest.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// Who has the guest.
    pub ownership: Ownership,
    /// Grows by one with every swap.
    pub generation: Generation,
    /// Names the swap that wrote the record, so that an unknown outcome can be re-read: random,
    /// except that a `Protected` record carries [`crate::nonce::pairing`].
    pub nonce: u64,
}

impl Record {
    /// The first record of a guest: `primary` runs it alone, generation 1, a random nonce.
    pub fn first_solo(primary: &str) -> Result<Record, ArbiterError> {
        let ownership = Ownership::Solo { primary: primary.to_owned() };
        Ok(Record { ownership, generation: Generation(1), nonce: random_nonce()? })
    }

    /// The record that a swap from this one writes: one generation later, with this nonce.
    pub fn successor(&self, ownership: Ownership, nonce: u64) -> Record {
        Record { ownership, generation: self.generation.next(), nonce }
    }

    /// One sentence for people, without a full stop.
    pub fn describe(&self) -> String {
        let who = match &self.ownership {
            Ownership::Protected { primary, backup } => {
                format!("runs on {primary}, protected by {backup}")
            }
            Ownership::Solo { primary } => format!("runs on {primary}, unprotected"),
            Ownership::Owned { backup } => format!("was taken over by {backup}"),
            Ownership::Ended => "has ended and is not to be resumed".to_owned(),
        };
        format!("the guest {who} (generation {})", self.generation)
    }
}

/// A random number that names one swap.
pub fn random_nonce() -> Result<u64, ArbiterError> {
    getrandom::u64().map_err(|error| ArbiterError(format!("no random numbers: {error}")))
}

/// How a swap ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwapOutcome {
    /// The record is now the new one.
    Won,
    /// The record is another one; nothing was changed.
    Lost(Option<Record>),
    /// Not known: re-read by nonce until known; meanwhile hold output, or do not activate.
    Unknown(String),
}

/// The arbiter could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("arbiter: {0}")]
pub struct ArbiterError(pub String);

/// Keeps the records. Implementations: `file` and `none`.
pub trait Arbiter: Send + Sync {
    /// The guest's record, if there is one.
    fn read(&self, guest: &str) -> Result<Option<Record>, ArbiterError>;
    /// Replaces `expected` (`None`: no record yet) by `new`.
    fn swap(&self, guest: &str, expected: Option<&Record>, new: &Record) -> SwapOutcome;
}

/// Proof that the arbiter's record says that this host may run the guest alone. Made only here,
/// from a record that was read or won.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoloGrant(());

/// The proof that a record which was just read or won allows `host` to run the guest alone.
pub fn solo_grant(record: &Record, host: &str) -> Option<SoloGrant> {
    matches!(&record.ownership, Ownership::Solo { primary } if primary == host).then_some(SoloGrant(()))
}
