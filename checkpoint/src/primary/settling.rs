//! When output begins to be held as protection begins (docs/decisions/gate.md).
//!
//! The first epochs on a connection take long: the backup loads the state of one for trial, and one
//! brings all that was written meanwhile. While the record says `Solo` and output is free nobody can
//! take over, so that nothing of such an epoch has to be waited for. Output is held once epochs come
//! and go as quickly as they will from then on.

use std::time::Duration;

/// Intervals in which an epoch that has settled is acked.
const SETTLED_INTERVALS: u32 = 4;
/// Epochs that are acked at most before output is held, however slow they are.
const MOST_EPOCHS: u32 = 8;

/// The first epochs on a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settling {
    acked: u32,
    settled: bool,
}

impl Settling {
    /// An epoch was acked so long after its pause.
    pub(super) fn acked(&mut self, commit_latency: Duration, interval: Duration) {
        self.acked = self.acked.saturating_add(1);
        self.settled |= self.acked >= MOST_EPOCHS || commit_latency <= interval * SETTLED_INTERVALS;
    }

    /// Whether epochs are as quick as they will be.
    pub(super) fn is_over(self) -> bool {
        self.settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_with_an_epoch_that_is_acked_quickly_or_with_the_last_that_is_waited_for() {
        let interval = Duration::from_millis(25);
        let after = |latencies_ms: &[u64]| {
            let mut settling = Settling::default();
            latencies_ms.iter().for_each(|ms| settling.acked(Duration::from_millis(*ms), interval));
            settling.is_over()
        };
        assert!(!after(&[]) && !after(&[3_000]) && !after(&[3_000, 101]));
        assert!(after(&[100]) && after(&[3_000, 300, 20]) && after(&[20, 3_000]));
        assert!(!after(&[500; 7]) && after(&[500; 8]));
    }
}
