//! The measured part of a case: what changed between its beginning and its end, and every second in
//! between.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use romulus_checkpoint::metrics::{Counter, Metrics, Phase, Quantity};

use super::cpu::{CpuTimes, Sides};
use super::engine::Engine;
use super::observer::Seen;
use super::view::View;
use crate::exit::Failure;
use crate::results::{Labels, Series};

/// How often is looked.
const LOOK: Duration = Duration::from_millis(50);
/// Points of a series at the least, in a short run.
const LEAST_POINTS: f64 = 10.0;

/// All distributions of one side.
#[derive(Clone)]
struct Distributions {
    phases: Vec<Histogram<u64>>,
    quantities: Vec<Histogram<u64>>,
}

impl Distributions {
    fn of(metrics: &Metrics) -> Self {
        Self {
            phases: Phase::ALL.iter().map(|phase| metrics.phase_histogram(*phase)).collect(),
            quantities: Quantity::ALL.iter().map(|quantity| metrics.quantity_histogram(*quantity)).collect(),
        }
    }

    fn since(mut self, before: &Self) -> Self {
        let pairs = self.phases.iter_mut().zip(&before.phases);
        for (now, before) in pairs.chain(self.quantities.iter_mut().zip(&before.quantities)) {
            subtract(now, before);
        }
        self
    }
}

/// A histogram only grows: what it had before can be taken away.
fn subtract(now: &mut Histogram<u64>, before: &Histogram<u64>) {
    now.subtract(before).expect("an earlier state of the same histogram");
}

/// What one side measured.
#[derive(Clone)]
pub struct Side(Distributions);

impl Side {
    /// A phase, in nanoseconds.
    pub fn phase(&self, phase: Phase) -> &Histogram<u64> {
        &self.0.phases[phase as usize]
    }

    /// A percentile of a phase, in microseconds.
    pub fn phase_us(&self, phase: Phase, share: f64) -> f64 {
        self.phase(phase).value_at_quantile(share) as f64 / 1e3
    }

    /// A quantity.
    pub fn quantity(&self, quantity: Quantity) -> &Histogram<u64> {
        &self.0.quantities[quantity as usize]
    }
}

/// What was measured in a part of a run.
pub struct Measured {
    pub seconds: f64,
    pub epochs: u64,
    pub late: u64,
    pub primary: Side,
    pub backup: Side,
    pub seen: Seen,
    pub cpu: Sides,
    pub cpu_by_thread: BTreeMap<String, f64>,
    pub bytes_written: u64,
    pub guest_writes: u64,
    /// Stalls, overflows, throttled and pieced epochs, reconnects, failures: by name, where not 0.
    pub disturbances: BTreeMap<&'static str, u64>,
    pub series: Vec<Series>,
}

impl Measured {
    /// Checkpoints a second.
    pub fn rate(&self) -> f64 {
        self.epochs as f64 / self.seconds
    }

    /// Late epochs in percent.
    pub fn late_percent(&self) -> f64 {
        100.0 * self.late as f64 / self.epochs.max(1) as f64
    }

    /// Bytes of the pages of all epochs.
    pub fn dirty_bytes(&self) -> f64 {
        let pages = self.primary.quantity(Quantity::DirtyPages);
        pages.mean() * pages.len() as f64 * romulus_checkpoint::PAGE_BYTES as f64
    }
}

/// Counters that should stand still while all is well.
const DISTURBANCES: [Counter; 6] = [
    Counter::Throttled,
    Counter::Stalls,
    Counter::Overflows,
    Counter::CaptureFailures,
    Counter::Reconnects,
    Counter::FullSyncs,
];

struct Baseline {
    at: Instant,
    primary: Distributions,
    backup: Distributions,
    late: u64,
    disturbances: Vec<u64>,
    cpu: CpuTimes,
    bytes_written: u64,
    guest_writes: u64,
}

impl Baseline {
    fn take(engine: &Engine) -> Result<Self, Failure> {
        let status = engine.status()?;
        let metrics = engine.primary.metrics();
        let backup = Distributions::of(engine.backup.metrics());
        let cpu = CpuTimes::now();
        let mut primary = Distributions::of(metrics);
        // Copying all that takes a while: what the rates are made of is taken together, at last.
        primary.phases[Phase::CommitLatency as usize] = metrics.phase_histogram(Phase::CommitLatency);
        Ok(Self {
            at: Instant::now(),
            guest_writes: engine.guest.writes(),
            late: metrics.counter(Counter::LateEpochs),
            disturbances: DISTURBANCES.iter().map(|counter| metrics.counter(*counter)).collect(),
            primary,
            backup,
            cpu,
            bytes_written: status.bytes_written,
        })
    }
}

