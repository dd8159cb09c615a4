//! Which plots there are, what of the results each shows, and how to get what is missing.

use super::chart::{Bar, COLOURS, Chart, Line, Mark, bars};
use super::labelling::distinguish;
use super::scale::tick_text;
use super::table::title as title_of;
use crate::results::{HistogramRecord, Label, Labels, Measurement, Results, Run, names};

/// Phases of the pause, in their order.
const PHASES: [&str; 8] = ["stop", "gate", "state", "collect", "place", "throttle", "copy", "resume"];

/// A plot: drawn, or missing.
pub struct Plot {
    /// Above it.
    pub title: &'static str,
    /// What it shows, for people.
    pub about: &'static str,
    /// The drawing with its legend; `None` if the results have nothing for it.
    pub drawing: Option<String>,
    /// What measures it.
    pub command: &'static str,
    /// What was left out.
    pub left_out: Option<String>,
}

/// A figure, and the run it is of.
type Found<'a> = (&'a Run, &'a Measurement);

/// All plots, in the order of the page.
pub fn all(results: &Results) -> Vec<Plot> {
    vec![
        cdf(
            results,
            "pause",
            (
                "Pause",
                "How long the guest stands still at a checkpoint: the share of pauses that were at most so long.",
            ),
        ),
        cdf(
            results,
            "commit_latency",
            (
                "Commit latency",
                "From the begin of a pause to the backup's acknowledgement: what clients wait for beside the interval.",
            ),
        ),
        phases(results),
        rate_against_dirty_pages(results),
        slow_down(results),
        cost_against_size(results),
        timeline(results),
        bandwidth(results),
    ]
}

fn figures<'a>(results: &'a Results, name: &str) -> Vec<Found<'a>> {
    let all = results.runs.iter().flat_map(|run| run.measurements.iter().map(move |figure| (run, figure)));
    all.filter(|(_, figure)| figure.name == name).collect()
}

/// The label of a plot's line: without the one that is its axis.
fn without(labels: &Labels, names: &[&str]) -> Labels {
    let kept = labels.0.iter().filter(|(name, _)| !names.contains(&name.as_str()));
    Labels(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
}

fn keep_first<T>(mut all: Vec<T>, what: &str) -> (Vec<T>, Option<String>) {
    let count = all.len();
    all.truncate(COLOURS);
    (all, (count > COLOURS).then(|| format!("{} of {count} {what} are drawn.", COLOURS)))
}

/// A distribution, and the run it is of.
type Distribution<'a> = (&'a Run, &'a HistogramRecord);

/// Distributions of one name on the primary.
fn histograms<'a>(results: &'a Results, name: &str) -> Vec<Distribution<'a>> {
    let all = results.runs.iter().flat_map(|run| run.histograms.iter().map(move |record| (run, record)));
    let primary = |labels: &Labels| match labels.get("side") {
        Some(Label::Text(side)) => side == "primary",
        _ => true,
    };
    all.filter(|(_, record)| record.name == name && record.count > 0 && primary(&record.labels)).collect()
}

