//! One case of a scenario: every field has one value.

use std::time::Duration;

use romulus_checkpoint::PAGE_BYTES;
use romulus_checkpoint::synthetic::{self, Pace, SyntheticOptions};
use serde::Serialize;

use super::scenario::{Capture, Fill, MOST_CASES, OneOrMany, Pattern, Scenario, Tracking};
use crate::fabrics::{FabricOptions, Kind};
use crate::results::Labels;

/// What a guest, its image and their books take beside the pages themselves.
const MARGIN_BYTES: u64 = 256 << 20;
/// Staging memory at the least.
const STAGING_BYTES: u64 = 64 << 20;
/// Longest interval, in milliseconds.
const MOST_INTERVAL_MS: f64 = 60_000.0;

/// How fast the guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// So many pages after each resume.
    PerEpoch(u64),
    /// So many pages a second of running time.
    PerSecond(u64),
    /// As fast as it can.
    Unlimited,
}

/// A case.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// What tells it from the others of its scenario.
    pub name: String,
    pub guest_mib: u64,
    pub filled_mib: Option<u64>,
    pub load: Load,
    pub interval_ms: f64,
    pub pattern: Pattern,
    pub hot: (u64, u8),
    pub fill: Fill,
    pub writers: u64,
    pub capture: Capture,
    pub copy_workers: u64,
    pub pin: String,
    pub tracking: Tracking,
    pub fabric: Kind,
    pub streams: u64,
    pub depth: u64,
    pub state_kib: u64,
    pub seconds: f64,
    pub settle_seconds: f64,
    pub alone_seconds: f64,
    pub find_max: bool,
}

/// Every case with every value of one more field.
fn cross<T: Clone>(
    cases: Vec<Case>,
    values: &[T],
    put: impl Fn(&mut Case, &T) -> Option<String>,
) -> Vec<Case> {
    let many = values.len() > 1;
    let with = |case: &Case, value: &T| {
        let mut case = case.clone();
        let part = put(&mut case, value).filter(|_| many);
        if let Some(part) = part {
            let separator = if case.name.is_empty() { "" } else { " " };
            case.name += &format!("{separator}{part}");
        }
        case
    };
    cases
        .iter()
        .flat_map(|case| values.iter().map(move |value| with(case, value)).collect::<Vec<_>>())
        .collect()
}

fn values_or<T: Clone>(field: &Option<OneOrMany<T>>, default: T) -> Vec<T> {
    field.as_ref().map_or_else(|| vec![default], OneOrMany::values)
}

impl Case {
    /// All cases of a scenario, in order; an error that names the field that makes no sense.
    pub fn of(scenario: &Scenario, options: &FabricOptions) -> Result<Vec<Case>, String> {
        let base = Case {
            name: String::new(),
            guest_mib: 0,
            filled_mib: scenario.filled_mib,
            load: Load::Unlimited,
            interval_ms: 0.0,
            pattern: Pattern::Strided,
            hot: (scenario.hot_pages, scenario.hot_percent),
            fill: Fill::Touch,
            writers: 1,
            capture: Capture::Staged,
            copy_workers: 0,
            pin: String::new(),
            tracking: Tracking::Reported,
            fabric: options.fabric,
            streams: options.streams,
            depth: 2,
            state_kib: 64,
            seconds: scenario.seconds,
            settle_seconds: scenario.settle_seconds,
            alone_seconds: scenario.alone_seconds,
            find_max: scenario.find_max,
        };
        let mut cases = vec![base];
        macro_rules! field {
            ($values:expr, $name:literal, $field:ident, $show:expr) => {
                cases = cross(cases, &$values, |case, value| {
                    case.$field = value.clone();
                    Some(format!(concat!($name, "={}"), $show(value)))
                });
            };
        }
        field!(values_or(&scenario.fabric, options.fabric), "fabric", fabric, |kind: &Kind| kind.name());
        field!(values_or(&scenario.streams, options.streams), "streams", streams, u64::clone);
        field!(scenario.guest_mib.values(), "guest_mib", guest_mib, u64::clone);
        field!(loads(scenario)?, "load", load, |load: &Load| load.to_string());
        field!(scenario.interval_ms.values(), "interval_ms", interval_ms, f64::clone);
        field!(scenario.pattern.values(), "pattern", pattern, |value: &Pattern| value.name());
        field!(scenario.fill.values(), "fill", fill, |value: &Fill| value.name());
        field!(scenario.writers.values(), "writers", writers, u64::clone);
        field!(scenario.capture.values(), "capture", capture, |value: &Capture| value.name());
        field!(scenario.copy_workers.values(), "copy_workers", copy_workers, u64::clone);
        field!(values_or(&scenario.pin, options.pin.clone()), "pin", pin, String::clone);
        field!(scenario.tracking.values(), "tracking", tracking, |value: &Tracking| value.name());
        field!(scenario.depth.values(), "depth", depth, u64::clone);
        field!(scenario.state_kib.values(), "state_kib", state_kib, u64::clone);
        if cases.is_empty() || cases.len() > MOST_CASES {
            return Err(format!("{} cases; 1 to {MOST_CASES} are possible", cases.len()));
        }
        if let [only] = &mut cases[..] {
            only.name = "only".into();
        }
        cases.iter().try_for_each(Case::check)?;
        Ok(cases)
    }

    fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: f64, least: f64, most: f64| match value >= least && value <= most {
            true => Ok(()),
            false => Err(format!("{name} = {value}: {least} to {most} are possible")),
        };
        within("guest_mib", self.guest_mib as f64, 1.0, (1u64 << 24) as f64)?;
        within("interval_ms", self.interval_ms, 0.1, MOST_INTERVAL_MS)?;
        within("seconds", self.seconds, 0.01, 86_400.0)?;
        within("settle_seconds", self.settle_seconds, 0.0, 3600.0)?;
        within("alone_seconds", self.alone_seconds, 0.0, 3600.0)?;
        within("writers", self.writers as f64, 1.0, 64.0)?;
        within("copy_workers", self.copy_workers as f64, 0.0, 64.0)?;
        within("streams", self.streams as f64, 1.0, 16.0)?;
        within("depth", self.depth as f64, 1.0, 64.0)?;
        within("state_kib", self.state_kib as f64, 1.0, 8192.0)?;
        within("hot_percent", f64::from(self.hot.1), 0.0, 100.0)?;
        if let Load::PerEpoch(pages) = self.load {
            within("dirty_pages", pages as f64, 1.0, (self.written_pages() / 2) as f64)?;
        }
        if self.filled_mib.is_some_and(|filled| filled > self.guest_mib) {
            return Err(format!("filled_mib is more than guest_mib = {}", self.guest_mib));
        }
        Ok(())
    }

    /// Whether most of the guest is memory that it never wrote.
    pub fn is_sparse(&self) -> bool {
        self.filled_mib.is_some_and(|filled| filled < self.guest_mib)
    }

    /// Pages of the guest.
    pub fn pages(&self) -> u64 {
        (self.guest_mib << 20) / PAGE_BYTES
    }

    /// Pages written before protection begins.
    pub fn filled_pages(&self) -> u64 {
        (self.filled_mib.unwrap_or(self.guest_mib) << 20) / PAGE_BYTES
    }

    /// Pages that the writers choose from.
    fn written_pages(&self) -> u64 {
        self.pages()
    }

    /// Length of an epoch.
    pub fn interval(&self) -> Duration {
        Duration::from_secs_f64(self.interval_ms / 1e3)
    }

    /// Pages that an epoch may have, for the sizes of spares and staging.
    pub fn epoch_pages(&self) -> u64 {
        let most = self.pages().min(1 << 18);
        match self.load {
            Load::PerEpoch(pages) => pages,
            Load::PerSecond(rate) => ((rate as f64 * self.interval_ms / 1e3) as u64).clamp(1, most),
            Load::Unlimited => most.min(50_000),
        }
    }

    /// Spare frames.
    pub fn spares(&self) -> u64 {
        let usual = (self.pages() / 4).clamp(4096, (1 << 30) / PAGE_BYTES);
        usual.max(4 * self.epoch_pages())
    }

    /// Staging memory.
    pub fn staging_bytes(&self) -> u64 {
        STAGING_BYTES.max(4 * self.epoch_pages() * PAGE_BYTES)
    }

    /// What it may fill of this machine's memory.
    pub fn needed_bytes(&self) -> u64 {
        // A sparse guest's writers go everywhere: what they write in the run counts too.
        let seconds = self.seconds + self.settle_seconds + self.alone_seconds + 5.0;
        let rewritten = match (self.is_sparse(), self.load) {
            (false, _) => 0.0,
            (true, Load::PerEpoch(pages)) => pages as f64 * seconds / (self.interval_ms / 1e3),
            (true, Load::PerSecond(rate)) => rate as f64 * seconds,
            (true, Load::Unlimited) => 1e6 * seconds,
        };
        let touched = (self.filled_pages() + rewritten as u64).min(self.pages());
        // Guest and image; versions, bits and maps; a sparse guest's page tables.
        let books = 16 * touched + if self.is_sparse() { 3 * self.pages() / 8 } else { 0 };
        2 * touched * PAGE_BYTES
            + books
            + self.spares() * PAGE_BYTES
            + 2 * self.staging_bytes()
            + MARGIN_BYTES
    }

    /// The guest.
    pub fn guest_options(&self) -> SyntheticOptions {
        SyntheticOptions {
            name: "synthetic".into(),
            regions: vec![self.pages()],
            filled_pages: self.filled_pages(),
            state_bytes: self.state_kib << 10,
            writers: self.writers as usize,
            pattern: match self.pattern {
                Pattern::Strided => synthetic::Pattern::Strided,
                Pattern::Uniform => synthetic::Pattern::Uniform,
                Pattern::HotSet => synthetic::Pattern::HotSet { pages: self.hot.0, percent: self.hot.1 },
                Pattern::Sequential => synthetic::Pattern::Sequential,
                Pattern::Zipf => synthetic::Pattern::Zipf,
            },
            fill: match self.fill {
                Fill::Touch => synthetic::Fill::Touch,
                Fill::Whole => synthetic::Fill::Whole,
            },
            pace: match self.load {
                Load::PerEpoch(pages) => Pace::PerResume(pages),
                Load::PerSecond(rate) => Pace::PerSecond(rate),
                Load::Unlimited => Pace::Unlimited,
            },
            shared_memory: self.tracking == Tracking::WriteProtect,
            ..SyntheticOptions::default()
        }
    }

    /// What tells its figures from others. An interval that was searched for is a result: with it,
    /// figures of two results would never be compared.
    pub fn labels(&self) -> Labels {
        let labels = Labels::default().with("case", self.name.as_str());
        let labels = match self.find_max {
            true => labels,
            false => labels.with("interval_ms", self.interval_ms),
        };
        let labels = labels
            .with("guest_mib", self.guest_mib)
            .with("pattern", self.pattern.name())
            .with("fill", self.fill.name())
            .with("writers", self.writers)
            .with("fabric", self.fabric.name())
            .with("streams", self.streams)
            .with("capture", self.capture.name())
            .with("copy_workers", self.copy_workers)
            .with("pinned", self.pin != "off")
            .with("tracking", self.tracking.name())
            .with("sparse", self.is_sparse())
            .with("depth", self.depth)
            .with("find_max", self.find_max);
        match self.load {
            Load::PerEpoch(pages) => labels.with("dirty_pages", pages),
            Load::PerSecond(rate) => labels.with("pages_per_second", rate),
            Load::Unlimited => labels.with("pages_per_second", 0u64),
        }
    }
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Load::PerEpoch(pages) => write!(f, "{pages}/epoch"),
            Load::PerSecond(rate) => write!(f, "{rate}/s"),
            Load::Unlimited => f.write_str("unlimited"),
        }
    }
}

