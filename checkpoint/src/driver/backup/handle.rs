//! How others look after a running backup.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::shared::Shared;
use super::status::{BackupOutcome, BackupStatus, state_name};
use crate::driver::signal::lock;
use crate::metrics::{Counter, Metrics};

/// Looks after a running driver; clones are the same driver. The arena lives as long as a handle.
#[derive(Clone)]
pub struct BackupHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl BackupHandle {
    /// The address it listens on, with the real port where 0 was asked.
    pub fn local_address(&self) -> SocketAddr {
        self.shared.local_address
    }

    /// Everything measured, in full.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// A snapshot.
    pub fn status(&self) -> BackupStatus {
        let shared = &*self.shared;
        let (state, epoch) = shared.progress();
        let metrics = shared.metrics.snapshot();
        let link = shared.link();
        let now = shared.clock.now();
        let arena_bytes = shared.lent().map_or(0, |lent| lent.shape.len_bytes());
        let view = lock(&shared.view);
        BackupStatus {
            guest: view.guest.clone(),
            state: state_name(state).to_owned(),
            state_reason: view.journal.state_reason.clone(),
            peer: link.as_ref().map(|link| link.peer.to_string()).unwrap_or_default(),
            connected: link.is_some(),
            epoch: epoch.0,
            epochs_committed: metrics.counter(Counter::EpochsCommitted),
            checkpoints_per_second: metrics.recent_commits_per_second(),
            last_dirty_pages: view.last_dirty_pages,
            pages_homed: metrics.counter(Counter::Homings),
            connections: view.connections,
            refused: metrics.counter(Counter::Refusals),
            arena_bytes,
            silence_us: shared.last_sign().map_or(0, |sign| now.since(sign).as_micros() as u64),
            takeover: view.takeover,
            reports: view.journal.lines(),
            metrics,
        }
    }

    /// The operator says: take over now from the last committed epoch (`force`: the primary is
    /// dead, whatever the record of arbiter `none` says). Refused with the reason where there is
    /// nothing to resume. [`wait`](Self::wait) then tells what became of it.
    pub fn request_takeover(&self, force: bool) -> Result<(), String> {
        self.shared.step(|backup, _, actions| backup.request_takeover(force, actions))
    }

    /// Asks for the end: the image is dropped, the primary goes on alone. Idempotent; returns at
    /// once.
    pub fn request_stop(&self) {
        self.shared.step(|backup, now, actions| backup.request_stop(now, actions));
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake_committer.notify();
    }

    /// Waits for the end of the driver and of all its threads. A guest that ended or detached is
    /// no end: the backup stands ready for the next.
    pub fn wait(&self) -> BackupOutcome {
        self.wait_for(Duration::MAX).expect("a wait without limit ends with the driver")
    }

    /// As [`wait`](Self::wait), for at most `timeout`; `None`: it goes on.
    pub fn wait_for(&self, timeout: Duration) -> Option<BackupOutcome> {
        let begun = Instant::now();
        loop {
            let seen = self.shared.ended.seen();
            if self.shared.is_over() {
                break;
            }
            let left = timeout.checked_sub(begun.elapsed()).filter(|left| !left.is_zero())?;
            self.shared.ended.wait(seen, left);
        }
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // A thread that panicked has said so in the outcome.
            let _ = thread.join();
        }
        lock(&self.shared.outcome).clone()
    }
}

impl std::fmt::Debug for BackupHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupHandle").field("address", &self.shared.local_address).finish()
    }
}
