//! `romulus-perf compare`: what changed between two sets of results beyond the noise.

mod rule;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::exit::{Code, Failure, OrFail};
use crate::report::{describe_all, tick_text, title};
use crate::results::{Measurement, Results, Run};
use rule::{Change, Rule, judge};

/// Options of `romulus-perf compare`.
#[derive(Args, Clone, Debug, Serialize)]
pub struct CompareCommand {
    /// Results before
    #[arg(value_name = "A.json")]
    before: PathBuf,

    /// Results after
    #[arg(value_name = "B.json")]
    after: PathBuf,

    #[command(flatten)]
    rule: Rule,

    /// Figures that are in A alone are no failure
    #[arg(long)]
    allow_missing: bool,

    /// Write what was found to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One figure in both.
#[derive(Debug, Serialize)]
struct Compared {
    run: String,
    figure: String,
    labels: String,
    unit: String,
    before: f64,
    after: f64,
    change_percent: Option<f64>,
    verdict: Change,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Comparison {
    worse: usize,
    better: usize,
    changed: usize,
    same: usize,
    only_before: Vec<String>,
    only_after: Vec<String>,
    /// Machines differ, or one build has assertions: figures then say little about the programs.
    machines_differ: bool,
    figures: Vec<Compared>,
}

/// Runs the command.
pub fn run(command: &CompareCommand) -> Result<ExitCode, Failure> {
    let (before, after) = (Results::read(&command.before)?, Results::read(&command.after)?);
    command.rule.check()?;
    let found = compare(&before, &after, &command.rule);
    tell(&found, &command.rule);
    if let Some(path) = &command.json {
        let text = serde_json::to_string_pretty(&found).or_fail("the comparison as JSON")? + "\n";
        std::fs::write(path, text).or_fail(format!("--json {}", path.display()))?;
    }
    if found.worse + found.better + found.changed + found.same == 0 {
        return Err(Failure::failed("the two have no figure in common: nothing was compared"));
    }
    found.judge(command.allow_missing)
}

impl Comparison {
    /// A figure that is there no more may be one that got worse: what could not be measured has none.
    fn judge(&self, allow_missing: bool) -> Result<ExitCode, Failure> {
        let missing = if allow_missing { 0 } else { self.only_before.len() };
        match (self.worse, missing) {
            (0, 0) => Ok(ExitCode::SUCCESS),
            (worse, 0) => {
                Err(Failure::new(Code::Worse, format!("{worse} figures are worse beyond the noise")))
            }
            (worse, missing) => {
                let text = format!(
                    "{worse} figures are worse beyond the noise, {missing} of A are missing in B (--allow-missing \
                     lets them)"
                );
                Err(Failure::new(Code::Worse, text))
            }
        }
    }
}

/// All figures, each with its run; of several runs of one name each figure is that of the first.
fn figures(results: &Results) -> Vec<(&Run, &Measurement)> {
    let mut all: Vec<(&Run, &Measurement)> = Vec::new();
    for run in &results.runs {
        for figure in &run.measurements {
            if find(&all, run, figure).is_none() {
                all.push((run, figure));
            }
        }
    }
    all
}

fn find<'a>(all: &[(&'a Run, &'a Measurement)], run: &Run, figure: &Measurement) -> Option<&'a Measurement> {
    let same = |other: &(&Run, &Measurement)| {
        (&other.0.subcommand, &other.0.scenario) == (&run.subcommand, &run.scenario)
            && (&other.1.name, &other.1.labels, &other.1.unit) == (&figure.name, &figure.labels, &figure.unit)
    };
    all.iter().find(|other| same(other)).map(|(_, figure)| *figure)
}

fn compare(before: &Results, after: &Results, rule: &Rule) -> Comparison {
    let (old, new) = (figures(before), figures(after));
    let name = |run: &Run, figure: &Measurement| {
        format!("{}: {} {}", title(run), figure.name, describe_all(&figure.labels)).trim_end().to_owned()
    };
    let mut found = Comparison::default();
    for (run, figure) in &old {
        let Some(now) = find(&new, run, figure) else {
            found.only_before.push(name(run, figure));
            continue;
        };
        let verdict = judge(figure, now, rule);
        *match verdict {
            Change::Worse => &mut found.worse,
            Change::Better => &mut found.better,
            Change::Changed => &mut found.changed,
            Change::Same => &mut found.same,
        } += 1;
        let (before, after) = (figure.value.median, now.value.median);
        found.figures.push(Compared {
            run: title(run),
            figure: figure.name.clone(),
            labels: describe_all(&figure.labels),
            unit: figure.unit.clone(),
            before,
            after,
            change_percent: (before != 0.0).then(|| 100.0 * (after - before) / before.abs()),
            verdict,
        });
    }
    found.only_after = new
        .iter()
        .filter(|(run, figure)| find(&old, run, figure).is_none())
        .map(|(run, figure)| name(run, figure))
        .collect();
    let machine = |run: &Run| {
        let machine = &run.machine;
        (machine.cpu.clone(), machine.cores, machine.kernel.clone(), machine.debug_assertions)
    };
    let machines: Vec<_> = before.runs.iter().map(machine).collect();
    found.machines_differ = after.runs.iter().any(|run| !machines.contains(&machine(run)));
    found
}

fn tell(found: &Comparison, rule: &Rule) {
    if found.machines_differ {
        println!("the machines or the builds differ: what changed may be theirs");
    }
    for verdict in [Change::Worse, Change::Better, Change::Changed] {
        for figure in found.figures.iter().filter(|figure| figure.verdict == verdict) {
            let percent =
                figure.change_percent.map_or(String::new(), |percent| format!(" ({percent:+.1} %)"));
            println!(
                "{}: {} {} {}: {} -> {} {}{percent}",
                verdict.name(),
                figure.run,
                figure.figure,
                figure.labels,
                tick_text(figure.before),
                tick_text(figure.after),
                figure.unit
            );
        }
    }
    for (names, which) in [(&found.only_before, "A"), (&found.only_after, "B")] {
        if !names.is_empty() {
            println!("{} figures are in {which} alone, the first is {}", names.len(), names[0]);
        }
    }
    println!(
        "{} worse, {} better, {} changed otherwise, {} the same within the noise; {}",
        found.worse,
        found.better,
        found.changed,
        found.same,
        rule.describe()
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Better, Labels, RunClock, Sampled};

    fn results(samples: &[f64], better: Better) -> Results {
        let mut run = RunClock::start().run("fabric", &()).unwrap();
        let labels = Labels::default().with("size_bytes", 4096u64);
        run.measurements.push(Measurement::new("x", &labels, "MB/s", better, Sampled::of(samples.to_vec())));
        Results::of(vec![run])
    }

    #[test]
    fn a_thing_compared_with_itself_is_the_same() {
        let results = results(&[1.0, 2.0, 3.0], Better::Higher);
        let found = compare(&results, &results, &Rule::default());
        assert_eq!((found.worse, found.better, found.changed, found.same), (0, 0, 0, 1));
        assert!(found.only_before.is_empty() && found.only_after.is_empty() && !found.machines_differ);
    }

    #[test]
    fn direction_decides_what_is_worse() {
        let (low, high) = ([10.0, 10.1, 10.2], [20.0, 20.1, 20.2]);
        for (better, worse) in [(Better::Higher, 0), (Better::Lower, 1), (Better::Neither, 0)] {
            let found = compare(&results(&low, better), &results(&high, better), &Rule::default());
            assert_eq!(found.worse, worse, "{better:?}");
            assert_eq!(found.same, 0);
        }
    }

    #[test]
    fn what_is_in_one_alone_is_named() {
        let empty = Results::of(Vec::new());
        let found = compare(&results(&[1.0], Better::Higher), &empty, &Rule::default());
        assert_eq!(found.only_before, ["fabric: x 4 KiB"]);
        let failure = found.judge(false).unwrap_err();
        assert_eq!(failure.code, Code::Worse);
        assert!(failure.message.contains("0 figures are worse") && failure.message.contains("1 of A"));
        assert!(found.judge(true).is_ok());
    }

    #[test]
    fn builds_with_and_without_assertions_differ() {
        let before = results(&[1.0], Better::Higher);
        let mut after = before.clone();
        after.runs[0].machine.debug_assertions ^= true;
        assert!(compare(&before, &after, &Rule::default()).machines_differ);
    }
}
