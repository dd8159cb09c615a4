//! The page: everything in one file.

use std::fmt::Write as _;

use super::chart::escape;
use super::labelling::note_in_words;
use super::plots::Plot;
use super::scale::tick_text;
use super::table;
use crate::results::{Results, Run};

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub fn html(results: &Results, plots: &[Plot]) -> String {
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>Romulus: what was \
         measured</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Romulus: what was measured</h1>\n"
    );
    text.push_str(&head(results));
    for plot in plots {
        let Some(drawing) = &plot.drawing else { continue };
        let left_out = plot.left_out.as_deref().unwrap_or_default();
        let _ = write!(
            text,
            "<figure>\n<figcaption><h2>{}</h2><p>{} {left_out}</p></figcaption>\n{drawing}</figure>\n",
            escape(plot.title),
            escape(plot.about)
        );
    }
    text.push_str(&missing(plots));
    text.push_str("<h2>All figures</h2>\n<p>A ratio is the figure by what stands beside it, measured in the same run; a range is \
                   of repeated measurements.</p>\n");
    results.runs.iter().for_each(|run| text.push_str(&section(run)));
    text + "</main>\n</body>\n</html>\n"
}

/// Where it was measured. Runs of one machine and revision share a line.
fn head(results: &Results) -> String {
    let mut places: Vec<(String, Vec<String>)> = Vec::new();
    for run in &results.runs {
        let machine = &run.machine;
        let devices = run.device.as_ref().map_or(String::new(), |device| format!(", {device}"));
        let place = format!(
            "{} cores of {}, {} GiB, Linux {}{devices}; revision {}",
            machine.cores,
            machine.cpu,
            machine.memory_mib.div_ceil(1024),
            machine.kernel,
            machine.revision
        );
        let what = table::title(run);
        match places.iter_mut().find(|(known, _)| *known == place) {
            Some((_, runs)) if runs.contains(&what) => {}
            Some((_, runs)) => runs.push(what),
            None => places.push((place, vec![what])),
        }
    }
    let mut text = String::from("<ul class=\"places\">\n");
    for (place, runs) in places {
        let _ = writeln!(text, "<li><b>{}</b>: {}</li>", escape(&runs.join(", ")), escape(&place));
    }
    text.push_str("</ul>\n");
    if results.runs.iter().any(|run| run.machine.debug_assertions) {
        text.push_str(
            "<p class=\"warning\">Built with debug assertions: these are no figures to quote.</p>\n",
        );
    }
    text
}

fn missing(plots: &[Plot]) -> String {
    let missing: Vec<_> = plots.iter().filter(|plot| plot.drawing.is_none()).collect();
    if missing.is_empty() {
        return String::new();
    }
    let mut text = String::from("<section class=\"missing\">\n<h2>Not in these results</h2>\n<ul>\n");
    for plot in missing {
        let _ = writeln!(text, "<li>{}: <code>{}</code></li>", escape(plot.title), escape(plot.command));
    }
    text + "</ul>\n</section>\n"
}

fn section(run: &Run) -> String {
    let mut text = format!(
        "<details open>\n<summary>{} <span>{}, {} s</span></summary>\n",
        escape(&table::title(run)),
        escape(&run.started_at),
        tick_text(run.seconds)
    );
    let common = table::common(run);
    if !common.is_empty() {
        let _ = writeln!(text, "<p>All of it: {}.</p>", escape(&common));
    }
    if run.measurements.is_empty() {
        text.push_str("<p>No figures.</p>\n");
    } else {
        text.push_str(&table::html(run));
    }
    for note in &run.notes {
        let _ = writeln!(text, "<p class=\"note\">{}</p>", escape(&note_in_words(note)));
    }
    text + "</details>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::plots;
    use crate::results::{Better, HistogramRecord, Labels, Measurement, RunClock, names};

    #[test]
    fn a_page_stands_alone_shows_what_there_is_and_says_what_is_missing() {
        let mut run = RunClock::start().run("epochs", &()).unwrap();
        let labels = Labels::default().with("case", "1000 <pages>").with("side", "primary");
        let mut histogram = hdrhistogram::Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).unwrap();
        (1..=100u64).for_each(|ms| histogram.record(ms * 1_000_000).unwrap());
        for name in ["pause", "copy"] {
            run.histograms.push(HistogramRecord::of_ns(name, &labels, &histogram).unwrap());
        }
        run.measurements.push(Measurement::single(
            names::PAUSE_P50_US,
            &labels,
            "us",
            Better::Lower,
            50_000.0,
        ));
        let results = Results::of(vec![run]);
        let plots = plots::all(&results);
        let page = html(&results, &plots);
        assert_eq!(page.matches("<svg").count(), 2, "pause and its phases");
        assert!(page.contains("Not in these results") && page.contains("romulus-perf epochs max"));
        assert!(page.contains("1000 &lt;pages&gt;") && !page.contains("1000 <pages>"));
        assert!(page.contains("<th>pause p50, us</th><td class=\"number\">50,000</td>"), "{page}");
        for foreign in ["<script", "http://", "https://", "url(", "@import"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
    }
}
