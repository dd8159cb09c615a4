//! Every figure beside its limit and its peer.

use std::fmt::Write as _;

use super::chart::escape;
use super::labelling::{describe, describe_all};
use super::scale::tick_text;
use crate::results::{Beside, Measurement, Run};

/// More figures than this are set side by side in Markdown.
const MANY: usize = 24;

/// One figure in words.
pub struct Row {
    /// Its name.
    pub figure: String,
    /// What tells it from others of its name.
    pub of: String,
    /// The median with its unit, and the range where there is one.
    pub value: String,
    /// The limit, and the ratio to it.
    pub limit: (String, String),
    /// The peer, and the ratio to it.
    pub peer: (String, String),
}

/// What a run is called.
pub fn title(run: &Run) -> String {
    match &run.scenario {
        Some(scenario) => format!("{} {scenario}", run.subcommand),
        None => run.subcommand.clone(),
    }
}

/// All figures of a run.
pub fn rows(run: &Run) -> Vec<Row> {
    // What all figures share is said once: see `common`.
    let shared: Vec<_> = shared(run).into_iter().map(|(name, _)| name).collect();
    run.measurements.iter().map(|figure| row(figure, &shared)).collect()
}

fn shared(run: &Run) -> Vec<(String, crate::results::Label)> {
    let Some(first) = run.measurements.first() else { return Vec::new() };
    let everywhere =
        |name: &str, value| run.measurements.iter().all(|figure| figure.labels.get(name) == Some(value));
    let labels = first.labels.0.iter().filter(|(name, value)| everywhere(name, value));
    labels.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The labels that all figures of a run have in common.
pub fn common(run: &Run) -> String {
    describe_all(&crate::results::Labels(shared(run).into_iter().collect()))
}

fn row(figure: &Measurement, shared: &[String]) -> Row {
    let has_case = figure.labels.get("case").is_some();
    let differing = figure.labels.0.keys().filter(|name| !shared.contains(name));
    // A case's name says what its other labels would repeat.
    let names: Vec<&str> = differing
        .map(String::as_str)
        .filter(|name| *name != "interval_ms" || figure.labels.get("rate").is_none())
        .filter(|name| !has_case || ["case", "side", "threads", "size_bytes"].contains(name))
        .collect();
    let value = &figure.value;
    let range = match value.samples.len() > 1 {
        true => format!(" ({} to {})", tick_text(value.lowest), tick_text(value.highest)),
        false => String::new(),
    };
    Row {
        figure: name_without_unit(figure),
        of: describe(&figure.labels, &names),
        value: format!("{} {}{range}", tick_text(value.median), figure.unit),
        limit: beside(figure.limit.as_ref(), &figure.unit),
        peer: beside(figure.peer.as_ref(), &figure.unit),
    }
}

/// The unit stands behind the value already.
fn name_without_unit(figure: &Measurement) -> String {
    let suffix = match figure.unit.as_str() {
        "%" => "_percent",
        "us" => "_us",
        "ms" => "_ms",
        "s" => "_s",
        "MB" => "_mb",
        _ => "",
    };
    figure.name.strip_suffix(suffix).unwrap_or(&figure.name).replace('_', " ")
}

fn beside(beside: Option<&Beside>, unit: &str) -> (String, String) {
    let Some(beside) = beside else { return Default::default() };
    let range = beside.ratio_range.filter(|range| range.1 > range.0);
    let range = range.map_or(String::new(), |(low, high)| format!(" ({low:.2} to {high:.2})"));
    (format!("{}: {} {unit}", beside.name, tick_text(beside.value)), format!("{:.2}{range}", beside.ratio))
}

/// As a table of HTML.
pub fn html(run: &Run) -> String {
    let rows = rows(run);
    let limits = rows.iter().any(|row| !row.limit.0.is_empty());
    let peers = rows.iter().any(|row| !row.peer.0.is_empty());
    let mut text = String::from(
        "<div class=\"wide\"><table><thead><tr><th>figure</th><th>of</th><th>median (range)</th>",
    );
    for (there, name) in [(limits, "limit"), (peers, "peer")] {
        if there {
            let _ = write!(text, "<th>{name}</th><th>ratio</th>");
        }
    }
    text.push_str("</tr></thead><tbody>\n");
    let mut last = String::new();
    for row in rows {
        // The name once for the rows that share it.
        let (class, name) =
            if row.figure == last { ("", "") } else { (" class=\"first\"", row.figure.as_str()) };
        let _ = write!(
            text,
            "<tr{class}><th>{}</th><td>{}</td><td class=\"number\">{}</td>",
            escape(name),
            escape(&row.of),
            escape(&row.value)
        );
        for (there, (what, ratio)) in [(limits, &row.limit), (peers, &row.peer)] {
            if there {
                let _ = write!(text, "<td>{}</td><td class=\"number\">{}</td>", escape(what), escape(ratio));
            }
        }
        text.push_str("</tr>\n");
        last = row.figure;
    }
    text + "</tbody></table></div>\n"
}

/// As a table of Markdown: one row for a figure, or, where there are many, one for a case.
pub fn markdown(run: &Run) -> String {
    match run.measurements.len() > MANY {
        true => by_case(run),
        false => by_figure(run),
    }
}

fn by_figure(run: &Run) -> String {
    let rows = rows(run);
    let limits = rows.iter().any(|row| !row.limit.0.is_empty());
    let peers = rows.iter().any(|row| !row.peer.0.is_empty());
    let head = [(true, "figure"), (true, "of"), (true, "median (range)")];
    let beside = [(limits, "limit"), (limits, "ratio"), (peers, "peer"), (peers, "ratio")];
    let names = head.iter().chain(&beside).filter(|(there, _)| *there).map(|(_, name)| (*name).to_owned());
    let mut text = head_of(&names.collect::<Vec<_>>());
    for row in rows {
        let cells = [
            (true, row.figure),
            (true, row.of),
            (true, row.value),
            (limits, row.limit.0),
            (limits, row.limit.1),
            (peers, row.peer.0),
            (peers, row.peer.1),
        ];
        let cells = cells.into_iter().filter(|(there, _)| *there).map(|(_, text)| text);
        text.push_str(&line_of(cells));
    }
    text
}

/// Figures side by side; a ratio to the limit or the peer stands behind a figure.
fn by_case(run: &Run) -> String {
    let rows = rows(run);
    let (mut figures, mut cases): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for row in &rows {
        if !figures.contains(&row.figure.as_str()) {
            figures.push(&row.figure);
        }
        if !cases.contains(&row.of.as_str()) {
            cases.push(&row.of);
        }
    }
    let names: Vec<String> = ["of"].iter().chain(&figures).map(|name| (*name).to_owned()).collect();
    let mut text = head_of(&names);
    for case in cases {
        let cell = |figure: &&str| {
            let row = rows.iter().find(|row| row.of == case && row.figure == **figure);
            row.map_or(String::new(), |row| {
                let mut text = row.value.clone();
                for (what, ratio) in [&row.limit, &row.peer] {
                    if !what.is_empty() {
                        let _ = write!(text, "; {ratio} of {what}");
                    }
                }
                text
            })
        };
        text.push_str(&line_of([case.to_owned()].into_iter().chain(figures.iter().map(cell))));
    }
    text
}

fn head_of(names: &[String]) -> String {
    line_of(names.iter().cloned()) + &format!("|{}\n", "---|".repeat(names.len()))
}

fn line_of(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.map(|text| text.replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Better, Labels, RunClock};

    #[test]
    fn many_figures_stand_side_by_side_and_none_is_lost() {
        let mut run = RunClock::start().run("guest", &()).unwrap();
        for rate in 1..=20_u64 {
            let labels = Labels::default().with("fabric", "tcp").with("rate", rate);
            let pause = Measurement::single("pause_p50_us", &labels, "us", Better::Lower, 10.0 * rate as f64);
            run.measurements.push(pause.with_limit(Beside::single("memcpy", 10.0, 10.0 * rate as f64)));
            run.measurements.push(Measurement::single(
                "late_epochs_percent",
                &labels,
                "%",
                Better::Lower,
                0.5,
            ));
        }
        let text = markdown(&run);
        assert_eq!(text.lines().count(), 22);
        assert!(text.starts_with("| of | pause p50 | late epochs |\n|---|---|---|\n"), "{text}");
        assert!(text.contains("| 3 checkpoints/s | 30 us; 3.00 of memcpy: 10 us | 0.5 % |"), "{text}");
    }
}
