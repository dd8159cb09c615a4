//! Tables inside a page that people write: what lies between two markers is replaced, the rest
//! stays as it is.
//!
//! ```text
//! <!-- romulus-perf NAME -->
//! (replaced)
//! <!-- /romulus-perf NAME -->
//! ```
//! NAME is a subcommand, or a subcommand and a scenario as in `epochs quick`.

use std::path::Path;

use super::labelling::note_in_words;
use super::table;
use crate::exit::{Failure, OrFail};
use crate::results::{Results, Run};

/// A run's table, with where and how it was measured.
pub fn section(run: &Run) -> String {
    let machine = &run.machine;
    let mut text = format!(
        "Measured {} at revision {} on {} cores of {}, {} GiB, Linux {}{}.\n\n",
        run.started_at,
        machine.revision,
        machine.cores,
        machine.cpu,
        machine.memory_mib.div_ceil(1024),
        machine.kernel,
        if machine.debug_assertions { ", **with debug assertions: no figures to quote**" } else { "" }
    );
    let common = table::common(run);
    if !common.is_empty() {
        text.push_str(&format!("All of it: {common}.\n\n"));
    }
    text.push_str(&table::markdown(run));
    run.notes
        .iter()
        .for_each(|note| text.push_str(&format!("\n- {}\n", note_in_words(note).replace('\n', " "))));
    text
}

/// Replaces what lies between the markers of each run of the results; gives the page and the names
/// that have no markers in it.
pub fn replace(page: &str, results: &Results) -> Result<(String, Vec<String>), String> {
    let mut page = page.to_owned();
    let mut missing = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for run in &results.runs {
        let name = table::title(run);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for name in names {
        let (begin, end) =
            (format!("<!-- romulus-perf {name} -->"), format!("<!-- /romulus-perf {name} -->"));
        let Some(from) = page.find(&begin) else {
            missing.push(name);
            continue;
        };
        let from = from + begin.len();
        let length = page[from..].find(&end).ok_or(format!("`{begin}` has no `{end}` behind it"))?;
        let sections: Vec<String> =
            results.runs.iter().filter(|run| table::title(run) == name).map(section).collect();
        page.replace_range(from..from + length, &format!("\n{}", sections.join("\n")));
    }
    Ok((page, missing))
}

/// The same with a file.
pub fn update(path: &Path, results: &Results) -> Result<Vec<String>, Failure> {
    let what = || format!("--markdown {}", path.display());
    let page = std::fs::read_to_string(path).or_fail(what())?;
    let (page, missing) = replace(&page, results).or_fail(what())?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    std::fs::write(&beside, page).and_then(|()| std::fs::rename(&beside, path)).or_fail(what())?;
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Beside, Better, Labels, Measurement, RunClock, Sampled};

    fn results() -> Results {
        let mut run = RunClock::start().run("fabric", &()).unwrap();
        let labels = Labels::default().with("fabric", "tcp").with("size_bytes", 4096u64);
        let figure =
            Measurement::new("write_bandwidth", &labels, "MB/s", Better::Higher, Sampled::of([90.0, 110.0]));
        run.measurements
            .push(figure.with_limit(Beside::paired("plain | tcp", &[(90.0, 100.0), (110.0, 100.0)])));
        Results::of(vec![run])
    }

    #[test]
    fn what_lies_between_the_markers_is_replaced_and_nothing_else() {
        let page = "before\n<!-- romulus-perf fabric -->\nold\n<!-- /romulus-perf fabric -->\nafter\n";
        let (once, missing) = replace(page, &results()).unwrap();
        assert!(missing.is_empty());
        assert!(once.starts_with("before\n") && once.ends_with("<!-- /romulus-perf fabric -->\nafter\n"));
        assert!(!once.contains("old"));
        assert!(
            once.contains(
                "| figure | median (range) | plain \\| tcp | ratio |\n|---|---|---|---|\n| write bandwidth, MB/s | 100 (90 to 110) | 100 | 1.00 (0.90 to 1.10) |"
            ),
            "{once}"
        );
        // Again: the same markers are still there, and hold one table.
        let (twice, _) = replace(&once, &results()).unwrap();
        assert_eq!(twice.matches("| write bandwidth, MB/s |").count(), 1);
    }

    #[test]
    fn markers_that_are_missing_or_torn_are_told() {
        assert_eq!(replace("nothing here", &results()).unwrap().1, ["fabric"]);
        assert!(replace("<!-- romulus-perf fabric -->", &results()).unwrap_err().contains("/romulus-perf"));
    }
}