/// Measures for so long.
pub fn measure(
    engine: &Engine,
    time: Duration,
    labels: &Labels,
    view: &mut View,
) -> Result<Measured, Failure> {
    engine.observer.reset();
    let before = Baseline::take(engine)?;
    let step = Duration::from_secs_f64((time.as_secs_f64() / LEAST_POINTS).clamp(0.05, 1.0));
    let mut points = Points::new(engine, labels, before.at);
    let mut due = before.at + step;
    while before.at.elapsed() < time {
        let left = time.saturating_sub(before.at.elapsed());
        std::thread::sleep(LOOK.min(left));
        if Instant::now() >= due {
            due += step;
            points.add(engine, before.at);
            engine.tell(view, &engine.status()?);
        }
    }
    let after = Baseline::take(engine)?;
    let seen = engine.observer.seen(after.at);
    let primary = Side(after.primary.since(&before.primary));
    let cpu_by_thread = after.cpu.since(&before.cpu);
    let disturbed = DISTURBANCES.iter().zip(after.disturbances.iter().zip(&before.disturbances));
    Ok(Measured {
        seconds: (after.at - before.at).as_secs_f64(),
        epochs: primary.phase(Phase::CommitLatency).len(),
        late: after.late - before.late,
        seen,
        cpu: Sides::of(&cpu_by_thread),
        cpu_by_thread,
        bytes_written: after.bytes_written - before.bytes_written,
        guest_writes: after.guest_writes - before.guest_writes,
        disturbances: disturbed
            .filter(|(_, (after, before))| after > before)
            .map(|(counter, (after, before))| (counter.name(), after - before))
            .collect(),
        primary,
        backup: Side(after.backup.since(&before.backup)),
        series: points.series,
    })
}

/// Series as they grow.
struct Points {
    series: Vec<Series>,
    at: Instant,
    pause: Histogram<u64>,
    commit: Histogram<u64>,
    dirty: Histogram<u64>,
    writes: u64,
}

const SERIES: [(&str, &str); 7] = [
    ("checkpoints_per_second", "1/s"),
    ("pause_p50_us", "us"),
    ("pause_p99_us", "us"),
    ("commit_p50_us", "us"),
    ("commit_p99_us", "us"),
    ("dirty_pages_p50", "pages"),
    ("guest_writes_per_second", "pages/s"),
];

impl Points {
    fn new(engine: &Engine, labels: &Labels, at: Instant) -> Self {
        let metrics = engine.primary.metrics();
        Self {
            series: SERIES.iter().map(|(name, unit)| Series::new(name, labels, unit)).collect(),
            at,
            pause: metrics.phase_histogram(Phase::Pause),
            commit: metrics.phase_histogram(Phase::CommitLatency),
            dirty: metrics.quantity_histogram(Quantity::DirtyPages),
            writes: engine.guest.writes(),
        }
    }

    fn add(&mut self, engine: &Engine, began: Instant) {
        let metrics = engine.primary.metrics();
        let now = Instant::now();
        let seconds = (now - self.at).as_secs_f64();
        let pause = replace(&mut self.pause, metrics.phase_histogram(Phase::Pause));
        let commit = replace(&mut self.commit, metrics.phase_histogram(Phase::CommitLatency));
        let dirty = replace(&mut self.dirty, metrics.quantity_histogram(Quantity::DirtyPages));
        let writes = engine.guest.writes();
        let us = |histogram: &Histogram<u64>, share| histogram.value_at_quantile(share) as f64 / 1e3;
        let values = [
            commit.len() as f64 / seconds,
            us(&pause, 0.5),
            us(&pause, 0.99),
            us(&commit, 0.5),
            us(&commit, 0.99),
            dirty.value_at_quantile(0.5) as f64,
            (writes - self.writes) as f64 / seconds,
        ];
        let at_s = (now - began).as_secs_f64();
        self.series.iter_mut().zip(values).for_each(|(series, value)| series.points.push((at_s, value)));
        (self.at, self.writes) = (now, writes);
    }
}

/// Keeps the later state; what came since the earlier one.
fn replace(kept: &mut Histogram<u64>, now: Histogram<u64>) -> Histogram<u64> {
    let before = std::mem::replace(kept, now.clone());
    let mut since = now;
    subtract(&mut since, &before);
    since
}
