//! How long the inner steps of a pause took, for guests to tell by
//! [`last_pause_detail`](crate::guest::Guest::last_pause_detail).

use std::time::{Duration, Instant};

/// Steps measured at most.
const STEPS: usize = 6;

/// Durations of the steps of one pause, in order.
#[derive(Debug, Default)]
pub struct PauseDetail {
    steps: [(&'static str, Duration); STEPS],
    used: usize,
}

impl PauseDetail {
    /// A new pause begins.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Notes the time since `start` for a step; nothing after the sixth one.
    pub fn note(&mut self, step: &'static str, start: Instant) {
        if self.used < STEPS {
            self.steps[self.used] = (step, start.elapsed());
            self.used += 1;
        }
    }

    /// What was noted, in order.
    pub fn steps(&self) -> &[(&'static str, Duration)] {
        &self.steps[..self.used]
    }
}
