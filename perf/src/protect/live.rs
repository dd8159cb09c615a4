//! A line for people while a guest is protected.

use romulus_checkpoint::driver::primary::PrimaryStatus;
use romulus_checkpoint::metrics::Phase;

/// How protection stands.
pub fn line(seconds: f64, status: &PrimaryStatus) -> String {
    let recent = |phase: Phase| status.metrics.recent_phase(phase);
    let (pause, commit) = (recent(Phase::Pause), recent(Phase::CommitLatency));
    if status.state == "syncing" {
        let sync = status.sync;
        let (done, total, round) = (sync.pages_done, sync.pages_total, sync.round);
        return format!("{seconds:6.1} s  syncing, round {round}: {done} of {total} pages");
    }
    format!(
        "{seconds:6.1} s  {}, epoch {}: {:.1} checkpoints/s, {} late, {} dirty pages, pause {:.2}/{:.2} ms, commit \
         {:.2}/{:.2} ms (p50/p99)",
        status.state,
        status.epoch,
        status.checkpoints_per_second,
        status.late_epochs,
        status.last_dirty_pages,
        pause.p50 / 1e3,
        pause.p99 / 1e3,
        commit.p50 / 1e3,
        commit.p99 / 1e3
    )
}