/// What tells distributions apart, their runs included.
fn names_of(all: &[Distribution<'_>]) -> Vec<String> {
    let labels =
        all.iter().map(|(run, record)| without(&record.labels, &["side"]).with("run", &*title_of(run)));
    distinguish(&labels.collect::<Vec<_>>())
}

/// Of many cases, those of most use side by side: spread over the whole list.
fn spread<T: Copy>(all: &[T], count: usize) -> Vec<T> {
    if all.len() <= count {
        return all.to_vec();
    }
    (0..count).map(|index| all[index * (all.len() - 1) / (count - 1)]).collect()
}

fn cdf(results: &Results, name: &str, (title, about): (&'static str, &'static str)) -> Plot {
    let all = histograms(results, name);
    let drawn = spread(&all, COLOURS);
    let mut chart = Chart::new(title, "milliseconds", "% of all, at most so long");
    chart.log = (true, false);
    chart.y_at_least = 100.0;
    for ((_, record), name) in drawn.iter().zip(names_of(&drawn)) {
        // A histogram that cannot be read is no line; reading the file has said nothing of it.
        let Ok(histogram) = record.histogram() else { continue };
        let mut seen = 0;
        let mut points: Vec<(f64, f64)> = Vec::new();
        for at in histogram.iter_recorded() {
            seen += at.count_at_value();
            let ms = at.value_iterated_to() as f64 * record.hdr_scale / 1e3;
            // In steps: between two values there is none.
            points.push((ms, points.last().map_or(0.0, |point| point.1)));
            points.push((ms, 100.0 * seen as f64 / histogram.len() as f64));
        }
        let name = format!("{name} ({} epochs)", tick_text(record.count as f64));
        chart.lines.push(Line { name, points, ..Line::default() });
    }
    Plot {
        title,
        about,
        drawing: (!chart.lines.is_empty()).then(|| chart.svg()),
        command: "romulus-perf epochs quick --json FILE",
        left_out: (all.len() > drawn.len())
            .then(|| format!("{} of {} cases are drawn.", drawn.len(), all.len())),
    }
}

fn phases(results: &Results) -> Plot {
    let pauses = spread(&histograms(results, "pause"), 10);
    let mut rows: Vec<Bar> = Vec::new();
    for ((run, pause), name) in pauses.iter().zip(names_of(&pauses)) {
        let of_case = |phase: &str| {
            let same = |record: &&HistogramRecord| record.name == phase && record.labels == pause.labels;
            run.histograms.iter().find(same)
        };
        // By what it costs all together: some phases are not in every pause.
        let cost = |phase: &str| of_case(phase).map_or(0.0, |at| at.mean * at.count as f64);
        let costs: Vec<f64> = PHASES.iter().map(|phase| cost(phase)).collect();
        let named: f64 = costs.iter().sum();
        if named > 0.0 {
            // Histograms round: the phases may come to a little more than the whole.
            let whole = named.max(pause.mean * pause.count as f64);
            let mut parts: Vec<f64> = costs.iter().map(|cost| 100.0 * cost / whole).collect();
            parts.push(100.0 * (whole - named) / whole);
            rows.push(Bar { name, parts, note: format!("{} us", tick_text(pause.mean)) });
        }
    }
    let names = [&PHASES[..], &["between them"]].concat();
    // What takes no time anywhere needs no colour.
    let used: Vec<usize> =
        (0..names.len()).filter(|index| rows.iter().any(|row| row.parts[*index] >= 0.05)).collect();
    let names: Vec<&str> = used.iter().map(|index| names[*index]).collect();
    for row in &mut rows {
        row.parts = used.iter().map(|index| row.parts[*index]).collect();
    }
    let title = "Where the pause goes";
    Plot {
        title,
        about: "The share of each phase in all pauses together, one after another; at the right the mean of a pause.",
        drawing: (!rows.is_empty()).then(|| bars(title, "% of the pause", &names, &rows)),
        command: "romulus-perf epochs quick --json FILE",
        left_out: None,
    }
}

/// Lines of figures along a label that is a number.
fn lines_along(found: &[Found<'_>], axis: &str, ignore: &[&str]) -> Vec<(Labels, Line)> {
    let mut lines: Vec<(Labels, Line)> = Vec::new();
    for (_, figure) in found {
        let Some(x) = figure.labels.number(axis) else { continue };
        let rest = without(&figure.labels, &[&[axis, "case"], ignore].concat());
        let at = lines.iter().position(|(labels, _)| *labels == rest).unwrap_or_else(|| {
            lines.push((rest, Line { dots: true, ..Line::default() }));
            lines.len() - 1
        });
        let line = &mut lines[at].1;
        line.points.push((x, figure.value.median));
        line.ranges.push((figure.value.lowest, figure.value.highest));
    }
    for (_, line) in &mut lines {
        let mut order: Vec<usize> = (0..line.points.len()).collect();
        order.sort_by(|a, b| line.points[*a].0.total_cmp(&line.points[*b].0));
        line.points = order.iter().map(|index| line.points[*index]).collect();
        line.ranges = order.iter().map(|index| line.ranges[*index]).collect();
    }
    lines
}

/// Names the lines by what tells them apart.
fn named(lines: Vec<(Labels, Line)>) -> Vec<Line> {
    let labels: Vec<_> = lines.iter().map(|(labels, _)| labels.clone()).collect();
    let named = lines.into_iter().zip(distinguish(&labels));
    named.map(|((_, line), name)| Line { name, ..line }).collect()
}

fn plot_along(
    mut chart: Chart,
    lines: Vec<(Labels, Line)>,
    title: &'static str,
    about: &'static str,
    command: &'static str,
) -> Plot {
    let (lines, left_out) = keep_first(lines, "lines");
    chart.title = title.into();
    chart.lines = named(lines);
    let drawing = (!chart.lines.is_empty()).then(|| chart.svg());
    Plot { title, about, drawing, command, left_out }
}

fn rate_against_dirty_pages(results: &Results) -> Plot {
    let sought = figures(results, names::MAX_CHECKPOINTS_PER_SECOND);
    // A rate that was sought has an interval of its own.
    let (found, about, ignore) = match sought.is_empty() {
        false => {
            (sought, "The highest rate that holds with less than 1 % of late epochs.", &["interval_ms"][..])
        }
        true => (
            figures(results, names::CHECKPOINTS_PER_SECOND),
            "Checkpoints a second that were made (the interval allows no more than it asks for).",
            &[][..],
        ),
    };
    let lines = several_points(lines_along(&found, "dirty_pages", ignore));
    let mut chart = Chart::new("", "dirty pages of an epoch", "checkpoints/s");
    chart.log = (true, true);
    let title = "Checkpoints a second against dirty pages";
    plot_along(chart, lines, title, about, "romulus-perf epochs max --json FILE")
}

/// Lines of one point say nothing beside those of several.
fn several_points(mut lines: Vec<(Labels, Line)>) -> Vec<(Labels, Line)> {
    let several = |line: &Line| line.points.windows(2).any(|pair| pair[0].0 < pair[1].0);
    if lines.iter().any(|(_, line)| several(line)) {
        lines.retain(|(_, line)| several(line));
    }
    lines
}

fn slow_down(results: &Results) -> Plot {
    let found = figures(results, names::GUEST_SLOWDOWN_PERCENT);
    let lines = lines_along(&found, "rate", &["interval_ms"]);
    let mut chart = Chart::new("", "checkpoints a second, asked for", "slower by %");
    chart.log = (true, false);
    plot_along(
        chart,
        lines,
        "Slow-down of a guest's work against the rate",
        "Work of a real QEMU guest protected, beside the same guest unprotected just before: the Remus paper's plot. \
         Where the rate asked for cannot be made, the table has the rate that was.",
        "romulus-perf guest --image-dir \"$(scripts/guest-image)\" --json FILE",
    )
}

fn cost_against_size(results: &Results) -> Plot {
    let mut lines = Vec::new();
    for (name, what) in [(names::PAUSE_P50_US, "pause p50"), (names::COMMIT_P50_US, "commit p50")] {
        for (labels, mut line) in lines_along(&figures(results, name), "guest_mib", &[]) {
            line.points.iter_mut().for_each(|point| *point = (point.0 / 1024.0, point.1 / 1e3));
            line.ranges.iter_mut().for_each(|range| *range = (range.0 / 1e3, range.1 / 1e3));
            let sizes = line.points.windows(2).any(|pair| pair[0].0 < pair[1].0);
            if sizes {
                lines.push((labels.with("of", what), line));
            }
        }
    }
    let mut chart = Chart::new("", "guest memory in GiB", "milliseconds");
    chart.log = (true, true);
    plot_along(
        chart,
        lines,
        "Cost against the guest's size",
        "Median pause and commit of guests that differ in nothing but their size.",
        "romulus-perf epochs size --json FILE",
    )
}

fn timeline(results: &Results) -> Plot {
    let title = "A failover, over time";
    let with_events = results.runs.iter().filter(|run| !run.events.is_empty());
    let found = with_events.flat_map(|run| {
        let work = run.series.iter().filter(|series| series.name == "work_rate");
        work.chain(run.series.iter().filter(|series| series.name != "work_rate"))
            .map(move |series| (run, series))
    });
    let drawing = found.into_iter().next().map(|(run, series)| {
        let mut chart =
            Chart::new(title, "seconds", &format!("{} ({})", series.name.replace('_', " "), series.unit));
        let points = series.points.clone();
        chart.lines.push(Line { points, ..Line::default() });
        let events = run.events.iter().filter(|event| series.labels.contains(&event.labels));
        chart.marks =
            events.map(|event| Mark { at: event.at_s, name: event.name.replace('_', " ") }).collect();
        chart.svg()
    });
    Plot {
        title,
        about: "What a guest does in a tenth of a second, before it is protected, protected, as its host is killed, and \
                on the backup.",
        drawing,
        command: "romulus-perf guest --timeline --image-dir \"$(scripts/guest-image)\" --json FILE",
        left_out: None,
    }
}

fn bandwidth(results: &Results) -> Plot {
    let found = figures(results, names::WRITE_BANDWIDTH);
    let (lines, left_out) = keep_first(lines_along(&found, "size_bytes", &[]), "fabrics");
    let limits: Vec<Vec<(f64, f64)>> = lines
        .iter()
        .map(|(labels, _)| {
            let of_line = found.iter().filter(|(_, figure)| figure.labels.contains(labels));
            let points = of_line.filter_map(|(_, figure)| {
                Some((figure.labels.number("size_bytes")? / 1024.0, figure.limit.as_ref()?.value))
            });
            let mut points: Vec<_> = points.collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        })
        .collect();
    let title = "One-sided writes beside their limit";
    let mut chart = Chart::new(title, "KiB of a write", "MB/s");
    chart.log = (true, true);
    chart.y_at_least = f64::NAN;
    chart.lines = named(lines);
    if let [only] = &mut chart.lines[..] {
        only.name = "the fabric".into();
    }
    for line in &mut chart.lines {
        line.points.iter_mut().for_each(|point| point.0 /= 1024.0);
    }
    for (index, points) in limits.into_iter().enumerate().filter(|(_, points)| !points.is_empty()) {
        let name = format!("limit of {}", chart.lines[index].name);
        chart.lines.push(Line {
            name,
            points,
            dashed: true,
            dots: true,
            colour: Some(index),
            ..Line::default()
        });
    }
    Plot {
        title,
        about: "What a fabric moves by the size of a write, and what the machine moves without it in the same run.",
        drawing: (!chart.lines.is_empty()).then(|| chart.svg()),
        command: "romulus-perf fabric --json FILE",
        left_out,
    }
}
