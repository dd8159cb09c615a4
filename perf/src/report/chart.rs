//! Charts as SVG: colours come from the page's style sheet, so that one drawing serves light and
//! dark; nothing needs a script.

use std::fmt::Write as _;

use super::scale::{Scale, tick_text};

/// Size of a drawing, in its own units.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 380.0;
/// Room beside the plot.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 52.0;
/// Colours there are in the style sheet.
pub const COLOURS: usize = 8;
/// The same with the grey of what has no name of its own.
const BAR_COLOURS: usize = COLOURS + 1;

/// One line.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// In the legend.
    pub name: String,
    /// In order of x.
    pub points: Vec<(f64, f64)>,
    /// Lowest and highest value of each point, where it was measured repeatedly.
    pub ranges: Vec<(f64, f64)>,
    /// With a dot for each point.
    pub dots: bool,
    /// A limit rather than a figure.
    pub dashed: bool,
    /// The colour, if not its own: that of the line it belongs to.
    pub colour: Option<usize>,
}

/// A moment, as a vertical line.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Where.
    pub at: f64,
    /// What happened.
    pub name: String,
}

/// A chart of lines.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it shows, for those who hear it.
    pub title: String,
    /// Along the bottom.
    pub x_name: String,
    /// Up the side.
    pub y_name: String,
    /// Whether the axes are logarithmic.
    pub log: (bool, bool),
    /// The least that y shows, at the top.
    pub y_at_least: f64,
    /// What is drawn.
    pub lines: Vec<Line>,
    /// Moments.
    pub marks: Vec<Mark>,
}

/// Text inside markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Chart {
    /// A chart without lines.
    pub fn new(title: &str, x_name: &str, y_name: &str) -> Self {
        Self {
            title: title.into(),
            x_name: x_name.into(),
            y_name: y_name.into(),
            log: (false, false),
            y_at_least: 0.0,
            lines: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// The drawing and its legend.
    pub fn svg(&self) -> String {
        let xs = self.lines.iter().flat_map(|line| line.points.iter().map(|point| point.0));
        let x = Scale::of(
            xs.chain(self.marks.iter().map(|mark| mark.at)),
            self.log.0,
            false,
            (LEFT, WIDTH - RIGHT),
        );
        let ys = self.lines.iter().flat_map(|line| {
            line.points
                .iter()
                .map(|point| point.1)
                .chain(line.ranges.iter().flat_map(|range| [range.0, range.1]))
        });
        let y = Scale::of(ys.chain([self.y_at_least]), self.log.1, true, (HEIGHT - BOTTOM, TOP));
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            escape(&self.title)
        );
        self.axes(&mut svg, &x, &y);
        self.draw_marks(&mut svg, &x);
        for (index, line) in self.lines.iter().enumerate() {
            draw_line(&mut svg, line, line.colour.unwrap_or(index) % COLOURS, &x, &y);
        }
        svg.push_str("</svg>\n");
        svg + &legend(
            self.lines.iter().enumerate().map(|(index, line)| {
                (line.name.as_str(), line.colour.unwrap_or(index) % COLOURS, line.dashed)
            }),
        )
    }

    fn axes(&self, svg: &mut String, x: &Scale, y: &Scale) {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in y.ticks() {
            let at = y.at(tick);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/><text class=\"tick\" \
                 x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                at + 4.0,
                tick_text(tick)
            );
        }
        for tick in x.ticks() {
            let at = x.at(tick);
            let _ = writeln!(
                svg,
                "<line class=\"axis\" x1=\"{at:.1}\" y1=\"{bottom}\" x2=\"{at:.1}\" y2=\"{:.1}\"/><text class=\"tick\" \
                 x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 5.0,
                bottom + 19.0,
                tick_text(tick)
            );
        }
        let _ = writeln!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{bottom}\"/><text class=\"name\" \
             x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text><text class=\"name\" transform=\"translate(14 \
             {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 10.0,
            escape(&self.x_name),
            (TOP + bottom) / 2.0,
            escape(&self.y_name)
        );
    }

    fn draw_marks(&self, svg: &mut String, x: &Scale) {
        // Moments that lie close together are written one below the other.
        let mut last: Option<(f64, f64)> = None;
        for mark in &self.marks {
            let at = x.at(mark.at);
            let row = last.filter(|(before, _)| at - before < 90.0).map_or(0.0, |(_, row)| row + 15.0);
            last = Some((at, row));
            let (anchor, shift) = if at > WIDTH - 120.0 { ("end", -4.0) } else { ("start", 4.0) };
            let _ = writeln!(
                svg,
                "<line class=\"mark\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\"/><text class=\"mark\" \
                 x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                HEIGHT - BOTTOM,
                at + shift,
                TOP + 11.0 + row,
                escape(&mark.name)
            );
        }
    }
}

