//! A table, as HTML and as Markdown.

use std::fmt::Write as _;

use super::chart::escape;
use super::layout;
use crate::results::Run;

pub use layout::common;

/// What stands in one place: a value, and what belongs to it (its range, its ratio).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    pub value: String,
    pub aside: String,
}

impl Cell {
    /// A value alone.
    pub fn of(value: String) -> Self {
        Self { value, aside: String::new() }
    }
}

/// With more columns than this, a value's range and ratio stand below it on a page.
const NARROW: usize = 6;

/// Rows of as many cells as the head has.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// A line before it.
    pub above: Option<String>,
    pub head: Vec<String>,
    pub rows: Vec<Vec<Cell>>,
    /// Lines behind it.
    pub below: Vec<String>,
}

/// What a run is called.
pub fn title(run: &Run) -> String {
    match &run.scenario {
        Some(scenario) => format!("{} {scenario}", run.subcommand),
        None => run.subcommand.clone(),
    }
}

/// All figures of a run as HTML.
pub fn html(run: &Run) -> String {
    layout::tables(run).iter().map(Table::html).collect()
}

/// All figures of a run as Markdown.
pub fn markdown(run: &Run) -> String {
    layout::tables(run).iter().map(Table::markdown).collect::<Vec<_>>().join("\n")
}

impl Table {
    /// As HTML.
    pub fn html(&self) -> String {
        let line = |text: &String| format!("<p class=\"note\">{}</p>\n", escape(text));
        let mut text = self.above.as_ref().map_or_else(String::new, line);
        let class = if self.head.len() > NARROW { " class=\"many\"" } else { "" };
        let _ = write!(text, "<div class=\"wide\"><table{class}><thead><tr>");
        self.head.iter().for_each(|name| text.push_str(&format!("<th>{}</th>", escape(name))));
        text.push_str("</tr></thead><tbody>\n");
        let mut last = "";
        for row in &self.rows {
            let Some((first, cells)) = row.split_first() else { continue };
            // The name once for the rows that share it.
            let (class, name) =
                if first.value == last { ("", "") } else { (" class=\"first\"", first.value.as_str()) };
            let _ = write!(text, "<tr{class}><th>{}</th>", escape(name));
            for cell in cells {
                let aside = match cell.aside.as_str() {
                    "" => String::new(),
                    aside => format!(" <small>{}</small>", escape(aside)),
                };
                let number = cell.value.starts_with(|first: char| first.is_ascii_digit() || first == '-');
                let class = if number { " class=\"number\"" } else { "" };
                let _ = write!(text, "<td{class}>{}{aside}</td>", escape(&cell.value));
            }
            text.push_str("</tr>\n");
            last = &first.value;
        }
        text.push_str("</tbody></table></div>\n");
        self.below.iter().for_each(|below| text.push_str(&line(below)));
        text
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let plain = |text: &str| text.replace('|', "\\|");
        let mut text = self.above.as_ref().map_or_else(String::new, |above| format!("{above}\n\n"));
        text.push_str(&line(self.head.iter().map(|name| plain(name)).collect()));
        text.push_str(&format!("|{}\n", "---|".repeat(self.head.len())));
        for row in &self.rows {
            let cell = |cell: &Cell| match cell.aside.as_str() {
                "" => plain(&cell.value),
                aside => format!("{} ({})", plain(&cell.value), plain(aside)),
            };
            text.push_str(&line(row.iter().map(cell).collect()));
        }
        self.below.iter().for_each(|below| text.push_str(&format!("\n{below}\n")));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_alike_in_both() {
        let cell = |value: &str, aside: &str| Cell { value: value.into(), aside: aside.into() };
        let table = Table {
            above: Some("All <of> it.".into()),
            head: vec!["figure".into(), "a|b".into()],
            rows: vec![vec![cell("x", ""), cell("1", "0 to 2")], vec![cell("x", ""), cell("plain", "")]],
            below: vec!["What | is.".into()],
        };
        assert_eq!(
            table.markdown(),
            "All <of> it.\n\n| figure | a\\|b |\n|---|---|\n| x | 1 (0 to 2) |\n| x | plain |\n\nWhat | is.\n"
        );
        let html = table.html();
        assert!(html.contains("<td class=\"number\">1 <small>0 to 2</small></td>"), "{html}");
        assert!(html.contains("<tr><th></th><td>plain</td></tr>"), "the name once: {html}");
        assert!(html.starts_with("<p class=\"note\">All &lt;of&gt; it.</p>"), "{html}");
    }
}
