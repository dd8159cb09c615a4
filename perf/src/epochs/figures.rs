//! What a case gave, as figures of the results.

use romulus_checkpoint::metrics::{Phase, Quantity};

use super::case::{Case, Load};
use super::sampler::{Measured, Side};
use super::standby::Verified;
use crate::exit::Failure;
use crate::results::{Beside, Better, HistogramRecord, Labels, Measurement, Run, Sampled, names};
use crate::statistics::Spread;

/// What the limit of a pause is called.
const MEMCPY: &str = "memcpy of the same pages";
const GIB: f64 = (1u64 << 30) as f64;

/// All that a case gave.
pub struct Outcome {
    pub case: Case,
    pub measured: Measured,
    /// From the start of the drivers to the first commit.
    pub sync_s: f64,
    /// Pages that the guest wrote a second, unprotected: before and after nothing else ran.
    pub alone_pages_per_second: Option<f64>,
    /// Of single epochs' pages, in microseconds.
    pub memcpy_us: Vec<f64>,
    pub verified: Verified,
    /// The highest rate that holds, where it was searched.
    pub max_rate: Option<f64>,
}

impl Outcome {
    /// The median of the memcpys, in microseconds; 0 without any.
    pub fn memcpy_p50_us(&self) -> f64 {
        Spread::of(self.memcpy_us.iter().copied()).median
    }

    /// How much slower the guest's writers are than alone, in percent.
    pub fn slowdown_percent(&self) -> Option<f64> {
        let protected = self.measured.guest_writes as f64 / self.measured.seconds;
        let alone = self.alone_pages_per_second.filter(|alone| *alone > 0.0)?;
        Some(100.0 * (1.0 - protected / alone))
    }

    /// Share of the time that the guest stood still, in percent.
    pub fn paused_percent(&self) -> f64 {
        100.0 * self.measured.seen.paused.as_secs_f64() / self.measured.seconds
    }

    /// Processor seconds by GiB of dirty pages.
    fn per_gib(&self, seconds: f64) -> Option<f64> {
        let gib = self.measured.dirty_bytes() / GIB;
        (gib > 0.0).then(|| seconds / gib)
    }

    /// Of primary and backup.
    pub fn cpu_s_per_gib(&self) -> (Option<f64>, Option<f64>) {
        (self.per_gib(self.measured.cpu.primary), self.per_gib(self.measured.cpu.backup))
    }

    /// Fills a run with all of it.
    pub fn fill(&self, run: &mut Run) -> Result<(), Failure> {
        let labels = self.case.labels();
        run.measurements.extend(self.measurements(&labels));
        let (primary, backup) =
            (labels.clone().with("side", "primary"), labels.clone().with("side", "backup"));
        run.histograms.extend(distributions(&self.measured.primary, &primary)?);
        run.histograms.extend(distributions(&self.measured.backup, &backup)?);
        for (name, times) in
            [("pause_from_due", &self.measured.seen.pause), ("commit_from_due", &self.measured.seen.commit)]
        {
            run.histograms.push(HistogramRecord::of_ns(name, &primary, times.histogram())?);
        }
        run.series.extend(self.measured.series.iter().cloned());
        for (name, count) in &self.measured.disturbances {
            run.notes.push(format!("{}: {count} {name}", self.case.name));
        }
        Ok(())
    }

    fn measurements(&self, labels: &Labels) -> Vec<Measurement> {
        let measured = &self.measured;
        let us = |phase, share| measured.primary.phase_us(phase, share);
        let single = |name, unit, better, value| Measurement::single(name, labels, unit, better, value);
        let lower = |name, unit, value| single(name, unit, Better::Lower, value);
        let memcpy = self.memcpy_p50_us();
        let pause = |name, share| {
            let value = us(Phase::Pause, share);
            lower(name, "us", value).with_limit(Beside::single(MEMCPY, memcpy, value))
        };
        let dirty = measured.primary.quantity(Quantity::DirtyPages).value_at_quantile(0.5);
        let made = [
            single(names::CHECKPOINTS_PER_SECOND, "1/s", Better::Higher, measured.rate()),
            lower(names::LATE_EPOCHS_PERCENT, "%", measured.late_percent()),
            pause(names::PAUSE_P50_US, 0.5),
            pause(names::PAUSE_P99_US, 0.99),
            lower(names::COMMIT_P50_US, "us", us(Phase::CommitLatency, 0.5)),
            lower(names::COMMIT_P99_US, "us", us(Phase::CommitLatency, 0.99)),
            lower(names::COMMIT_FROM_DUE_P99_US, "us", measured.seen.commit.quantile_us(0.99)),
            lower("paused_percent", "%", self.paused_percent()),
            single(names::DIRTY_PAGES_P50, "pages", Better::Neither, dirty as f64),
            lower(names::SYNC_S, "s", self.sync_s),
        ];
        let mut all = Vec::from(made);
        let memcpys = Sampled::of(self.memcpy_us.iter().copied());
        all.push(Measurement::new(names::MEMCPY_US, labels, "us", Better::Lower, memcpys));
        let slowdown = self.slowdown_percent().map(|value| lower(names::GUEST_SLOWDOWN_PERCENT, "%", value));
        all.extend(slowdown);
        let max =
            self.max_rate.map(|rate| single(names::MAX_CHECKPOINTS_PER_SECOND, "1/s", Better::Higher, rate));
        all.extend(max);
        for (side, seconds) in [
            ("primary", measured.cpu.primary),
            ("backup", measured.cpu.backup),
            ("guest", measured.cpu.guest),
        ] {
            let labels = labels.clone().with("side", side);
            all.extend(self.per_gib(seconds).map(|value| {
                Measurement::single(names::CPU_S_PER_GIB, &labels, "s/GiB", Better::Lower, value)
            }));
            let per_epoch = 1e6 * seconds / measured.epochs.max(1) as f64;
            all.push(Measurement::single("cpu_us_per_epoch", &labels, "us", Better::Lower, per_epoch));
        }
        if measured.dirty_bytes() > 0.0 {
            let bytes = measured.bytes_written as f64 / measured.dirty_bytes();
            all.push(lower(names::BYTES_PER_DIRTY_BYTE, "1", bytes));
        }
        all
    }

    /// What the results have no better place for.
    pub fn details(&self) -> serde_json::Value {
        serde_json::json!({
            "case": self.case,
            "seconds": self.measured.seconds,
            "epochs": self.measured.epochs,
            "verified": self.verified,
            "disturbances": self.measured.disturbances,
            "cpu_s_by_thread": self.measured.cpu_by_thread,
            "guest_pages_per_second": self.measured.guest_writes as f64 / self.measured.seconds,
            "alone_pages_per_second": self.alone_pages_per_second,
            "load_is_per_epoch": matches!(self.case.load, Load::PerEpoch(_)),
        })
    }
}

/// Every distribution of a side that holds anything.
fn distributions(side: &Side, labels: &Labels) -> Result<Vec<HistogramRecord>, Failure> {
    let phases = Phase::ALL.iter().map(|phase| (phase.name(), ("us", 1e-3), side.phase(*phase)));
    let quantities = Quantity::ALL.iter().map(|quantity| {
        let unit = if quantity.name().ends_with("bytes") { "bytes" } else { "1" };
        (quantity.name(), (unit, 1.0), side.quantity(*quantity))
    });
    phases
        .chain(quantities)
        .filter(|(_, _, histogram)| !histogram.is_empty())
        .map(|(name, unit, histogram)| HistogramRecord::of(name, labels, unit, histogram))
        .collect()
}