fn draw_line(svg: &mut String, line: &Line, colour: usize, x: &Scale, y: &Scale) {
    let visible = line.points.iter().filter(|point| x.shows(point.0) && y.shows(point.1));
    let path: Vec<String> =
        visible.clone().map(|point| format!("{:.1},{:.1}", x.at(point.0), y.at(point.1))).collect();
    let dashed = if line.dashed { " dashed" } else { "" };
    let _ = writeln!(svg, "<polyline class=\"line s{colour}{dashed}\" points=\"{}\"/>", path.join(" "));
    for (point, range) in line.points.iter().zip(&line.ranges) {
        if range.1 > range.0 && y.shows(range.0) && y.shows(range.1) {
            let _ = writeln!(
                svg,
                "<line class=\"range s{colour}\" x1=\"{0:.1}\" y1=\"{1:.1}\" x2=\"{0:.1}\" y2=\"{2:.1}\"/>",
                x.at(point.0),
                y.at(range.0),
                y.at(range.1)
            );
        }
    }
    if line.dots {
        for point in visible {
            let _ = writeln!(
                svg,
                "<circle class=\"dot s{colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>{}: {} at {}</title></circle>",
                x.at(point.0),
                y.at(point.1),
                escape(&line.name),
                tick_text(point.1),
                tick_text(point.0)
            );
        }
    }
}

/// Names beside their colours; none for a single line without a name.
pub fn legend<'a>(entries: impl Iterator<Item = (&'a str, usize, bool)>) -> String {
    let entries: Vec<_> = entries.filter(|entry| !entry.0.is_empty()).collect();
    if entries.is_empty() {
        return String::new();
    }
    let items = entries.iter().map(|(name, colour, dashed)| {
        let dashed = if *dashed { " dashed" } else { "" };
        format!("<li><span class=\"key s{colour}{dashed}\"></span>{}</li>", escape(name))
    });
    format!("<ul class=\"legend\">{}</ul>\n", items.collect::<String>())
}

/// One bar of parts, one after another.
#[derive(Clone, Debug)]
pub struct Bar {
    /// At its left.
    pub name: String,
    /// In the order of the parts' names.
    pub parts: Vec<f64>,
    /// At its right.
    pub note: String,
}

/// Bars of parts, in one unit.
pub fn bars(title: &str, unit: &str, parts: &[&str], bars: &[Bar]) -> String {
    const ROW: f64 = 40.0;
    let height = 44.0 + ROW * bars.len() as f64;
    // Of shares that come to a whole, but for what sums of fractions round to.
    let totals = bars.iter().map(|bar| (bar.parts.iter().sum::<f64>() * 1e6).round() / 1e6);
    let x = Scale::of(totals, false, true, (LEFT / 4.0, WIDTH - 100.0));
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n", escape(title));
    for tick in x.ticks() {
        let at = x.at(tick);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" y1=\"4\" x2=\"{at:.1}\" y2=\"{:.1}\"/><text class=\"tick\" x=\"{at:.1}\" \
             y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            height - 36.0,
            height - 22.0,
            tick_text(tick)
        );
    }
    for (row, bar) in bars.iter().enumerate() {
        let top = 4.0 + ROW * row as f64;
        let _ = writeln!(
            svg,
            "<text class=\"bar-name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT / 4.0 + 2.0,
            top + 12.0,
            escape(&bar.name)
        );
        let mut from = 0.0;
        for (index, part) in bar.parts.iter().enumerate() {
            // A gap of the background tells neighbours apart without their colours.
            let (left, width) = (x.at(from), (x.at(from + part) - x.at(from) - 1.0).max(0.0));
            if width > 0.2 {
                let _ = writeln!(
                    svg,
                    "<rect class=\"s{}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"16\"><title>{}: {} \
                     {unit}</title></rect>",
                    index % BAR_COLOURS,
                    top + 17.0,
                    escape(parts[index]),
                    tick_text(*part)
                );
            }
            from += part;
        }
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x.at(from) + 6.0,
            top + 29.0,
            escape(&bar.note)
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text></svg>",
        WIDTH / 2.0,
        height - 4.0,
        escape(unit)
    );
    svg + &legend(parts.iter().enumerate().map(|(index, name)| (*name, index % BAR_COLOURS, false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_its_lines_points_and_names_and_is_well_formed() {
        let mut chart = Chart::new("a <title>", "rate", "slow-down & more");
        chart.lines.push(Line {
            name: "redis".into(),
            points: vec![(10.0, 1.0), (200.0, 20.0)],
            ranges: vec![(0.5, 2.0), (19.0, 25.0)],
            dots: true,
            ..Line::default()
        });
        chart.marks.push(Mark { at: 100.0, name: "killed".into() });
        let svg = chart.svg();
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(svg.matches("class=\"range").count(), 2);
        assert!(
            svg.contains("slow-down &amp; more")
                && svg.contains("a &lt;title&gt;")
                && svg.contains(">killed<")
        );
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn nothing_to_draw_is_no_trouble() {
        let mut chart = Chart::new("", "", "");
        chart.log = (true, true);
        chart.lines.push(Line { points: vec![(0.0, 0.0), (f64::NAN, 1.0)], ..Line::default() });
        let svg = chart.svg();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(!bars("", "us", &[], &[]).contains("NaN"));
    }
}
