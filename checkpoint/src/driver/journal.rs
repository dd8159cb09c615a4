//! The last reports of a driver, for its status.

use std::collections::VecDeque;

use crate::ids::Time;

const KEPT: usize = 32;

/// The state with its reason, and the last reports with their times.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    lines: VecDeque<String>,
    pub(crate) state_reason: String,
}

impl Journal {
    pub(crate) fn add(&mut self, now: Time, text: &str) {
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:.3} s: {text}", now.nanoseconds as f64 * 1e-9));
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}
