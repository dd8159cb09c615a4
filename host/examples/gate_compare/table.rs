//! What was measured, as a table and as JSON.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::depth::SENT;
use crate::load::Load;
use crate::run::Outcome;
use crate::way::Kind;

#[derive(Default)]
pub struct Table {
    runs: Vec<(Kind, Load, Outcome)>,
    boundaries: Vec<(Kind, Load, Outcome)>,
    lacking: Vec<(Kind, String)>,
    looks: Vec<Look>,
}

/// What was looked at apart from the runs.
struct Look {
    kind: Kind,
    /// What left with the releases of two marks that were both not acked.
    left: [u64; 2],
    /// Times of marks while somebody configured interfaces.
    configuring_us: Histogram<u64>,
}

impl Look {
    fn is_exact(&self) -> bool {
        self.left[..] == SENT[..2]
    }
}

/// All runs of a way with a load.
struct Row {
    kind: Kind,
    load: Load,
    /// Medians, and the range of the first.
    packets_a_second: f64,
    range: (f64, f64),
    own_cpu_us: f64,
    all_cpu_us: f64,
    /// Median and longest of all runs.
    mark_us: (u64, u64),
    release_us: (u64, u64),
    packets: u64,
    epochs: u64,
    epochs_checked: u64,
    lost: u64,
    out_of_order: u64,
    early: u64,
    cut: u64,
}

impl Row {
    /// Boundaries' runs count for faults alone.
    fn of(kind: Kind, load: Load, runs: &[&Outcome], boundaries: &[&Outcome]) -> Self {
        let sorted = |value: &dyn Fn(&Outcome) -> f64| {
            let mut values: Vec<f64> = runs.iter().map(|run| value(run)).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let median = |value: &dyn Fn(&Outcome) -> f64| sorted(value)[runs.len() / 2];
        let rates = sorted(&|run| run.packets as f64 / run.seconds);
        let mut marks_us = runs[0].marks_us.clone();
        let mut releases_us = runs[0].releases_us.clone();
        for run in &runs[1..] {
            marks_us.add(&run.marks_us).expect("the same precision");
            releases_us.add(&run.releases_us).expect("the same precision");
        }
        let sum = |value: &dyn Fn(&Outcome) -> u64| {
            runs.iter().chain(boundaries).map(|run| value(run)).sum::<u64>()
        };
        Self {
            kind,
            load,
            packets_a_second: rates[rates.len() / 2],
            range: (rates[0], rates[rates.len() - 1]),
            own_cpu_us: median(&|run| run.own_cpu_s * 1e6 / run.packets as f64),
            all_cpu_us: median(&|run| run.all_cpu_s * 1e6 / run.packets as f64),
            mark_us: (marks_us.value_at_quantile(0.5), marks_us.max()),
            release_us: (releases_us.value_at_quantile(0.5), releases_us.max()),
            packets: sum(&|run| run.packets),
            epochs: sum(&|run| run.epochs),
            epochs_checked: sum(&|run| run.epochs_checked),
            lost: sum(&|run| run.lost),
            out_of_order: sum(&|run| run.out_of_order),
            early: sum(&|run| run.early),
            cut: sum(&|run| run.cut),
        }
    }
}

fn of(all: &[(Kind, Load, Outcome)], kind: Kind, load: Load) -> Vec<&Outcome> {
    all.iter().filter(|(its, with, _)| (*its, *with) == (kind, load)).map(|(_, _, outcome)| outcome).collect()
}

impl Table {
    pub fn add(&mut self, kind: Kind, load: Load, outcome: Outcome) {
        self.runs.push((kind, load, outcome));
    }

    pub fn boundaries(&mut self, kind: Kind, load: Load, outcome: Outcome) {
        self.boundaries.push((kind, load, outcome));
    }

    pub fn lacking(&mut self, kind: Kind, cause: String) {
        eprintln!("{} is not measured: {cause}", kind.name());
        self.lacking.push((kind, cause));
    }

    pub fn looked(&mut self, kind: Kind, left: [u64; 2], configuring_us: Histogram<u64>) {
        self.looks.push(Look { kind, left, configuring_us });
    }

    fn rows(&self) -> Vec<Row> {
        let pairs = Load::ALL.into_iter().flat_map(|load| Kind::ALL.map(|kind| (kind, load)));
        pairs
            .filter_map(|(kind, load)| {
                let (runs, boundaries) = (of(&self.runs, kind, load), of(&self.boundaries, kind, load));
                (!runs.is_empty()).then(|| Row::of(kind, load, &runs, &boundaries))
            })
            .collect()
    }

