//! How long the steps of a pause took.

use std::time::{Duration, Instant};

/// Steps measured at most.
const STEPS: usize = 6;

/// Durations of the steps of one pause, in order.
#[derive(Debug, Default)]
pub(super) struct PauseDetail {
    steps: [(&'static str, Duration); STEPS],
    used: usize,
}

impl PauseDetail {
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// Notes the time since `start` for a step.
    pub(super) fn note(&mut self, step: &'static str, start: Instant) {
        if self.used < STEPS {
            self.steps[self.used] = (step, start.elapsed());
            self.used += 1;
        }
    }

    pub(super) fn steps(&self) -> &[(&'static str, Duration)] {
        &self.steps[..self.used]
    }
}
