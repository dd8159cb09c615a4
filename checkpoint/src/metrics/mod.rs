//! What was measured, phase by phase, in HDR histograms.
//!
//! A [`Metrics`] is shared by all threads of one side. Recording takes the uncontended lock of
//! one histogram (tens of nanoseconds), allocates nothing and makes no system call; only a
//! snapshot contends, for the time it takes to read one histogram. Each histogram exists twice:
//! over the whole life, and over the last few seconds for a live view.

mod histogram;
mod names;
mod snapshot;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use histogram::WINDOW;
use histogram::Windowed;
pub use names::{Counter, Phase, Quantity};
pub use snapshot::{Snapshot, Summary};

/// Longest duration told apart; longer ones count as this long.
pub const MAX_DURATION: Duration = Duration::from_secs(60);
/// Durations below this count as this one or zero.
const MIN_DURATION_NS: u64 = 128;
/// Largest quantity told apart; larger ones count as this.
pub const MAX_QUANTITY: u64 = 1 << 40;

/// The measurements of one side, primary or backup.
#[derive(Debug)]
pub struct Metrics {
    began: Instant,
    phases: Vec<Mutex<Windowed>>,
    quantities: Vec<Mutex<Windowed>>,
    counters: [AtomicU64; Counter::ALL.len()],
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing measured yet. Allocates all that will ever be needed (about 4 MiB of address
    /// space, touched as values come).
    pub fn new() -> Self {
        let began = Instant::now();
        let histograms = |count: usize, low: u64, high: u64| {
            (0..count).map(|_| Mutex::new(Windowed::new(low, high, began))).collect()
        };
        Self {
            began,
            phases: histograms(Phase::ALL.len(), MIN_DURATION_NS, MAX_DURATION.as_nanos() as u64),
            quantities: histograms(Quantity::ALL.len(), 1, MAX_QUANTITY),
            counters: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Runs `work` as one phase: its duration is recorded, whatever it returns.
    pub fn run_phase<T>(&self, phase: Phase, work: impl FnOnce() -> T) -> T {
        let from = Instant::now();
        let result = work();
        let now = Instant::now();
        lock(&self.phases[phase as usize]).record(nanoseconds(now - from), now);
        result
    }

    /// Records one duration of a phase that ended now.
    pub fn record(&self, phase: Phase, duration: Duration) {
        lock(&self.phases[phase as usize]).record(nanoseconds(duration), Instant::now());
    }

    /// Records one quantity.
    pub fn record_quantity(&self, quantity: Quantity, value: u64) {
        lock(&self.quantities[quantity as usize]).record(value.min(MAX_QUANTITY), Instant::now());
    }

    /// Adds to a counter.
    pub fn count(&self, counter: Counter, by: u64) {
        self.counters[counter as usize].fetch_add(by, Ordering::Relaxed);
    }

    /// A counter's value.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Ordering::Relaxed)
    }

    /// Adds the measurements of `other` over its whole life, not its recent ones.
    pub fn merge(&self, other: &Metrics) {
        let pairs = self.phases.iter().zip(&other.phases);
        for (mine, theirs) in pairs.chain(self.quantities.iter().zip(&other.quantities)) {
            // Never two locks at once: two threads may merge in opposite directions.
            let theirs = lock(theirs).whole().clone();
            lock(mine).add(&theirs);
        }
        for (mine, theirs) in self.counters.iter().zip(&other.counters) {
            mine.fetch_add(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// The whole distribution of a phase, in nanoseconds. Allocates.
    pub fn phase_histogram(&self, phase: Phase) -> hdrhistogram::Histogram<u64> {
        lock(&self.phases[phase as usize]).whole().clone()
    }

    /// The whole distribution of a quantity. Allocates.
    pub fn quantity_histogram(&self, quantity: Quantity) -> hdrhistogram::Histogram<u64> {
        lock(&self.quantities[quantity as usize]).whole().clone()
    }

    /// Everything measured so far, summarized.
    pub fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let mut snapshot = Snapshot { uptime_s: (now - self.began).as_secs_f64(), ..Snapshot::default() };
        for phase in Phase::ALL {
            let mut histogram = lock(&self.phases[phase as usize]);
            let name = phase.name().to_owned();
            snapshot.recent_phases_us.insert(name.clone(), Summary::of_ns(&histogram.recent(now)));
            snapshot.phases_us.insert(name, Summary::of_ns(histogram.whole()));
            snapshot.recent_s = histogram.recent_span(now).as_secs_f64();
        }
        for quantity in Quantity::ALL {
            let mut histogram = lock(&self.quantities[quantity as usize]);
            let name = quantity.name().to_owned();
            snapshot.recent_quantities.insert(name.clone(), Summary::of(&histogram.recent(now)));
            snapshot.quantities.insert(name, Summary::of(histogram.whole()));
        }
        for counter in Counter::ALL {
            snapshot.counters.insert(counter.name().to_owned(), self.counter(counter));
        }
        snapshot
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanoseconds(duration: Duration) -> u64 {
    duration.min(MAX_DURATION).as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_summarized_in_microseconds_with_three_digits() {
        let metrics = Metrics::new();
        for milliseconds in 1..=100 {
            metrics.record(Phase::Pause, Duration::from_millis(milliseconds));
        }
        let snapshot = metrics.snapshot();
        for pause in [&snapshot.phases_us["pause"], &snapshot.recent_phases_us["pause"]] {
            assert_eq!(pause.count, 100);
            for (found, expected) in
                [(pause.p50, 50_000.0), (pause.p99, 99_000.0), (pause.max, 100_000.0), (pause.mean, 50_500.0)]
            {
                assert!((found - expected).abs() / expected < 0.01, "{found} for {expected}");
            }
        }
        let exact = snapshot.phases_us["pause"].p99;
        assert!((exact - 99_000.0).abs() / 99_000.0 < 0.001, "{exact}");
        assert_eq!(snapshot.phases_us["stop"], Summary::default());
    }

    #[test]
    fn values_out_of_range_are_kept_at_the_border() {
        let metrics = Metrics::new();
        metrics.record(Phase::Stop, Duration::MAX);
        metrics.record(Phase::Stop, Duration::ZERO);
        metrics.record_quantity(Quantity::DirtyPages, u64::MAX);
        let snapshot = metrics.snapshot();
        assert_eq!(snapshot.phases_us["stop"].count, 2);
        assert!((snapshot.phases_us["stop"].max / 60e6 - 1.0).abs() < 0.001);
        assert!(snapshot.quantities["dirty_pages"].max >= MAX_QUANTITY as f64);
    }

    #[test]
    fn a_phase_is_recorded_whatever_its_work_returns() {
        let metrics = Metrics::new();
        let result: Result<(), &str> = metrics.run_phase(Phase::State, || Err("lost"));
        assert_eq!(result, Err("lost"));
        assert_eq!(metrics.snapshot().phases_us["state"].count, 1);
    }

    #[test]
    fn merging_adds_histograms_and_counters() {
        let (one, two) = (Metrics::new(), Metrics::new());
        one.record(Phase::Copy, Duration::from_micros(10));
        two.record(Phase::Copy, Duration::from_micros(1000));
        two.record_quantity(Quantity::DirtyPages, 7);
        two.count(Counter::Stalls, 3);
        one.count(Counter::Stalls, 1);
        one.merge(&two);
        one.merge(&one.clone_whole());
        let snapshot = one.snapshot();
        assert_eq!(snapshot.phases_us["copy"].count, 4);
        assert_eq!(snapshot.quantities["dirty_pages"].count, 2);
        assert_eq!(snapshot.counters["stalls"], 8);
        assert!(snapshot.phases_us["copy"].max > 999.0);
    }

    impl Metrics {
        fn clone_whole(&self) -> Metrics {
            let copy = Metrics::new();
            copy.merge(self);
            copy
        }
    }

    #[test]
    fn a_snapshot_survives_json() {
        let metrics = Metrics::new();
        metrics.record(Phase::CommitLatency, Duration::from_micros(1234));
        metrics.count(Counter::EpochsCommitted, 1);
        let snapshot = metrics.snapshot();
        let json = serde_json::to_string(&snapshot).unwrap();
        assert!(json.contains("\"commit_latency\":{\"count\":1,"), "{json}");
        let back: Snapshot = serde_json::from_str(&json).unwrap();
        assert_eq!(back.counters, snapshot.counters);
        assert_eq!(back.phases_us, snapshot.phases_us);
    }
}
