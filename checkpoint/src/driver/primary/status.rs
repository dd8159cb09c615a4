//! What a primary's driver tells about itself.

use crate::metrics::{Snapshot, Summary};
use crate::primary::PrimaryState;

/// A quantity's distribution since protection began.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Percentiles {
    /// Half of all values are at most this.
    pub p50: u64,
    /// 99 of 100 values are at most this.
    pub p99: u64,
    /// The largest value.
    pub max: u64,
}

impl From<Summary> for Percentiles {
    fn from(summary: Summary) -> Self {
        Self { p50: summary.p50 as u64, p99: summary.p99 as u64, max: summary.max as u64 }
    }
}

/// The distribution of one phase of the pause, in microseconds.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PhaseStatus {
    /// Its name: `stop`, `gate`, `state`, `collect`, `place`, `copy`, `resume`.
    pub phase: String,
    /// Its durations.
    pub us: Percentiles,
}

/// A synchronization under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SyncProgress {
    /// The round, from 1; 0 when none was begun.
    pub round: u64,
    /// Pages of this round that are sent (or known to be zero on both sides).
    pub pages_done: u64,
    /// Pages of this round in all.
    pub pages_total: u64,
}

/// The backup's word that it will not serve this guest.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refusal {
    /// The protocol's error code: `Version`, `NoRoom`, `MachineMismatch`, ...
    pub code: String,
    /// The backup's reason.
    pub text: String,
}

/// A snapshot of a primary.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PrimaryStatus {
    /// The guest's name.
    pub guest: String,
    /// `solo`, `syncing`, `protected`, `invalid`, `taking_over`, `lost` or `ended`.
    pub state: String,
    /// Why it entered this state.
    pub state_reason: String,
    /// The backup's address.
    pub peer: String,
    /// Whether there is a connection.
    pub connected: bool,
    /// Why there is no connection to the backup, after a failed attempt; `None` while there is one.
    pub obstacle: Option<String>,
    /// The backup's last refusal; `None` once an epoch was acked after it.
    pub refusal: Option<Refusal>,
    /// Last acked epoch; what the backup would resume.
    pub epoch: u64,
    /// Captured and not yet acked epochs.
    pub lag_epochs: u64,
    /// Time since the pause of the last acked epoch, in microseconds: what a failover now would
    /// take back.
    pub lag_us: u64,
    /// Epochs acked by the backup.
    pub epochs_committed: u64,
    /// Acked epochs a second, over the last 5 s.
    pub checkpoints_per_second: f64,
    /// From the call that pauses the guest to the return of the call that resumes it.
    pub pause_us: Percentiles,
    /// From the pause of an epoch to its ack.
    pub ack_us: Percentiles,
    /// The pause by phase, in order.
    pub phases_us: Vec<PhaseStatus>,
    /// Pages of an epoch.
    pub dirty_pages: Percentiles,
    /// Pages of the last epoch.
    pub last_dirty_pages: u64,
    /// Epochs that began more than a tenth of the interval late.
    pub late_epochs: u64,
    /// Epochs whose pages exceeded the staging memory.
    pub pieced_epochs: u64,
    /// Epochs for which the guest was held paused until frames were free on the backup.
    #[serde(default)]
    pub throttled_epochs: u64,
    /// Epochs for which even that was not enough: their pages joined the next one.
    pub stalled_epochs: u64,
    /// Epochs that exceeded the spares: each cost a synchronization.
    pub overflows: u64,
    /// Connections made.
    pub connections: u64,
    /// Bytes written to the backup, over all connections.
    pub bytes_written: u64,
    /// Output held by the gate, in packets.
    pub held_packets: u64,
    /// Output held by the gate, in bytes.
    pub held_bytes: u64,
    /// The synchronization under way or last made.
    pub sync: SyncProgress,
    /// The last reports, oldest first.
    pub reports: Vec<String>,
    /// Everything measured.
    pub metrics: Snapshot,
}

/// How protection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrimaryOutcome {
    /// By the operator's word: the guest runs here, unprotected and untouched.
    Stopped,
    /// The guest has powered off.
    GuestEnded,
    /// The guest's process died here, and protection was stopped before it was known whether the
    /// backup goes on with it.
    GuestDied(String),
    /// The guest's process died while the record said that this host ran it alone: the guest runs
    /// nowhere.
    GuestDiedUnprotected(String),
    /// The backup owns the guest (planned failover, or it took over); the local one is destroyed.
    TakenOver,
    /// The driver could not go on. The guest runs unprotected unless the text says otherwise.
    Failed(String),
}

/// The name of a state in status and logs.
pub(crate) fn state_name(state: PrimaryState) -> &'static str {
    match state {
        PrimaryState::Solo => "solo",
        PrimaryState::Syncing => "syncing",
        PrimaryState::Protected => "protected",
        PrimaryState::Invalid => "invalid",
        PrimaryState::TakingOver => "taking_over",
        PrimaryState::Lost => "lost",
        PrimaryState::Ended => "ended",
    }
}
