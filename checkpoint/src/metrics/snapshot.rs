//! Measurements as numbers for reports.

use std::collections::BTreeMap;

use hdrhistogram::{Counter, Histogram};
use serde::{Deserialize, Serialize};

/// A distribution in five numbers. All zero when nothing was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Values recorded.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Half of the values are at most this.
    pub p50: f64,
    /// Ninety-nine in a hundred are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of values in their own unit.
    pub(super) fn of<C: Counter>(histogram: &Histogram<C>) -> Self {
        Self::scaled(histogram, 1.0)
    }

    /// Of nanoseconds, in microseconds.
    pub(super) fn of_ns<C: Counter>(histogram: &Histogram<C>) -> Self {
        Self::scaled(histogram, 1e-3)
    }

    fn scaled<C: Counter>(histogram: &Histogram<C>, scale: f64) -> Self {
        // One decimal: finer than the histograms tell apart.
        let scaled = |value: f64| (value * scale * 10.0).round() / 10.0;
        Self {
            count: histogram.len(),
            mean: scaled(histogram.mean()),
            p50: scaled(histogram.value_at_quantile(0.5) as f64),
            p99: scaled(histogram.value_at_quantile(0.99) as f64),
            max: scaled(histogram.max() as f64),
        }
    }
}

/// Everything measured, by name: see [`super::Phase`], [`super::Quantity`], [`super::Counter`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Seconds since measuring began.
    pub uptime_s: f64,
    /// Seconds that the `recent_` parts cover.
    pub recent_s: f64,
    /// Phases over the whole life, in microseconds.
    pub phases_us: BTreeMap<String, Summary>,
    /// Phases over the last seconds, in microseconds.
    pub recent_phases_us: BTreeMap<String, Summary>,
    /// Amounts an epoch over the whole life.
    pub quantities: BTreeMap<String, Summary>,
    /// Amounts an epoch over the last seconds.
    pub recent_quantities: BTreeMap<String, Summary>,
    /// Counters.
    pub counters: BTreeMap<String, u64>,
}

impl Snapshot {
    /// A phase's numbers in microseconds, over the whole life.
    pub fn phase(&self, phase: super::Phase) -> Summary {
        self.phases_us.get(phase.name()).copied().unwrap_or_default()
    }

    /// A phase's numbers in microseconds, over the last seconds.
    pub fn recent_phase(&self, phase: super::Phase) -> Summary {
        self.recent_phases_us.get(phase.name()).copied().unwrap_or_default()
    }

    /// An amount's numbers, over the whole life.
    pub fn quantity(&self, quantity: super::Quantity) -> Summary {
        self.quantities.get(quantity.name()).copied().unwrap_or_default()
    }

    /// A counter's value.
    pub fn counter(&self, counter: super::Counter) -> u64 {
        self.counters.get(counter.name()).copied().unwrap_or_default()
    }

    /// Commits a second over the last seconds, from the acks (primary) or commits (backup).
    pub fn recent_commits_per_second(&self) -> f64 {
        let commits = [super::Phase::CommitLatency, super::Phase::BackupCommit]
            .map(|phase| self.recent_phase(phase).count);
        if self.recent_s <= 0.0 {
            return 0.0;
        }
        commits.into_iter().max().unwrap_or_default() as f64 / self.recent_s
    }
}