    /// Whether Romulus's own gate is what it promises to be; the others' faults are findings.
    pub fn verdict(&self) -> Result<(), String> {
        for row in self.rows() {
            if row.epochs_checked < row.epochs && row.kind == Kind::Redirect {
                return Err(format!("redirect, {}: what a mark covers did not all arrive", row.load.name()));
            }
            let faults = row.lost + row.out_of_order + row.early + row.cut;
            if row.kind == Kind::Redirect && faults > 0 {
                return Err(format!(
                    "redirect, {}: {} packets lost, {} out of order, {} early, {} cut",
                    row.load.name(),
                    row.lost,
                    row.out_of_order,
                    row.early,
                    row.cut
                ));
            }
        }
        match self.looks.iter().find(|look| look.kind == Kind::Redirect && !look.is_exact()) {
            Some(look) => Err(format!("redirect: {:?} packets left with two marks of {SENT:?}", look.left)),
            None => Ok(()),
        }
    }

    pub fn to_json(&self, length: Duration) -> Value {
        let rows = self.rows().into_iter().map(|row| {
            json!({
                "way": row.kind.name(), "load": row.load.name(),
                "packets_per_s": {"median": row.packets_a_second, "least": row.range.0, "most": row.range.1},
                "cpu_us_per_packet": {"process": row.own_cpu_us, "machine": row.all_cpu_us},
                "mark_us": {"p50": row.mark_us.0, "max": row.mark_us.1},
                "release_us": {"p50": row.release_us.0, "max": row.release_us.1},
                "packets": row.packets, "lost": row.lost, "out_of_order": row.out_of_order, "cut": row.cut,
                "early": row.early, "boundaries": row.epochs, "boundaries_checked": row.epochs_checked,
            })
        });
        let lacking = self.lacking.iter().map(|(kind, cause)| json!({"way": kind.name(), "cause": cause}));
        let looks = self.looks.iter().map(|look| {
            let times_us = &look.configuring_us;
            json!({
                "way": look.kind.name(),
                "two_unacked_marks": {"due": SENT[..2], "left": look.left, "exact": look.is_exact()},
                "mark_while_configuring_us": {"p50": times_us.value_at_quantile(0.5), "max": times_us.max()},
            })
        });
        json!({
            "seconds_a_run": length.as_secs(),
            "rows": rows.collect::<Vec<_>>(),
            "looks": looks.collect::<Vec<_>>(),
            "not_measured": lacking.collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{:<11} {:<9} {:>9} {:>15} {:>7} {:>7} {:>14} {:>14} {:>6} {:>6} {:>5} {:>5} {:>9}",
            "frames",
            "way",
            "packets/s",
            "range",
            "cpu us",
            "all us",
            "mark us p50/max",
            "rel us p50/max",
            "lost",
            "order",
            "early",
            "cut",
            "checked"
        )?;
        for row in self.rows() {
            writeln!(
                out,
                "{:<11} {:<9} {:>9.0} {:>15} {:>7.2} {:>7.2} {:>15} {:>14} {:>6} {:>6} {:>5} {:>5} {:>9}",
                row.load.name(),
                row.kind.name(),
                row.packets_a_second,
                format!("{:.0}-{:.0}", row.range.0, row.range.1),
                row.own_cpu_us,
                row.all_cpu_us,
                format!("{}/{}", row.mark_us.0, row.mark_us.1),
                format!("{}/{}", row.release_us.0, row.release_us.1),
                row.lost,
                row.out_of_order,
                row.early,
                row.cut,
                format!("{}/{}", row.epochs_checked, row.epochs)
            )?;
        }
        for look in &self.looks {
            let exact = if look.is_exact() { "exact" } else { "WRONG" };
            let (name, left, due) = (look.kind.name(), look.left, &SENT[..2]);
            writeln!(
                out,
                "two unacked marks, {name}: {left:?} packets left where {due:?} were due: {exact}"
            )?;
        }
        for look in &self.looks {
            let (name, times_us) = (look.kind.name(), &look.configuring_us);
            let (p50, max) = (times_us.value_at_quantile(0.5), times_us.max());
            writeln!(out, "marks while interfaces are configured, {name}: p50 {p50} us, longest {max} us")?;
        }
        for (kind, cause) in &self.lacking {
            writeln!(out, "not measured: {}: {cause}", kind.name())?;
        }
        Ok(())
    }
}
