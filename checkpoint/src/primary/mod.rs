//! The primary's protocol machine: sans-I/O. Methods take what happened and the time, and append
//! what to do to an [`Actions`] list that the caller reuses.

use std::time::Duration;

use crate::arbiter::{Record, SwapOutcome};
use crate::extent::{Extent, Transfer};
use crate::ids::{Epoch, GateMark, Identity, SessionId, Time};
use crate::layout::{ArenaShape, GuestLayout};
use crate::release::ReleaseToken;
use crate::wire::message::{ByeReason, Hello, MachineIdentity, Message};

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
    /// first); otherwise what [`crate::guest::Guest::collect`] reports.
    Round {
        /// Its number, from 1.
        round: u64,
        /// All pages, or the dirty ones.
        everything: bool,
    },
    /// Pause, mark, save, collect, [`Primary::place`], copy, resume.
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
    /// Frames will be free after acks and homings: resume, the next epoch includes the pages.
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
    /// Begin to hold output, then call [`Primary::handle_held`]: no checkpoint is asked for
    /// before. Carried out in order with [`Release`](Self::Release), across threads too.
    HoldOutput,
    /// Close the connection for good, then call [`Primary::handle_disconnected`].
    CloseConnection(String),
    /// Ask the arbiter, then call [`Primary::handle_swap`].
    Swap {
        /// The record expected.
        expected: Option<Record>,
        /// The new record.
        new: Record,
    },
    /// Read the record, then call [`Primary::handle_record`].
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
    /// An epoch was acked: number, and from `posted` to ack.
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
}

/// A reused list of actions.
pub type Actions = Vec<PrimaryAction>;

/// What a peer did that ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PeerFault(pub String);

/// The machine.
#[derive(Debug)]
pub struct Primary {
    _config: PrimaryConfig,
}

#[allow(unused_variables)]
impl Primary {
    /// A primary that runs its guest alone under `record` (which says `Solo` of this host).
    pub fn new(
        config: PrimaryConfig,
        layout: GuestLayout,
        machine: MachineIdentity,
        shape: ArenaShape,
        record: Record,
        now: Time,
    ) -> Self {
        todo!("machine")
    }
    /// A channel to the backup is open: the Hello to send on it, with the fabric's offer.
    pub fn hello(&mut self, fabric_offer: Vec<u8>, now: Time) -> Hello {
        todo!("machine")
    }
    /// The identity to send under now.
    pub fn identity(&self) -> Identity {
        todo!("machine")
    }
    /// The backup's answer (bytes of one message: Welcome or Error). On success the driver
    /// establishes the endpoint with the fabric's answer returned here, then calls
    /// [`handle_connected`](Self::handle_connected).
    pub fn handle_answer(
        &mut self,
        bytes: &[u8],
        now: Time,
        actions: &mut Actions,
    ) -> Result<Vec<u8>, PeerFault> {
        todo!("machine")
    }
    /// The endpoint is established.
    pub fn handle_connected(&mut self, now: Time, actions: &mut Actions) {
        todo!("machine")
    }
    /// A message on the endpoint. After an error the driver closes the endpoint and calls
    /// [`handle_disconnected`](Self::handle_disconnected).
    pub fn handle_message(
        &mut self,
        bytes: &[u8],
        now: Time,
        actions: &mut Actions,
    ) -> Result<(), PeerFault> {
        todo!("machine")
    }
    /// The connection is gone (the endpoint is closed for good).
    pub fn handle_disconnected(&mut self, why: &str, now: Time, actions: &mut Actions) {
        todo!("machine")
    }
    /// Time passed: heartbeats, suspicion.
    pub fn handle_tick(&mut self, now: Time, actions: &mut Actions) {
        todo!("machine")
    }
    /// When [`handle_tick`](Self::handle_tick) is due next.
    pub fn next_tick(&self) -> Option<Time> {
        todo!("machine")
    }
    /// How a swap ended.
    pub fn handle_swap(&mut self, new: &Record, outcome: SwapOutcome, now: Time, actions: &mut Actions) {
        todo!("machine")
    }
    /// What a read of the record gave; `Err` when the arbiter could not be asked.
    pub fn handle_record(
        &mut self,
        record: Result<Option<Record>, String>,
        now: Time,
        actions: &mut Actions,
    ) {
        todo!("machine")
    }
    /// How [`PrimaryAction::HoldOutput`] ended; once for each.
    pub fn handle_held(&mut self, outcome: Result<(), String>, now: Time, actions: &mut Actions) {
        todo!("machine")
    }
    /// What the capture thread is to do.
    pub fn next_work(&mut self, now: Time) -> Work {
        todo!("machine")
    }
    /// End the present epoch now (watermark, gate's byte bound).
    pub fn end_epoch_early(&mut self) {
        todo!("machine")
    }
    /// The writes of a round are posted, followed by the marker `ROUND_MARKER | round`;
    /// `next_dirty_pages` estimates the next round (`None`: unknown).
    pub fn round_posted(&mut self, round: u64, pages: u64, now: Time, actions: &mut Actions) {
        todo!("machine")
    }
    /// A round was not sent: its pages must be sent by the next one.
    pub fn round_failed(&mut self, round: u64, dirty: &[Extent]) {
        todo!("machine")
    }
    /// The guest has been paused: the mark to give to the gate.
    pub fn paused(&mut self, now: Time) -> GateMark {
        todo!("machine")
    }
    /// Places what was collected while paused, with pages carried over from epochs that did not
    /// commit. `transfers` is cleared first. In each error case the pages are kept for the next.
    pub fn place(
        &mut self,
        dirty: &[Extent],
        now: Time,
        transfers: &mut Vec<Transfer>,
        actions: &mut Actions,
    ) -> Result<PlacedEpoch, NotTaken> {
        todo!("machine")
    }
    /// Capture failed after pages were collected and before [`place`](Self::place).
    pub fn capture_failed(&mut self, dirty: &[Extent]) {
        todo!("machine")
    }
    /// Data, slot and markers of the epoch are posted on this connection: sends Commit.
    /// Ignored when the epoch belongs to an older connection.
    pub fn epoch_posted(&mut self, placed: &PlacedEpoch, now: Time, actions: &mut Actions) {
        todo!("machine")
    }
    /// The operator wants the guest at the backup.
    pub fn request_failover(&mut self, now: Time, actions: &mut Actions) -> Result<(), String> {
        todo!("machine")
    }
    /// The operator ends protection: the guest goes on here alone.
    pub fn request_stop(&mut self, now: Time, actions: &mut Actions) {
        todo!("machine")
    }
    /// The guest has powered off ([`ByeReason::GuestEnded`]) or its process died.
    pub fn guest_gone(&mut self, reason: ByeReason, now: Time, actions: &mut Actions) {
        todo!("machine")
    }
    /// Where it stands.
    pub fn state(&self) -> PrimaryState {
        todo!("machine")
    }
    /// Last acked epoch A.
    pub fn acked(&self) -> Epoch {
        todo!("machine")
    }
    /// Captured and unacked epochs.
    pub fn unacked(&self) -> u64 {
        todo!("machine")
    }
}
