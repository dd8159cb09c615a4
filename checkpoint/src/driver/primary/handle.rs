//! How others look after a running primary.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::shared::Shared;
use super::status::{PhaseStatus, PrimaryOutcome, PrimaryStatus, SyncProgress, state_name};
use crate::driver::signal::lock;
use crate::metrics::{Counter, Metrics, Phase, Quantity};

/// The phases of a pause, in order.
const PAUSE_PHASES: [Phase; 7] =
    [Phase::Stop, Phase::Gate, Phase::State, Phase::Collect, Phase::Place, Phase::Copy, Phase::Resume];

/// Looks after a running driver; clones are the same driver. Dropping all of them neither stops
/// nor waits.
#[derive(Clone)]
pub struct PrimaryHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl PrimaryHandle {
    /// A snapshot.
    pub fn status(&self) -> PrimaryStatus {
        let shared = &*self.shared;
        let (state, epoch, lag_epochs) = shared.progress();
        let metrics = shared.metrics.snapshot();
        let level = shared.gate.level();
        let now = shared.clock.now();
        let link = shared.link();
        let view = lock(&shared.view);
        let live_bytes = link.as_ref().map_or(0, |link| link.endpoint.bytes_written());
        PrimaryStatus {
            guest: shared.options.machine.guest.clone(),
            state: state_name(state).to_owned(),
            state_reason: view.journal.state_reason.clone(),
            peer: shared.options.peer.to_string(),
            connected: link.is_some(),
            obstacle: view.obstacle.clone(),
            refusal: view.refusal.clone(),
            epoch: epoch.0,
            lag_epochs,
            lag_us: view.acked_pause.map_or(0, |pause| now.since(pause).as_micros() as u64),
            epochs_committed: metrics.counter(Counter::EpochsCommitted),
            checkpoints_per_second: metrics.recent_commits_per_second(),
            pause_us: metrics.phase(Phase::Pause).into(),
            ack_us: metrics.phase(Phase::CommitLatency).into(),
            phases_us: PAUSE_PHASES
                .iter()
                .map(|phase| PhaseStatus { phase: phase.name().to_owned(), us: metrics.phase(*phase).into() })
                .collect(),
            dirty_pages: metrics.quantity(Quantity::DirtyPages).into(),
            last_dirty_pages: view.last_dirty_pages,
            late_epochs: metrics.counter(Counter::LateEpochs),
            pieced_epochs: view.pieced_epochs,
            throttled_epochs: metrics.counter(Counter::Throttled),
            stalled_epochs: metrics.counter(Counter::Stalls),
            overflows: view.overflows,
            connections: view.connections,
            bytes_written: view.bytes_of_closed_links + live_bytes,
            held_packets: level.packets,
            held_bytes: level.bytes,
            sync: shared.sync_progress(),
            reports: view.journal.lines(),
            metrics,
        }
    }

    /// Everything measured, in full.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Changes the length of an epoch from the next one on; at least a nanosecond.
    pub fn set_interval(&self, interval: Duration) {
        let interval = interval.max(Duration::from_nanos(1));
        self.shared.call(|primary, _, _| primary.set_interval(interval));
        self.shared.wake_capture.notify();
    }

    /// The progress of the synchronization; cheaper than a whole snapshot.
    pub fn sync_progress(&self) -> SyncProgress {
        self.shared.sync_progress()
    }

    /// Asks for a planned failover: a last epoch, then the backup goes on. Refused with the reason
    /// when no backup stands ready. [`wait`](Self::wait) then tells what became of it.
    pub fn request_failover(&self) -> Result<(), String> {
        self.shared.step(|primary, now, actions| primary.request_failover(now, actions))
    }

    /// Asks for the end of protection: the guest goes on here alone, tracking and gate are taken
    /// away. Idempotent; returns at once.
    pub fn request_stop(&self) {
        self.shared.step(|primary, now, actions| primary.request_stop(now, actions));
        self.shared.wake_control.notify();
    }

    /// Waits for the end of the driver and of all its threads.
    pub fn wait(&self) -> PrimaryOutcome {
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // A thread that panicked has said so in the outcome.
            let _ = thread.join();
        }
        loop {
            // Another handle may be the one that joins.
            let seen = self.shared.ended.seen();
            if let Some(outcome) = self.ended() {
                return outcome;
            }
            self.shared.ended.wait(seen, Duration::MAX);
        }
    }

    /// As [`wait`](Self::wait), for at most `timeout`; `None`: it goes on.
    pub fn wait_for(&self, timeout: Duration) -> Option<PrimaryOutcome> {
        let begun = Instant::now();
        loop {
            let seen = self.shared.ended.seen();
            if self.ended().is_some() {
                return Some(self.wait());
            }
            let left = timeout.checked_sub(begun.elapsed()).filter(|left| !left.is_zero())?;
            self.shared.ended.wait(seen, left);
        }
    }

    fn ended(&self) -> Option<PrimaryOutcome> {
        self.shared.is_over().then(|| lock(&self.shared.outcome).clone()).flatten()
    }
}

impl std::fmt::Debug for PrimaryHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrimaryHandle").field("guest", &self.shared.options.machine.guest).finish()
    }
}
