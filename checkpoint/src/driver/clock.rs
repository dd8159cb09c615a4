//! The driver's monotonic clock, which the machines see only as numbers.

use std::time::{Duration, Instant};

use crate::ids::Time;

/// Counts from its own creation.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock {
    /// The present time.
    pub fn now(&self) -> Time {
        Time { nanoseconds: self.origin.elapsed().as_nanos() as u64 }
    }

    /// From now to `until`, at most `limit`; zero if it has passed.
    pub fn remaining(&self, until: Option<Time>, limit: Duration) -> Duration {
        until.map_or(limit, |until| until.since(self.now()).min(limit))
    }
}
