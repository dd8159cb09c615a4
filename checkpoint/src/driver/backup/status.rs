//! What a backup's driver tells about itself.

use crate::backup::BackupState;
use crate::metrics::Snapshot;

/// A takeover, made or under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TakeoverStatus {
    /// The epoch that was resumed.
    pub epoch: u64,
    /// Pages that had to be copied home first.
    pub displaced_pages: u64,
    /// From the primary's last sign of life to the fence.
    pub detection_ms: f64,
    /// From the fence to the guest running here.
    pub takeover_ms: f64,
    /// From the primary's last sign of life to the guest running here.
    pub total_ms: f64,
    /// Of `takeover_ms`: the fence itself.
    pub fence_ms: f64,
    /// Of `takeover_ms`: asking the arbiter.
    pub grant_ms: f64,
    /// Of `takeover_ms`: copying displaced pages home.
    pub copy_ms: f64,
    /// Of `takeover_ms`: loading the state and starting the machine.
    pub activate_ms: f64,
}

/// A snapshot of a backup.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BackupStatus {
    /// The guest's name; empty before the first Hello.
    pub guest: String,
    /// `solo`, `syncing`, `protected`, `invalid`, `taking_over`, `active` or `ended`.
    pub state: String,
    /// Why it entered this state.
    pub state_reason: String,
    /// The primary's address; empty when there is no connection.
    pub peer: String,
    /// Whether there is a connection.
    pub connected: bool,
    /// Last committed epoch; what would be resumed.
    pub epoch: u64,
    /// Epochs committed.
    pub epochs_committed: u64,
    /// Commits a second, over the last 5 s.
    pub checkpoints_per_second: f64,
    /// Pages of the last epoch.
    pub last_dirty_pages: u64,
    /// Pages copied home so far.
    pub pages_homed: u64,
    /// Connections made.
    pub connections: u64,
    /// Hellos refused and strangers turned away.
    pub refused: u64,
    /// Memory lent, in bytes.
    pub arena_bytes: u64,
    /// Microseconds since the primary was last heard; 0 when it never was.
    pub silence_us: u64,
    /// The takeover, once it has begun.
    pub takeover: Option<TakeoverStatus>,
    /// The last reports, oldest first.
    pub reports: Vec<String>,
    /// Everything measured.
    pub metrics: Snapshot,
}

/// How a backup's driver ended.
#[derive(Clone, Debug, PartialEq)]
pub enum BackupOutcome {
    /// The guest runs here.
    Activated(TakeoverStatus),
    /// By the operator's word.
    Stopped,
    /// The driver could not go on; says why and what became of the guest.
    Failed(String),
}

/// The name of a state in status and logs.
pub(crate) fn state_name(state: BackupState) -> &'static str {
    match state {
        BackupState::Solo => "solo",
        BackupState::Syncing => "syncing",
        BackupState::Protected => "protected",
        BackupState::Invalid => "invalid",
        BackupState::TakingOver => "taking_over",
        BackupState::Active => "active",
        BackupState::Ended => "ended",
    }
}
