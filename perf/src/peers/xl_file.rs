//! What `scripts/xen-beside --json FILE` writes.

use std::path::Path;
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::{Failure, OrFail};

/// Longest file that is read.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The file.
#[derive(Clone, Debug)]
pub struct XenBeside {
    /// How it was called.
    pub settings: Settings,
    /// Stock `xl remus`; `None` where it was not asked for.
    pub xl_remus: Option<Side>,
    /// Romulus, likewise.
    pub romulus: Option<Side>,
    /// Its name, for people.
    pub name: String,
    /// When it was written.
    pub written_at: String,
    /// Of the source that was measured; older files say nothing of it.
    pub revision: Option<String>,
    /// All of it, for the results.
    pub whole: Value,
}

/// The layout, down to the sides.
#[derive(Deserialize)]
struct Layout {
    settings: Settings,
    revision: Option<String>,
    #[serde(rename = "xl-remus")]
    xl_remus: Option<Value>,
    romulus: Option<Value>,
}

/// What both sides were measured with.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Settings {
    pub guest_mib: u64,
    /// Of it, what the workload fills and checks.
    pub check_mib: u64,
    /// In milliseconds.
    pub interval: f64,
    pub dirty_mib_per_second: f64,
    /// How long each was to be measured.
    pub seconds: f64,
}

/// What came of one side.
#[derive(Clone, Debug)]
pub enum Side {
    /// It was measured, perhaps after attempts that failed.
    Measured(Measured),
    /// Every attempt failed.
    Failed(Attempts),
}

/// How often it was tried.
#[derive(Clone, Debug, Deserialize)]
pub struct Attempts {
    pub attempts: u64,
    pub failures: Vec<String>,
}

/// The figures of one side.
#[derive(Clone, Debug, Deserialize)]
pub struct Measured {
    #[serde(flatten)]
    pub tries: Attempts,
    pub seconds: f64,
    pub checkpoints: u64,
    pub checkpoints_per_second: f64,
    /// The guest's clock stood still.
    pub guest_stopped_us: Percentiles,
    /// A thread in the guest was away.
    pub guest_away_us: Percentiles,
    pub sent_bytes_per_checkpoint: u64,
    pub workload_steps_per_second: f64,
    pub corrupt_pages: u64,
}

/// Of a distribution.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p99: f64,
}

impl XenBeside {
    /// From a file; an error that names it, and what is wrong in it.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let what = || format!("--xl-results {}", path.display());
        let about = std::fs::metadata(path)
            .or_fail(format!("{}: `scripts/xen-beside --json FILE` writes such a file", what()))?;
        if about.len() > MAX_FILE_BYTES {
            return Err(Failure::failed(format!("{}: {} bytes are too many", what(), about.len())));
        }
        let written_at = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read(path).or_fail(what())?;
        Self::parse(&text, name, written_at).or_fail(what())
    }

    /// From bytes.
    pub fn parse(text: &[u8], name: String, written_at: SystemTime) -> Result<Self, String> {
        let whole: Value = serde_json::from_slice(text).map_err(|error| format!("no JSON: {error}"))?;
        let layout: Layout = serde_json::from_value(whole.clone())
            .map_err(|error| format!("not what scripts/xen-beside writes: {error}"))?;
        let side = |name: &str, value: Option<Value>| value.map(|value| Side::parse(name, value)).transpose();
        let written_at = humantime::format_rfc3339_seconds(written_at).to_string();
        Ok(Self {
            settings: layout.settings,
            xl_remus: side("xl-remus", layout.xl_remus)?,
            romulus: side("romulus", layout.romulus)?,
            name,
            written_at,
            revision: layout.revision,
            whole,
        })
    }
}

impl Side {
    fn parse(name: &str, value: Value) -> Result<Self, String> {
        // Figures are there from the first attempt on that went well.
        match value.get("checkpoints") {
            Some(_) => Ok(Self::Measured(part(name, value)?)),
            None => {
                let tries: Attempts = part(name, value)?;
                match tries.failures.is_empty() {
                    true => Err(format!("{name}: neither `checkpoints` nor `failures`")),
                    false => Ok(Self::Failed(tries)),
                }
            }
        }
    }
}

fn part<T: DeserializeOwned>(name: &str, value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("{name}: {error}"))
}