fn loads(scenario: &Scenario) -> Result<Vec<Load>, String> {
    match (&scenario.dirty_pages, &scenario.pages_per_second) {
        (Some(_), Some(_)) => Err("dirty_pages and pages_per_second: one of the two is possible".into()),
        (Some(pages), None) => Ok(pages.values().into_iter().map(Load::PerEpoch).collect()),
        (None, None) => Ok(vec![Load::PerEpoch(1000)]),
        (None, Some(rates)) => {
            let load = |rate| if rate == 0 { Load::Unlimited } else { Load::PerSecond(rate) };
            Ok(rates.values().into_iter().map(load).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Given {
        #[command(flatten)]
        fabric: FabricOptions,
    }

    #[test]
    fn a_rate_that_was_searched_for_tells_no_figures_apart() {
        let options = Given::parse_from(["test"]).fabric;
        let case =
            |find_max| Case::of(&Scenario { find_max, ..Scenario::default() }, &options).unwrap().remove(0);
        let at = |case: &Case, rate: f64| Case { interval_ms: 1e3 / rate, ..case.clone() }.labels();
        let sought = case(true);
        assert_eq!(at(&sought, 100.0), at(&sought, 50.0));
        let set = case(false);
        assert_ne!(at(&set, 100.0), at(&set, 50.0));
    }
}
