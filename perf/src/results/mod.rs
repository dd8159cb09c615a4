//! What was measured, as one layout of JSON for every subcommand.
//!
//! A file holds runs; merging files is appending their runs. A run holds measurements (a figure,
//! its samples, the limit and the peer beside it), histograms in full, series over time, events,
//! and in `result` what only its own subcommand knows. Figures are told apart by name and labels:
//! the same name with the same labels is the same figure, in other runs and on other machines.

mod file;
mod histogram;
mod labels;
mod measurement;
pub mod names;
mod series;

pub use file::{FORMAT, Results};
pub use histogram::{HistogramRecord, PERCENTILES};
pub use labels::{Label, Labels};
pub use measurement::{Beside, Better, Measurement, Sampled};
pub use series::{Event, Series};

use std::path::Path;
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::{Failure, OrFail};
use crate::machine::Machine;

/// One run of a subcommand, or of one scenario of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// `epochs`, `limits`, `fabric`, `primary`, `backup`, `guest`, `peers`.
    pub subcommand: String,
    /// The scenario's name, where the subcommand has scenarios.
    pub scenario: Option<String>,
    /// When it began: RFC 3339, UTC.
    pub started_at: String,
    /// How long it took.
    pub seconds: f64,
    /// What it ran on.
    pub machine: Machine,
    /// The RDMA device that was used, if any.
    pub device: Option<String>,
    /// The options and the scenario, as given.
    pub options: Value,
    /// Figures.
    #[serde(default)]
    pub measurements: Vec<Measurement>,
    /// Distributions in full.
    #[serde(default)]
    pub histograms: Vec<HistogramRecord>,
    /// Figures over time.
    #[serde(default)]
    pub series: Vec<Series>,
    /// What happened at a time (takeovers, reconnects).
    #[serde(default)]
    pub events: Vec<Event>,
    /// What could not be measured and why, for people.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What only this subcommand knows.
    #[serde(default)]
    pub result: Value,
}

/// A run that is under way: knows when it began.
#[derive(Debug)]
pub struct RunClock {
    began: Instant,
    started_at: SystemTime,
}

impl RunClock {
    /// It begins now.
    pub fn start() -> Self {
        Self { began: Instant::now(), started_at: SystemTime::now() }
    }

    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The run, ending now, with nothing measured yet.
    pub fn run(&self, subcommand: &str, options: &impl Serialize) -> Result<Run, Failure> {
        Ok(Run {
            subcommand: subcommand.to_owned(),
            scenario: None,
            started_at: humantime::format_rfc3339_seconds(self.started_at).to_string(),
            seconds: self.began.elapsed().as_secs_f64(),
            machine: Machine::here(),
            device: None,
            options: serde_json::to_value(options).or_fail("options as JSON")?,
            measurements: Vec::new(),
            histograms: Vec::new(),
            series: Vec::new(),
            events: Vec::new(),
            notes: Vec::new(),
            result: Value::Null,
        })
    }

    /// Writes a run as far as it has come, so that a failure of what follows takes nothing away.
    pub fn save(&self, run: &mut Run, path: Option<&Path>) -> Result<(), Failure> {
        run.seconds = self.began.elapsed().as_secs_f64();
        run.clone().write(path)
    }
}

impl Run {
    /// Writes it where the options say, alone in a file.
    pub fn write(self, path: Option<&Path>) -> Result<(), Failure> {
        path.map_or(Ok(()), |path| Results::of(vec![self]).write(path))
    }

    /// The first figure of this name whose labels contain all of `labels`.
    pub fn find(&self, name: &str, labels: &Labels) -> Option<&Measurement> {
        self.measurements.iter().find(|figure| figure.name == name && figure.labels.contains(labels))
    }
}
