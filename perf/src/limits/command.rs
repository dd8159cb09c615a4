//! The command: which limits, how long, and the table.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use romulus_host::memory::available_bytes;
use serde::Serialize;

use super::{memory, network, tracking, wake};
use crate::exit::Failure;
use crate::fabrics::{FabricOptions, Kind};
use crate::results::{HistogramRecord, Measurement, RunClock};

/// Share of the available memory that may be filled.
const SHARE: u64 = 3;

/// A group of limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// memcpy by threads and size
    Memcpy,
    /// Scanning for dirty pages and protecting them again
    Tracking,
    /// Waking a pinned thread
    Wake,
    /// Plain TCP streams over the loopback
    Tcp,
    /// The raw verbs, by perftest; with --fabric rdma only
    Verbs,
}

/// Options of `romulus-perf limits`.
#[derive(Args, Clone, Debug, Serialize)]
pub struct LimitsCommand {
    /// The fabric, for the verbs.
    #[command(flatten)]
    pub fabric: FabricOptions,

    /// Only these
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    pub only: Vec<Group>,

    /// Seconds of each single measurement
    #[arg(long, value_name = "S", default_value_t = 0.3)]
    pub seconds: f64,

    /// Repetitions of each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub rounds: u64,

    /// Memory that is copied from, and as much to
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub window_mib: u64,

    /// Sizes of the memory that is scanned and protected
    #[arg(long, value_name = "MIB", value_delimiter = ',', default_value = "256,1024")]
    pub tracked_mib: Vec<u64>,

    /// The address of the loopback or of the device
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1")]
    pub address: IpAddr,

    /// Write everything measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl LimitsCommand {
    /// Length of a single measurement.
    pub fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    fn check(&self) -> Result<(), Failure> {
        if !(self.seconds >= 0.001 && self.seconds <= 3600.0) {
            return Err(Failure::usage(format!("--seconds {}: 0.001 to 3600 are possible", self.seconds)));
        }
        if let Some(mib) = self.tracked_mib.iter().find(|mib| !(1..=1 << 24).contains(*mib)) {
            return Err(Failure::usage(format!("--tracked-mib {mib}: 1 to {} are possible", 1 << 24)));
        }
        Ok(())
    }

    fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }
}

/// What was measured and what could not be.
#[derive(Default)]
pub struct Found {
    pub measurements: Vec<Measurement>,
    pub histograms: Vec<HistogramRecord>,
    pub notes: Vec<String>,
}

impl Found {
    /// A figure; shown at once.
    pub fn push(&mut self, figure: Measurement) {
        println!("{}", rows(&figure));
        self.measurements.push(figure);
    }

    /// Something that could not be measured.
    pub fn note(&mut self, text: String) {
        println!("not measured: {text}");
        self.notes.push(text);
    }
}

/// A figure for people, on two lines: what it is, and the median with lowest and highest.
fn rows(figure: &Measurement) -> String {
    let value = &figure.value;
    format!(
        "{} {}\n{:>16.2} {:<6} {:.2} to {:.2}",
        figure.name, figure.labels, value.median, figure.unit, value.lowest, value.highest
    )
}

/// Whether so much memory may be filled; why not.
pub fn fits(bytes: u64) -> Result<(), String> {
    let most = available_bytes() / SHARE;
    if bytes <= most {
        return Ok(());
    }
    Err(format!("{} MiB would be filled, {} MiB may be", bytes >> 20, most >> 20))
}

/// Runs the command: each group by itself, so that one that fails leaves the others.
pub fn run(command: &LimitsCommand) -> Result<ExitCode, Failure> {
    command.check()?;
    let clock = RunClock::start();
    let mut found = Found::default();
    println!("limit, of what\n{:>16}        lowest to highest", "median");
    type Measure = fn(&LimitsCommand, &mut Found) -> Result<(), Failure>;
    let groups: [(Group, Measure); 5] = [
        (Group::Memcpy, memory::measure),
        (Group::Tracking, tracking::measure),
        (Group::Wake, wake::measure),
        (Group::Tcp, network::measure_tcp),
        (Group::Verbs, network::measure_verbs),
    ];
    for (group, measure) in groups {
        let asked = command.only.contains(&group);
        if !command.wants(group) || (group == Group::Verbs && command.fabric.fabric == Kind::Tcp && !asked) {
            continue;
        }
        if let Err(failure) = measure(command, &mut found) {
            found.note(format!("{group:?}: {}", failure.message).to_lowercase());
        }
    }
    if found.measurements.is_empty() {
        return Err(Failure::failed(format!("nothing could be measured: {}", found.notes.join("; "))));
    }
    let mut run = clock.run("limits", command)?;
    run.device = command.fabric.used_device();
    (run.measurements, run.histograms, run.notes) = (found.measurements, found.histograms, found.notes);
    run.write(command.json.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Better, Labels, Sampled, names};

    #[test]
    fn what_is_printed_fits_a_terminal() {
        let labels =
            Labels::default().with("scattered", false).with("size_bytes", 1u64 << 20).with("threads", 16u64);
        let value = Sampled::of([12_345_678.9, 12_345_678.8, 12_345_678.7]);
        let name = names::WRITE_PROTECT_US_PER_GIB;
        let printed = rows(&Measurement::new(name, &labels, "s/GiB", Better::Lower, value));
        assert!(printed.lines().all(|line| line.len() <= 80), "{printed}");
    }
}
