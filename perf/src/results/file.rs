//! Runs in a file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Run;
use crate::exit::{Failure, OrFail};

/// The layout of the file; grows when a field changes its meaning or leaves.
pub const FORMAT: u32 = 2;
const PROGRAM: &str = "romulus-perf";
/// Longest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Always `romulus-perf`.
    pub program: String,
    /// [`FORMAT`].
    pub format: u32,
    /// In the order they were made or merged.
    pub runs: Vec<Run>,
}

impl Results {
    /// Of these runs.
    pub fn of(runs: Vec<Run>) -> Self {
        Self { program: PROGRAM.to_owned(), format: FORMAT, runs }
    }

    /// From a file; an error that names it when it holds anything else.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let what = || format!("reading {}", path.display());
        let len_bytes = std::fs::metadata(path).or_fail(what())?.len();
        if len_bytes > MAX_FILE_BYTES {
            return Err(Failure::failed(format!("{}: {len_bytes} bytes are too many", path.display())));
        }
        Self::parse(&std::fs::read(path).or_fail(what())?).or_fail(what())
    }

    /// From bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        /// What must be right before the rest is looked at.
        #[derive(Deserialize)]
        struct Head {
            program: String,
            format: u32,
        }
        let head: Head =
            serde_json::from_slice(bytes).map_err(|error| format!("no results of {PROGRAM}: {error}"))?;
        if head.program != PROGRAM {
            return Err(format!("results of {:?}, not of {PROGRAM}", head.program));
        }
        if head.format != FORMAT {
            return Err(format!("format {}; this {PROGRAM} reads format {FORMAT}", head.format));
        }
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    /// All runs of these, in order.
    pub fn merge(all: impl IntoIterator<Item = Results>) -> Self {
        Self::of(all.into_iter().flat_map(|results| results.runs).collect())
    }

    /// Writes it; the file is there in full or not at all.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self).or_fail("results as JSON")? + "\n";
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        std::fs::write(&beside, text)
            .and_then(|()| std::fs::rename(&beside, path))
            .or_fail(format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Better, Labels, Measurement, RunClock};
    use super::*;

    fn run(name: &str) -> Run {
        let mut run = RunClock::start().run(name, &serde_json::json!({"rounds": 3})).unwrap();
        run.measurements.push(Measurement::single("x", &Labels::default(), "us", Better::Lower, 1.5));
        run
    }

    #[test]
    fn files_come_back_and_merge() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let results = Results::of(vec![run("epochs")]);
        results.write(&path).unwrap();
        let back = Results::read(&path).unwrap();
        assert_eq!(back, results);
        let merged = Results::merge([back, Results::of(vec![run("limits"), run("fabric")])]);
        let names: Vec<_> = merged.runs.iter().map(|run| run.subcommand.as_str()).collect();
        assert_eq!(names, ["epochs", "limits", "fabric"]);
        assert!(merged.runs[0].find("x", &Labels::default()).is_some());
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for (text, why) in [
            ("", "no results"),
            ("{}", "no results"),
            (r#"{"program":"other","format":2}"#, "other"),
            (r#"{"program":"romulus-perf","format":1}"#, "format 1"),
            (r#"{"program":"romulus-perf","format":2}"#, "runs"),
        ] {
            let error = Results::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let missing = Results::read(Path::new("no-such-file.json")).unwrap_err();
        assert!(missing.message.contains("no-such-file.json"));
    }
}
